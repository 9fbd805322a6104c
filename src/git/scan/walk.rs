//! The walk behind the scan: directory by directory, each by its own handle, with a list of
//! directories still to come instead of recursion, by two threads where the tree is large.
//!
//! Per directory: one listing, sorted, merged with the manifest's packed row; one `statx` a name
//! that is not ignored. Rules are only asked about names that the base does not have, and about
//! directories.
//!
//! Where only some directories were touched ([`ScanRequest::only`]), those on the way to them are
//! passed through by what the snapshot has of them, and all others are left out. Where the rules of
//! a directory are others than before, everything beneath it is looked at.
//!
//! # Limitations
//! The threads read only. Which of several errors is returned is not defined.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::base::clock::file_clock_ns;
use crate::base::spread;
use crate::git::files::listing::{LISTING, MAX_NAMES, Names};
use crate::git::files::root::{LIST, RootError, Seen, marks_repository, open_once, seen_at};
use crate::git::manifest::child_path;
use crate::git::manifest::row::{Packed, Row};
use crate::git::scan::pool::{Pool, Task, View};
use crate::git::scan::rules::{GITIGNORE, RulesError, read_rules};
use crate::git::scan::{NewDirectories, Scan, ScanError, ScanRequest};
use crate::tx::entry::{Change, Entry, Found, Kind, Stat};
use crate::tx::path::RepoPath;

mod narrow;

/// How many names one thread looks at before a second one is worth its start.
const ALONE: u64 = 150;

const DOT_GIT: &[u8] = b".git";
const GITATTRIBUTES: &[u8] = b".gitattributes";

pub(super) fn walk(request: &ScanRequest<'_>) -> Result<Scan, ScanError> {
    let started_ns = file_clock_ns();
    let pool = Pool::new(request);
    let mut first = Worker::new(&pool);
    let alone = first.run(ALONE);
    let mut all = if alone.is_ok() && pool.leave(&mut first.children) {
        pool.join();
        let second = || {
            let mut worker = Worker::new(&pool);
            let done = worker.run(u64::MAX);
            done.map(|()| worker.out)
        };
        let (mine, theirs) = spread::beside(|| first.run(u64::MAX), second);
        mine.and(theirs).map(|theirs| join(std::mem::take(&mut first.out), theirs))?
    } else {
        alone.map(|()| std::mem::take(&mut first.out))?
    };
    all.changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    all.unreadable.sort_unstable();
    all.oversized_rules.sort_unstable();
    all.attributes.sort_unstable();
    all.dropped.sort_unstable();
    if let Some(touched) = request.only {
        narrow::carry_over(request, touched, &mut all)?;
    }
    Ok(Scan { started_ns, looked_at: pool.looked_at.into_inner(), ..all })
}

fn join(mut one: Scan, other: Scan) -> Scan {
    one.changes.extend(other.changes);
    one.unreadable.extend(other.unreadable);
    one.oversized_rules.extend(other.oversized_rules);
    one.attributes.extend(other.attributes);
    one.dropped.extend(other.dropped);
    one.ignored_rules.extend(other.ignored_rules);
    one.reread.extend(other.reread);
    one
}

struct Worker<'a> {
    pool: &'a Pool<'a>,
    request: &'a ScanRequest<'a>,
    out: Scan,
    names: Names,
    buffer: Vec<u8>,
    /// The path that is being looked at.
    path: Vec<u8>,
    /// The directories that this thread has still to walk.
    children: Vec<Task>,
}

/// One directory while it is walked.
struct Here<'t, 'f> {
    task: &'t Task,
    fd: BorrowedFd<'f>,
    base: View,
    turn: View,
    /// Both views are one.
    shared: bool,
    /// The rules here are others than the snapshot was made by.
    whole: bool,
}

impl<'a> Worker<'a> {
    fn new(pool: &'a Pool<'a>) -> Self {
        Self {
            pool,
            request: pool.request,
            out: Scan::default(),
            names: Names::default(),
            buffer: Vec::with_capacity(LISTING),
            path: Vec::new(),
            children: Vec::new(),
        }
    }

    /// Walks until nothing is left or, between two directories, `enough` names were looked at.
    fn run(&mut self, enough: u64) -> Result<(), ScanError> {
        while self.pool.looked_at.load(Ordering::Relaxed) < enough {
            let Some(mut task) = self.pool.next(&mut self.children) else { return Ok(()) };
            let names = std::mem::take(&mut self.names);
            let (names, done) = self.directory(names, &mut task);
            self.names = names;
            if done.is_err() {
                self.pool.stop();
            }
            done?;
        }
        Ok(())
    }

