//! What a server that watches the work tree knows of it, asked for by who drives an attempt: which
//! directories are to be looked at. Without a server, who may mark the file system
//! ([`crate::git::scan::mark`]) looks at all once and sees by itself what happens afterwards. Else,
//! or where anything of the talk goes wrong, all are looked at each time.
//!
//! One connection an attempt, made before the turn and kept: nobody else can take the server's place
//! meanwhile, and a server that ends, hangs or begins anew is noticed. The server hears only the
//! process that holds the workspace's lock.
//!
//! ```text
//! driver                                  server
//! touches the root, then Ask      ──►     reads its events, watches again what was touched
//!                                 ◄──     Answer: the directories, or why it does not know
//! looks at them, writes the manifest
//! Looked                          ──►     of what was not touched since, it knows again
//! ```
//!
//! # Limitations
//! A process with the same user id may hold up the server, and then all is looked at; it cannot make
//! it forget an event.

pub mod warmup;

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::base::hex::{hex, unhex};
use crate::coordinator::place::Place;
use crate::git::config::gitconfig::GitConfig;
use crate::git::files::root::{Root, RootId};
use crate::git::manifest::snapshot::Snapshot;
use crate::git::manifest::touched::Touched;
use crate::git::scan::mark::{Ended, Mark};
use crate::git::scan::watch;
use crate::tx::settings::Scope;

/// How long an answer may take: on a busy machine it comes late, and a look at all would too.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the watch of a large tree may take to begin, where somebody waits for that.
pub const BEGINNING: Duration = Duration::from_mins(2);

/// The longest line: the names of a hundred thousand directories.
pub const LONGEST: usize = 64 << 20;

/// What a driver says, one a line, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// What is to be looked at? Wants an [`Answer`].
    Ask {
        /// Of the manifest.
        generation: u64,
        /// What else decides over what is in scope: see [`view`].
        view: String,
        /// The work tree that is meant.
        root: RootId,
        /// The descriptor by which the driver holds the workspace's lock.
        lock: i32,
    },
    /// A look is over: see [`watch::Watch::looked`].
    Looked {
        /// Of the answer; 0 where there was none.
        token: u64,
        /// As it was asked.
        view: String,
        /// It was at all.
        full: bool,
        /// The directories whose children the manifest has anew, in hex digits.
        rewritten: Vec<String>,
        /// Those of whose children it has stat data that is out of date, in hex digits.
        #[serde(default)]
        stale: Vec<String>,
    },
    /// The manifest was written anew with what was touched: see [`watch::Watch::moved_on`].
    MovedOn {
        /// The generation before.
        from: u64,
        /// As of [`Said::Looked`].
        rewritten: Vec<String>,
    },
    /// Wants an [`Answer`] when a watch has begun, or cannot.
    Begin,
}

/// What the server answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// For [`Said::Looked`]; none where nothing is watched.
    pub token: Option<u64>,
    /// What is to be looked at; none where that is not known.
    pub touched: Option<Named>,
    /// Why it is not known, in one word.
    pub why: Option<String>,
}

/// Directories, in hex digits.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Named {
    /// To be listed.
    pub listed: Vec<String>,
    /// To be looked at with everything beneath.
    pub whole: Vec<String>,
}

impl From<&Touched> for Named {
    fn from(touched: &Touched) -> Self {
        Self {
            listed: touched.directories().map(hex).collect(),
            whole: touched.wholes().map(hex).collect(),
        }
    }
}

impl Named {
    fn read(&self) -> Option<Touched> {
        let mut touched = Touched::default();
        for dir in &self.listed {
            touched.directory(unhex(dir)?);
        }
        for dir in &self.whole {
            touched.whole(unhex(dir)?);
        }
        Some(touched)
    }
}

/// The name of the socket of a work tree in the state directory.
pub fn socket(place: &Place) -> String {
    format!("watch-{}.sock", place.workspace_id)
}

/// A path of a socket in an open directory that the kernel takes: `sun_path` is 108 bytes, with a
/// zero at its end (unix(7)).
pub fn reachable(dir: &Path, handle: &std::fs::File, name: &str) -> PathBuf {
    let path = dir.join(name);
    if path.as_os_str().len() < 108 {
        return path;
    }
    PathBuf::from(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd()))
}

/// What decides over what is in scope beside the manifest and the files of the tree: captured rules,
/// the scope, and the mounts beneath the root, which come and go without an event. None where what
/// happens cannot be known.
pub fn view(git: &GitConfig, scope: &Scope, root: &Root) -> Option<String> {
    if backs_a_device(root.path()) {
        return None;
    }
    view_at_open(git, scope, root)
}

/// As [`view`], for a look at all that a mark is set for: what writes into a file behind everybody's
/// back counts when somebody looks only where something happened.
pub fn view_at_open(git: &GitConfig, scope: &Scope, root: &Root) -> Option<String> {
    let mut hash = Sha256::new();
    let mut take = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    take(&git.info_exclude.bytes);
    take(&git.excludes.bytes);
    take(&[u8::from(git.ignore_case)]);
    take(&serde_json::to_vec(scope).ok()?);
    for mount in mounts_beneath(&std::fs::read("/proc/self/mountinfo").ok()?, root.path()) {
        take(mount);
    }
    Some(hex(&hash.finalize()))
}

