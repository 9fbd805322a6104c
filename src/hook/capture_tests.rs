//! Captures on real files; the kernel is the judge of what runs.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::*;

/// A workspace, a home and a folder for the copy, in one temporary directory.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["ws/.worktx", "home/.trinity", "bin", "bin2"] {
            fs::create_dir_all(dir.path().join(name)).expect("a directory");
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
        path
    }

    fn search_path(&self) -> OsString {
        format!("{}:{}", self.path("bin").display(), self.path("bin2").display()).into()
    }

    fn capture(&self, choice: &PostCheckChoice) -> Result<Capture, CaptureError> {
        let home = self.path("home");
        let request = Request {
            choice,
            workspace: &self.path("ws"),
            home: Some(&home),
            search_path: &self.search_path(),
        };
        capture(&request, &self.path("state/attempt"))
    }

    fn ready(&self, choice: &PostCheckChoice) -> Ready {
        match self.capture(choice).expect("captured") {
            Capture::Ready(ready) => ready,
            other => panic!("not ready: {other:?}"),
        }
    }

    fn recheck(&self, ready: &Ready) -> Vec<Difference> {
        match recheck(&Capture::Ready(ready.clone()), &self.path("ws")) {
            Recheck::Same => Vec::new(),
            Recheck::Changed { what } => what,
        }
    }
}

/// Starts a program that was written just now: a test of another thread that forks meanwhile can
/// hold it open for writing until its child execs.
fn start(command: &mut Command) -> io::Result<std::process::ExitStatus> {
    loop {
        match command.status() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
            other => return other,
        }
    }
}

const DEFAULT: PostCheckChoice = PostCheckChoice::Default;

fn named(path: PathBuf) -> PostCheckChoice {
    PostCheckChoice::Path { path }
}

#[test]
fn the_first_place_counts() {
    let place = Place::new();
    assert_eq!(place.capture(&DEFAULT).expect("none"), Capture::Absent);
    let home = place.write("home/.trinity/post-check", "#!/bin/sh\nexit 2\n", 0o755);
    let origin = |path: PathBuf| Origin::File { named: path.clone(), resolved: path };
    assert_eq!(place.ready(&DEFAULT).origin, origin(home));
    let own = place.write("ws/.worktx/post-check", "#!/bin/sh\nexit 3\n", 0o755);
    assert_eq!(place.ready(&DEFAULT).origin, origin(own));
    let other = place.write("ws/other", "#!/bin/sh\nexit 4\n", 0o755);
    assert_eq!(place.ready(&named(other.clone())).origin, origin(other));
    let words = PostCheckChoice::Command { words: "exit 5".to_owned() };
    assert_eq!(place.ready(&words).origin, Origin::Command { words: "exit 5".to_owned() });
    assert_eq!(place.capture(&PostCheckChoice::Off).expect("off"), Capture::Off);
}

#[test]
fn the_copy_runs_and_is_private() {
    let place = Place::new();
    place.write("ws/.worktx/post-check", "#!/bin/sh\nexit 7\n", 0o755);
    let ready = place.ready(&DEFAULT);
    let copy = ready.captured.expect("a copy");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&copy), mode(copy.parent().expect("has one"))), (0o700, 0o700));
    assert_eq!(start(&mut Command::new(&copy)).expect("started").code(), Some(7));
    let sum = Command::new("sha256sum").arg(&copy).output().expect("sha256sum");
    assert!(String::from_utf8_lossy(&sum.stdout).starts_with(&ready.sha256));
    assert_eq!(ready.original_dir, place.path("ws/.worktx"));
}

#[test]
fn what_cannot_run_is_misconfigured_or_an_error() {
    let place = Place::new();
    let at = "ws/.worktx/post-check";
    let no_interpreter = |name: &str| Unrunnable::NoInterpreter { named: name.to_owned() };
    for (text, mode, expected) in [
        ("#!/bin/sh\n", 0o644, Unrunnable::NotExecutable),
        ("#!/not/there -x\n", 0o755, no_interpreter("/not/there")),
        ("#!/bin/sh\r\n", 0o755, no_interpreter("/bin/sh\r")),
        ("#!/usr/bin/env nothing-of-that-name\n", 0o755, no_interpreter("nothing-of-that-name")),
        ("#!/usr/bin/env sh -e\n", 0o755, no_interpreter("sh -e")),
        ("exit 0\n", 0o755, Unrunnable::NoFormat),
        ("", 0o755, Unrunnable::NoFormat),
    ] {
        let path = place.write(at, text, mode);
        match place.capture(&DEFAULT).expect("no error at a default place") {
            Capture::Misconfigured { path: found, why } => {
                assert_eq!((found, &why), (path.clone(), &expected), "{text:?}");
            }
            other => panic!("{text:?}: {other:?}"),
        }
        let Err(CaptureError::Named { why, .. }) = place.capture(&named(path.clone())) else {
            panic!("{text:?}: named by a user, it is an error");
        };
        assert_eq!(why, expected);
        let started = start(Command::new(&path).env("PATH", place.search_path()));
        // The kernel agrees: it does not start, or `env` finds nothing (126, 127).
        let refused = started.map_or(true, |status| matches!(status.code(), Some(126 | 127)));
        // std's spawn goes on with `sh` where there is no format, as `execvp` does.
        assert!(refused || expected == Unrunnable::NoFormat, "{text:?}");
    }
    let missing = place.capture(&named(place.path("ws/none")));
    assert!(matches!(missing, Err(CaptureError::Named { why: Unrunnable::Missing, .. })));
    let folder = place.capture(&named(place.path("ws")));
    assert!(matches!(folder, Err(CaptureError::Named { why: Unrunnable::NotAFile, .. })));
}

