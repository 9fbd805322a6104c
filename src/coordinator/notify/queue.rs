//! The operator queue of the platform: one JSON file that several programs write, each by atomic
//! replace. This one adds and changes its own requests, and leaves everything else as it is.
//!
//! ```json
//! {"$schema": "operator-queue-v1", "requests": [{"id": "…", "status": "pending", …}]}
//! ```
//!
//! Order rules: the folder is locked against other worktx. What stands there is read, changed and
//! written aside; then both files change places. Only if what came out is what was read does it
//! go. Otherwise somebody wrote meanwhile: theirs goes back, and all of it begins anew.
//!
//! # Limitations
//! - The folder must be there, and no part of its path may be a link: see [`Place::of`].
//! - Two other programs that write within the moment in which ours goes back, the second over what
//!   it read of ours, lose what the first wrote. A file system without `RENAME_EXCHANGE` leaves a
//!   moment between the last look and the rename.
//! - Who writes into the file instead of replacing it can lose what they write, as ever.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The word in `$schema`.
const SCHEMA: &str = "operator-queue-v1";
/// The most that the file may hold: the platform reads no larger one.
pub(super) const LIMIT: u64 = 2 << 20;
/// The mode of a file that is made here: the platform reads it as another user.
const MODE: u32 = 0o644;
/// How often it is begun anew because somebody else wrote meanwhile.
const TRIES: u32 = 16;
/// How long another worktx is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Why the queue was left as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    /// Its folder is not there.
    #[error("its folder {} is not there", .0.display())]
    NoFolder(PathBuf),
    /// A part of its path is a link.
    #[error("a part of its path is a symbolic link")]
    Link,
    /// It is a directory, a pipe, a device.
    #[error("it is no regular file")]
    NotAFile,
    /// It holds too much to be read.
    #[error("it is larger than 2 MiB")]
    TooLarge,
    /// It would hold too much to be read by the platform.
    #[error("with one more request it would be larger than 2 MiB")]
    Full,
    /// It cannot be understood.
    #[error("it is no {SCHEMA} document: {0}")]
    NotAQueue(String),
    /// Somebody wrote at every try.
    #[error("somebody else kept writing it")]
    Busy,
    /// Nothing can be written beside it without being in the way of the transaction.
    #[error(
        "it is on another file system, and a file beside it would be in the transaction's scope"
    )]
    NoRoom,
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for QueueError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::LOOP => Self::Link,
            other => Self::Io(other.into()),
        }
    }
}

/// What the file holds. What is not worktx's own stays as it was written, byte for byte.
#[derive(Debug)]
pub(super) struct Queue {
    before: Vec<(String, Box<RawValue>)>,
    requests: Vec<Box<RawValue>>,
    after: Vec<(String, Box<RawValue>)>,
}

impl Queue {
    fn empty() -> Result<Self, QueueError> {
        Self::parse(format!("{{\"$schema\": \"{SCHEMA}\"}}").as_bytes())
    }

    fn parse(bytes: &[u8]) -> Result<Self, QueueError> {
        let wrong = |why: String| QueueError::NotAQueue(why);
        let fields: Fields = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
        let mut queue = Self { before: Vec::new(), requests: Vec::new(), after: Vec::new() };
        let mut seen = false;
        for (name, value) in fields.0 {
            match name.as_str() {
                "requests" if seen => return Err(wrong("it has `requests` twice".to_owned())),
                "requests" => {
                    seen = true;
                    queue.requests = serde_json::from_str(value.get())
                        .map_err(|_| wrong("`requests` is no list".to_owned()))?;
                }
                "$schema" if serde_json::from_str::<&str>(value.get()).ok() != Some(SCHEMA) => {
                    return Err(wrong(format!("its $schema is {}", value.get())));
                }
                _ if seen => queue.after.push((name, value)),
                _ => queue.before.push((name, value)),
            }
        }
        Ok(queue)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let field = |(name, value): &(String, Box<RawValue>)| {
            format!("  {}: {}", Value::from(name.as_str()), value.get())
        };
        let requests: Vec<String> =
            self.requests.iter().map(|request| format!("    {}", request.get())).collect();
        let mut parts: Vec<String> = self.before.iter().map(field).collect();
        parts.push(if requests.is_empty() {
            "  \"requests\": []".to_owned()
        } else {
            format!("  \"requests\": [\n{}\n  ]", requests.join(",\n"))
        });
        parts.extend(self.after.iter().map(field));
        format!("{{\n{}\n}}\n", parts.join(",\n")).into_bytes()
    }