/// Whether a file beneath the root is behind a loop device: the kernel writes into it, and tells
/// nobody.
fn backs_a_device(root: &Path) -> bool {
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.filter(|device| device.file_name().as_encoded_bytes().starts_with(b"loop")).any(
        |device| {
            let file = std::fs::read(device.path().join("loop/backing_file")).unwrap_or_default();
            Path::new(OsStr::from_bytes(&file)).starts_with(root)
        },
    )
}

/// The lines of mounts beneath a directory: `proc_pid_mountinfo(5)`, the fifth field, in which white
/// space and backslashes are octal.
fn mounts_beneath<'a>(table: &'a [u8], root: &Path) -> Vec<&'a [u8]> {
    let mut prefix = Vec::new();
    for byte in root.as_os_str().as_encoded_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => prefix.extend(format!("\\{byte:03o}").into_bytes()),
            other => prefix.push(*other),
        }
    }
    prefix.push(b'/');
    let is_beneath = |line: &&[u8]| {
        line.split(|b| *b == b' ').nth(4).is_some_and(|point| point.starts_with(&prefix))
    };
    table.split(|b| *b == b'\n').filter(is_beneath).collect()
}

/// A mark of this process's own: what a server would know.
#[derive(Debug)]
struct Own {
    mark: Mark,
    /// How all was looked at since the mark was set; none as long as it was not.
    view: Option<String>,
}

/// What was asked, and is to be told when the look is over.
#[derive(Debug)]
pub struct Asked {
    /// What to look at; `None` is all.
    pub touched: Option<Touched>,
    token: Option<u64>,
    view: String,
}

/// The talk with a server; where there is none, what this process sees itself.
#[derive(Debug, Default)]
pub struct Warmth {
    stream: Option<UnixStream>,
    own: Option<Own>,
    ended: Option<Ended>,
    lock: i32,
    /// For one thing that is said or heard, all of it.
    patience: Duration,
    /// What was heard and not yet understood.
    said: Vec<u8>,
}

impl Warmth {
    /// Finds the server of a work tree, if one watches it.
    ///
    /// `lock` is the descriptor by which this process holds the workspace's lock.
    pub fn connect(place: &Place, lock: i32) -> Self {
        Self::connect_for(place, lock, PATIENCE)
    }

    /// As [`Warmth::connect`], for who waits until the watch of a large tree has begun.
    pub fn connect_patiently(place: &Place, lock: i32) -> Self {
        Self::connect_for(place, lock, BEGINNING)
    }

    fn connect_for(place: &Place, lock: i32, patience: Duration) -> Self {
        let opened = std::fs::File::open(&place.state).and_then(|handle| {
            let path = reachable(&place.state, &handle, &socket(place));
            // One that nobody accepts at would be waited for without an end.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&stream, &SocketAddrUnix::new(&path)?)?;
            Ok(UnixStream::from(stream))
        });
        Self { stream: opened.ok(), own: None, ended: None, lock, patience, said: Vec::new() }
    }

    /// Where there is no server: sees by itself what happens from now on, if it may.
    pub fn see_for_itself(&mut self, root: &Root) {
        if self.stream.is_none() {
            match Mark::set(root) {
                Ok(mark) => self.own = Some(Own { mark, view: None }),
                Err(error) => tracing::debug!(%error, "no mark on the file system"),
            }
        }
    }

    /// Whether what is known is a server's.
    pub const fn is_of_a_server(&self) -> bool {
        self.stream.is_some()
    }

    /// What is to be looked at of a tree that is to be as `snapshot` says, or, at the beginning of an
    /// attempt, as the manifest of this generation.
    pub fn ask(
        &mut self,
        root: &Root,
        generation: u64,
        snapshot: Option<&Snapshot>,
        view: Option<String>,
    ) -> Asked {
        let cold = Asked { touched: None, token: None, view: view.clone().unwrap_or_default() };
        let Some(view) = view else { return cold };
        if let (Some(own), Some(snapshot)) = (&mut self.own, snapshot) {
            let touched = own.mark.touched(snapshot).filter(|_| own.view.as_ref() == Some(&view));
            let directories = touched.as_ref().map(Touched::len);
            tracing::debug!(directories, "by the mark on the file system");
            return Asked { touched, ..cold };
        }
        if self.stream.is_none() {
            return cold;
        }
        if let Err(error) = watch::touch_root(root) {
            tracing::debug!(%error, "the root cannot be touched: all is looked at");
            return cold;
        }
        let said = Said::Ask { generation, view: view.clone(), root: root.id(), lock: self.lock };
        let Some(answer) = self.say(&said).and_then(|()| self.hear()) else { return cold };
        let touched = answer.touched.as_ref().and_then(Named::read);
        match (&touched, &answer.why) {
            (Some(touched), _) => tracing::debug!(directories = touched.len(), "a bounded look"),
            (None, why) => tracing::debug!(why, "a look at all"),
        }
        Asked { touched, token: answer.token, view }
    }

