//! From system calls to changes of a model: which file, which directory, which bytes.
//!
//! What a call means is looked up as it returns, while the thread that made it is stopped: files
//! and directories are known by device and inode, the bytes are read from the caller's memory.
//!
//! # Limitations
//! A file beneath the root that is written through a shared mapping, by holes punched into it or
//! by `io_uring` is an error: it cannot be recorded. Two processes that change one name at the same
//! time would be recorded in the order in which their calls returned.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use bstr::BString;
use libc::c_long;

use crate::model::{Id, Kind, Model, Op, Place, ROOT};
use crate::tracer::{self, Call, Ended, Then, Watcher};

/// How many bytes a path has at most.
const PATH_MAX: usize = 4096;

/// A recording of everything that changes files beneath a root.
pub struct Recorder {
    root: PathBuf,
    device: u64,
    model: Model,
    /// Which number an inode has; the latest, since inode numbers are used again.
    known: HashMap<u64, Id>,
    /// What it began with.
    pub initial: Vec<Op>,
    /// Everything since.
    pub ops: Vec<Op>,
    /// Files that a git program made.
    pub made_by_git: Vec<Id>,
    answer: Option<(u64, u64)>,
    failed: Option<io::Error>,
}

impl Watcher for Recorder {
    fn returned(&mut self, call: &Call) -> Then {
        match self.saw(call) {
            Ok(()) => Then::GoOn,
            Err(error) => {
                self.failed = Some(io::Error::other(format!("{call:?}: {error}")));
                Then::Stop
            }
        }
    }
}

