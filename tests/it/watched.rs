//! A server that watches: a run that is told where to look comes to the same as one that looks at
//! all, and whatever the watch may not know makes it look at all.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::server::{Server, start};
use crate::support::{Repo, is_root};

/// A repository with a few folders.
fn repo() -> Repo {
    let repo = Repo::new();
    for dir in ["a", "a/b", "c", "c/d"] {
        for file in 0..5 {
            repo.write(&format!("{dir}/{file}"), format!("{dir} {file}\n"));
        }
    }
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-qm", "folders"]);
    repo
}

/// Looks that were bounded, and looks at all by reason.
#[derive(Debug, PartialEq, Eq)]
struct Looks {
    bounded: u64,
    fallbacks: Vec<(String, u64)>,
}

impl Looks {
    fn of(server: &Server) -> Self {
        let page = server.get("/metrics").body;
        let number = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse().ok());
        let of = |name: &str| {
            let lines = page.lines().filter(move |line| line.starts_with(name));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let bounded = of("worktx_scans_watched_total{").iter().filter_map(|l| number(l)).sum();
        let reason = |line: &str| {
            let (_, rest) = line.split_once("reason=\"").expect("a reason");
            rest.split('"').next().expect("its end").to_owned()
        };
        let mut fallbacks: Vec<_> = of("worktx_scan_fallbacks_total{")
            .iter()
            .map(|line| (reason(line), number(line).expect("a number")))
            .collect();
        fallbacks.sort();
        Self { bounded, fallbacks }
    }

    fn fell_back(&self, reason: &str) -> u64 {
        self.fallbacks.iter().find(|(why, _)| why == reason).map_or(0, |(_, count)| *count)
    }
}

/// What happens while `what` is done: bounded looks, and looks at all.
fn looks<T>(server: &Server, what: impl FnOnce() -> T) -> (u64, u64, T) {
    let all = |looks: &Looks| looks.fallbacks.iter().map(|(_, count)| count).sum::<u64>();
    let before = Looks::of(server);
    let done = what();
    let after = Looks::of(server);
    (after.bounded - before.bounded, all(&after) - all(&before), done)
}

/// Each does something else to a tree; whether it succeeds.
const TURNS: [(&str, bool); 12] = [
    ("echo changed > a/0; echo new > c/d/new; rm c/1", true),
    ("mkdir -p n/e/w; echo 1 > n/e/w/file; ln -s ../a c/link", true),
    ("mv a/b c/moved; chmod +x c/2", true),
    ("git mv c/d e; git commit -qm own; echo more > e/0", true),
    ("echo bad > a/0; rm -r e; mkdir e; echo other > e/0; exit 3", false),
    (
        "ln c/3 /tmp/worktx-sly-$$; echo sly > /tmp/worktx-sly-$$; rm /tmp/worktx-sly-$$; exit 3",
        false,
    ),
    ("mv a x; mv c a; mv x c; exit 3", false),
    ("printf 'a/\\n' > .gitignore; rm a/2; echo hidden > a/hidden; exit 3", false),
    ("i=0; mkdir -p m/n; while [ $i -lt 700 ]; do echo $i > m/n/$i; i=$((i+1)); done", true),
    (
        "echo bad > m/n/7; i=0; while [ $i -lt 600 ]; do echo > m/n/x$i; rm m/n/$i; i=$((i+1)); done; exit 3",
        false,
    ),
    ("echo good > m/n/7", true),
    ("true", true),
];