    fn directory(&mut self, mut names: Names, task: &mut Task) -> (Names, Result<(), ScanError>) {
        let done = match self.pass(task) {
            Ok(true) => Ok(()),
            Ok(false) => self.list(&mut names, task).and_then(|fd| match fd {
                Some(fd) => self.compare(&names, task, &fd),
                None => Ok(()),
            }),
            Err(error) => Err(error),
        };
        (names, done)
    }

    /// Opens and lists; `None` where it may not be read.
    fn list(&mut self, names: &mut Names, task: &mut Task) -> Result<Option<OwnedFd>, ScanError> {
        let root = self.request.root;
        let opened = if task.dir.is_empty() {
            open_once(root.handle(), b".", LIST)
        } else {
            root.open_beneath(&task.dir, LIST)
        };
        let listed = opened.and_then(|fd| {
            names.read(&fd, &mut self.buffer)?;
            Ok(fd)
        });
        let errno = match listed {
            Ok(fd) => {
                let count = names.list.len() as u64;
                let before = self.pool.looked_at.fetch_add(count, Ordering::Relaxed);
                if let Some(progress) = self.request.progress {
                    progress(before + count);
                }
                return Ok(Some(fd));
            }
            Err(Errno::OVERFLOW) => {
                let limit = MAX_NAMES as u64;
                return Err(ScanError::TooMany { what: "names in one directory", limit });
            }
            Err(errno) => errno,
        };
        let Ok(path) = RepoPath::new(task.dir.as_slice()) else {
            return Err(ScanError::List(errno.into()));
        };
        match errno {
            Errno::ACCESS | Errno::PERM => {
                if let Some(change) = task.pending.take() {
                    self.emit(*change)?;
                }
                self.out.unreadable.push(path);
                Ok(None)
            }
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => {
                Err(ScanError::Unstable { path })
            }
            errno => Err(RootError::at(&path, errno).into()),
        }
    }

    fn compare(&mut self, names: &Names, task: &mut Task, fd: &OwnedFd) -> Result<(), ScanError> {
        let request = self.request;
        let is_root = task.dir.is_empty();
        let row = request.snapshot.row(&task.dir);
        let mut repository = None;
        if !is_root && let Some(at) = names.find(DOT_GIT) {
            let seen = look(fd.as_fd(), names, at, &task.dir)?;
            repository = seen.filter(|seen| marks_repository(seen.kind));
        }
        if repository.is_some() {
            let walked = match request.base {
                None => request.snapshot.tracks_beneath(&task.dir),
                Some(_) => row.is_some(),
            };
            if !walked {
                return self.nested_repository(task);
            }
        }
        if let Some(change) = task.pending.take() {
            let whole = request.new_directories == NewDirectories::Whole && row.is_none();
            self.emit(*change)?;
            if whole {
                return Ok(());
            }
        }
        if names.find(GITATTRIBUTES).is_some() {
            self.out.attributes.push(task.dir.clone());
        }
        let (base, turn) = self.views(task, names.find(GITIGNORE).is_some(), row)?;
        let shared = base.is(&turn);
        let whole = !shared || self.has_other_rules(names, task, fd.as_fd(), row)?;
        if whole && request.only.is_some() {
            self.out.reread.push(task.dir.clone());
        }
        let here = Here { task, fd: fd.as_fd(), base, turn, shared, whole };
        let mut at = 0;
        let mut known = 0;
        loop {
            let name = names.name(at);
            let entry = row.filter(|row| known < row.len()).map(|row| row.at(known));
            let order = match (name, &entry) {
                (None, None) => return Ok(()),
                (Some(name), Some(entry)) => name.cmp(entry.name),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
            };
            if is_root && order.is_le() && self.is_outside(name.unwrap_or_default()) {
                at += 1;
                known += usize::from(order.is_eq());
                continue;
            }
            let name = if order.is_le() { name } else { entry.as_ref().map(|entry| entry.name) };
            self.path.clear();
            if !is_root {
                self.path.extend_from_slice(&here.task.dir);
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.unwrap_or_default());
            match (order, entry) {
                (std::cmp::Ordering::Less, _) => self.new_name(&here, names, at, repository)?,
                (std::cmp::Ordering::Equal, Some(entry)) => {
                    self.known_name(&here, names, at, entry)?;
                }
                (_, Some(entry)) => self.missing(&here, entry)?,
                (_, None) => {}
            }
            at += usize::from(order.is_le());
            known += usize::from(order.is_ge());
        }
    }

