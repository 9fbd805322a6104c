//! What the kernel would do with a program file: its format, its `#!` line, what that leads to.
//!
//! The line is read as `fs/binfmt_script.c` reads it: within the first 256 bytes, one interpreter
//! and at most one argument, no quotes. `env` is followed one step further, since
//! `#!/usr/bin/env python3` says nothing about Python otherwise.
//!
//! # Limitations
//! Formats that `binfmt_misc` adds are not known: such a file counts as one without a format. The
//! dynamic loader and the libraries of an interpreter are not looked at.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, OFlags};
use sha2::{Digest as _, Sha256};

use crate::base::clock;
use crate::base::hex::hex;
use crate::tx::post_check::{Interpreter, Stamp, Unrunnable};

/// How many bytes of a file the kernel looks at (`BINPRM_BUF_SIZE`).
const HEAD: usize = 256;
/// How many interpreters may stand before one another; the kernel gives up after that many.
const DEPTH: usize = 5;
/// Bytes that a post-check may have: it is held in memory while it is captured.
const LIMIT: u64 = 64 << 20;
/// A stamp proves nothing where the file changed so shortly before it was looked at: another
/// change could hide behind the same time. Nanoseconds; kernel ticks are 10 ms or less.
const RACY_NS: i64 = 1_000_000_000;

/// Where names are looked up from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup<'a> {
    /// The directory in which the program will run.
    pub(super) cwd: &'a Path,
    /// `PATH`.
    pub(super) search_path: &'a OsStr,
    /// Interpreters whose digest is known already, by their stamp.
    pub(super) known: &'a [Interpreter],
}

/// A program file that can be run, read.
#[derive(Debug)]
pub(super) struct Program {
    /// Its path after all links.
    pub(super) resolved: PathBuf,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// Reads a program file whole. Never blocks on what is no regular file.
pub(super) fn read(path: &Path) -> Result<Program, Unrunnable> {
    let (file, size) = open(path)?;
    if size > LIMIT {
        return Err(Unrunnable::TooLarge { bytes: size, limit: LIMIT });
    }
    let mut bytes = Vec::new();
    let read = (&file).take(LIMIT + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if read as u64 > LIMIT {
        return Err(Unrunnable::TooLarge { bytes: read as u64, limit: LIMIT });
    }
    let resolved = path.canonicalize().map_err(unreadable)?;
    Ok(Program { resolved, bytes })
}

/// SHA-256 in hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The interpreters of a program that starts with `head`, outermost first; none for a binary.
pub(super) fn interpreters(
    head: &[u8],
    lookup: Lookup<'_>,
) -> Result<Vec<Interpreter>, Unrunnable> {
    let mut found = Vec::new();
    follow(head, lookup, &mut found)?;
    Ok(found)
}

/// A program by its path, as an interpreter (`/bin/sh` for a command), with its own interpreters.
pub(super) fn program(name: &str, lookup: Lookup<'_>) -> Result<Vec<Interpreter>, Unrunnable> {
    let mut found = Vec::new();
    let head = push(name.as_bytes(), &lookup.cwd.join(name), lookup, &mut found)?;
    follow(&head, lookup, &mut found)?;
    Ok(found)
}

fn follow(head: &[u8], lookup: Lookup<'_>, found: &mut Vec<Interpreter>) -> Result<(), Unrunnable> {
    let (name, argument) = match format(head) {
        Format::Elf => return Ok(()),
        Format::None => return Err(Unrunnable::NoFormat),
        Format::Script { interpreter, argument } => (interpreter, argument),
    };
    let inner = push(name, &lookup.cwd.join(OsStr::from_bytes(name)), lookup, found)?;
    let nameless = |error, name: &[u8]| match error {
        Unrunnable::NoFormat => no_interpreter(name),
        other => other,
    };
    let is_env = name.rsplit(|b| *b == b'/').next() == Some(b"env");
    let Some(target) = argument.filter(|_| is_env).and_then(env_target) else {
        return follow(&inner, lookup, found).map_err(|error| nameless(error, name));
    };
    follow(&inner, lookup, found).map_err(|error| nameless(error, name))?;
    let path = search(&target, lookup).ok_or_else(|| no_interpreter(&target))?;
    let inner = push(&target, &path, lookup, found)?;
    match follow(&inner, lookup, found) {
        // `env` starts it as a shell would: what has no format is given to `sh`.
        Err(Unrunnable::NoFormat) => Ok(()),
        other => other,
    }
}

/// Adds an interpreter, and gives back its head.
fn push(
    name: &[u8],
    path: &Path,
    lookup: Lookup<'_>,
    found: &mut Vec<Interpreter>,
) -> Result<Vec<u8>, Unrunnable> {
    let missing = |_| no_interpreter(name);
    if found.len() >= DEPTH {
        return Err(no_interpreter(name));
    }
    let path = path.canonicalize().map_err(|_| no_interpreter(name))?;
    let (mut file, _) = match open(&path) {
        // It runs although nobody may read it (mode 0711): by its stamp alone.
        Err(Unrunnable::Unreadable { .. }) if runs(&path) => {
            let stamp = std::fs::metadata(&path).map_err(|_| no_interpreter(name))?;
            found.push(interpreter(name, path, String::new(), stamp_of(&stamp)));
            return Ok(b"\x7fELF".to_vec());
        }
        opened => opened.map_err(missing)?,
    };
    let stamp = stamp_of(&file.metadata().map_err(unreadable)?);
    let known = lookup.known.iter().find(|k| k.path == path && k.stamp == stamp);
    let mut head = Vec::with_capacity(HEAD);
    (&file).take(HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
    let sha256 = match known {
        Some(known) if stamp.inode != 0 => known.sha256.clone(),
        _ => hash(&head, &mut file).map_err(unreadable)?,
    };
    found.push(interpreter(name, path, sha256, stamp));
    Ok(head)
}

fn interpreter(name: &[u8], path: PathBuf, sha256: String, stamp: Stamp) -> Interpreter {
    Interpreter { named: String::from_utf8_lossy(name).into_owned(), path, sha256, stamp }
}

/// Opens a program file without blocking, and checks that it may be run.
fn open(path: &Path) -> Result<(File, u64), Unrunnable> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC).bits();
    let flags = i32::try_from(flags).expect("flags of open are an int");
    // Looked at before it is opened: a socket cannot be, and would give an odd error.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Unrunnable::NotAFile);
    }
    if !runs(path) {
        return Err(Unrunnable::NotExecutable);
    }
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { Err(Unrunnable::NotAFile) }
}