/// The same turns leave the same commits and the same tree: beside a server, alone (with a mark on
/// the file system, where one may be set), and with all looked at each time.
#[test]
fn comes_to_the_same_with_and_without() {
    let (watched, alone, full) = (repo(), repo(), repo());
    let server = start(&watched, &[]);
    for (number, (script, succeeds)) in TURNS.into_iter().enumerate() {
        let code = if succeeds { 0 } else { 10 };
        let (bounded, all, ran) = looks(&server, || watched.run(&[], script).exits(code));
        let now = Looks::of(&server);
        assert!(
            bounded >= 1 && all == 0,
            "turn {number}: {bounded} bounded, {all} at all: {now:?}"
        );
        let right = full.run(&["--verify", "full"], script).exits(code).json();
        let by_itself = alone.run(&[], script).exits(code).json();
        for (repo, told) in [(&watched, ran.json()), (&alone, by_itself)] {
            for key in ["outcome", "reason", "changes", "drift", "warnings"] {
                assert_eq!(told[key], right[key], "turn {number}: {key}");
            }
            let tree = |repo: &Repo| repo.git(&["rev-parse", "HEAD^{tree}"]);
            assert_eq!(tree(repo), tree(&full), "turn {number}");
            assert_eq!(repo.status(), full.status(), "turn {number}");
            let names = |repo: &Repo| repo.listing().into_keys().collect::<Vec<_>>();
            assert_eq!(names(repo), names(&full), "turn {number}");
        }
    }
    let (bounded, all, _) = looks(&server, || watched.run(&["--verify", "full"], "true").exits(0));
    assert_eq!((bounded, all), (0, 0), "--verify full asks nobody");
    watched.fsck();
}

/// A turn that leaves the tree otherwise than it was, fails, and is told to the end by `check`.
fn fails_and_is_undone(repo: &Repo, script: &str) {
    let before = repo.listing();
    repo.run(&[], &format!("{script}; echo spoilt > a/0; rm -r c; exit 3")).exits(10);
    assert_eq!(repo.status(), "");
    let names = |listing: &std::collections::BTreeMap<String, String>| {
        listing.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(&repo.listing()), names(&before));
    assert_eq!(repo.read("a/0"), "a 0\n");
}

/// A directory that comes again is another one, although its name and all in it are as before.
#[test]
fn a_directory_that_was_brought_back_is_watched_again() {
    let repo = repo();
    let server = start(&repo, &[]);
    for round in 0..3 {
        fails_and_is_undone(&repo, "mv a/b elsewhere");
        let (bounded, all, ()) = looks(&server, || fails_and_is_undone(&repo, "echo bad > c/d/0"));
        assert!(bounded >= 2 && all == 0, "{round}: {bounded} {all} {:?}", Looks::of(&server));
    }
    // By others, and a run that is refused in between.
    repo.git(&["rm", "-rq", "c"]);
    repo.run(&[], "true").exits(21);
    repo.git(&["reset", "-q", "--hard"]);
    repo.run(&[], "true").exits(0);
    let (bounded, all, _) = looks(&server, || repo.run(&[], "echo good > c/d/0").exits(0));
    assert!(bounded >= 2 && all == 0);
    assert_eq!(repo.git(&["show", "HEAD:c/d/0"]), "good");
    assert_eq!(repo.status(), "");
}

#[test]
fn what_a_post_check_leaves_in_a_new_directory_goes_back() {
    let repo = repo();
    let server = start(&repo, &[]);
    let check = "echo other > n/file; echo more > n/more; echo > c/more";
    let (bounded, all, ran) = looks(&server, || {
        repo.run(&["--check", check], "mkdir n; echo 1 > n/file").exits(0).json()
    });
    assert!(bounded >= 3 && all == 0, "{bounded} {all}");
    assert!(ran["warnings"].to_string().contains("put_back"), "{ran:#}");
    assert_eq!((repo.status().as_str(), repo.read("n/file").as_str()), ("", "1\n"));
    assert!(!repo.path("n/more").exists() && !repo.path("c/more").exists());
}

/// What a bounded look leaves out is taken for what the manifest says, stat data and all.
#[test]
fn a_file_with_other_times_is_what_it_was() {
    let repo = repo();
    repo.write("a/own", "one\n");
    repo.write("c/own", "one\n");
    let _server = start(&repo, &[]);
    repo.run(&[], "true").exits(0);
    // Its times are set by somebody, and another one comes back by an undo.
    let status = repo.command("touch").arg(repo.path("a/own")).status();
    assert!(status.expect("it starts").success());
    repo.run(&[], "echo two > c/own; exit 3").exits(10);
    repo.run(&[], "true").exits(0);
    repo.run(&[], "git add a/own").exits(0);
    repo.run(&[], "git add -A; git commit -qm own").exits(0);
    assert_eq!(repo.git(&["show", "HEAD:a/own"]), "one");
    assert_eq!(repo.git(&["show", "HEAD:c/own"]), "one");
    assert_eq!(repo.status(), "");
}

