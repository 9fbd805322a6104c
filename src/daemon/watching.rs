//! Watched work trees: a thread for each, which holds the watch, hears drivers, and does nothing
//! where nothing happens.
//!
//! A watch is begun by a thread of its own, since that takes a second on a large tree; drivers hear
//! meanwhile that nothing is known. One that is lost is begun anew.
//!
//! # Limitations
//! A work tree that has more files than may be watched is not watched until the server starts anew.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::warm::{self, Answer, Named, Said};
use crate::git::manifest::{Manifest, ManifestError};
use crate::git::root::Root;
use crate::git::watch::{Lost, Watch};

/// How long a driver may take to send a line that it has begun.
const LINE: Duration = Duration::from_millis(100);
/// The longest line: the names of a hundred thousand directories.
const LONGEST: u64 = 64 << 20;

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
        drivers: Vec::new(),
        watch: None,
        why: "beginning",
        is_off: false,
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
    drivers: Vec<BufReader<UnixStream>>,
    watch: Option<Watch>,
    /// Why all is looked at until the watch knows again, in one word.
    why: &'static str,
    /// None is begun any more.
    is_off: bool,
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
                let mut fds = vec![
                    PollFd::new(&self.listener, PollFlags::IN),
                    PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
                ];
                let first = fds.len();
                for driver in &self.drivers {
                    fds.push(PollFd::new(driver.get_ref(), PollFlags::IN));
                }
                let events = self.watch.as_ref().map(Watch::events);
                fds.extend(events.map(|events| PollFd::from_borrowed_fd(events, PollFlags::IN)));
                match poll(&mut fds, None) {
                    Err(Errno::INTR) => continue,
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
                self.accept()?;
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(LINE))?;
                stream.set_write_timeout(Some(LINE))?;
                self.drivers.push(BufReader::new(stream));
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// One or more lines of a driver; one that says nothing that can be understood is let go.
    fn hear(&mut self, at: usize) {
        loop {
            let mut line = Vec::new();
            let mut reader = io::Read::take(&mut self.drivers[at], LONGEST);
            let said = match reader.read_until(b'\n', &mut line) {
                Ok(1..) => serde_json::from_slice(&line).ok(),
                _ => None,
            };
            let Some(said) = said else {
                self.drivers.swap_remove(at);
                return;
            };
            let answer = match said {
                Said::Begin if self.watch.is_none() && !self.is_off => {
                    self.begin_watch();
                    match self.drivers[at].get_ref().try_clone() {
                        Ok(stream) => self.waiting.push(stream),
                        Err(error) => tracing::warn!(%error, "a driver does not hear of the watch"),
                    }
                    None
                }
                Said::Begin => Some(Answer::default()),
                Said::Ask { generation, view, root } => Some(self.ask(generation, &view, root)),
                Said::Looked { token, view, full, rewritten } => {
                    self.told_by(|watch, manifest| {
                        watch.looked(token, manifest, &view, full, &paths(&rewritten))
                    });
                    None
                }
                Said::MovedOn { from, rewritten } => {
                    self.told_by(|watch, manifest| {
                        watch.moved_on(from, manifest, &paths(&rewritten))
                    });
                    None
                }
            };
            if let Some(answer) = answer
                && write(self.drivers[at].get_ref(), &answer).is_err()
            {
                self.drivers.swap_remove(at);
                return;
            }
            if self.drivers[at].buffer().is_empty() {
                return;
            }
        }
    }

    fn ask(&mut self, generation: u64, view: &str, root: crate::git::root::RootId) -> Answer {
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.root().inode == root.inode)
        else {
            let why = if self.watch.is_some() { "root" } else { self.why };
            return self.cold(None, why);
        };
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
        self.begin_watch();
    }

    fn failed(&mut self, lost: &Lost) {
        self.why = lost.word();
        self.is_off = lost.is_for_good();
    }

    /// Begins a watch, by a thread of its own.
    fn begin_watch(&mut self) {
        if self.is_beginning || self.is_off {
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
    hex.iter().filter_map(|dir| warm::unhex(dir)).collect()
}

fn write(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}