fn runs(path: &Path) -> bool {
    rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

#[expect(clippy::needless_pass_by_value, reason = "the form of map_err")]
fn unreadable(error: io::Error) -> Unrunnable {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unrunnable::Missing,
        _ => Unrunnable::Unreadable { error: error.to_string() },
    }
}

fn no_interpreter(name: &[u8]) -> Unrunnable {
    Unrunnable::NoInterpreter { named: String::from_utf8_lossy(name).into_owned() }
}

/// How a file looks. All zero where it changed just now, so that it equals no file's stamp.
fn stamp_of(metadata: &std::fs::Metadata) -> Stamp {
    let ns = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    let ctime_ns = ns(metadata.ctime(), metadata.ctime_nsec());
    if clock::file_clock_ns().saturating_sub(ctime_ns) < RACY_NS {
        return Stamp { inode: 0, size: 0, mtime_ns: 0, ctime_ns: 0 };
    }
    Stamp {
        inode: metadata.ino(),
        size: metadata.len(),
        mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
        ctime_ns,
    }
}

fn hash(head: &[u8], rest: &mut File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(head);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// What the first bytes of a file say.
#[derive(Debug, PartialEq, Eq)]
enum Format<'a> {
    Elf,
    Script { interpreter: &'a [u8], argument: Option<&'a [u8]> },
    None,
}