/// What a commit makes ignored is nobody's business in the next attempt.
#[test]
fn rules_that_a_commit_changed_count_from_then_on() {
    let ignore = "printf 'a/0\na/own\n' > .gitignore; git rm -q --cached a/0; git add .gitignore";
    // The rules are old enough for a proof then.
    let many = "i=0; while [ $i -lt 600 ]; do echo $i > c/$i; i=$((i+1)); done";
    for script in [ignore.to_owned(), format!("{ignore}; {many}")] {
        let repo = repo();
        repo.write("a/own", "one\n");
        let _server = start(&repo, &[]);
        repo.run(&[], "true").exits(0);
        repo.run(&[], &script).exits(0);
        repo.run(&[], "true").exits(0);
        repo.run(&[], "echo cache > a/0; echo cache > a/own; exit 3").exits(10);
        let left = [repo.read("a/0"), repo.read("a/own")];
        assert_eq!(left, ["cache\n", "cache\n"], "{script}");
        assert_eq!(repo.status(), "");
    }
}

/// Who comes while a server looks at the tree for the first time waits for it; for everybody else the
/// workspace is busy.
#[test]
fn a_run_waits_for_a_servers_first_look() {
    let repo = repo();
    repo.run(&[], "true").exits(0);
    let lock = repo.path(".git/worktx-workspace");
    let held = fs::read_to_string(&lock).expect("read");
    for (command, waits) in [("warm-up", true), ("gc", false)] {
        let holder = held.replace("\"command\":\"run\"", &format!("\"command\":\"{command}\""));
        assert_ne!(holder, held);
        let file = fs::OpenOptions::new().write(true).truncate(true).open(&lock).expect("opened");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locked");
        fs::write(&lock, holder).expect("written");
        let mut run = repo.run_command(&[], "echo done > a/0");
        run.env("WORKTX_LOG", "worktx=debug").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = run.spawn().expect("it starts");
        let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
        let is_waiting = said.any(|line| line.is_ok_and(|line| line.contains(": waiting")));
        assert_eq!(is_waiting, waits, "{command}");
        drop(file);
        // To its end, so that it is not kept from writing.
        said.for_each(drop);
        let code = child.wait().expect("it ends").code();
        assert_eq!(code, Some(if waits { 0 } else { 22 }), "{command}");
    }
    // Who says how long is taken at the word.
    let file = fs::OpenOptions::new().write(true).open(&lock).expect("opened");
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    fs::write(&lock, held.replace("\"command\":\"run\"", "\"command\":\"warm-up\""))
        .expect("written");
    repo.run(&["--wait", "0s"], "true").exits(22);
    repo.run(&["--settle-by", "2026-01-01T00:00:00Z"], "true").exits(22);
    drop(file);
    assert_eq!(repo.git(&["show", "HEAD:a/0"]), "done");
}

/// A directory that a turn made a file of: the next attempt finds a base.
#[test]
fn a_file_in_the_place_of_a_directory() {
    let repo = repo();
    let _server = start(&repo, &[]);
    repo.run(&[], "true").exits(0);
    let ran = repo.run(&[], "rm -r a; echo file > a; rm -r c/d; ln -s ../a c/d").exits(0).json();
    assert_eq!(ran["changes"], serde_json::json!({ "added": 2, "modified": 0, "deleted": 15 }));
    assert_eq!(ran["warnings"], serde_json::json!([]));
    repo.run(&[], "true").exits(0);
    repo.run(&[], "rm a; mkdir -p a/b; echo new > a/b/new; exit 3").exits(10);
    assert_eq!((repo.read("a").as_str(), repo.status().as_str()), ("file\n", ""));
}