    /// The requests that can be read as such, with their place.
    pub(super) fn requests(&self) -> impl Iterator<Item = (usize, Map<String, Value>)> {
        self.requests
            .iter()
            .enumerate()
            .filter_map(|(at, raw)| Some((at, serde_json::from_str(raw.get()).ok()?)))
    }

    /// The request of an id.
    pub(super) fn find(&self, id: &str) -> Option<(usize, Map<String, Value>)> {
        self.requests().find(|(_, request)| request.get("id").and_then(Value::as_str) == Some(id))
    }

    /// Puts a request in the place of another, or at the end.
    pub(super) fn put(
        &mut self,
        at: Option<usize>,
        request: &Map<String, Value>,
    ) -> Result<(), QueueError> {
        let raw = serde_json::value::to_raw_value(request)
            .map_err(|error| QueueError::NotAQueue(error.to_string()))?;
        match at.and_then(|at| self.requests.get_mut(at)) {
            Some(place) => *place = raw,
            None => self.requests.push(raw),
        }
        Ok(())
    }
}

/// The fields of the document, in their order.
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    fields.push((name, map.next_value::<Box<RawValue>>()?));
                }
                // Nothing may follow what was read.
                match map.next_key::<IgnoredAny>()? {
                    None => Ok(Fields(fields)),
                    Some(_) => Err(A::Error::custom("more than an object")),
                }
            }
        }
        from.deserialize_map(InOrder)
    }
}

/// Where the file lies, and where a new one may be written before it takes its place.
#[derive(Debug)]
pub(super) struct Place {
    folder: OwnedFd,
    name: OsString,
    aside: PathBuf,
    beside: bool,
}

/// A file, and its attributes that a new one takes over.
struct Found {
    bytes: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
}

