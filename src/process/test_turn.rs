//! A hidden entry for tests: runs one command as the coordinator would, without a workspace.
//!
//! `worktx __test-turn SOCKET RECORD_DIR OPTIONS -- COMMAND…` sends one JSON document a line to
//! the socket: the record, then the outcome. Options are JSON: `timeout_ms`, `grace_ms`,
//! `bound_ms`, `tail`, `terminal`, `abandon`, `keep`
//! (a file to lock and keep open).
//!
//! # Limitations
//! Debug builds only.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Bounds, Command, Output, Requests, Signals, Stdin, find_program, start};

type AnyError = Box<dyn std::error::Error>;

/// To be called in `main` after [`super::run_supervisor_if_asked`]; does not return where asked.
#[expect(clippy::disallowed_methods, reason = "a process of its own, for tests alone")]
pub fn run_if_asked() {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|word| word == "__test-turn") {
        let code = match run(&args[2..]) {
            Ok(()) => 0,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "test-turn: {error}");
                70
            }
        };
        std::process::exit(code);
    }
}

fn run(args: &[OsString]) -> Result<(), AnyError> {
    let [socket, record_dir, options, _, argv @ ..] = args else { return Err("usage".into()) };
    let mut socket = UnixStream::connect(socket)?;
    let options: Value = serde_json::from_str(options.to_str().ok_or("options")?)?;
    let millis = |name: &str| options[name].as_u64().map(Duration::from_millis);
    let signals = Signals::install()?;
    let cwd = std::env::current_dir()?;
    let name = argv.first().ok_or("no command")?;
    let program = find_program(name, &cwd, std::env::var_os("PATH").as_deref())
        .unwrap_or_else(|_| PathBuf::from("/nowhere/at/all"));
    let tail = options["tail"].as_u64().and_then(|tail| usize::try_from(tail).ok());
    let command = Command {
        program,
        argv: argv.to_vec(),
        cwd,
        env: std::env::vars_os().collect(),
        stdin: Stdin::Inherit,
        output: tail.map_or(Output::Inherit, |bytes| Output::KeepTail { bytes }),
        cgroup: options["cgroup"].as_bool().unwrap_or(true),
        terminal: options["terminal"].as_bool().unwrap_or(false),
    };
    let kept = options["keep"].as_str().map(std::fs::File::create).transpose()?;
    kept.as_ref().map(std::fs::File::try_lock).transpose()?;
    let handles: Vec<_> = kept.iter().map(|file| file.as_fd()).collect();
    let waiting = start(&command, &PathBuf::from(record_dir), &handles)?;
    writeln!(socket, "{}", serde_json::to_string(waiting.record())?)?;
    if options["abandon"].as_bool().unwrap_or(false) {
        let death = waiting.abandon().map(|proof| proof.how());
        writeln!(socket, "{}", json!({ "death": death.map_err(|error| error.0) }))?;
        return Ok(());
    }
    let standard = Bounds::default();
    let bounds = Bounds {
        timeout: millis("timeout_ms"),
        settle_by: None,
        grace: millis("grace_ms").unwrap_or(standard.grace),
        proof_bound: millis("bound_ms").unwrap_or(standard.proof_bound),
        ..standard
    };
    let over = waiting.run(&bounds, &mut Requests { signals, poll: &mut || None });
    let outcome = json!({
        "result": over.result,
        "ended_by": over.ended_by,
        "death": over.death.map(|proof| proof.how()).map_err(|error| error.0),
        "tail": String::from_utf8_lossy(&over.output_tail),
        "truncated": over.truncated,
        "exec_error": over.exec_error,
        "supervisor_lost": over.supervisor_lost,
    });
    writeln!(socket, "{outcome}")?;
    Ok(())
}
