//! Watched work trees: a thread for each, which holds the watch, hears drivers, and does nothing
//! where nothing happens.
//!
//! A watch is begun by a thread of its own, since that takes a second on a large tree; drivers hear
//! meanwhile that nothing is known. One that is lost is begun anew.
//!
//! # Limitations
//! A work tree that has more files than may be watched is not watched until the server starts anew.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::base::hex::unhex;
use crate::base::spread;
use crate::coordinator::attempt::baseindex;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::place::Place;
use crate::coordinator::warm::{self, Answer, Named, Said};
use crate::git::files::root::{Root, RootId};
use crate::git::manifest::{Manifest, ManifestError};
use crate::git::scan::watch::{Lost, Watch};
use crate::git::workspace::Workspace;
use crate::git::workspace::lockfile;

/// How long a driver may take to take an answer.
const TAKING: Duration = Duration::from_millis(100);
/// How many may be connected: one drives an attempt, and those that come next.
const DRIVERS: usize = 64;
/// How long something that the system refused is not asked of it again.
const PAUSE: Duration = Duration::from_secs(30);

/// A connection, with what it has said of a line so far.
struct Talker {
    stream: UnixStream,
    said: Vec<u8>,
    /// It has held the workspace's lock since it asked.
    is_driver: bool,
}

/// How a watch stands, for figures.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    /// How many watches there are.
    pub(super) watches: u64,
    /// Looks that were bounded.
    pub(super) bounded: u64,
    /// Looks at all that a server was asked about, by why.
    pub(super) fallbacks: HashMap<String, u64>,
}

/// The figures of a work tree, shared with its thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<Mutex<Figures>>);

impl Told {
    /// As they stand.
    pub(super) fn now(&self) -> Figures {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins to watch a work tree, for as long as the process lives.
pub(super) fn begin(context: &Context, limit: u64) -> Result<Told, Failure> {
    let state = &context.place.state;
    let name = warm::socket(&context.place);
    let listening = || Failure::io(format!("listening on {}", state.join(&name).display()));
    let handle = std::fs::File::open(state).map_err(listening())?;
    match std::fs::remove_file(state.join(&name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(listening()(error)),
        _ => {}
    }
    let listener =
        UnixListener::bind(warm::reachable(state, &handle, &name)).map_err(listening())?;
    std::fs::set_permissions(state.join(&name), std::fs::Permissions::from_mode(0o600))
        .map_err(listening())?;
    listener.set_nonblocking(true).map_err(listening())?;
    let told = Told::default();
    let (done, begun) = channel();
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| Failure::io("starting a watch")(errno.into()))?;
    let mut watching = Watching {
        root: context.workspace.root().to_owned(),
        manifest: context.place.manifest(),
        limit,
        listener,
        workspace: context.workspace.clone(),
        place: context.place.clone(),
        is_proving: Arc::default(),
        drivers: Vec::new(),
        paused: None,
        watch: None,
        why: "beginning",
        is_off: false,
        retry_at: None,
        clock: 0,
        begun,
        done,
        wake: Arc::new(wake),
        is_beginning: false,
        waiting: Vec::new(),
        told: told.clone(),
    };
    std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            watching.begin_watch();
            if let Err(error) = watching.serve() {
                tracing::error!(%error, root = %watching.root.display(), "the watch has ended");
            }
        })
        .map_err(Failure::io("starting a watch"))?;
    Ok(told)
}

struct Watching {
    root: PathBuf,
    manifest: PathBuf,
    limit: u64,
    listener: UnixListener,
    workspace: Workspace,
    place: Place,
    /// A thread looks at the index.
    is_proving: Arc<AtomicBool>,
    drivers: Vec<Talker>,
    /// Nobody new is heard before then.
    paused: Option<Instant>,
    watch: Option<Watch>,
    /// Why all is looked at until the watch knows again, in one word.
    why: &'static str,
    /// None is begun any more.
    is_off: bool,
    /// None is begun before then.
    retry_at: Option<Instant>,
    /// The last token of the last watch.
    clock: u64,
    begun: Receiver<Result<Watch, Lost>>,
    done: Sender<Result<Watch, Lost>>,
    /// Written to when something was sent to `begun`.
    wake: Arc<OwnedFd>,
    is_beginning: bool,
    /// Drivers that wait for the beginning.
    waiting: Vec<UnixStream>,
    told: Told,
}