impl Place {
    /// Opens the folder of the file at `path`, through no link.
    ///
    /// A new file is written into `aside`, a folder of worktx's own; where that is on another file
    /// system, `beside` allows one in the folder of the queue itself.
    pub(super) fn of(path: &Path, aside: &Path, beside: bool) -> Result<Self, QueueError> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().ok_or(QueueError::NotAFile)?.to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(CWD, parent, flags, Mode::empty(), resolve) {
            Ok(folder) => Ok(Self { folder, name, aside: aside.to_owned(), beside }),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(QueueError::NoFolder(parent.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    /// Changes the queue; `edit` says whether there was anything to change. It is asked anew where
    /// somebody else wrote meanwhile.
    pub(super) fn change(
        &self,
        mut edit: impl FnMut(&mut Queue) -> Result<bool, QueueError>,
    ) -> Result<bool, QueueError> {
        let _held = self.lock()?;
        for _ in 0..TRIES {
            let before = read(&self.folder, &self.name)?;
            let mut queue = match &before {
                Some(found) => Queue::parse(&found.bytes)?,
                None => Queue::empty()?,
            };
            if !edit(&mut queue)? {
                return Ok(false);
            }
            let bytes = queue.to_bytes();
            if bytes.len() as u64 > LIMIT {
                return Err(QueueError::Full);
            }
            if self.put(&bytes, before.as_ref())? {
                return Ok(true);
            }
        }
        Err(QueueError::Busy)
    }

    /// Keeps other worktx from the queue, as long as the handle is open. Nobody waits for long.
    fn lock(&self) -> Result<OwnedFd, QueueError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own = rustix::fs::openat(&self.folder, ".", flags, Mode::empty())?;
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(own),
                Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(Errno::WOULDBLOCK) => return Err(QueueError::Busy),
                // A file system without such locks: the exchange below is still there.
                Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK) => return Ok(own),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether anything could be written: for who only asks.
    pub(super) fn is_usable(&self) -> Result<(), QueueError> {
        if let Some(found) = read(&self.folder, &self.name)? {
            Queue::parse(&found.bytes)?;
        }
        rustix::fs::accessat(&self.folder, ".", rustix::fs::Access::WRITE_OK, AtFlags::EACCESS)?;
        Ok(())
    }

    /// Puts the bytes in the place of what was read; `false` where something else stands there.
    fn put(&self, bytes: &[u8], before: Option<&Found>) -> Result<bool, QueueError> {
        let aside = rustix::fs::openat(
            CWD,
            &self.aside,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        match self.put_by(&aside, OsStr::new("operator-queue.new"), bytes, before) {
            Err(QueueError::Io(error)) if error.kind() == io::ErrorKind::CrossesDevices => {
                if !self.beside {
                    return Err(QueueError::NoRoom);
                }
                let mut name = OsString::from(".");
                name.push(&self.name);
                name.push(format!(".worktx-{}", std::process::id()));
                self.put_by(&self.folder, &name, bytes, before)
            }
            done => done,
        }
    }

    fn put_by(
        &self,
        aside: &OwnedFd,
        new: &OsStr,
        bytes: &[u8],
        before: Option<&Found>,
    ) -> Result<bool, QueueError> {
        write(aside, new, bytes, before)?;
        let live = read(&self.folder, &self.name).map(|found| found.map(|found| found.bytes));
        let done = match live {
            Ok(live) if live.as_ref() == before.map(|found| &found.bytes) => {
                self.exchange(aside, new, bytes, before)
            }
            Ok(_) => Ok(false),
            Err(error) => Err(error),
        };
        // On success the old file, else ours: it is nobody's any more.
        let gone = rustix::fs::unlinkat(aside, new, AtFlags::empty());
        let done = done?;
        if !matches!(gone, Ok(()) | Err(Errno::NOENT)) {
            tracing::warn!("a queue file was left in a folder of worktx");
        }
        rustix::fs::fsync(&self.folder)?;
        Ok(done)
    }

    fn exchange(
        &self,
        aside: &OwnedFd,
        new: &OsStr,
        bytes: &[u8],
        before: Option<&Found>,
    ) -> Result<bool, QueueError> {
        let rename = |flags| rustix::fs::renameat_with(aside, new, &self.folder, &self.name, flags);
        let Some(before) = before else {
            return match rename(RenameFlags::NOREPLACE) {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) => Ok(false),
                Err(error) => Err(error.into()),
            };
        };
        let out = || read(aside, new).map(|found| found.map(|found| found.bytes));
        let mut ours = true;
        let mut expected = before.bytes.clone();
        let mut inside = bytes.to_vec();
        for _ in 0..TRIES {
            match rename(RenameFlags::EXCHANGE) {
                Ok(()) => {}
                Err(Errno::NOENT) => return Ok(false),
                Err(Errno::INVAL | Errno::NOSYS) => {
                    rename(RenameFlags::empty())?;
                    return Ok(true);
                }
                Err(error) => return Err(error.into()),
            }
            let found = out();
            if matches!(&found, Ok(Some(found)) if *found == expected) {
                return Ok(ours);
            }
            // Somebody was faster: what they wrote goes back, whatever it is.
            ours = false;
            expected = std::mem::replace(&mut inside, found.ok().flatten().unwrap_or_default());
        }
        Err(QueueError::Busy)
    }
}

/// The file, if there is one: no link, nothing that could keep us waiting, nothing too large.
fn read(folder: impl AsFd, name: &OsStr) -> Result<Option<Found>, QueueError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags | OFlags::NOCTTY, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NXIO) => return Err(QueueError::NotAFile),
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(QueueError::NotAFile);
    }
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(QueueError::TooLarge);
    }
    Ok(Some(Found { bytes, mode: meta.mode() & 0o777, owner: (meta.uid(), meta.gid()) }))
}

/// Makes the new file, durable, with the mode and, where that is allowed, the owner of the old.
fn write(
    folder: &OwnedFd,
    name: &OsStr,
    bytes: &[u8],
    like: Option<&Found>,
) -> Result<(), QueueError> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let mut file = File::from(rustix::fs::openat(folder, name, flags, mode)?);
    if let Some(Found { owner: (user, group), .. }) = like {
        // Root writes an agent's file; anybody else has it already, or may not.
        let _ = rustix::fs::fchown(&file, Some(Uid::from_raw(*user)), Some(Gid::from_raw(*group)));
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(like.map_or(MODE, |found| found.mode)))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