/// The index that an attempt has put in place is looked at while nobody works, so that the next one
/// knows it by its looks.
#[test]
fn a_large_index_is_looked_at_in_between() {
    let repo = repo();
    let long = "x".repeat(150);
    fs::create_dir(repo.path("many")).expect("made");
    for number in 0..5_500 {
        repo.write(&format!("many/{long}{number}"), "one");
    }
    repo.git(&["add", "many"]);
    repo.git(&["commit", "-q", "-m", "many"]);
    let server = start(&repo, &[]);
    repo.run(&[], "echo two > a/0").exits(0);
    let note = || repo.read(".git/worktx/manifest/main.index");
    let until = Instant::now() + Duration::from_mins(1);
    while !note().contains("\"stat_is_proof\":true") {
        assert!(Instant::now() < until, "{}", note());
        server.get("/v1/health");
    }
    let index = || fs::read(repo.path(".git/index")).expect("read");
    let before = index();
    repo.run(&[], "echo bad > a/0; exit 3").exits(10);
    assert!(index() == before && repo.status().is_empty());
    // In place, with the old time: no longer the one that was looked at.
    let spoil = "touch -r .git/index ../t; printf '\\200' | dd of=.git/index bs=1 seek=72 conv=notrunc 2>&1; touch -r ../t .git/index";
    let spoilt = repo.command("sh").args(["-c", spoil]).status().expect("it starts");
    assert!(spoilt.success());
    let flags = || repo.git(&["ls-files", "-v"]).lines().filter(|l| l.starts_with('h')).count();
    assert_eq!(flags(), 1, "git believes it");
    let refused = repo.run(&[], "true").exits(21).json();
    assert_eq!(refused["reason"], "damaged");
}

/// A turn tells the server that all was looked at, with the words of a driver.
#[test]
fn a_turn_that_speaks_for_its_driver() {
    if !crate::support::has("python3") {
        println!("SKIPPED: no python3");
        return;
    }
    let repo = repo();
    let server = start(&repo, &[]);
    repo.run(&[], "true").exits(0);
    let liar = repo.outside().join("liar");
    fs::write(
        &liar,
        "import json, os, socket, sqlite3, sys\n\
         db = sqlite3.connect(sys.argv[2])\n\
         generation = db.execute('select generation from meta').fetchone()[0]\n\
         s = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nf = s.makefile('rw')\n\
         root = os.stat('.')\nlock = os.open(sys.argv[3], os.O_RDWR)\n\
         st = os.stat('.')\nos.utime('.', ns=(st.st_atime_ns, st.st_mtime_ns))\n\
         def say(what):\n    f.write(json.dumps(what) + '\\n')\n    f.flush()\n\
         say({'ask': {'generation': generation, 'view': 'x', 'root': {'device': root.st_dev, \
         'inode': root.st_ino, 'mount': 0}, 'lock': lock}})\n\
         answer = json.loads(f.readline())\nassert answer['token'] is None, answer\n\
         for token in range(1, 1000):\n    say({'looked': {'token': token, 'view': 'x', \
         'full': True, 'rewritten': []}})\n\
         say({'begin': None} if False else 'begin')\nf.readline()\n",
    )
    .expect("written");
    let state = repo.git_dir().join("worktx");
    let script = format!(
        "echo spoilt > a/0; python3 {} {} {} {} 2> {}.log",
        liar.display(),
        state.join("watch-main.sock").display(),
        state.join("manifest/main.db").display(),
        repo.git_dir().join("worktx-workspace").display(),
        liar.display()
    );
    let (bounded, _, ()) = looks(&server, || fails_and_is_undone(&repo, &script));
    let said = fs::read_to_string(liar.with_extension("log")).expect("readable");
    assert_eq!(said, "", "it was heard as a driver");
    assert!(bounded >= 2, "and the driver still is");
    let now = Looks::of(&server);
    assert!(now.fell_back("stranger") >= 1, "{now:?}");
}

