//! A mark on the file system of a work tree: what happened on it since, for a process that looks at
//! all once and then only where something happened.
//!
//! One mark of fanotify(7) sees everything on the file system, by whatever name and in whatever
//! directory, and is made and ended in no time, however large the tree is; watches
//! ([`crate::git::scan::watch`]) take longer than the look that they spare. So the mark is for a
//! single run, and watches are for who stays and may not mark.
//!
//! The kernel queues an event before the call that caused it returns. An event names a directory
//! and, of a write or a change of attributes, the file. A file that has, or had meanwhile, another
//! name than the one it was changed by is looked for by its inode in the snapshot.
//!
//! A write through a mapping is no event before the file is let go of, and a turn can have somebody
//! keep it open who outlives it (a handle in a socket that nobody reads). So a second mark tells which
//! files were opened since the look; those whose change time is not older than the look count as
//! changed.
//!
//! # Limitations
//! - It takes `CAP_SYS_ADMIN` and `CAP_DAC_READ_SEARCH`, Linux 5.9 and a file system with handles:
//!   without, there is none, and all is looked at.
//! - Whatever happens elsewhere on the file system is told too; where it is much ([`MOST`], or more
//!   than `fs.fanotify.max_queued_events`), nothing more is known.
//! - Root can write without the kernel telling anybody (by a handle that fanotify itself gave, or
//!   to the disk), as it can do anything else.
//! - A file system in memory gives a mapping that was read first no time of change: neither a mark
//!   nor a look at all sees what is written through it.
//! - As of a watch: who had a file open before the look and writes through a mapping of it is seen
//!   when that is let go of; mounts cause no event, nor does what the kernel writes into a file for a
//!   block device (who asks looks for loop devices).

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::CWD;
use rustix::io::Errno;

use crate::git::files::root::{Root, Seen, seen_at, seen_of};
use crate::git::manifest::snapshot::Snapshot;
use crate::git::manifest::touched::{Touched, parent};
use crate::git::scan::clocks::Clocks;
use crate::git::scan::watch;
use crate::tx::entry::Kind;
use fan::{Event, Handle, Told};

mod fan;

/// Directories and files that something happened to: with more of them a look at all is as quick.
const MOST: usize = 4000;
/// How often the events are read until none is left.
const ROUNDS: usize = 8;
/// Bytes that are read at once.
const BUFFER: usize = 64 << 10;

/// A mark, and what it told so far.
#[derive(Debug)]
pub struct Mark {
    group: OwnedFd,
    /// The root, by which handles are opened.
    mount: OwnedFd,
    /// Its path as the kernel has it.
    top: Vec<u8>,
    touched: Touched,
    opens: Option<OwnedFd>,
    /// Before the look.
    since: Clocks,
    /// More happened than is kept, or nobody can tell what.
    is_lost: bool,
}

/// A mark that was taken away, to be kept until the end of the process.
#[derive(Debug)]
pub struct Ended {
    _groups: (OwnedFd, Option<OwnedFd>),
}

impl Mark {
    /// Marks the file system of a work tree.
    ///
    /// # Errors
    /// The kernel, the file system or the rights of this process do not allow it.
    pub fn set(root: &Root) -> io::Result<Self> {
        if !watch::tells_all(root)? {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mount = root.open_self()?;
        let since = Clocks::now();
        let group = fan::mark(mount.as_fd(), Told::Changes)?;
        let top = path_of(&mount)?;
        let touched = Touched::default();
        Ok(Self { group, mount, top, touched, opens: None, since, is_lost: false })
    }

    /// All was looked at: what is opened from now on may change without an event.
    ///
    /// # Errors
    /// As [`Mark::set`]; then nothing is known.
    pub fn looked(&mut self) -> io::Result<()> {
        let opens = fan::mark(self.mount.as_fd(), Told::Opens);
        self.is_lost |= opens.is_err();
        self.opens = Some(opens?);
        Ok(())
    }

    /// The directories in which something happened since the mark was set; `None` where that is not
    /// known, or nobody has [`Mark::looked`]. `snapshot` is of the tree at a time after that.
    pub fn touched(&mut self, snapshot: &Snapshot) -> Option<Touched> {
        match self.read(snapshot) {
            Ok(()) if !self.is_lost && self.opens.is_some() => Some(self.touched.clone()),
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(%error, "the mark on the file system tells nothing more");
                self.is_lost = true;
                None
            }
        }
    }

    /// Takes the mark away. The kernel goes on with that by itself: who keeps the handle for some ten
    /// milliseconds does not wait for it when the handle closes (measured: 0.03 ms instead of up to
    /// 15).
    pub fn end(self) -> Ended {
        for group in std::iter::once(&self.group).chain(&self.opens) {
            if let Err(error) = fan::unmark(group) {
                tracing::debug!(%error, "the mark on the file system ends with this process");
            }
        }
        Ended { _groups: (self.group, self.opens) }
    }

