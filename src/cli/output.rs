//! Printing: data on stdout, talk on stderr. A reader that went away is no error.
//!
//! # Limitations
//! A full disk behind stdout is an error that ends the command.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::coordinator::error::Failure;

/// Whether the reader of stdout has gone: nothing more has to be written.
fn unless_closed(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Failure::io("writing to standard output")),
    }
}

/// Prints text on stdout.
pub fn print(text: &str) -> Result<(), Failure> {
    write(|out| out.write_all(text.as_bytes()))
}

/// Prints one document on stdout.
pub fn json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document).map_err(Failure::bug)?;
    print(&(text + "\n"))
}

/// Writes to stdout, buffered.
pub fn write(
    writing: impl FnOnce(&mut io::BufWriter<io::StdoutLock<'static>>) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = writing(&mut out).and_then(|()| out.flush());
    // What could not be written would be tried again when the buffer goes.
    drop(out.into_parts());
    unless_closed(written)
}

/// Says something on stderr. Nobody can be told where that fails.
pub fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