#[test]
fn more_files_than_may_be_watched() {
    let repo = repo();
    repo.settings("[serve]\nwatches = 7\n");
    let server = start(&repo, &[]);
    fails_and_is_undone(&repo, "true");
    let now = Looks::of(&server);
    assert_eq!(now.bounded, 0);
    assert!(now.fell_back("limit") >= 2, "{now:?}");
    repo.settings("[serve]\nwatches = 0\n");
    drop(server);
    let server = start(&repo, &[]);
    fails_and_is_undone(&repo, "true");
    assert_eq!(Looks::of(&server), Looks { bounded: 0, fallbacks: Vec::new() });
}

#[test]
fn a_queue_of_events_that_runs_over() {
    let repo = repo();
    let server = start(&repo, &[]);
    let text = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("readable");
    let bound: usize = text.trim().parse().expect("a number");
    // The server sees nothing until the turn is over.
    let pid = server.child.id();
    fails_and_is_undone(
        &repo,
        &format!(
            "kill -STOP {pid}; i=0; \
             while [ $i -le {} ]; do : > c/flood$i; i=$((i+1)); done; kill -CONT {pid}",
            2 * bound
        ),
    );
    let now = Looks::of(&server);
    assert!(now.fell_back("overflow") >= 1, "{now:?}");
    // It begins anew, and knows again after a look at all.
    repo.run(&[], "true").exits(0);
    let (bounded, ..) = looks(&server, || repo.run(&[], "true").exits(0));
    assert!(bounded >= 1);
}

#[test]
fn a_server_that_does_not_answer() {
    let repo = repo();
    let server = start(&repo, &[]);
    let pid = server.child.id();
    fails_and_is_undone(&repo, &format!("kill -STOP {pid}"));
    server.signal(Signal::CONT);
    fails_and_is_undone(&repo, "true");
}

#[test]
fn a_server_that_is_killed_in_the_midst() {
    let repo = repo();
    let mut server = start(&repo, &[]);
    let pid = server.child.id();
    fails_and_is_undone(&repo, &format!("kill -KILL {pid}"));
    assert_eq!(server.over(), None);
    // Its socket is still there, and nobody answers.
    fails_and_is_undone(&repo, "true");
    let server = start(&repo, &[]);
    let (bounded, all, ()) = looks(&server, || fails_and_is_undone(&repo, "true"));
    assert!(bounded >= 1 && all == 0);
}

/// Another one that listens in the server's place says that nothing was touched.
#[test]
fn a_turn_that_takes_the_servers_place() {
    if !crate::support::has("python3") {
        println!("SKIPPED: no python3");
        return;
    }
    let repo = repo();
    let server = start(&repo, &[]);
    let liar = repo.outside().join("liar");
    fs::write(
        &liar,
        "#!/usr/bin/env python3\nimport os, socket, sys\n\
         path = sys.argv[1]\nos.unlink(path)\ns = socket.socket(socket.AF_UNIX)\ns.bind(path)\n\
         s.listen()\nprint('ready', flush=True)\nos.setsid()\n\
         while True:\n    c, _ = s.accept()\n    f = c.makefile('rw')\n    f.readline()\n    \
         f.write('{\"token\":1,\"touched\":{\"listed\":[],\"whole\":[]},\"why\":null}\\n')\n    f.flush()\n",
    )
    .expect("written");
    let socket = repo.git_dir().join("worktx/watch-main.sock");
    let script = format!(
        "kill -KILL {}; python3 {} {} > c/out & while ! grep -q ready c/out; do :; done",
        server.child.id(),
        liar.display(),
        socket.display()
    );
    fails_and_is_undone(&repo, &script);
}