impl Watching {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let (mut is_event, mut is_begun, mut is_new) = (false, false, false);
            let mut talking = Vec::new();
            {
                let wake = Arc::clone(&self.wake);
                let now = Instant::now();
                self.paused = self.paused.filter(|until| *until > now);
                let asked = if self.paused.is_some() { PollFlags::empty() } else { PollFlags::IN };
                let mut fds = vec![
                    PollFd::new(&self.listener, asked),
                    PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
                ];
                let first = fds.len();
                for driver in &self.drivers {
                    fds.push(PollFd::new(&driver.stream, PollFlags::IN));
                }
                let events = self.watch.as_ref().map(Watch::events);
                fds.extend(events.map(|events| PollFd::from_borrowed_fd(events, PollFlags::IN)));
                let left = self.paused.and_then(|until| Timespec::try_from(until - now).ok());
                match poll(&mut fds, left.as_ref()) {
                    Err(Errno::INTR | Errno::NOMEM | Errno::AGAIN) => continue,
                    other => other?,
                };
                let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
                is_new |= ready(&fds[0]);
                is_begun |= ready(&fds[1]);
                let last = first + self.drivers.len();
                talking.extend((0..self.drivers.len()).filter(|at| ready(&fds[first + at])));
                is_event |= fds.get(last).is_some_and(ready);
            }
            if is_begun {
                self.take_watch();
            }
            // Before anybody is answered, and in between, so that the queue does not run over.
            if is_event && let Some(watch) = &mut self.watch {
                let drained = watch.drain();
                self.survives(drained);
            }
            for at in talking.into_iter().rev() {
                self.hear(at);
            }
            if is_new {
                self.accept();
            }
        }
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            // One more than can be is let go at once.
            Ok(_) if self.drivers.len() >= DRIVERS => {}
            Ok((stream, _)) => match stream.set_nonblocking(true) {
                Ok(()) => self.drivers.push(Talker { stream, said: Vec::new(), is_driver: false }),
                Err(error) => tracing::warn!(%error, "a driver is not heard"),
            },
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                tracing::warn!(%error, "no driver can be heard for a while");
                self.paused = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// What a driver says; one that says nothing that can be understood is let go.
    fn hear(&mut self, at: usize) {
        let mut buffer = vec![0; 64 << 10];
        let talker = &mut self.drivers[at];
        match talker.stream.read(&mut buffer) {
            Ok(count) if count > 0 && talker.said.len() <= warm::LONGEST => {
                talker.said.extend_from_slice(&buffer[..count]);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return;
            }
            _ => {
                self.let_go(at);
                return;
            }
        }
        while let Some(end) = self.drivers[at].said.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.drivers[at].said.drain(..=end).collect();
            let answered = match serde_json::from_slice(&line) {
                Ok(said) => self.answer(at, said),
                Err(error) => Err(error.into()),
            };
            if answered.is_err() {
                self.let_go(at);
                return;
            }
        }
    }

    /// An attempt is over, or its driver gone: while nobody works here, what was touched is watched
    /// again, and the index is looked at, by a thread of its own.
    fn let_go(&mut self, at: usize) {
        let was_driver = self.drivers.swap_remove(at).is_driver;
        if let (true, Some(watch)) = (was_driver, &mut self.watch) {
            let caught_up = watch.catch_up();
            self.survives(caught_up);
        }
        if !was_driver || self.is_proving.swap(true, Ordering::AcqRel) {
            return;
        }
        let (workspace, place) = (self.workspace.clone(), self.place.clone());
        let is_proving = Arc::clone(&self.is_proving);
        let prove = move || {
            baseindex::prove(&workspace, &place);
            is_proving.store(false, Ordering::Release);
        };
        if spread::start("index", prove).is_err() {
            self.is_proving.store(false, Ordering::Release);
        }
    }

    /// Whether it is the process that holds the workspace's lock, or held it when it asked first:
    /// nobody else knows what stands in the tree, and a turn least of all may say so.
    fn is_driver(&mut self, at: usize, said: &Said) -> bool {
        let driver = &mut self.drivers[at];
        if let (false, Said::Ask { lock, .. }) = (driver.is_driver, said) {
            let peer = rustix::net::sockopt::socket_peercred(&driver.stream);
            driver.is_driver = peer.is_ok_and(|peer| {
                lockfile::holds(peer.pid.as_raw_nonzero().get(), *lock, self.workspace.git_dir())
            });
        }
        driver.is_driver
    }

    fn answer(&mut self, at: usize, said: Said) -> io::Result<()> {
        let is_driver = self.is_driver(at, &said);
        let answer = match said {
            Said::Begin if self.watch.is_none() && !self.is_off => {
                self.begin_watch();
                if self.is_beginning {
                    self.waiting.push(self.drivers[at].stream.try_clone()?);
                    return Ok(());
                }
                Answer::default()
            }
            Said::Begin => Answer::default(),
            Said::Ask { .. } if !is_driver => self.cold(None, "stranger"),
            Said::Ask { generation, view, root, .. } => self.ask(generation, &view, root),
            Said::Looked { .. } | Said::MovedOn { .. } if !is_driver => return Ok(()),
            Said::Looked { token, view, full, rewritten, stale } => {
                let told = [paths(&rewritten), paths(&stale)];
                self.told_by(|watch, manifest| watch.looked(token, manifest, &view, full, &told));
                return Ok(());
            }
            Said::MovedOn { from, rewritten } => {
                self.told_by(|watch, manifest| watch.moved_on(from, manifest, &paths(&rewritten)));
                return Ok(());
            }
        };
        write(&self.drivers[at].stream, &answer)
    }

    fn ask(&mut self, generation: u64, view: &str, root: RootId) -> Answer {
        let Some(watch) = self.watch.as_mut() else {
            self.begin_watch();
            return self.cold(None, self.why);
        };
        if watch.root().inode != root.inode {
            return self.cold(None, "root");
        }
        match watch.ask(generation, view) {
            Ok((token, Some(touched))) => {
                self.told.lock().bounded += 1;
                self.why = "unknown";
                Answer { token: Some(token), touched: Some(Named::from(&touched)), why: None }
            }
            Ok((token, None)) => self.cold(Some(token), self.why),
            Err(lost) => {
                let why = lost.word();
                self.survives(Err(lost));
                self.cold(None, why)
            }
        }
    }

    fn cold(&self, token: Option<u64>, why: &str) -> Answer {
        *self.told.lock().fallbacks.entry(why.to_owned()).or_default() += 1;
        Answer { token, touched: None, why: Some(why.to_owned()) }
    }

    /// Lets the watch know what a driver says of the manifest.
    fn told_by(&mut self, tell: impl FnOnce(&mut Watch, &Manifest) -> Result<(), Lost>) {
        let Some(watch) = &mut self.watch else {
            self.begin_watch();
            return;
        };
        let told = Manifest::open_to_read(&self.manifest)
            .map_err(Lost::from)
            .and_then(|manifest| tell(watch, &manifest));
        self.survives(told);
    }

    /// Goes on with the watch, or begins it anew.
    fn survives(&mut self, done: Result<(), Lost>) {
        if let Some(watch) = &self.watch {
            self.clock = watch.clock();
            self.told.lock().watches = watch.count();
        }
        let Err(lost) = done else { return };
        tracing::warn!(root = %self.root.display(), error = %lost, "the watch is lost");
        self.watch = None;
        self.told.lock().watches = 0;
        self.failed(&lost);
        // What runs the queue over once does so again at once: not before somebody asks.
        if !matches!(lost, Lost::Overflow) {
            self.begin_watch();
        }
    }

    fn failed(&mut self, lost: &Lost) {
        self.why = lost.word();
        self.is_off = lost.is_for_good();
        if matches!(lost, Lost::Limit { .. } | Lost::System(_)) {
            self.retry_at = Some(Instant::now() + PAUSE);
        }
    }

    /// Begins a watch, by a thread of its own.
    fn begin_watch(&mut self) {
        if self.is_beginning || self.is_off || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.is_beginning = true;
        let (root, manifest, limit) = (self.root.clone(), self.manifest.clone(), self.limit);
        let (clock, done, wake) = (self.clock, self.done.clone(), Arc::clone(&self.wake));
        let begun = std::thread::Builder::new().name("watch-begin".to_owned()).spawn(move || {
            let watch = Root::open(&root)
                .map_err(|_| Lost::Root)
                .and_then(|root| Ok((root, Manifest::open_to_read(&manifest)?)))
                .and_then(|(root, manifest)| Watch::begin(root, &manifest, limit, clock));
            let _ = done.send(watch);
            let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
        });
        if let Err(error) = begun {
            tracing::warn!(%error, "no watch can be begun");
            self.is_beginning = false;
        }
    }

    fn take_watch(&mut self) {
        let mut number = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut number);
        while let Ok(begun) = self.begun.try_recv() {
            self.is_beginning = false;
            match begun {
                Ok(watch) => {
                    tracing::info!(root = %self.root.display(), watches = watch.count(), "watched");
                    self.told.lock().watches = watch.count();
                    self.watch = Some(watch);
                }
                // It comes with the first look; until then there is nothing to watch.
                Err(Lost::Manifest(ManifestError::Missing { .. })) => self.why = "manifest",
                Err(lost) => {
                    tracing::warn!(root = %self.root.display(), error = %lost, "not watched");
                    self.failed(&lost);
                }
            }
            for stream in self.waiting.drain(..) {
                // Who has gone needs no answer.
                let _ = write(&stream, &Answer::default());
            }
        }
    }
}

fn paths(hex: &[String]) -> Vec<Vec<u8>> {
    hex.iter().filter_map(|dir| unhex(dir)).collect()
}

/// All of it at once, or within a moment; who does not take it is let go.
fn write(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let until = Instant::now() + TAKING;
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = until.saturating_duration_since(Instant::now());
                let left = Timespec::try_from(left).map_err(io::Error::other)?;
                if poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&left))? == 0 {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
