use std::{fmt, process::ExitCode};

/// Why a command ended badly. The codes are documented in `dunlin --help` and do not change.
#[derive(Debug)]
pub(crate) enum Failure {
    /// 1: the command was understood and could not be done.
    Failed(String),
    /// 3: the configuration or a rule is not valid.
    Invalid(String),
    /// 4: the server cannot be reached, or does not know the token.
    NoServer(String),
    /// 5: a part of the server broke that only a new process makes whole again.
    Broken(String),
}

impl Failure {
    pub(crate) fn report(&self) -> ExitCode {
        let code = match self {
            Self::Failed(_) => 1,
            Self::Invalid(_) => 3,
            Self::NoServer(_) => 4,
            Self::Broken(_) => 5,
        };
        eprintln!("dunlin: {self}");
        ExitCode::from(code)
    }
}

/// Not an error type: every error becomes a failure at the edge, and nothing catches a failure.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Failed(text) | Self::Invalid(text) | Self::NoServer(text) | Self::Broken(text)) = self;
        f.write_str(text)
    }
}

/// Any error that ends a command with code 1.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(dunlin_model::chain(&error))
    }
}