    /// The directory is a repository of its own: nothing in it is looked at.
    fn nested_repository(&mut self, task: &mut Task) -> Result<(), ScanError> {
        let path = RepoPath::new(task.dir.as_slice()).expect("not the root");
        let change = task.pending.take().map_or_else(
            || Change {
                before: self.request.snapshot.get(&path),
                after: task.stat.map(|stat| Found { kind: Kind::Directory, stat }),
                ignored_by_base: task.base.ignored,
                ignored_by_turn: task.turn.ignored,
                path: path.clone(),
            },
            |change| *change,
        );
        let known = change.before.as_ref().map(|before| before.kind);
        if known == Some(Kind::NestedRepository) {
            return Ok(());
        }
        if known == Some(Kind::Directory) {
            let dropped =
                self.request.snapshot.beneath(&task.dir).into_iter().map(|(path, _)| path);
            self.out.dropped.extend(dropped);
        }
        let after = change.after.map(|found| Found { kind: Kind::NestedRepository, ..found });
        self.emit(Change { after, ..change })
    }

    fn is_outside(&self, name: &[u8]) -> bool {
        name == DOT_GIT || self.request.temporary.iter().any(|temporary| temporary == name)
    }

    /// The views within the directory: those of its own plus its `.gitignore`.
    fn views(
        &mut self,
        task: &Task,
        has_rules: bool,
        row: Option<&Row>,
    ) -> Result<(View, View), ScanError> {
        let request = self.request;
        let own = || child_path(&task.dir, GITIGNORE);
        let mut disk = None;
        if has_rules && !task.excluded && !task.turn.ignored {
            disk = match read_rules(request.root, &own()) {
                Ok(bytes) => bytes,
                Err(RulesError::TooLarge { path }) if request.base.is_some() => {
                    self.out.oversized_rules.push(path);
                    None
                }
                Err(RulesError::Root(RootError::Io { path, source }))
                    if source.kind() == std::io::ErrorKind::PermissionDenied =>
                {
                    self.out.unreadable.push(path);
                    None
                }
                Err(error) => return Err(error.into()),
            };
        }
        let enter = |view: &View, bytes: Option<&[u8]>| View {
            level: bytes.map_or_else(
                || view.level.clone(),
                |bytes| request.rules.level(&view.level, &task.dir, bytes),
            ),
            ignored: view.ignored,
        };
        let turn = enter(&task.turn, disk.as_deref());
        if let Some(bytes) = &disk
            && !row.and_then(|row| row.get(GITIGNORE)).is_some_and(|entry| entry.is_tracked())
        {
            let path = own();
            let (path, rules) = (path.as_bytes(), request.rules);
            if rules.ignores(&turn.level, path, false) || rules.excludes(path, false) {
                self.out.ignored_rules.insert(task.dir.clone(), bytes.clone());
            }
        }
        let Some(files) = request.base else { return Ok((turn.clone(), turn)) };
        let is_ignored = task.base.ignored;
        if task.base.is(&task.turn) && (is_ignored || files.is(&task.dir, disk.as_deref())) {
            return Ok((turn.clone(), turn));
        }
        let base = if is_ignored { None } else { files.get(&task.dir)? };
        Ok((enter(&task.base, base), turn))
    }

    /// Whether the base's and the turn's rules ignore the path.
    fn ignored(&self, here: &Here<'_, '_>, path: &[u8], is_dir: bool) -> (bool, bool) {
        let ask =
            |view: &View| view.ignored || self.request.rules.ignores(&view.level, path, is_dir);
        let turn = ask(&here.turn);
        (if here.shared { turn } else { ask(&here.base) }, turn)
    }

    fn excluded(&self, here: &Here<'_, '_>, path: &[u8], is_dir: bool) -> bool {
        here.task.excluded || self.request.rules.excludes(path, is_dir)
    }