impl Recorder {
    /// Looks at what stands beneath `root`; all of it counts as durable.
    pub fn new(root: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(root)?;
        let mut recorder = Self {
            root: root.to_owned(),
            device: meta.dev(),
            model: Model::new(meta.mode() & 0o7777),
            known: HashMap::from([(meta.ino(), ROOT)]),
            initial: Vec::new(),
            ops: Vec::new(),
            made_by_git: Vec::new(),
            answer: None,
            failed: None,
        };
        let mut todo = vec![(root.to_owned(), ROOT)];
        while let Some((folder, dir)) = todo.pop() {
            for path in fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())) {
                let path: PathBuf = path.map_err(|e: io::Error| e)?;
                let meta = fs::symlink_metadata(&path)?;
                let name = path.file_name().expect("has one").as_bytes();
                let at = (dir, BString::from(name));
                if let Some(id) = recorder.known.get(&meta.ino()).copied() {
                    recorder.change(Op::Link { id, at });
                    continue;
                }
                let id = recorder.make(&meta, &path, Some(at))?;
                if meta.is_file() {
                    let bytes = fs::read(&path)?;
                    recorder.change(Op::Write { id, offset: 0, bytes });
                } else if meta.is_dir() {
                    todo.push((path, id));
                }
            }
        }
        recorder.model.settle();
        recorder.initial = std::mem::take(&mut recorder.ops);
        Ok(recorder)
    }

    /// Runs a command to its end, with everything that it starts, and records it. What it writes
    /// to `stdout` is its answer.
    ///
    /// # Errors
    /// It cannot be traced, or did something that cannot be recorded.
    pub fn run(&mut self, command: &mut Command, stdout: &Path) -> io::Result<Ended> {
        let answer = File::create(stdout)?;
        let meta = answer.metadata()?;
        self.answer = Some((meta.dev(), meta.ino()));
        command.stdout(answer);
        let ended = tracer::follow(command, self)?;
        self.failed.take().map_or(Ok(ended), Err)
    }

    /// Marks the start of the next command.
    pub fn step(&mut self, number: usize) {
        self.change(Op::Step(number));
    }

    fn change(&mut self, op: Op) {
        self.model.apply(&op);
        self.ops.push(op);
    }

    fn make(&mut self, meta: &Metadata, path: &Path, at: Option<Place>) -> io::Result<Id> {
        let id = self.model.next_id();
        let kind = if meta.is_symlink() {
            Kind::Link(fs::read_link(path)?.into_os_string().as_bytes().into())
        } else if meta.is_dir() {
            Kind::Dir
        } else if meta.is_file() {
            Kind::File
        } else {
            Kind::Special(meta.mode())
        };
        self.known.insert(meta.ino(), id);
        self.change(Op::Make { id, at, kind, mode: meta.mode() & 0o7777 });
        Ok(id)
    }

    #[expect(clippy::many_single_char_names, reason = "the arguments, in order")]
    fn saw(&mut self, call: &Call) -> io::Result<()> {
        if call.result < 0 {
            return Ok(());
        }
        let [a, b, c, d, e, _] = call.args;
        let here = u64::from(libc::AT_FDCWD.cast_unsigned());
        match call.number {
            libc::SYS_openat => self.opened(call, c),
            libc::SYS_openat2 => {
                let flags = Memory::of(call.tid)?.number(c)?;
                self.opened(call, flags)
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => self.opened(call, b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_creat => {
                let flags = libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY;
                self.opened(call, u64::from(flags.cast_unsigned()))
            }
            libc::SYS_write => self.written(call, &[(b, count(call))], None),
            libc::SYS_pwrite64 => self.written(call, &[(b, count(call))], Some(d)),
            libc::SYS_writev => self.written(call, &vectors(call, b, c)?, None),
            libc::SYS_pwritev => self.written(call, &vectors(call, b, c)?, Some(d)),
            libc::SYS_pwritev2 => {
                let at = (d.cast_signed() != -1).then_some(d);
                self.written(call, &vectors(call, b, c)?, at)
            }
            libc::SYS_copy_file_range => self.copied(call, c, d),
            libc::SYS_sendfile => self.copied(call, a, 0),
            libc::SYS_splice => self.copied(call, c, d),
            libc::SYS_ftruncate => {
                self.resized_fd(call, a, |_| b);
                Ok(())
            }
            libc::SYS_truncate => {
                let path = self.path(call.tid, here, a)?;
                if let Some(id) = self.id_of(&fs::metadata(to_path(&path))?) {
                    self.change(Op::Resize { id, size: b });
                }
                Ok(())
            }
            libc::SYS_fallocate => self.allocated(call, b, c, d),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mkdir | libc::SYS_mknod => self.made(call.tid, here, a),
            libc::SYS_mkdirat | libc::SYS_mknodat => self.made(call.tid, a, b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_symlink => self.made(call.tid, here, b),
            libc::SYS_symlinkat => self.made(call.tid, b, c),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_link => self.linked(call.tid, here, b),
            libc::SYS_linkat => self.linked(call.tid, c, d),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink | libc::SYS_rmdir => self.unlinked(call.tid, here, a),
            libc::SYS_unlinkat => self.unlinked(call.tid, a, b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => self.renamed(call.tid, (here, a), (here, b), 0),
            libc::SYS_renameat => self.renamed(call.tid, (a, b), (c, d), 0),
            libc::SYS_renameat2 => self.renamed(call.tid, (a, b), (c, d), e),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chmod => {
                let path = self.path(call.tid, here, a)?;
                self.mode_set(&fs::metadata(to_path(&path))?);
                Ok(())
            }
            libc::SYS_fchmodat | FCHMODAT2 => {
                let path = self.path(call.tid, a, b)?;
                let path = if path.ends_with(b"/" as &[u8]) {
                    fd_path(call.tid, a)
                } else {
                    to_path(&path)
                };
                self.mode_set(&fs::metadata(path)?);
                Ok(())
            }
            libc::SYS_fchmod => {
                self.mode_set(&fs::metadata(fd_path(call.tid, a))?);
                Ok(())
            }
            libc::SYS_fsync | libc::SYS_fdatasync => {
                self.synced(call, call.number == libc::SYS_fdatasync);
                Ok(())
            }
            libc::SYS_syncfs => {
                if fs::metadata(fd_path(call.tid, a)).is_ok_and(|m| m.dev() == self.device) {
                    self.change(Op::SyncAll);
                }
                Ok(())
            }
            libc::SYS_sync => {
                self.change(Op::SyncAll);
                Ok(())
            }
            libc::SYS_mmap => {
                let writes = c & u64::from(libc::PROT_WRITE.cast_unsigned()) != 0
                    && d & u64::from(libc::MAP_SHARED.cast_unsigned()) != 0
                    && d & u64::from(libc::MAP_ANONYMOUS.cast_unsigned()) == 0;
                self.refuse(writes && self.of_fd(call.tid, e).is_some(), "a shared mapping")
            }
            libc::SYS_ioctl => {
                let clones = [0x4004_9409, 0x4020_940d].contains(&b);
                self.refuse(clones && self.of_fd(call.tid, a).is_some(), "a cloned file")
            }
            libc::SYS_io_uring_setup => self.refuse(true, "io_uring"),
            _ => Ok(()),
        }
    }

    #[expect(clippy::unused_self, reason = "reads as the others do")]
    fn refuse(&self, is_so: bool, what: &str) -> io::Result<()> {
        if is_so { Err(io::Error::other(format!("{what} cannot be recorded"))) } else { Ok(()) }
    }

    fn id_of(&self, meta: &Metadata) -> Option<Id> {
        (meta.dev() == self.device).then(|| self.known.get(&meta.ino()).copied()).flatten()
    }

    /// The file of a descriptor, if it is one beneath the root.
    fn of_fd(&self, tid: i32, fd: u64) -> Option<Id> {
        self.id_of(&fs::metadata(fd_path(tid, fd)).ok()?)
    }

    /// The path that a call names, so that this process finds it too.
    fn path(&self, tid: i32, dir: u64, pointer: u64) -> io::Result<BString> {
        let name = Memory::of(tid)?.text(pointer)?;
        if let Some(own) = name.strip_prefix(b"/proc/self/") {
            return Ok([format!("/proc/{tid}/").as_bytes(), own].concat().into());
        }
        if name.starts_with(b"/") {
            return Ok(name.into());
        }
        let from = if as_fd(dir) == libc::AT_FDCWD {
            format!("/proc/{tid}/cwd")
        } else {
            format!("/proc/{tid}/fd/{}", as_fd(dir))
        };
        Ok([from.as_bytes(), b"/", &name].concat().into())
    }

    /// Directory and name that a call means, if they are beneath the root.
    fn place(&self, tid: i32, dir: u64, pointer: u64) -> io::Result<Option<(Place, PathBuf)>> {
        let mut path = self.path(tid, dir, pointer)?;
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let at = path.iter().rposition(|byte| *byte == b'/').expect("an absolute path");
        let (folder, name) = (&path[..=at], &path[at + 1..]);
        let meta = fs::metadata(to_path(folder))?;
        Ok(self.id_of(&meta).map(|dir| ((dir, BString::from(name)), to_path(&path))))
    }

    fn opened(&mut self, call: &Call, flags: u64) -> io::Result<()> {
        let flags = i32::try_from(flags & 0x7fff_ffff).expect("31 bits");
        let fd = call.result.cast_unsigned();
        let nameless = flags & libc::O_TMPFILE == libc::O_TMPFILE;
        if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 && !nameless {
            return Ok(());
        }
        let Ok(meta) = fs::metadata(fd_path(call.tid, fd)) else { return Ok(()) };
        if meta.dev() != self.device || !meta.is_file() {
            return Ok(());
        }
        let target = fs::read_link(fd_path(call.tid, fd))?;
        if nameless {
            if target.starts_with(&self.root) {
                self.make(&meta, &target, None)?;
            }
            return Ok(());
        }
        let before = self.id_of(&meta).filter(|id| self.model.links(*id) > 0);
        if let Some(id) = before {
            if flags & libc::O_TRUNC != 0 && self.model.size(id) > 0 {
                self.change(Op::Resize { id, size: 0 });
            }
            return Ok(());
        }
        let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
            return Ok(());
        };
        if let Some(dir) = fs::metadata(folder).ok().and_then(|meta| self.id_of(&meta)) {
            let id = self.make(&meta, &target, Some((dir, name.as_bytes().into())))?;
            let program = fs::read_link(format!("/proc/{}/exe", call.tid))?;
            if program.file_name().is_some_and(|name| name == "git") {
                self.made_by_git.push(id);
            }
        }
        Ok(())
    }

    fn written(&mut self, call: &Call, pieces: &[(u64, usize)], at: Option<u64>) -> io::Result<()> {
        let fd = call.args[0];
        let Ok(meta) = fs::metadata(fd_path(call.tid, fd)) else { return Ok(()) };
        if Some((meta.dev(), meta.ino())) == self.answer {
            self.change(Op::Answer);
            return Ok(());
        }
        let Some(id) = self.id_of(&meta).filter(|_| meta.is_file() && call.result > 0) else {
            return Ok(());
        };
        let memory = Memory::of(call.tid)?;
        let mut bytes = Vec::new();
        let mut left = usize::try_from(call.result).expect("a count");
        for (pointer, length) in pieces {
            let now = left.min(*length);
            bytes.extend(memory.read(*pointer, now)?);
            left -= now;
        }
        let (position, open_flags) = fd_info(call.tid, fd)?;
        let appends = open_flags & libc::O_APPEND != 0;
        let offset = match at {
            Some(at) if !appends => at,
            Some(_) => self.model.size(id),
            None => position - bytes.len() as u64,
        };
        self.change(Op::Write { id, offset, bytes });
        if open_flags & libc::O_DSYNC != 0 {
            self.change(Op::Sync { id, data_only: open_flags & libc::O_SYNC != libc::O_SYNC });
        }
        Ok(())
    }

    /// Bytes that the kernel moved: read back from where they are now.
    fn copied(&mut self, call: &Call, fd: u64, offset: u64) -> io::Result<()> {
        let Some(id) = self.of_fd(call.tid, fd).filter(|_| call.result > 0) else { return Ok(()) };
        self.refuse(offset != 0, "a copy to an offset")?;
        let length = usize::try_from(call.result).expect("a count");
        let at = fd_info(call.tid, fd)?.0 - length as u64;
        let mut bytes = vec![0; length];
        File::open(fd_path(call.tid, fd))?.read_exact_at(&mut bytes, at)?;
        self.change(Op::Write { id, offset: at, bytes });
        Ok(())
    }

    fn resized_fd(&mut self, call: &Call, fd: u64, size: impl FnOnce(u64) -> u64) {
        if let Some(id) = self.of_fd(call.tid, fd) {
            let (old, new) = (self.model.size(id), size(self.model.size(id)));
            if old != new {
                self.change(Op::Resize { id, size: new });
            }
        }
    }

    fn allocated(&mut self, call: &Call, mode: u64, from: u64, length: u64) -> io::Result<()> {
        let keeps_size = mode == u64::from(libc::FALLOC_FL_KEEP_SIZE.cast_unsigned());
        if keeps_size || self.of_fd(call.tid, call.args[0]).is_none() {
            return Ok(());
        }
        self.refuse(mode != 0, "fallocate of this mode")?;
        self.resized_fd(call, call.args[0], |old| old.max(from + length));
        Ok(())
    }

    fn made(&mut self, tid: i32, dir: u64, pointer: u64) -> io::Result<()> {
        if let Some((place, path)) = self.place(tid, dir, pointer)? {
            self.make(&fs::symlink_metadata(&path)?, &path, Some(place))?;
        }
        Ok(())
    }

    fn linked(&mut self, tid: i32, dir: u64, pointer: u64) -> io::Result<()> {
        if let Some((at, path)) = self.place(tid, dir, pointer)? {
            let id = self.id_of(&fs::symlink_metadata(&path)?);
            let id = id.ok_or_else(|| io::Error::other("linked from outside"))?;
            self.change(Op::Link { id, at });
        }
        Ok(())
    }

    fn unlinked(&mut self, tid: i32, dir: u64, pointer: u64) -> io::Result<()> {
        if let Some((at, _)) = self.place(tid, dir, pointer)? {
            self.change(Op::Unlink { at });
        }
        Ok(())
    }

    fn renamed(
        &mut self,
        tid: i32,
        from: (u64, u64),
        to: (u64, u64),
        flags: u64,
    ) -> io::Result<()> {
        let places = (self.place(tid, from.0, from.1)?, self.place(tid, to.0, to.1)?);
        match places {
            (Some((one, _)), Some((other, _))) => {
                let exchange = flags & u64::from(libc::RENAME_EXCHANGE) != 0;
                self.change(if exchange {
                    Op::Exchange { one, other }
                } else {
                    Op::Rename { from: one, to: other }
                });
                Ok(())
            }
            (None, None) => Ok(()),
            _ => self.refuse(true, "a rename across the root"),
        }
    }

    fn mode_set(&mut self, meta: &Metadata) {
        let mode = meta.mode() & 0o7777;
        if let Some(id) = self.id_of(meta).filter(|id| self.model.mode(*id) != mode) {
            self.change(Op::Mode { id, mode });
        }
    }

    fn synced(&mut self, call: &Call, data_only: bool) {
        if let Some(id) = self.of_fd(call.tid, call.args[0]) {
            self.change(Op::Sync { id, data_only });
        }
    }
}

// Newer than some C libraries know.
const FCHMODAT2: c_long = 452;

fn as_fd(argument: u64) -> i32 {
    // The kernel looks at the lower half alone.
    ((argument & 0xffff_ffff) as u32).cast_signed()
}

fn fd_path(tid: i32, fd: u64) -> PathBuf {
    format!("/proc/{tid}/fd/{}", as_fd(fd)).into()
}

fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

fn count(call: &Call) -> usize {
    usize::try_from(call.result).expect("a count")
}

/// Position and flags of an open file, after the call.
fn fd_info(tid: i32, fd: u64) -> io::Result<(u64, i32)> {
    let text = fs::read_to_string(format!("/proc/{tid}/fdinfo/{}", as_fd(fd)))?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let position = field("pos:").and_then(|text| text.trim().parse().ok());
    let flags = field("flags:").and_then(|text| i32::from_str_radix(text.trim(), 8).ok());
    position.zip(flags).ok_or_else(|| io::Error::other("fdinfo has no position"))
}

fn vectors(call: &Call, pointer: u64, length: u64) -> io::Result<Vec<(u64, usize)>> {
    let memory = Memory::of(call.tid)?;
    (0..length)
        .map(|at| {
            let base = memory.number(pointer + at * 16)?;
            let length = memory.number(pointer + at * 16 + 8)?;
            Ok((base, usize::try_from(length).map_err(io::Error::other)?))
        })
        .collect()
}

/// The memory of a stopped thread.
struct Memory(File);

impl Memory {
    fn of(tid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{tid}/mem")).map(Self)
    }

    fn read(&self, pointer: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, pointer)?;
        Ok(bytes)
    }

    fn number(&self, pointer: u64) -> io::Result<u64> {
        let bytes = self.read(pointer, 8)?;
        Ok(u64::from_ne_bytes(bytes.try_into().expect("eight bytes")))
    }

    /// A string up to its zero; page by page, since the next one may not be there.
    fn text(&self, pointer: u64) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut at = pointer;
        while text.len() < PATH_MAX {
            let page = 4096 - usize::try_from(at % 4096).expect("below 4096");
            let piece = self.read(at, page)?;
            if let Some(end) = piece.iter().position(|byte| *byte == 0) {
                text.extend(&piece[..end]);
                return Ok(text);
            }
            text.extend(&piece);
            at += page as u64;
        }
        Err(io::Error::other("a path without an end"))
    }
}
