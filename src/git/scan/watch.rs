//! The watch on a work tree: which directories may hold something that is not as the manifest says.
//!
//! Every directory and every file of the manifest has an inotify watch of its own. A watch on the
//! inode sees a write by whatever name, so that a second name (`ln`, write, `rm`) hides nothing; a
//! directory whose place another one took is told by the number of its watch. Events are hints: all
//! they say is that a directory is to be looked at. A file's watch ends with its first event and is
//! begun again when somebody asks, so that a turn costs two events a file, however much it writes.
//!
//! The kernel queues an event before the call that caused it returns. Who asks has touched the root
//! ([`touch_root`]); once that event was read, everything before it was.
//!
//! ```text
//! ask     events are read, what was touched is watched again, a token is given   → look
//! looked  what was not touched since the token is as the manifest says
//! ```
//!
//! Whatever goes wrong is [`Lost`]: the watch is dropped and begun anew, and the next look is at all.
//!
//! # Limitations
//! - A program that had a file open before the look and writes through a mapping of it afterwards is
//!   seen when it lets go of that, as the kernel tells nothing before. Who opens one later is seen
//!   by the file's time of change.
//! - Mounts that come and go cause no event: who asks names those that it sees, and others than
//!   before are nothing known ([`Watch::ask`]).
//! - File systems whose files change on another machine, or without the kernel, are not watched.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timestamps;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::git::files::root::Root;
use crate::git::manifest::touched::{Touched, parent};
use crate::git::manifest::{Manifest, ManifestError};
use crate::git::scan::clocks::Clocks;
use cover::OF_DIRECTORY;

mod cover;

/// File systems of which the kernel sees every change, by `f_type` in statfs(2): ext, XFS, btrfs,
/// tmpfs, F2FS, overlayfs, ZFS, bcachefs.
const LOCAL: [u32; 8] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0xf2f5_2010,
    0x794c_7630,
    0x2fc1_2fc1,
    0xca45_1a4e,
];
/// How long the event of a touch may take: it is there already where it comes at all.
const COOKIE: Duration = Duration::from_millis(100);
const OVERLAY: u32 = 0x794c_7630;
const ROOT: u32 = 0;

/// Why a watch is worth nothing any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// More came than the kernel keeps (`fs.inotify.max_queued_events`).
    #[error("the queue of events ran over")]
    Overflow,
    /// The root was moved, removed or unmounted.
    #[error("the root was moved or removed")]
    Root,
    /// A watch went without its file going.
    #[error("a file system was unmounted")]
    Unmounted,
    /// As many as are allowed.
    #[error("more than {limit} files and directories; see fs.inotify.max_user_watches")]
    Limit {
        /// How many there were.
        limit: u64,
        /// The bound is a setting, not what the kernel has left.
        is_own: bool,
    },
    /// The root was touched, and no event came of it.
    #[error("a touch of the root caused no event")]
    Cookie,
    /// Files here may change without the kernel.
    #[error("files of this kind of file system ({magic:#x}) may change unseen")]
    FileSystem {
        /// `f_type`.
        magic: u32,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The system said no.
    #[error("watching: {0}")]
    System(#[from] Errno),
}

impl Lost {
    /// One word, for figures.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Root => "root",
            Self::Unmounted => "unmounted",
            Self::Limit { .. } => "limit",
            Self::Cookie => "cookie",
            Self::FileSystem { .. } => "file_system",
            Self::Manifest(_) => "manifest",
            Self::System(_) => "system",
        }
    }

    /// Whether beginning anew would come to the same.
    pub const fn is_for_good(&self) -> bool {
        matches!(self, Self::Limit { is_own: true, .. } | Self::FileSystem { .. })
    }
}

struct Dir {
    path: Vec<u8>,
    wd: i32,
    children: BTreeSet<u32>,
    /// Of the row that its watches are of.
    row: Option<u32>,
}

/// What the watch holds true of all that was not touched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    generation: u64,
    view: String,
}

