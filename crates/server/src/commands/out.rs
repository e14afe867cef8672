use std::io::{ErrorKind, Write, stdout};

use crate::exit::Failure;

/// Prints a line, as `println!` does, and ends the command as `print_bytes` does.
macro_rules! say {
    ($($what:tt)*) => { $crate::commands::print_bytes(format!("{}\n", format_args!($($what)*)).as_bytes()) };
}
pub(crate) use say;

/// A reader that has seen enough, like `head`, is no failure: the command is done.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}
