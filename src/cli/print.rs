//! Printing that survives a reader who has gone.
//!
//! # Limitations
//! A closed pipe ends the printing, not the program.

use std::io::Write as _;

use serde::Serialize;

use crate::coordinator::error::Failure;

fn to_stdout(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::io("writing to standard output")(error))
        }
        _ => Ok(()),
    }
}

/// A document.
pub(super) fn json<T: Serialize>(document: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(document).map_err(Failure::bug)?;
    to_stdout(&(text + "\n"))
}

/// Data for people or programs, on standard output.
pub(super) fn data(text: &str) -> Result<(), Failure> {
    to_stdout(text)
}

/// Talk, on standard error.
pub(super) fn talk(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
