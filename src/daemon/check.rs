//! `serve --check`: asks a running server whether it is ready, over its socket.
//!
//! # Limitations
//! It asks one question and reads one answer, with the standard library.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::listen::SOCKET;
use crate::coordinator::error::Failure;
use crate::coordinator::warm;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the server of a state directory; what it said.
///
/// # Errors
/// None answers, or it is not ready.
pub fn check(state: &Path) -> Result<String, Failure> {
    let none = |error: std::io::Error| Failure::Impossible {
        message: format!("no server answers on {}: {error}", state.join(SOCKET).display()),
        hint: Some("worktx serve".to_owned()),
    };
    let answer = ask(state, "/v1/ready").map_err(none)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.1 200 ") {
        Ok(body.trim().to_owned())
    } else {
        Err(Failure::impossible(format!("the server is not ready: {}", body.trim()), "try again"))
    }
}

fn ask(state: &Path, path: &str) -> std::io::Result<String> {
    let handle = std::fs::File::open(state)?;
    let mut stream = UnixStream::connect(warm::reachable(state, &handle, SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: worktx\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