    fn read(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let (mut told, mut opened) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (told_before, opened_before) = (told.len(), opened.len());
            self.drain(&mut told, &mut opened)?;
            if self.is_lost {
                return Ok(());
            }
            // Paths are taken after the events were read. Where a directory moved in between, as the
            // next round tells, those that were taken may be wrong.
            let moved = told[told_before..].iter().any(Event::moves_directory);
            let is_last = round > 0 && !moved;
            let (from, opened_from) =
                if is_last { (told_before, opened_before) } else { Default::default() };
            self.resolve(&told[from..], &opened[opened_from..], snapshot)?;
            if is_last {
                // By another path than before, nothing is found where it was looked for.
                self.is_lost |= path_of(&self.mount)? != self.top;
                return Ok(());
            }
        }
        self.is_lost = true;
        Ok(())
    }

    fn drain(&mut self, told: &mut Vec<Event>, opened: &mut Vec<Handle>) -> io::Result<()> {
        for event in queued(&self.group)? {
            let is_empty = event.place.is_none() && event.file.is_none();
            self.is_lost |= event.is_overflow() || is_empty;
            told.push(event);
        }
        for event in self.opens.as_ref().map(queued).transpose()?.unwrap_or_default() {
            self.is_lost |= event.is_overflow() || event.file.is_none();
            opened.extend(event.file);
        }
        Ok(())
    }

    fn resolve(
        &mut self,
        told: &[Event],
        opened: &[Handle],
        snapshot: &Snapshot,
    ) -> io::Result<()> {
        let (mut dirs, mut files) = (HashSet::new(), HashSet::new());
        for event in told {
            files.extend(event.file.as_ref());
            self.take(event, &mut dirs)?;
            self.is_lost |= dirs.len() + files.len() > MOST;
            if self.is_lost {
                return Ok(());
            }
        }
        let mut linked = HashSet::new();
        for file in &files {
            self.find(file, None, &mut linked)?;
        }
        let opened: HashSet<&Handle> = opened.iter().filter(|file| !files.contains(file)).collect();
        for file in opened {
            self.find(file, Some(self.since), &mut linked)?;
        }
        if !linked.is_empty() {
            for (dir, row) in snapshot.rows() {
                if row.iter().any(|child| linked.contains(&child.stat().inode)) {
                    self.touched.directory(dir);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, event: &Event, dirs: &mut HashSet<Handle>) -> io::Result<()> {
        let Some((handle, name)) = &event.place else { return Ok(()) };
        let of_itself = name == b".";
        let brings = event.brings_directory() && !of_itself;
        if !dirs.insert(handle.clone()) && !brings && !of_itself {
            return Ok(());
        }
        let Some(dir) = self.directory(handle)? else { return Ok(()) };
        if of_itself {
            // What its parent lists of it.
            self.touched.directory(parent(&dir));
        } else if brings {
            // Another one of that name may have been there.
            let cut: &[u8] = if dir.is_empty() { b"" } else { b"/" };
            self.touched.whole([&dir, cut, name].concat());
        }
        self.touched.directory(dir);
        Ok(())
    }

    /// The path of a directory beneath the root; `None` where it is gone or elsewhere.
    fn directory(&self, handle: &Handle) -> io::Result<Option<Vec<u8>>> {
        let Some((fd, seen)) = self.open(handle)? else { return Ok(None) };
        if seen.stat.links == 0 {
            return Ok(None);
        }
        Ok(self.beneath(&path_of(&fd)?))
    }

    /// Where a file that was changed stands: its directory is touched. One that may have names that
    /// nobody named is `linked`. One that did not change since is nothing.
    fn find(
        &mut self,
        handle: &Handle,
        since: Option<Clocks>,
        linked: &mut HashSet<u64>,
    ) -> io::Result<()> {
        let Some((fd, seen)) = self.open(handle)? else { return Ok(()) };
        // Directories are told by their own handles.
        let is_dir = matches!(seen.kind, Kind::Directory | Kind::Mount);
        let is_older = since.is_some_and(|since| since.is_after(&seen.stat));
        if is_dir || seen.stat.links == 0 || is_older {
            return Ok(());
        }
        let path = path_of(&fd)?;
        let stands = seen_at(CWD, path.as_slice());
        let is_it =
            |there: Seen| there.stat.inode == seen.stat.inode && there.device == seen.device;
        if seen.stat.links > 1 || !stands.is_ok_and(is_it) {
            linked.insert(seen.stat.inode);
        } else if let Some(path) = self.beneath(&path) {
            self.touched.directory(parent(&path));
        }
        Ok(())
    }

    fn open(&self, handle: &Handle) -> io::Result<Option<(OwnedFd, Seen)>> {
        match fan::open(self.mount.as_fd(), handle) {
            Ok(fd) => {
                let seen = seen_of(fd.as_fd())?;
                Ok(Some((fd, seen)))
            }
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The path beneath the root, of what is not in its git directory.
    fn beneath(&self, path: &[u8]) -> Option<Vec<u8>> {
        let rest = path.strip_prefix(self.top.as_slice())?;
        let rest = match (rest, self.top.as_slice()) {
            ([], _) | (_, b"/") => rest,
            ([b'/', rest @ ..], _) => rest,
            _ => return None,
        };
        let is_git = rest.strip_prefix(b".git").is_some_and(|r| r.is_empty() || r[0] == b'/');
        (!is_git).then(|| rest.to_vec())
    }
}

/// What a group was told until now. Not what comes meanwhile: somebody who writes all the time would
/// never let this end, as whoever writes down what this process does.
fn queued(group: &OwnedFd) -> io::Result<Vec<Event>> {
    // The kernel counts the header of each event and nothing else; one that counts all of it makes
    // this more, and still an end.
    let bytes = usize::try_from(rustix::io::ioctl_fionread(group)?).unwrap_or(usize::MAX);
    let mut left = bytes.div_ceil(size_of::<libc::fanotify_event_metadata>());
    let (mut all, mut buffer) = (Vec::new(), vec![0; BUFFER]);
    while left > 0 {
        match rustix::io::read(group, &mut buffer) {
            Ok(0) | Err(Errno::AGAIN) => break,
            Ok(count) => {
                let events = fan::events(&buffer[..count]).ok_or(io::ErrorKind::InvalidData)?;
                left = left.saturating_sub(events.len());
                all.extend(events);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(all)
}

/// The path of an open file as the kernel has it.
fn path_of(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd as _;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::readlinkat(CWD, link.as_str(), Vec::new())?.into_bytes())
}
