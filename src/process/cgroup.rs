//! A cgroup (v2) of its own for a command, where one may be made: what is in it is certainly the
//! command's, whatever sessions or parents it left; `cgroup.kill` ends all of it at once; and once
//! it is empty nobody of it is left.
//!
//! It is made beneath the supervisor's own, with the leader in it before that is let go, and
//! removed once death is proven. A note in the record directory, written before it is made, names
//! it: whoever comes after a crash finds it, looks at it, and removes it.
//!
//! It is optional in silence: without a mounted cgroup v2, the right to write there, or delegation
//! by systemd, a command runs without. Nothing fails because of it.
//!
//! # Limitations
//! A process that may write to a neighbouring cgroup can move itself there, so that this is never
//! the only proof. Paths mean something within one boot and one cgroup namespace; from another
//! nothing is known. `cgroup.kill` needs Linux 5.14; without it the signals alone end the command.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{record, table};
use crate::tx::writer::ProcessId;

/// How often, and after which time, a cgroup is looked at again that seems to hold somebody.
const LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(10);
/// The note in the record directory.
const NOTE: &str = "cgroup.json";

/// What stands in the note.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Below the mount.
    path: String,
    boot_id: String,
    /// The inode of `/proc/self/ns/cgroup`: paths are seen from its root.
    namespace: u64,
}

/// A cgroup that was made for a command.
#[derive(Debug)]
pub(super) struct Own {
    /// Below the mount.
    pub(super) path: String,
    dir: PathBuf,
}

/// What can be said of a recorded cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing, from here.
    Unknown,
    /// There is none any more.
    Gone,
    /// Nobody is in it, nor beneath it.
    Empty,
    /// Somebody is.
    Populated,
}

/// Makes an empty cgroup for a leader; `None` where that cannot be.
pub(super) fn make(record_dir: &Path, supervisor: &ProcessId) -> Option<Own> {
    let mount = mount_point()?;
    let parent = path_in(&record::cgroup_of("self"))?.to_owned();
    if parent.split('/').any(|part| part == "..") || !is_ours_to_divide(&mount, &parent) {
        return None;
    }
    // One that a crash has left here would lose its name by the new note.
    if noted(record_dir).is_some_and(|left| !left.remove_if_empty()) {
        return None;
    }
    // No other process of this boot has both numbers.
    let name = format!("worktx-{}-{}", supervisor.pid, supervisor.start_ticks);
    let path = format!("{}/{name}", parent.trim_end_matches('/'));
    let note =
        Note { path: path.clone(), boot_id: table::this_host().boot_id, namespace: namespace()? };
    // Not synced: after a reboot there is no cgroup either.
    fs::write(record_dir.join(NOTE), serde_json::to_vec(&note).ok()?).ok()?;
    let dir = mount.join(path.trim_start_matches('/'));
    if let Err(error) = fs::create_dir(&dir) {
        tracing::debug!(%error, path = %dir.display(), "no cgroup for the command");
        let _ = fs::remove_file(record_dir.join(NOTE));
        return None;
    }
    Some(Own { path, dir })
}

/// The cgroup of a record, if it can be seen from here.
pub(super) fn find(record_dir: &Path, path: &str) -> Option<Own> {
    let note: Note = serde_json::from_slice(&fs::read(record_dir.join(NOTE)).ok()?).ok()?;
    let here = table::this_host().boot_id;
    let same = note.path == path
        && !here.is_empty()
        && note.boot_id == here
        && namespace() == Some(note.namespace);
    // The note is a file of ours, but a name is still not to lead anywhere else.
    let is_own = path.rsplit('/').next().is_some_and(|name| name.starts_with("worktx-"))
        && !path.split('/').any(|part| part == "..");
    let mount = mount_point().filter(|_| same && is_own)?;
    Some(Own { path: path.to_owned(), dir: mount.join(path.trim_start_matches('/')) })
}