    fn new_name(
        &mut self,
        here: &Here<'_, '_>,
        names: &Names,
        at: usize,
        repository: Option<Seen>,
    ) -> Result<(), ScanError> {
        if let Some(seen) = repository.filter(|_| names.name(at) == Some(DOT_GIT)) {
            let after = Found { kind: Kind::NestedRepository, stat: seen.stat };
            return self.emit_here(None, Some(after), (false, false));
        }
        let mut seen = None;
        let is_dir = match names.list[at].2 {
            FileType::Directory => true,
            FileType::Unknown => {
                seen = look(here.fd, names, at, &here.task.dir)?;
                seen.as_ref().is_some_and(|seen| seen.kind == Kind::Directory)
            }
            _ => false,
        };
        let ignored = self.ignored(here, &self.path, is_dir);
        if (ignored.0 && ignored.1) || self.excluded(here, &self.path, is_dir) {
            return Ok(());
        }
        if seen.is_none() {
            seen = look(here.fd, names, at, &here.task.dir)?;
        }
        let Some(seen) = seen else { return Ok(()) };
        let after = Found { kind: self.request.root.kind_of(&seen), stat: seen.stat };
        self.new_or_other(here, None, after, ignored)
    }

    /// Something that the base does not have, or has as another kind.
    fn new_or_other(
        &mut self,
        here: &Here<'_, '_>,
        before: Option<Entry>,
        after: Found,
        ignored: (bool, bool),
    ) -> Result<(), ScanError> {
        if after.kind != Kind::Directory {
            return self.emit_here(before, Some(after), ignored);
        }
        let stat = after.stat;
        let change = self.change_here(before, Some(after), ignored);
        self.enter(here, stat, ignored, Some(Box::new(change)))
    }

    fn enter(
        &mut self,
        here: &Here<'_, '_>,
        stat: Stat,
        ignored: (bool, bool),
        pending: Option<Box<Change>>,
    ) -> Result<(), ScanError> {
        let mut whole = here.task.whole || here.whole;
        if let Some(touched) = self.request.only.filter(|_| !whole) {
            // What the snapshot does not have as a directory is new with everything beneath.
            whole = touched.is_whole(&self.path)
                || pending.as_ref().is_some_and(|change| {
                    change.before.as_ref().is_none_or(|before| before.kind != Kind::Directory)
                });
            if !whole && !touched.leads_to(&self.path) {
                return pending.map_or(Ok(()), |change| self.emit(*change));
            }
        }
        let limit = self.request.limits.depth;
        if here.task.depth >= limit {
            return Err(ScanError::TooDeep { path: self.path_here(), limit });
        }
        let turn = View { level: here.turn.level.clone(), ignored: ignored.1 };
        let base = if here.shared {
            turn.clone()
        } else {
            View { level: here.base.level.clone(), ignored: ignored.0 }
        };
        self.children.push(Task {
            dir: self.path.clone(),
            depth: here.task.depth + 1,
            base,
            turn,
            excluded: self.excluded(here, &self.path, true),
            whole,
            stat: Some(stat),
            pending,
        });
        Ok(())
    }

