//! One process, from its start to its end: wall time and peak memory; and what a durable rename
//! costs here.
//!
//! # Limitations
//! The peak of a process is the largest of its own and of the largest child that it waited for,
//! as the kernel counts (`wait4(2)`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a process took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    /// From before its start to when it was reaped.
    pub(crate) wall: Duration,
    /// Peak resident memory, in KiB.
    pub(crate) peak_kib: u64,
    /// How it exited; -1 where a signal ended it.
    pub(crate) code: i32,
}

impl Took {
    /// One after the other.
    pub(crate) fn and(self, next: Self) -> Self {
        Self {
            wall: self.wall + next.wall,
            peak_kib: self.peak_kib.max(next.peak_kib),
            code: next.code,
        }
    }
}

/// Runs a command without output, to its end.
pub(crate) fn run(command: &mut Command) -> io::Result<Took> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Nobody's own configuration or post-check.
    command.env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
    let start = Instant::now();
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: plain numbers, for which all zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both point to live values of the types that the call writes; `child` is not waited
    // for anywhere else.
    let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let wall = start.elapsed();
    if reaped != pid {
        return Err(io::Error::last_os_error());
    }
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 };
    Ok(Took { wall, peak_kib: usage.ru_maxrss.unsigned_abs(), code })
}

/// How long `count` durable renames take: create, fsync, rename, fsync of the directory.
pub(crate) fn durable_renames(dir: &Path, count: u32) -> io::Result<Duration> {
    let (new, path) = (dir.join("durable.new"), dir.join("durable"));
    let start = Instant::now();
    for _ in 0..count {
        let mut file = File::create(&new)?;
        file.write_all(&[b'x'; 200])?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()?;
    }
    Ok(start.elapsed())
}

/// The median.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