/// The watch.
pub struct Watch {
    events: OwnedFd,
    root: Root,
    limit: u64,
    /// The tree lies on an overlay.
    is_overlay: bool,
    dirs: HashMap<u32, Dir>,
    by_path: HashMap<Vec<u8>, u32>,
    next: u32,
    dir_watches: HashMap<i32, u32>,
    file_watches: HashMap<i32, u32>,
    /// Files with several names in the tree.
    shared: HashMap<i32, BTreeSet<u32>>,
    /// Directories with something that cannot be watched: always touched.
    blind: HashSet<u32>,
    /// When something was last touched in a directory, by [`Watch::clock`].
    touched: HashMap<u32, u64>,
    /// Directories of which nothing is watched: everything beneath is to be looked at.
    whole: BTreeMap<Vec<u8>, u64>,
    /// Whose files have lost their watch by an event.
    fired: BTreeSet<u32>,
    /// Of these, in which a file was only opened: whether it changed is seen by its time of change.
    opened: HashSet<u32>,
    /// The clocks before the last look that was told of; none before the first.
    looked_at: Option<Clocks>,
    /// The clocks when the last token was given.
    asked_at: Clocks,
    /// The last token.
    clock: u64,
    /// The first token of this watch.
    began: u64,
    saw_cookie: bool,
    /// The manifest that the watches are of.
    covers: Option<u64>,
    known: Option<Known>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("root", &self.root.path())
            .field("watches", &self.count())
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

/// Touches the root so that a watch on it sees that, and leaves it as it is: its own time of change
/// is set anew. Only its owner can.
///
/// # Errors
/// The system said no.
pub fn touch_root(root: &Root) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(root.handle())?;
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let mtime = rustix::fs::Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or_default(),
    };
    let times = Timestamps { last_access: omit, last_modification: mtime };
    // By `.`, since a handle that is only a path takes no times itself.
    rustix::fs::utimensat(root.handle(), ".", &times, rustix::fs::AtFlags::empty())
}

fn magic_of(root: &Root) -> Result<u32, Errno> {
    let magic = rustix::fs::fstatfs(root.handle())?.f_type;
    Ok(u32::try_from(magic & 0xffff_ffff).unwrap_or_default())
}

/// Whether the kernel sees every change on the file system, and each file is one inode there.
pub(super) fn tells_all(root: &Root) -> Result<bool, Errno> {
    let magic = magic_of(root)?;
    Ok(LOCAL.contains(&magic) && magic != OVERLAY)
}

impl Watch {
    /// Begins a watch of everything that the manifest has. Tokens follow `clock`.
    pub fn begin(root: Root, manifest: &Manifest, limit: u64, clock: u64) -> Result<Self, Lost> {
        let magic = magic_of(&root)?;
        if !LOCAL.contains(&magic) {
            return Err(Lost::FileSystem { magic });
        }
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut watch = Self {
            events,
            root,
            limit,
            is_overlay: magic == OVERLAY,
            dirs: HashMap::new(),
            by_path: HashMap::new(),
            next: ROOT,
            dir_watches: HashMap::new(),
            file_watches: HashMap::new(),
            shared: HashMap::new(),
            blind: HashSet::new(),
            touched: HashMap::new(),
            whole: BTreeMap::new(),
            fired: BTreeSet::new(),
            opened: HashSet::new(),
            looked_at: None,
            asked_at: Clocks::now(),
            clock: clock + 1,
            began: clock + 1,
            saw_cookie: false,
            covers: None,
            known: None,
        };
        let handle = watch.root.open_self().map_err(|error| errno(&error))?;
        // A touch of the root is told as a change of it.
        let wd = watch.add(&handle, b".", OF_DIRECTORY | WatchFlags::MODIFY)?;
        watch.insert(Vec::new(), wd, None);
        watch.cover_all(manifest)?;
        Ok(watch)
    }

    /// What is watched.
    pub const fn root(&self) -> crate::git::files::root::RootId {
        self.root.id()
    }

    /// Where events can be waited for.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// How many watches there are.
    pub fn count(&self) -> u64 {
        (self.dir_watches.len() + self.file_watches.len()) as u64
    }

    /// The last token.
    pub const fn clock(&self) -> u64 {
        self.clock
    }