fn format(head: &[u8]) -> Format<'_> {
    if head.starts_with(b"\x7fELF") {
        return Format::Elf;
    }
    let Some(rest) = head[..head.len().min(HEAD)].strip_prefix(b"#!") else { return Format::None };
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let line = match rest.iter().position(|b| *b == b'\n') {
        Some(end) => &rest[..end],
        None if head.len() < HEAD => rest,
        // No line end within what the kernel reads: fine only where the name itself ends there.
        None => {
            let name = rest.iter().position(|b| !blank(b)).map_or(&rest[..0], |at| &rest[at..]);
            if !name.iter().any(|b| blank(b) || *b == 0) {
                return Format::None;
            }
            rest
        }
    };
    let line = trim(line, blank);
    let line = line.split(|b| *b == 0).next().unwrap_or_default();
    if line.is_empty() {
        return Format::None;
    }
    match line.iter().position(blank) {
        None => Format::Script { interpreter: line, argument: None },
        Some(end) => {
            let argument = trim(&line[end..], blank);
            Format::Script {
                interpreter: &line[..end],
                argument: (!argument.is_empty()).then_some(argument),
            }
        }
    }
}

fn trim(line: &[u8], blank: impl Fn(&u8) -> bool) -> &[u8] {
    let start = line.iter().position(|b| !blank(b)).unwrap_or(line.len());
    let end = line.iter().rposition(|b| !blank(b)).map_or(start, |at| at + 1);
    &line[start..end]
}

/// The program that `env` would start; `None` where its argument is an option not known here.
///
/// `env` gets one argument: without `-S` all of it is the name of the program.
fn env_target(argument: &[u8]) -> Option<Vec<u8>> {
    let split = argument.strip_prefix(b"-S").or_else(|| argument.strip_prefix(b"--split-string="));
    let Some(words) = split else {
        return (!argument.starts_with(b"-")).then(|| argument.to_vec());
    };
    let mut words = words.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    let word = words.find(|w| !w.contains(&b'=') && !matches!(*w, b"-i" | b"--" | b"-"))?;
    (!word.starts_with(b"-")).then(|| word.to_vec())
}

/// A program by `PATH`, as `execvp` finds it.
fn search(name: &[u8], lookup: Lookup<'_>) -> Option<PathBuf> {
    let usable = |path: PathBuf| (path.is_file() && runs(&path)).then_some(path);
    if name.contains(&b'/') {
        return usable(lookup.cwd.join(OsStr::from_bytes(name)));
    }
    lookup.search_path.as_bytes().split(|b| *b == b':').find_map(|dir| {
        let mut path = lookup.cwd.join(OsStr::from_bytes(dir));
        path.push(OsString::from_vec(name.to_vec()));
        usable(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script<'a>(interpreter: &'a str, argument: Option<&'a str>) -> Format<'a> {
        Format::Script {
            interpreter: interpreter.as_bytes(),
            argument: argument.map(str::as_bytes),
        }
    }

    #[test]
    fn the_line_is_read_as_the_kernel_reads_it() {
        for (head, expected) in [
            ("#!/bin/sh\necho", script("/bin/sh", None)),
            ("#!/bin/sh", script("/bin/sh", None)),
            ("#! \t/bin/sh -eu \t\n", script("/bin/sh", Some("-eu"))),
            ("#!/usr/bin/env  python3 -u\n", script("/usr/bin/env", Some("python3 -u"))),
            ("#!/bin/sh\r\n", script("/bin/sh\r", None)),
            ("#!/bin/sh\0x\n", script("/bin/sh", None)),
            ("#!\n/bin/sh", Format::None),
            ("#!   ", Format::None),
            ("echo hello\n", Format::None),
            ("", Format::None),
            ("\x7fELF...", Format::Elf),
        ] {
            assert_eq!(format(head.as_bytes()), expected, "{head:?}");
        }
        let long = format!("#!/{}\n", "x".repeat(300));
        assert_eq!(format(long.as_bytes()), Format::None, "the kernel sees no end of the name");
        let long = format!("#!/bin/sh {}\n", "x".repeat(300));
        assert!(matches!(format(long.as_bytes()), Format::Script { interpreter: b"/bin/sh", .. }));
    }

    #[test]
    fn env_gets_one_argument_unless_it_splits() {
        let target = |argument: &str| env_target(argument.as_bytes());
        assert_eq!(target("python3"), Some(b"python3".to_vec()));
        assert_eq!(target("python3 -u"), Some(b"python3 -u".to_vec()));
        assert_eq!(target("-S python3 -u"), Some(b"python3".to_vec()));
        assert_eq!(target("-S -i A=1 python3"), Some(b"python3".to_vec()));
        assert_eq!(target("-u NAME"), None);
    }
}
