use std::{net::TcpListener, path::PathBuf, process::Command, sync::OnceLock};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dev/services/postgres.sh");

/// It ends with the test process.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) port: u16,
    dir: PathBuf,
}

impl Server {
    /// A server of one's own.
    pub(crate) fn start() -> Self {
        let server = Self::at(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        server.start_again();
        server
    }

    /// One whose port is known before it starts.
    pub(crate) fn at(port: u16) -> Self {
        Self { port, dir: tempfile::tempdir().unwrap().keep() }
    }

    pub(crate) fn start_again(&self) {
        let owner = std::process::id().to_string();
        self.script(&["start", &self.port.to_string(), self.dir.to_str().unwrap(), &owner]);
        self.script(&["ready", &self.port.to_string()]);
    }

    /// As a crash would.
    pub(crate) fn crash(&self) {
        self.script(&["kill", self.dir.to_str().unwrap()]);
    }

    pub(crate) fn freeze(&self) {
        self.script(&["freeze", self.dir.to_str().unwrap()]);
    }

    pub(crate) fn thaw(&self) {
        self.script(&["thaw", self.dir.to_str().unwrap()]);
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://dunlin@127.0.0.1:{}/postgres", self.port)
    }

    /// What its certificate is checked by.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.join("server.crt")
    }

    fn script(&self, arguments: &[&str]) {
        let done = Command::new(SCRIPT).args(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// The one for all tests that leave it running.
pub(crate) fn url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| std::env::var("DUNLIN_TEST_POSTGRES").unwrap_or_else(|_| Server::start().url()))
}