/// What can be said of the cgroup of a record.
pub(super) fn look(record_dir: &Path, path: &str) -> Seen {
    find(record_dir, path).map_or(Seen::Unknown, |own| own.look())
}

impl Own {
    /// The folder, for a process that is to be born in it.
    pub(super) fn open(&self) -> io::Result<fs::File> {
        fs::File::open(&self.dir)
    }

    /// Moves a process into it; the kernel may wait for some milliseconds.
    pub(super) fn take_in(&self, process: i32) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), process.to_string())
    }

    fn look(&self) -> Seen {
        match fs::read_to_string(self.dir.join("cgroup.events")) {
            Ok(text) if text.lines().any(|line| line == "populated 0") => Seen::Empty,
            Ok(text) if text.lines().any(|line| line == "populated 1") => Seen::Populated,
            Ok(_) => Seen::Unknown,
            // The directory, not only the file: and the mount was there a moment ago.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let gone = fs::symlink_metadata(&self.dir)
                    .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
                if gone && mount_point().is_some_and(|mount| self.dir.starts_with(mount)) {
                    Seen::Gone
                } else {
                    Seen::Unknown
                }
            }
            // Removed while it was read.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                Seen::Gone
            }
            Err(_) => Seen::Unknown,
        }
    }

    /// Ends everything in it, also what forks meanwhile. Nothing where this process is in there.
    pub(super) fn kill(&self) {
        if path_in(&record::cgroup_of("self")).is_none_or(|path| holds(&self.path, path)) {
            return;
        }
        if let Err(error) = fs::write(self.dir.join("cgroup.kill"), "1") {
            tracing::debug!(%error, path = %self.path, "cgroup.kill cannot be used");
        }
    }

    /// Removes it with those that the command has made beneath it; only what is empty goes.
    pub(super) fn remove(&self) {
        let mut all = vec![self.dir.clone()];
        let mut at = 0;
        while let Some(dir) = all.get(at).cloned() {
            at += 1;
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    all.push(entry.path());
                }
            }
        }
        for dir in all.iter().rev() {
            if let Err(error) = remove_dir(dir) {
                tracing::warn!(%error, path = %dir.display(), "a cgroup stays");
            }
        }
    }

    /// Removes it, unless somebody is in it; whether it is gone.
    fn remove_if_empty(&self) -> bool {
        match self.look_twice() {
            Seen::Gone => true,
            Seen::Empty => {
                self.remove();
                true
            }
            Seen::Populated | Seen::Unknown => false,
        }
    }

    /// As [`look`]; somebody who has just died may be counted for a moment more.
    pub(super) fn look_twice(&self) -> Seen {
        for _ in 0..LOOKS {
            match self.look() {
                Seen::Populated => std::thread::sleep(LOOK),
                seen => return seen,
            }
        }
        self.look()
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    let mut looks = 0;
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && looks < LOOKS => {
                looks += 1;
                std::thread::sleep(LOOK);
            }
            done => return done,
        }
    }
}

/// Removes the cgroups that crashed runs have left, by the notes in the record directories beneath
/// `folder`, where nobody is in them any more.
pub fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Some(own) = noted(&entry.path()) {
            own.remove_if_empty();
        }
    }
}

/// The cgroup that the note in a record directory names, if it can be seen from here.
fn noted(record_dir: &Path) -> Option<Own> {
    let note: Note = serde_json::from_slice(&fs::read(record_dir.join(NOTE)).ok()?).ok()?;
    find(record_dir, &note.path)
}

/// Whether the second path is the first, or beneath it.
pub(super) fn holds(own: &str, path: &str) -> bool {
    path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The path in the v2 hierarchy out of the text of `/proc/<pid>/cgroup`.
pub(super) fn path_in(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.starts_with('/').then_some(path)
}

/// Where the whole v2 hierarchy of this cgroup namespace is mounted.
fn mount_point() -> Option<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").ok()?;
    text.split(|byte| *byte == b'\n').find_map(|line| {
        // proc_pid_mountinfo(5): optional fields up to a hyphen, then the type.
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let hyphen = fields.iter().position(|field| *field == b"-")?;
        let is_whole =
            fields.get(hyphen + 1) == Some(&&b"cgroup2"[..]) && fields.get(3) == Some(&&b"/"[..]);
        let path = fields.get(4).filter(|_| is_whole)?;
        Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(path))))
    })
}