#[test]
fn a_broken_one_is_not_stepped_over() {
    let place = Place::new();
    place.write("home/.trinity/post-check", "#!/bin/sh\n", 0o755);
    std::os::unix::fs::symlink("gone", place.path("ws/.worktx/post-check")).expect("a link");
    let found = place.capture(&DEFAULT).expect("no error");
    assert!(matches!(found, Capture::Misconfigured { why: Unrunnable::Missing, .. }), "{found:?}");
}

#[test]
fn a_fifo_does_not_block() {
    let place = Place::new();
    let path = place.path("ws/.worktx/post-check");
    assert!(Command::new("mkfifo").args(["-m", "755"]).arg(&path).status().expect("run").success());
    let found = place.capture(&DEFAULT).expect("no error");
    assert!(matches!(found, Capture::Misconfigured { why: Unrunnable::NotAFile, .. }), "{found:?}");
}

#[test]
fn a_binary_has_no_interpreter() {
    let place = Place::new();
    fs::copy("/bin/true", place.path("ws/.worktx/post-check")).expect("copied");
    let ready = place.ready(&DEFAULT);
    assert_eq!(ready.interpreters, []);
    let copy = ready.captured.expect("a copy");
    assert!(start(&mut Command::new(copy)).expect("started").success());
}

#[test]
fn every_change_of_the_original_is_seen() {
    let place = Place::new();
    let text = "#!/bin/sh\nexit 1\n";
    let path = place.write("ws/.worktx/post-check", text, 0o755);
    let ready = place.ready(&DEFAULT);
    assert_eq!(place.recheck(&ready), []);
    place.write("ws/.worktx/post-check", text, 0o700);
    assert_eq!(place.recheck(&ready), [], "other bits than the run bit say nothing");

    place.write("ws/.worktx/post-check", "#!/bin/sh\nexit 0\n", 0o755);
    assert_eq!(place.recheck(&ready), [Difference::Bytes { path: path.clone() }]);

    place.write("ws/.worktx/post-check", text, 0o644);
    let unrunnable = |why| [Difference::Unrunnable { path: path.clone(), why }];
    assert_eq!(place.recheck(&ready), unrunnable(Unrunnable::NotExecutable));

    fs::remove_file(&path).expect("removed");
    assert_eq!(place.recheck(&ready), unrunnable(Unrunnable::Missing));

    let elsewhere = place.write("ws/twin", text, 0o755);
    std::os::unix::fs::symlink("../twin", &path).expect("a link");
    let expected = Difference::Elsewhere { named: path.clone(), resolved: elsewhere };
    assert_eq!(place.recheck(&ready), [expected]);
}

#[test]
fn a_link_is_followed_and_both_ends_are_held() {
    let place = Place::new();
    let target = place.write("home/check", "#!/bin/sh\nexit 1\n", 0o755);
    let link = place.path("ws/.worktx/post-check");
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    let ready = place.ready(&DEFAULT);
    assert_eq!(ready.origin, Origin::File { named: link, resolved: target.clone() });
    assert_eq!(ready.original_dir, place.path("home"));
    place.write("home/check", "#!/bin/sh\nexit 0\n", 0o755);
    assert_eq!(place.recheck(&ready), [Difference::Bytes { path: target }]);
}

#[test]
fn every_change_of_an_interpreter_is_seen() {
    let place = Place::new();
    let lang = place.write("bin2/lang", "#!/bin/sh\nexec /bin/sh \"$@\"\n", 0o755);
    place.write("ws/.worktx/post-check", "#!/usr/bin/env lang\nexit 1\n", 0o755);
    let ready = place.ready(&DEFAULT);
    let names: Vec<_> = ready.interpreters.iter().map(|i| i.named.as_str()).collect();
    assert_eq!(names, ["/usr/bin/env", "lang", "/bin/sh"]);
    assert_eq!(place.recheck(&ready), []);

    let why = |differences: &[Difference]| match differences {
        [Difference::Interpreter { named, why }] if named == "lang" => why.clone(),
        other => panic!("{other:?}"),
    };
    place.write("bin2/lang", "#!/bin/sh\nexit 0\n", 0o755);
    assert!(why(&place.recheck(&ready)).contains("other bytes"));
    fs::remove_file(&lang).expect("removed");
    assert!(why(&place.recheck(&ready)).contains("not there"));
    place.write("bin2/lang", "#!/bin/sh\nexec /bin/sh \"$@\"\n", 0o755);
    assert_eq!(place.recheck(&ready), []);
    place.write("bin/lang", "#!/bin/sh\nexit 0\n", 0o755);
    assert!(why(&place.recheck(&ready)).contains("bin/lang now"), "an earlier one of PATH");
}

#[test]
fn a_command_is_its_words() {
    let place = Place::new();
    let words = PostCheckChoice::Command { words: "npm test".to_owned() };
    let ready = place.ready(&words);
    assert_eq!(ready.sha256, program::sha256(b"npm test"));
    assert_eq!(ready.captured, None);
    assert_eq!(ready.interpreters[0].named, SHELL);
    assert_eq!(place.recheck(&ready), []);
}

#[test]
fn what_appears_during_the_turn_is_no_validator() {
    let place = Place::new();
    let capture = place.capture(&DEFAULT).expect("none");
    place.write("ws/.worktx/post-check", "#!/bin/sh\nexit 0\n", 0o755);
    assert_eq!(recheck(&capture, &place.path("ws")), Recheck::Same);
}
