//! A power loss on a real file system: an image is mounted, a flow runs in it, at a chosen moment
//! the file system is cut off from its disk, everything is killed, and the image mounted anew, so
//! that the file system's own recovery says what is left.
//!
//! # Limitations
//! Root, loop devices, ext4 and XFS. A file system leaves more than the strict model does: names
//! reach the log in order, and with the first sync all that came before. Its own log is not torn.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use libc::c_long;

use crate::flows::{Flow, Step};
use crate::lab::Lab;
use crate::laws::{self, Answer, Facts, Judged, Moment};
use crate::place::{Place, run};
use crate::shutdown::shut_down;
use crate::tracer::{self, Call, Ended, Then, Watcher};

/// A kind of file system, and the size of its image: XFS wants 300 MB, which are not written.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    bytes: u64,
    make: &'static [&'static str],
}

pub const KINDS: &[Kind] = &[
    Kind { name: "ext4", bytes: 64 << 20, make: &["mkfs.ext4", "-q", "-F"] },
    Kind { name: "xfs", bytes: 320 << 20, make: &["mkfs.xfs", "-q", "-f"] },
];

/// Where a flow is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// As the n-th sync, rename, link or unlink returns (1 is the first).
    Call(usize),
    /// At a named point of worktx.
    Point(String),
}

impl At {
    pub fn name(&self) -> String {
        match self {
            Self::Call(n) => format!("call:{n}"),
            Self::Point(name) => format!("point:{name}"),
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        match word.split_once(':')? {
            ("call", n) => Some(Self::Call(n.parse().ok()?)),
            ("point", name) => Some(Self::Point(name.to_owned())),
            _ => None,
        }
    }
}

/// The fault points, from the source that defines them.
pub fn points() -> Vec<String> {
    include_str!("../../src/base/fault.rs")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once("=> \""))
        .map(|(_, name)| name.trim_end_matches(['"', ',']).to_owned())
        .collect()
}

/// Why a file system cannot be tried here.
pub fn missing(kind: &Kind) -> Option<String> {
    if !crate::support::is_root() {
        return Some("only root mounts images".to_owned());
    }
    if !crate::support::has(kind.make[0]) && !Path::new("/usr/sbin").join(kind.make[0]).exists() {
        return Some(format!("{} is not there", kind.make[0]));
    }
    let tried = || -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (image, at) = (dir.path().join("image"), dir.path().join("mount"));
        fs::create_dir(&at)?;
        make(kind, &image)?;
        let mounted = Mounted::new(&image, &at)?;
        shut_down(&at)?;
        mounted.remove()
    };
    tried().err().map(|error| error.to_string())
}

/// A mounted image; unmounted when it is dropped.
struct Mounted(Option<PathBuf>);

impl Mounted {
    fn new(image: &Path, at: &Path) -> io::Result<Self> {
        ok(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))?;
        Ok(Self(Some(at.to_owned())))
    }

    fn remove(mut self) -> io::Result<()> {
        let at = self.0.take().expect("not removed yet");
        // Who was killed may have files there for a moment more: its end is what is waited for.
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match ok(Command::new("umount").arg(&at)) {
                Err(error) if error.to_string().contains("busy") && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                done => return done,
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(at) = &self.0 {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

fn ok(command: &mut Command) -> io::Result<()> {
    let said = run(command);
    if said.code == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!("{command:?}: {}", said.stderr)))
    }
}

fn make(kind: &Kind, image: &Path) -> io::Result<()> {
    fs::File::create(image)?.set_len(kind.bytes)?;
    ok(Command::new(kind.make[0]).args(&kind.make[1..]).arg(image))
}

/// A flow with its image, before anything ran.
pub struct Prepared {
    lab: Lab,
    place: Place,
    facts: Facts,
    flow: Flow,
    dir: tempfile::TempDir,
}

/// Counts, and cuts.
struct Cutter<'a> {
    mount: &'a Path,
    at: Option<usize>,
    seen: usize,
    point: bool,
    failed: Option<io::Error>,
}

impl Cutter<'_> {
    fn cut(&mut self) -> Then {
        if let Err(error) = shut_down(self.mount) {
            self.failed = Some(error);
        }
        Then::Stop
    }
}

impl Watcher for Cutter<'_> {
    fn returned(&mut self, call: &Call) -> Then {
        let known: &[c_long] = &[
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_syncfs,
            libc::SYS_sync,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_linkat,
            libc::SYS_unlinkat,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_link,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink,
        ];
        if call.result < 0 || !known.contains(&call.number) {
            return Then::GoOn;
        }
        self.seen += 1;
        if Some(self.seen) == self.at { self.cut() } else { Then::GoOn }
    }

    fn leader_gone(&mut self) -> Then {
        // At a point the coordinator killed itself: its children go with it.
        if self.point { self.cut() } else { Then::GoOn }
    }
}