    fn known_name(
        &mut self,
        here: &Here<'_, '_>,
        names: &Names,
        at: usize,
        known: Packed<'_>,
    ) -> Result<(), ScanError> {
        let request = self.request;
        let Some(seen) = look(here.fd, names, at, &here.task.dir)? else {
            return self.missing(here, known);
        };
        let establishing = request.base.is_none();
        let found = Found { kind: request.root.kind_of(&seen), stat: seen.stat };
        let is_dir = matches!(found.kind, Kind::Directory | Kind::Mount);
        let before = known.kind();
        // A `.git` within a directory that git tracks things in: there at open.
        if before == Kind::NestedRepository && known.name == DOT_GIT && marks_repository(found.kind)
        {
            return Ok(());
        }
        if establishing && !known.is_tracked() {
            let ignored = self.ignored(here, &self.path, is_dir).1;
            if (ignored || self.excluded(here, &self.path, is_dir))
                && !(before == Kind::Directory && request.snapshot.tracks_beneath(&self.path))
            {
                self.drop_here();
                return Ok(());
            }
        }
        if before == Kind::Directory && found.kind == Kind::Directory {
            let ignored = self.ignored(here, &self.path, true);
            let old = known.stat();
            let looks = |stat: &Stat| (stat.mode, stat.uid, stat.gid);
            let pending = (looks(&old) != looks(&found.stat)).then(|| {
                Box::new(self.change_here(Some(known.entry()), Some(found.clone()), ignored))
            });
            // The row says what is known beneath; without one, and ignored, there is nothing.
            let out = (ignored.0 && ignored.1) || self.excluded(here, &self.path, true);
            if out && request.snapshot.row(&self.path).is_none() {
                return pending.map_or(Ok(()), |change| self.emit(*change));
            }
            return self.enter(here, found.stat, ignored, pending);
        }
        let same = match before {
            Kind::Mount => found.kind == Kind::Mount,
            // Out of scope since open, also if its `.git` has gone.
            Kind::NestedRepository => found.kind == Kind::Directory && !establishing,
            Kind::File | Kind::Symlink | Kind::Device => {
                found.kind == before
                    && known.stat_is_proof()
                    && same_stat(&known.stat(), &found.stat)
            }
            // A look at them or a write through them changes their times, not them.
            Kind::Fifo | Kind::Socket => {
                let is = |stat: &Stat| (stat.mode, stat.uid, stat.gid, stat.inode);
                found.kind == before && is(&known.stat()) == is(&found.stat)
            }
            Kind::Directory => false,
        };
        if same {
            return Ok(());
        }
        let ignored = self.ignored(here, &self.path, is_dir);
        if before == Kind::Directory {
            self.missing_beneath(here)?;
        }
        if before == Kind::Mount && found.kind == Kind::Directory && !establishing {
            return self.emit_here(Some(known.entry()), Some(found), ignored);
        }
        self.new_or_other(here, Some(known.entry()), found, ignored)
    }

    fn missing(&mut self, here: &Here<'_, '_>, known: Packed<'_>) -> Result<(), ScanError> {
        let is_dir = known.kind() == Kind::Directory;
        let ignored = self.ignored(here, &self.path, is_dir);
        self.emit_here(Some(known.entry()), None, ignored)?;
        if is_dir {
            self.missing_beneath(here)?;
        }
        Ok(())
    }

    /// All that the base has beneath the path is gone. Rules of `.gitignore` files beneath are not
    /// asked any more: the base has the paths whatever they say.
    fn missing_beneath(&mut self, here: &Here<'_, '_>) -> Result<(), ScanError> {
        for (path, known) in self.request.snapshot.beneath(&self.path) {
            let is_dir = known.kind() == Kind::Directory;
            let (ignored_by_base, ignored_by_turn) = self.ignored(here, path.as_bytes(), is_dir);
            let before = Some(known.entry());
            self.emit(Change { path, before, after: None, ignored_by_base, ignored_by_turn })?;
        }
        Ok(())
    }

    fn drop_here(&mut self) {
        let beneath = self.request.snapshot.beneath(&self.path).into_iter().map(|(path, _)| path);
        self.out.dropped.extend(beneath);
        let path = self.path_here();
        self.out.dropped.push(path);
    }

    fn path_here(&self) -> RepoPath {
        RepoPath::new(self.path.as_slice()).expect("names of a listing make a path")
    }

    fn change_here(
        &self,
        before: Option<Entry>,
        after: Option<Found>,
        (ignored_by_base, ignored_by_turn): (bool, bool),
    ) -> Change {
        Change { path: self.path_here(), before, after, ignored_by_base, ignored_by_turn }
    }

    fn emit_here(
        &mut self,
        before: Option<Entry>,
        after: Option<Found>,
        ignored: (bool, bool),
    ) -> Result<(), ScanError> {
        let change = self.change_here(before, after, ignored);
        self.emit(change)
    }

    fn emit(&mut self, change: Change) -> Result<(), ScanError> {
        self.pool.count(&change)?;
        self.out.changes.push(change);
        Ok(())
    }
}

/// Whether two looks at a file saw the same inode unchanged.
fn same_stat(a: &Stat, b: &Stat) -> bool {
    let is = |stat: &Stat| (stat.mode, stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode);
    is(a) == is(b)
}

/// What stands at a name; `None` where it has gone since the listing.
fn look(
    fd: BorrowedFd<'_>,
    names: &Names,
    at: usize,
    dir: &[u8],
) -> Result<Option<Seen>, ScanError> {
    match seen_at(fd, names.c_name(at)) {
        Ok(seen) => Ok(Some(seen)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => {
            let path = child_path(dir, names.name(at).unwrap_or_default());
            Err(RootError::at(&path, errno).into())
        }
    }
}