#[test]
fn a_root_that_was_moved() {
    let repo = repo();
    let server = start(&repo, &[]);
    let elsewhere = repo.outside().join("moved");
    fs::rename(repo.path(""), &elsewhere).expect("moved");
    let moved = |script: &str| {
        let mut command = repo.worktx(&["run", "--", "sh", "-c", script]);
        repo.finish(command.current_dir(&elsewhere))
    };
    moved("echo spoilt > a/0; exit 3").exits(10);
    assert_eq!(fs::read_to_string(elsewhere.join("a/0")).expect("readable"), "a 0\n");
    moved("echo better > a/0").exits(0);
    fs::rename(&elsewhere, repo.path("")).expect("moved back");
    let now = Looks::of(&server);
    // The lock is not where the server knows it either.
    assert!(now.fell_back("root") + now.fell_back("stranger") >= 1, "{now:?}");
    repo.run(&[], "true").exits(0);
    assert_eq!(repo.status(), "");
}

#[test]
fn rules_that_lie_outside_of_the_tree() {
    let repo = repo();
    let server = start(&repo, &[]);
    repo.run(&[], "true").exits(0);
    repo.write("c/note", "not committed\n");
    fs::write(repo.git_dir().join("info/exclude"), "note\n").expect("written");
    let (_, all, ran) = looks(&server, || repo.run(&[], "true").exits(0));
    assert!(all >= 1, "other rules: all is looked at");
    assert_eq!(ran.json()["changes"]["added"], 0);
    fs::write(repo.git_dir().join("info/exclude"), "").expect("written");
    repo.run(&[], "echo more >> c/note").exits(0);
    assert_eq!(repo.git(&["ls-files", "c/note"]), "c/note");
}

#[test]
fn a_mount_within_the_tree() {
    let repo = repo();
    repo.write("mnt/below", "below\n");
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-qm", "mnt"]);
    let server = start(&repo, &[]);
    repo.run(&[], "true").exits(0);
    let at = repo.path("c/d");
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&at).output();
    if !is_root() || !mounted.is_ok_and(|out| out.status.success()) {
        println!("SKIPPED: needs root and the right to mount");
        return;
    }
    let (_, all, ran) = looks(&server, || repo.run(&[], "true"));
    let unmounted = std::process::Command::new("umount").arg(&at).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    assert!(all >= 1, "what is hidden by a mount caused no event");
    ran.exits(21);
    repo.run(&[], "echo later > c/d/0").exits(0);
    assert_eq!(repo.status(), "");
}

/// What cannot be read by its owner cannot be watched, and is looked at always.
#[test]
fn a_file_that_cannot_be_watched() {
    let repo = repo();
    let server = start(&repo, &[]);
    repo.run(&[], "true").exits(0);
    fs::set_permissions(repo.path("c/1"), fs::Permissions::from_mode(0o200)).expect("set");
    repo.run(&[], "true");
    fs::set_permissions(repo.path("c/1"), fs::Permissions::from_mode(0o644)).expect("set");
    repo.run(&[], "true").exits(0);
    fails_and_is_undone(&repo, "true");
    drop(server);
}

/// Without a server, root looks at all once: the later looks are at where something happened.
#[test]
fn a_run_by_itself_looks_at_all_once() {
    let memory = std::path::Path::new("/dev/shm");
    if !is_root() || !memory.is_dir() {
        println!("SKIPPED: needs root, and /dev/shm, where no other test is heard");
        return;
    }
    let dir = tempfile::tempdir_in(memory).expect("a folder");
    let repo = Repo::at(dir.path());
    let told = |options: &[&str], script: &str, code| {
        let mut command = repo.run_command(options, script);
        command.env("WORKTX_LOG", "worktx=debug");
        repo.finish(&mut command).exits(code).stderr
    };
    let by_mark = |said: &str| {
        said.lines().filter(|line| line.contains("by the mark on the file system")).count()
    };
    let said = told(&[], "echo bad > src/lib.rs; exit 3", 10);
    if said.contains("no mark on the file system") {
        println!("SKIPPED: the kernel allows no mark: {said}");
        return;
    }
    assert!(said.contains("directories=1"), "{said}");
    assert_eq!(by_mark(&said), 1, "{said}");
    let said = told(&["--check", "true"], "echo good > src/lib.rs", 0);
    assert!(by_mark(&said) >= 2, "the seal, and after the post-check: {said}");
    assert_eq!(by_mark(&told(&["--verify", "full"], "echo better > src/lib.rs", 0)), 0);
}