impl Prepared {
    /// A lab in an image of its own, mounted where the lab was made: the ledger names its path.
    pub fn new(kind: &Kind, flow: &Flow) -> io::Result<Self> {
        let (lab, place, facts) = flow.set_up();
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("before");
        make(kind, &image)?;
        let at = dir.path().join("mount");
        fs::create_dir(&at)?;
        let mounted = Mounted::new(&image, &at)?;
        ok(Command::new("cp").arg("-a").arg(place.root.join(".")).arg(&at))?;
        mounted.remove()?;
        Ok(Self { lab, place, facts, flow: *flow, dir })
    }

    /// How many calls the whole flow has at which it can be cut.
    pub fn calls(&self) -> io::Result<usize> {
        let mounted = self.fresh()?;
        let mut cutter =
            Cutter { mount: &self.place.root, at: None, seen: 0, point: false, failed: None };
        for step in self.flow.steps {
            tracer::follow(&mut self.command(step)?, &mut cutter)?;
        }
        mounted.remove()?;
        Ok(cutter.seen)
    }

    fn fresh(&self) -> io::Result<Mounted> {
        let image = self.dir.path().join("image");
        ok(Command::new("cp")
            .arg("--sparse=always")
            .arg(self.dir.path().join("before"))
            .arg(&image))?;
        Mounted::new(&image, &self.place.root)
    }

    fn command(&self, step: &Step) -> io::Result<Command> {
        let mut command = self.place.worktx(step.args);
        if let Some(point) = step.fault {
            command.env("WORKTX_FAULT", point);
        }
        command.stdout(fs::File::create(self.dir.path().join("answer"))?);
        command.stderr(fs::File::create(self.dir.path().join("stderr"))?);
        Ok(command)
    }

    /// Runs the flow, cuts it, and looks at what came back. `None` where the point is not met.
    pub fn cut(&self, at: &At) -> io::Result<Option<Judged>> {
        let mounted = self.fresh()?;
        let mount = &self.place.root;
        let wanted = if let At::Call(n) = at { Some(*n) } else { None };
        let mut cutter = Cutter { mount, at: wanted, seen: 0, point: false, failed: None };
        let (mut answered, mut was_cut) = (None, false);
        for (number, step) in self.flow.steps.iter().enumerate() {
            answered = None;
            let mut command = self.command(step)?;
            if let At::Point(name) = at
                && number + 1 == self.flow.steps.len()
            {
                command.env("WORKTX_FAULT", name);
                cutter.point = true;
            }
            let ended = tracer::follow(&mut command, &mut cutter)?;
            let text = fs::read_to_string(self.dir.path().join("answer"))?;
            if let Ended::Code(code) = ended
                && let Ok(document) = serde_json::from_str(&text)
            {
                answered = Some(Answer { code, document });
            }
            if ended == Ended::Stopped || cutter.point {
                was_cut = true;
                break;
            }
        }
        if !was_cut {
            cutter.cut();
        }
        if let Some(error) = cutter.failed {
            return Err(error);
        }
        mounted.remove()?;
        if matches!(at, At::Point(_)) && answered.is_some() {
            return Ok(None);
        }
        let mounted = Mounted::new(&self.dir.path().join("image"), mount)?;
        let locks_of_git = self.locks_of_git();
        let moment =
            Moment { answered: answered.as_ref(), locks_of_git, deep: true, ..Moment::default() };
        let judged = laws::judge(&self.place, self.dir.path(), &self.facts, &moment);
        mounted.remove()?;
        Ok(Some(judged))
    }

    /// Keeps the image of the last cut, as it is after the check.
    pub fn keep(&self, to: &Path) -> io::Result<u64> {
        fs::copy(self.dir.path().join("image"), to)
    }

    /// The locks that are not worktx's: its own say so.
    fn locks_of_git(&self) -> Vec<PathBuf> {
        let git = self.place.repo().join(".git");
        crate::support::listing(&git)
            .into_iter()
            .filter(|(path, what)| path.ends_with(".lock") && !what.contains("held by worktx"))
            .filter(|(path, _)| !path.starts_with("refs/worktx"))
            .map(|(path, _)| Path::new("repo/.git").join(path))
            .collect()
    }

    /// The lab is needed as long as the image is mounted over it.
    pub fn end(self) {
        drop(self.lab);
    }
}