/// Spaces and the like stand as octal numbers in mountinfo.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let number = text
            .get(at..at + 4)
            .filter(|part| part[0] == b'\\')
            .and_then(|part| u8::from_str_radix(std::str::from_utf8(&part[1..]).ok()?, 8).ok());
        out.push(number.unwrap_or(text[at]));
        at += if number.is_some() { 4 } else { 1 };
    }
    out
}

/// The inode of this cgroup namespace.
fn namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/cgroup").ok().map(|meta| meta.ino())
}

/// Whether nobody else orders the children of this cgroup: systemd does in its units, unless it
/// has delegated them.
fn is_ours_to_divide(mount: &Path, path: &str) -> bool {
    let mut at = path;
    loop {
        let name = at.rsplit('/').next().unwrap_or_default();
        let is_unit = [".service", ".scope", ".slice"].iter().any(|kind| name.ends_with(kind));
        let dir = mount.join(at.trim_start_matches('/'));
        let is_delegated = ["user.delegate", "trusted.delegate"].iter().any(|mark| {
            let mut value = [0_u8; 8];
            rustix::fs::getxattr(&dir, *mark, &mut value).is_ok_and(|n| value[..n] == *b"1")
        });
        if is_unit || is_delegated {
            return is_delegated;
        }
        match at.rsplit_once('/') {
            Some((above, _)) if !at.is_empty() => at = above,
            _ => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_the_kernel_writes_them() {
        let text = "5:devices:/x\n0::/user.slice/a b/worktx-1-2\n";
        assert_eq!(path_in(text), Some("/user.slice/a b/worktx-1-2"));
        assert_eq!(path_in("5:devices:/x\n"), None);
        assert!(holds("/a/worktx-1-2", "/a/worktx-1-2") && holds("/a/w", "/a/w/inner"));
        assert!(!holds("/a/worktx-1-2", "/a/worktx-1-23") && !holds("/a/w", "/a"));
        assert_eq!(unescape(br"/mnt/a\040b\134c\0"), b"/mnt/a b\\c\\0");
    }

    #[test]
    fn units_of_systemd_are_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        for path in ["system.slice/x.service/sub", "plain/deep", "kubepods.slice/pod/box"] {
            fs::create_dir_all(dir.path().join(path)).expect("made");
        }
        let may = |path: &str| is_ours_to_divide(dir.path(), path);
        assert!(may("/") && may("/plain/deep"));
        assert!(!may("/system.slice/x.service") && !may("/system.slice/x.service/sub"));
        assert!(!may("/kubepods.slice/pod/box"));
    }

    #[test]
    fn what_cannot_be_seen_is_unknown() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(look(dir.path(), "/worktx-1-1"), Seen::Unknown);
        let write = |note: &Note| {
            fs::write(dir.path().join(NOTE), serde_json::to_vec(note).expect("plain"))
                .expect("written");
        };
        let mut note = Note {
            path: "/worktx-0-0".to_owned(),
            boot_id: table::this_host().boot_id,
            namespace: namespace().unwrap_or(0),
        };
        write(&note);
        let here = if mount_point().is_some() { Seen::Gone } else { Seen::Unknown };
        assert_eq!(look(dir.path(), "/worktx-0-0"), here);
        assert_eq!(look(dir.path(), "/worktx-0-1"), Seen::Unknown);
        note.namespace += 1;
        write(&note);
        assert_eq!(look(dir.path(), "/worktx-0-0"), Seen::Unknown);
    }
}