    /// What the manifest of the generation, seen in this view (whatever else decides over what is in
    /// scope, in words of the caller), may be wrong about; `None` where that is not known. And a
    /// token for [`Watch::looked`].
    ///
    /// The caller has touched the root before.
    pub fn ask(&mut self, generation: u64, view: &str) -> Result<(u64, Option<Touched>), Lost> {
        let asked_at = Clocks::now();
        self.drain()?;
        if !self.saw_cookie {
            let mut fds = [PollFd::new(&self.events, PollFlags::IN)];
            let timeout = rustix::time::Timespec::try_from(COOKIE).map_err(|_| Errno::INVAL)?;
            poll(&mut fds, Some(&timeout))?;
            self.drain()?;
        }
        if !std::mem::take(&mut self.saw_cookie) {
            return Err(Lost::Cookie);
        }
        self.watch_again()?;
        self.clock += 1;
        self.asked_at = asked_at;
        let is_known = self
            .known
            .as_ref()
            .is_some_and(|known| known.generation == generation && known.view == view);
        Ok((self.clock, is_known.then(|| self.touched())))
    }

    /// Reads what has happened: also between two questions, so that the queue does not run over.
    pub fn drain(&mut self) -> Result<(), Lost> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 << 10];
        let mut seen = Vec::new();
        {
            let mut reader = inotify::Reader::new(&self.events, &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        seen.push((event.wd(), event.events(), event.file_name().is_some()));
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        seen.into_iter().try_for_each(|(wd, what, has_name)| self.happened(wd, what, has_name))
    }

    /// Watches again what was touched, while nobody asks: a question finds less to do then.
    pub fn catch_up(&mut self) -> Result<(), Lost> {
        self.drain()?;
        // Where a file was only opened, its time of change tells when somebody asks, and not before.
        let (later, now) = std::mem::take(&mut self.fired)
            .into_iter()
            .partition(|id| self.opened.contains(id) && !self.touched.contains_key(id));
        self.fired = now;
        self.watch_again()?;
        self.fired.extend::<BTreeSet<u32>>(later);
        Ok(())
    }

    /// A look that began after `token` found everything as the manifest of the generation says, and
    /// was at all (`full`) or at what [`Watch::ask`] gave with the token. `told` are the directories whose
    /// children the manifest has anew since it was asked, and those for whose children it has stat data
    /// that is out of date: they are looked at again.
    pub fn looked(
        &mut self,
        token: u64,
        manifest: &Manifest,
        view: &str,
        full: bool,
        [rewritten, stale]: &[Vec<Vec<u8>>; 2],
    ) -> Result<(), Lost> {
        // The token of an earlier watch says nothing of this one.
        if token <= self.began || token > self.clock {
            return Ok(());
        }
        // What the look itself opened.
        self.drain()?;
        let generation = manifest.meta()?.generation;
        if !full && self.known.as_ref().is_none_or(|known| known.view != view) {
            return Ok(());
        }
        let is_before = |at: &u64| *at < token;
        let clean: Vec<u32> =
            self.touched.iter().filter(|(_, at)| is_before(at)).map(|(id, _)| *id).collect();
        for id in &clean {
            self.touched.remove(id);
        }
        let whole: Vec<Vec<u8>> =
            self.whole.iter().filter(|(_, at)| is_before(at)).map(|(dir, _)| dir.clone()).collect();
        for dir in &whole {
            self.whole.remove(dir);
        }
        if full && self.covers != Some(generation) {
            self.cover_all(manifest)?;
        } else {
            self.cover_these(rewritten, manifest)?;
            for dir in whole {
                self.cover_beneath(&dir, manifest)?;
            }
            for id in clean {
                let Some(dir) = self.dirs.get(&id).map(|dir| dir.path.clone()) else { continue };
                // A file of rules that is ignored itself may have come.
                self.cover_rules(&dir)?;
            }
        }
        for dir in stale {
            match self.by_path.get(dir) {
                Some(id) => drop(self.touched.insert(*id, self.clock)),
                // Lost meanwhile.
                None => drop(self.whole.insert(dir.clone(), self.clock)),
            }
        }
        self.covers = Some(generation);
        self.known = Some(Known { generation, view: view.to_owned() });
        // Of an older token it is not known when it was given: the look before that counts.
        if token == self.clock {
            self.looked_at = Some(self.asked_at);
        }
        Ok(())
    }

    /// The manifest was written anew, of paths only that were touched since it was looked at, in these
    /// directories.
    pub fn moved_on(
        &mut self,
        from: u64,
        manifest: &Manifest,
        rewritten: &[Vec<u8>],
    ) -> Result<(), Lost> {
        let to = manifest.meta()?.generation;
        if self.known.as_ref().is_none_or(|known| known.generation != from) {
            return Ok(());
        }
        self.cover_these(rewritten, manifest)?;
        self.covers = Some(to);
        if let Some(known) = &mut self.known {
            known.generation = to;
        }
        Ok(())
    }

    fn touched(&self) -> Touched {
        let mut touched = Touched::default();
        for id in self.touched.keys().chain(&self.blind) {
            if let Some(dir) = self.dirs.get(id) {
                touched.directory(dir.path.as_slice());
            }
        }
        for dir in self.whole.keys() {
            touched.whole(dir.as_slice());
        }
        touched
    }

    fn happened(&mut self, wd: i32, what: ReadFlags, has_name: bool) -> Result<(), Lost> {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Err(Lost::Overflow);
        }
        if what.contains(ReadFlags::UNMOUNT) {
            return Err(Lost::Unmounted);
        }
        if let Some(id) = self.dir_watches.get(&wd).copied() {
            let is_gone = what.intersects(
                ReadFlags::DELETE_SELF.union(ReadFlags::MOVE_SELF).union(ReadFlags::IGNORED),
            );
            if id == ROOT && is_gone {
                return Err(Lost::Root);
            }
            if id == ROOT && !has_name && what.contains(ReadFlags::MODIFY) {
                self.saw_cookie = true;
                return Ok(());
            }
            self.touch(id);
            if !has_name && let Some(above) = self.parent_of(id) {
                self.touch(above);
            }
            if what.contains(ReadFlags::IGNORED) {
                self.dir_watches.remove(&wd);
            }
            return Ok(());
        }
        if what == ReadFlags::OPEN {
            // The watch has ended with this event: that it has is no other one.
            for id in self.owners(wd) {
                self.opened.insert(id);
                self.fired.insert(id);
            }
            self.file_watches.remove(&wd);
            self.shared.remove(&wd);
            return Ok(());
        }
        for id in self.owners(wd) {
            self.touch(id);
        }
        if what.contains(ReadFlags::IGNORED) {
            self.file_watches.remove(&wd);
            self.shared.remove(&wd);
        }
        Ok(())
    }

    fn owners(&self, wd: i32) -> Vec<u32> {
        let shared = self.shared.get(&wd).into_iter().flatten();
        self.file_watches.get(&wd).into_iter().chain(shared).copied().collect()
    }

    fn touch(&mut self, id: u32) {
        if self.dirs.contains_key(&id) {
            self.touched.insert(id, self.clock);
            self.fired.insert(id);
        }
    }

    fn touch_path(&mut self, dir: &[u8]) {
        if let Some(id) = self.by_path.get(dir).copied() {
            self.touch(id);
        }
    }

    fn parent_of(&self, id: u32) -> Option<u32> {
        let dir = self.dirs.get(&id).filter(|dir| !dir.path.is_empty())?;
        self.by_path.get(parent(&dir.path)).copied()
    }

    /// Nothing beneath is known: it is to be looked at whole, if its parent still has it.
    fn lose(&mut self, dir: Vec<u8>) {
        self.touch_path(parent(&dir));
        self.forget(&dir);
        self.whole.insert(dir, self.clock);
    }

    fn forget(&mut self, dir: &[u8]) {
        let Some(id) = self.by_path.get(dir).copied().filter(|id| *id != ROOT) else { return };
        if let Some(above) = self.parent_of(id).and_then(|above| self.dirs.get_mut(&above)) {
            above.children.remove(&id);
        }
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            let Some(dir) = self.dirs.remove(&id) else { continue };
            self.by_path.remove(&dir.path);
            self.touched.remove(&id);
            self.fired.remove(&id);
            self.opened.remove(&id);
            self.blind.remove(&id);
            // Another directory may have it by now.
            if self.dir_watches.get(&dir.wd) == Some(&id) {
                self.dir_watches.remove(&dir.wd);
                let _ = inotify::remove_watch(&self.events, dir.wd);
            }
            stack.extend(dir.children);
        }
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