    /// The look that was asked for is over, and the manifest says what it found, but for stat data in
    /// the directories of `stale`.
    pub fn looked(&mut self, asked: &Asked, full: bool, rewritten: &[Vec<u8>], stale: &[Vec<u8>]) {
        if let Some(own) = self.own.as_mut().filter(|_| full && !asked.view.is_empty()) {
            match own.mark.looked() {
                Ok(()) => own.view = Some(asked.view.clone()),
                Err(error) => tracing::debug!(%error, "no mark on the file system"),
            }
        }
        // Without a token too: now there is a manifest that a watch can begin with.
        let token = asked.token.unwrap_or(0);
        let (rewritten, stale) = (named(rewritten), named(stale));
        self.say(&Said::Looked { token, view: asked.view.clone(), full, rewritten, stale });
    }

    /// The manifest was written anew at the end of an attempt.
    pub fn moved_on(&mut self, from: u64, rewritten: &[Vec<u8>]) {
        self.say(&Said::MovedOn { from, rewritten: named(rewritten) });
    }

    /// Waits until a watch that was about to begin has begun.
    pub fn wait_for_begin(&mut self) {
        self.say(&Said::Begin).and_then(|()| self.hear());
    }

    /// No more looks are to come.
    pub fn rest(&mut self) {
        if let Some(own) = self.own.take() {
            self.ended = Some(own.mark.end());
        }
    }

    /// Whether there is anybody to ask.
    pub const fn may_know(&self) -> bool {
        self.stream.is_some() || self.own.is_some()
    }

    fn say(&mut self, said: &Said) -> Option<()> {
        let mut line = serde_json::to_vec(said).ok()?;
        line.push(b'\n');
        let until = Instant::now() + self.patience;
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            let stream = self.stream.as_mut()?;
            match stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_for(PollFlags::OUT, until)?;
                }
                Err(error) => return self.over(&error),
            }
        }
        Some(())
    }

    /// One line, within the patience for all of it.
    fn hear(&mut self) -> Option<Answer> {
        let until = Instant::now() + self.patience;
        loop {
            if let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.said.drain(..=end).collect();
                return match serde_json::from_slice(&line) {
                    Ok(answer) => Some(answer),
                    Err(error) => self.over(&error.into()),
                };
            }
            let mut buffer = [0; 16 << 10];
            match self.stream.as_mut()?.read(&mut buffer) {
                Ok(0) => return self.over(&io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.said.len() > LONGEST => {
                    return self.over(&io::ErrorKind::FileTooLarge.into());
                }
                Ok(count) => self.said.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_for(PollFlags::IN, until)?;
                }
                Err(error) => return self.over(&error),
            }
        }
    }

    fn wait_for(&mut self, what: PollFlags, until: Instant) -> Option<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return self.over(&io::ErrorKind::TimedOut.into());
        }
        let left = Timespec::try_from(left).ok()?;
        let polled = poll(&mut [PollFd::new(self.stream.as_ref()?, what)], Some(&left));
        match polled {
            Ok(_) | Err(Errno::INTR) => Some(()),
            Err(errno) => self.over(&errno.into()),
        }
    }

    /// An answer that comes late would be taken for the next one.
    fn over<T>(&mut self, error: &io::Error) -> Option<T> {
        tracing::debug!(%error, "nothing more is asked of the server");
        self.stream = None;
        None
    }
}

fn named(dirs: &[Vec<u8>]) -> Vec<String> {
    dirs.iter().map(|dir| hex(dir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_through_in_any_bytes() {
        let mut touched = Touched::default();
        touched.directory("");
        touched.directory(b"a\xff/b\n".as_slice());
        touched.whole("c");
        let named = Named::from(&touched);
        assert_eq!(named.read().as_ref(), Some(&touched));
        let odd = Named { listed: vec!["6".to_owned()], ..Named::default() };
        assert_eq!((odd.read(), unhex("zz")), (None, None));
    }

    #[test]
    fn mounts_are_those_beneath() {
        let table = b"1 0 8:1 / / rw - ext4 a rw\n2 1 0:5 / /a\\040b/c rw - tmpfs b rw\n\
            3 1 0:6 / /a\\040bc rw - tmpfs c rw\n4 2 0:7 / /a\\040b/c/d rw - tmpfs d rw\n";
        let found = mounts_beneath(table, Path::new("/a b"));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with(b"2 ") && found[1].starts_with(b"4 "));
    }

    #[test]
    fn nobody_there_is_a_look_at_all() {
        let dir = tempfile::tempdir().expect("made");
        let place = Place {
            state: dir.path().to_owned(),
            local: dir.path().to_owned(),
            workspace_id: "main".to_owned(),
        };
        let mut warmth = Warmth::connect(&place, 0);
        assert!(!warmth.may_know());
        let root = Root::open(dir.path()).expect("opened");
        assert!(warmth.ask(&root, 1, None, Some("view".to_owned())).touched.is_none());
    }
}
