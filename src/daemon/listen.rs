//! Where the server listens: a socket in each state directory, which only its owner may use, and
//! an address if one is asked for, which wants a token.
//!
//! # Limitations
//! The path of a socket is at most 107 bytes to the kernel; where a state directory is deeper the
//! server makes and uses it by way of an open directory, and a client has to do the same.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::Options;
use super::http::{self, Access};
use super::server::Server;
use crate::coordinator::error::Failure;
use crate::coordinator::warm;

/// The name of the socket in a state directory.
pub(super) const SOCKET: &str = "serve.sock";
/// The shortest token that is taken, in bytes.
const SHORTEST_TOKEN: usize = 16;

/// A place where requests come in.
pub(super) enum Listening {
    /// A socket file.
    Unix(UnixListener, PathBuf),
    /// An address, with the token that is wanted.
    Tcp(TcpListener, SocketAddr, Vec<u8>),
}

impl Listening {
    /// For people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Unix(_, path) => path.display().to_string(),
            Self::Tcp(_, address, _) => format!("http://{address}"),
        }
    }
}

/// Opens all of them.
pub(super) async fn bind(server: &Server, options: &Options) -> Result<Vec<Listening>, Failure> {
    let mut all = Vec::new();
    for state in &server.states {
        let path = state.path.join(SOCKET);
        let listener = bind_unix(&state.path)
            .map_err(Failure::io(format!("listening on {}", path.display())))?;
        all.push(Listening::Unix(listener, path));
    }
    let Some(address) = options.listen else { return Ok(all) };
    if !address.ip().is_loopback() && !options.anywhere {
        return Err(Failure::impossible(
            format!("{address} can be reached from other machines, and nothing is encrypted"),
            "listen on 127.0.0.1, or say --listen-anywhere and put TLS in front of it",
        ));
    }
    let file = options.token_file.as_ref().ok_or_else(|| {
        Failure::Usage(
            "--listen wants --token-file: whoever reaches the port may run commands".into(),
        )
    })?;
    let token = token(file)?;
    let listener =
        TcpListener::bind(address).await.map_err(Failure::io(format!("listening on {address}")))?;
    let address = listener.local_addr().map_err(Failure::io("asking for the port"))?;
    all.push(Listening::Tcp(listener, address, token));
    Ok(all)
}

fn token(file: &Path) -> Result<Vec<u8>, Failure> {
    let reading = || Failure::io(format!("reading the token in {}", file.display()));
    let meta = std::fs::metadata(file).map_err(reading())?;
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(Failure::impossible(
            format!("{} may be read by others", file.display()),
            format!("chmod 600 {}", file.display()),
        ));
    }
    let text = std::fs::read(file).map_err(reading())?;
    let token = text.trim_ascii();
    if token.len() < SHORTEST_TOKEN {
        return Err(Failure::impossible(
            format!("the token in {} is shorter than {SHORTEST_TOKEN} bytes", file.display()),
            format!("openssl rand -hex 32 >{}", file.display()),
        ));
    }
    Ok(token.to_vec())
}

/// The lock of the state directory is held: whatever socket is there is a dead server's.
fn bind_unix(state: &Path) -> io::Result<UnixListener> {
    let handle = std::fs::File::open(state)?;
    let path = warm::reachable(state, &handle, SOCKET);
    match std::fs::remove_file(state.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Nobody else gets into the directory, which is the owner's alone; the mode is for who looks.
    std::fs::set_permissions(state.join(SOCKET), std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers on all of them; each task ends with an error, or when the server goes.
pub(super) fn serve(sockets: Vec<Listening>, server: &Arc<Server>) -> JoinSet<io::Result<()>> {
    let mut tasks = JoinSet::new();
    for socket in sockets {
        let server = Arc::clone(server);
        match socket {
            Listening::Unix(listener, _) => {
                let router = http::router(server, Access::Owner);
                tasks.spawn(async move { axum::serve(listener, router).await });
            }
            Listening::Tcp(listener, _, token) => {
                let router = http::router(server, Access::Token(token));
                tasks.spawn(async move { axum::serve(listener, router).await });
            }
        }
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_private_and_long() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("token");
        let write = |text: &str, mode| {
            std::fs::write(&file, text)?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))
        };
        write("0123456789abcdef\n", 0o600)?;
        assert_eq!(token(&file).expect("taken"), b"0123456789abcdef");
        write("0123456789abcdef\n", 0o640)?;
        assert!(token(&file).is_err());
        write("short\n", 0o600)?;
        assert!(token(&file).is_err());
        Ok(())
    }
}
