//! The supervisor on real processes: every ending, every killer, and what is left.
//!
//! Acknowledgements come over sockets and FIFOs; nobody sleeps for luck.

use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use worktx::process::{Death, check, is_alive, stop};
use worktx::tx::writer::{ProcessId, WriterRecord};

/// A turn started through the hidden entry of the binary.
struct Turn {
    coordinator: Child,
    from: BufReader<UnixStream>,
    record: WriterRecord,
    dir: tempfile::TempDir,
}

fn fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("fifo");
    path
}

impl Turn {
    fn start(options: &str, script: &str) -> Self {
        Self::start_with(options, &["sh", "-c", script], Stdio::null(), Stdio::null())
    }

    fn start_with(options: &str, argv: &[&str], stdout: Stdio, stderr: Stdio) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("bind");
        fifo(dir.path(), "ack");
        fifo(dir.path(), "up");
        let coordinator = Command::new(env!("CARGO_BIN_EXE_worktx"))
            .arg("__test-turn")
            .arg(&socket)
            .arg(dir.path().join("record"))
            .arg(options)
            .arg("--")
            .args(argv)
            .env("ACK", dir.path().join("ack"))
            .env("DIR", dir.path())
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("spawn");
        let (stream, _) = listener.accept().expect("accept");
        let mut from = BufReader::new(stream);
        let record = serde_json::from_value(line(&mut from).expect("a record")).expect("parses");
        Self { coordinator, from, record, dir }
    }

    fn over(mut self) -> Value {
        let outcome = line(&mut self.from).expect("an outcome");
        assert!(self.coordinator.wait().expect("wait").success());
        outcome
    }

    /// What the turn wrote into its FIFO, once it has.
    fn ack(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("ack")).expect("ack")
    }

    fn record_dir(&self) -> PathBuf {
        self.dir.path().join("record")
    }

    fn kill_coordinator(&mut self) {
        self.coordinator.kill().expect("kill");
        self.coordinator.wait().expect("wait");
    }

    fn kill_supervisor(&self) {
        signal(self.record.supervisor.pid, Signal::KILL);
    }
}

fn line(from: &mut impl std::io::BufRead) -> Option<Value> {
    let mut text = String::new();
    from.read_line(&mut text).expect("read");
    (!text.is_empty()).then(|| serde_json::from_str(&text).expect("JSON"))
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("signal");
}

/// Waits for the end of a process that may be nobody's child here.
fn await_end(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a pid");
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let mut ready = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ready, Some(&limit)), Ok(1), "{pid:?} lives on");
}

fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim().starts_with('Z'))
}

fn pids(text: &str) -> Vec<i32> {
    text.split_whitespace().map(|word| word.parse().expect("a pid")).collect()
}

/// A script that leaves a daemon: twice forked, its own session, no handles, deaf to SIGTERM.
const DAEMON: &str = r#"
( setsid sh -c 'trap "" TERM INT HUP; echo $$ >"$DIR/daemon.pid"; : >"$DIR/up"
  exec </dev/null >/dev/null 2>&1; while :; do sleep 60; done' & ) </dev/null >/dev/null 2>&1
"#;

fn daemon_pid(dir: &Path) -> i32 {
    pids(&std::fs::read_to_string(dir.join("daemon.pid")).expect("daemon.pid"))[0]
}

#[test]
fn exit_codes_and_signals_are_told() {
    let over = Turn::start("{}", "exit 0").over();
    assert_eq!(over["result"]["exit_code"], 0);
    assert_eq!(over["death"]["Ok"], "no_children");
    assert_eq!(over["ended_by"], "itself");
    let over = Turn::start("{}", "exit 7").over();
    assert_eq!(over["result"]["exit_code"], 7);
    let over = Turn::start("{}", "kill -SEGV $$").over();
    assert_eq!(
        (&over["result"]["exit_code"], &over["result"]["signal"]),
        (&Value::Null, &11.into())
    );
}

#[test]
fn a_command_that_cannot_be_executed_is_told() {
    let turn = Turn::start_with("{}", &["nowhere-at-all"], Stdio::null(), Stdio::null());
    let over = turn.over();
    assert_eq!(over["result"]["exit_code"], 127);
    assert!(over["exec_error"].as_str().expect("why").contains("No such file"));
    assert_eq!(over["death"]["Ok"], "no_children");
}

#[test]
fn a_script_without_interpreter_line_runs_in_sh() {
    let turn = Turn::start_with(
        "{}",
        &["sh", "-c", "printf 'exit 5\n' >s; chmod +x s; exec ./s"],
        Stdio::null(),
        Stdio::null(),
    );
    assert_eq!(turn.over()["result"]["exit_code"], 5);
}

#[test]
fn the_command_gets_three_handles_and_a_session() {
    // A handle that this test leaks on purpose must not get through.
    let leak = File::open("/dev/null").expect("open");
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("leak");
    let run = |argv: &[&str]| {
        let mut turn = Turn::start_with(r#"{"tail":1000}"#, argv, Stdio::null(), Stdio::null());
        let outcome = line(&mut turn.from).expect("outcome");
        turn.coordinator.wait().expect("wait");
        (turn.record.leader.pid, outcome["tail"].as_str().expect("tail").to_owned())
    };
    // 3 is the directory that `ls` reads.
    let (_, handles) = run(&["ls", "/proc/self/fd"]);
    assert_eq!(pids(&handles), [0, 1, 2, 3]);
    let (leader, stat) = run(&["cut", "-d ", "-f1,5,6", "/proc/self/stat"]);
    assert_eq!(pids(&stat), [leader; 3]);
    // Neither does the supervisor's mask.
    let (_, blocked) = run(&["sed", "-n", "s/^SigBlk:.//p", "/proc/self/status"]);
    assert_eq!(blocked.trim(), "0000000000000000");
}

#[test]
fn the_environment_is_exactly_what_was_given() {
    let mut turn = Turn::start_with(r#"{"tail":32000}"#, &["env"], Stdio::null(), Stdio::null());
    let outcome = line(&mut turn.from).expect("outcome");
    let tail = outcome["tail"].as_str().expect("tail");
    let path = format!("ACK={}", turn.dir.path().join("ack").display());
    assert!(tail.lines().any(|line| line == path), "{tail}");
    assert!(!tail.contains("__"), "{tail}");
    turn.coordinator.wait().expect("wait");
}

#[test]
fn a_deadline_kills_what_ignores_it() {
    let script =
        r#"trap "" TERM; sh -c 'trap "" TERM; echo $$ >"$ACK"; while :; do sleep 60; done'"#;
    let turn = Turn::start(r#"{"timeout_ms":300,"grace_ms":200}"#, script);
    let child = pids(&turn.ack())[0];
    let over = turn.over();
    assert_eq!(over["ended_by"], "timeout");
    assert_eq!(over["result"]["signal"], 9);
    assert_eq!(over["death"]["Ok"], "no_children");
    assert!(is_gone(child));
}

#[test]
fn a_turn_that_heeds_sigterm_is_not_killed() {
    let script = r#"trap 'exit 3' TERM; : >"$ACK"; while :; do sleep 60 & wait; done"#;
    let turn = Turn::start(r#"{"timeout_ms":300,"grace_ms":20000}"#, script);
    turn.ack();
    let started = Instant::now();
    let over = turn.over();
    assert_eq!((&over["ended_by"], &over["result"]["exit_code"]), (&"timeout".into(), &3.into()));
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_daemon_is_killed_and_named() {
    let turn = Turn::start(r#"{"grace_ms":200}"#, &format!("{DAEMON} cat \"$DIR/up\""));
    let dir = turn.dir.path().to_owned();
    let mut turn = turn;
    let outcome = line(&mut turn.from).expect("outcome");
    let daemon = daemon_pid(&dir);
    assert!(is_gone(daemon));
    assert_eq!(outcome["result"]["exit_code"], 0);
    assert_eq!(outcome["death"]["Ok"], "no_children");
    let killed = outcome["result"]["killed"].as_array().expect("a list");
    let named = killed.iter().find(|k| k["pid"] == daemon).expect("named");
    assert_eq!(named["signal"], "SIGKILL");
    assert!(named["command"].as_str().expect("a line").contains("trap"), "{named}");
    turn.coordinator.wait().expect("wait");
}

#[test]
fn a_polite_survivor_is_asked_only() {
    let script = "(exec sleep 600 >/dev/null 2>&1) & echo done";
    let started = Instant::now();
    let over = Turn::start(r#"{"grace_ms":20000}"#, script).over();
    assert_eq!(over["result"]["killed"][0]["signal"], "SIGTERM");
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn stopped_survivors_are_ended_too() {
    let script = "sleep 600 >/dev/null 2>&1 & kill -STOP $!; exit 0";
    let over = Turn::start(r#"{"grace_ms":20000}"#, script).over();
    assert_eq!(over["result"]["killed"][0]["signal"], "SIGTERM");
    assert_eq!(over["death"]["Ok"], "no_children");
}

#[test]
fn signals_to_the_coordinator_end_the_turn() {
    for (sent, by, got) in [
        (Signal::INT, "cancel", 2),
        (Signal::TERM, "interrupt", 15),
        (Signal::HUP, "interrupt", 15),
    ] {
        let turn = Turn::start("{}", r#": >"$ACK"; exec sleep 600"#);
        turn.ack();
        signal(i32::try_from(turn.coordinator.id()).expect("fits"), sent);
        let over = turn.over();
        assert_eq!((&over["ended_by"], &over["result"]["signal"]), (&by.into(), &got.into()));
    }
}

#[test]
fn a_second_ctrl_c_ends_the_grace() {
    let script = r#"trap 'echo got >"$ACK"' INT; : >"$ACK"; while :; do sleep 60 & wait; done"#;
    let turn = Turn::start(r#"{"grace_ms":30000}"#, script);
    turn.ack();
    let pid = i32::try_from(turn.coordinator.id()).expect("fits");
    signal(pid, Signal::INT);
    turn.ack();
    // The same Ctrl-C may arrive twice; a later one is a second.
    let turn = std::thread::scope(|scope| {
        let over = scope.spawn(|| turn.over());
        while !over.is_finished() {
            let _ = kill_process(Pid::from_raw(pid).expect("a pid"), Signal::INT);
            std::thread::park_timeout(Duration::from_millis(100));
        }
        over.join().expect("joins")
    });
    assert_eq!(turn["ended_by"], "cancel");
    assert_eq!(turn["result"]["signal"], 9);
}

#[test]
fn abandoned_both_leave() {
    let mut turn = Turn::start(r#"{"abandon":true}"#, r#"echo ran >"$DIR/ran""#);
    let outcome = line(&mut turn.from).expect("outcome");
    assert_eq!(outcome["death"]["Ok"], "never_started");
    assert!(!turn.dir.path().join("ran").exists());
    assert_eq!(is_alive(&turn.record.host, &turn.record.leader), Some(false));
    let death = check(&turn.record, &turn.record_dir(), false);
    assert!(
        matches!(death, Death::Proven(proof) if proof.how() == worktx::tx::writer::DeathProof::NeverStarted)
    );
    turn.coordinator.wait().expect("wait");
}

#[test]
fn a_killed_coordinator_leaves_the_proof() {
    let script = format!("{DAEMON} cat \"$DIR/up\"; echo $$ >\"$ACK\"; exec sleep 600");
    let mut turn = Turn::start("{\"grace_ms\":200}", &script);
    assert_eq!(pids(&turn.ack()), [turn.record.leader.pid]);
    let death = check(&turn.record, &turn.record_dir(), false);
    let Death::Alive(living) = death else { panic!("{death:?}") };
    let daemon = daemon_pid(turn.dir.path());
    for pid in [turn.record.supervisor.pid, turn.record.leader.pid, daemon] {
        assert!(living.iter().any(|l| l.pid == pid), "{pid} in {living:?}");
    }
    turn.kill_coordinator();
    await_end(turn.record.supervisor.pid);
    assert!(is_gone(turn.record.leader.pid) && is_gone(daemon));
    let death = check(&turn.record, &turn.record_dir(), false);
    assert!(
        matches!(death, Death::Proven(proof) if proof.how() == worktx::tx::writer::DeathProof::NoChildren)
    );
}

#[test]
fn the_supervisor_keeps_the_lock_as_long_as_the_turn_lives() {
    let mut turn =
        Turn::start(r#"{"keep":"kept"}"#, r#"ls -l /proc/$$/fd >list; : >"$ACK"; exec sleep 600"#);
    turn.ack();
    let kept = File::open(turn.dir.path().join("kept")).expect("made");
    signal(turn.record.supervisor.pid, Signal::STOP);
    turn.kill_coordinator();
    assert!(kept.try_lock().is_err(), "the coordinator alone held it");
    signal(turn.record.supervisor.pid, Signal::CONT);
    await_end(turn.record.supervisor.pid);
    assert!(is_gone(turn.record.leader.pid));
    kept.try_lock().expect("free again");
    let list = std::fs::read_to_string(turn.dir.path().join("list")).expect("listed");
    assert!(!list.contains("kept"), "{list}");
}

/// Runs the turn on a terminal of its own, by `script`; `None` where there is none.
fn on_a_terminal(script: &str) -> Option<(Turn, std::process::ChildStdin)> {
    if Command::new("script").arg("--version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: script(1) is not installed");
        return None;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).expect("bind");
    fifo(dir.path(), "ack");
    std::fs::write(dir.path().join("turn.sh"), script).expect("written");
    let line_of = format!(
        r#"exec {} __test-turn socket record '{{"terminal":true}}' -- sh turn.sh"#,
        env!("CARGO_BIN_EXE_worktx")
    );
    let mut coordinator = Command::new("script")
        .args(["-qec", &line_of, "/dev/null"])
        .env("ACK", dir.path().join("ack"))
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("spawn");
    let keys = coordinator.stdin.take().expect("piped");
    let (stream, _) = listener.accept().expect("accept");
    let mut from = BufReader::new(stream);
    let record = serde_json::from_value(line(&mut from).expect("a record")).expect("parses");
    Some((Turn { coordinator, from, record, dir }, keys))
}

#[test]
fn ctrl_c_at_the_terminal_is_the_turns_and_a_cancel_if_it_dies_of_it() {
    let Some((turn, mut keys)) = on_a_terminal(": >\"$ACK\"; exec sleep 600") else { return };
    turn.ack();
    keys.write_all(b"\x03").expect("typed");
    let over = turn.over();
    assert_eq!((&over["ended_by"], &over["result"]["signal"]), (&"cancel".into(), &2.into()));
    // One that handles it goes on, as an editor does. (Short sleeps: a signal between the shell's
    // fork and exec is lost to the child, and the shell sees to its trap after the child.)
    let script = "trap 'echo got >\"$ACK\"; exit 8' INT; : >\"$ACK\"; while :; do sleep 0.1; done";
    let Some((turn, mut keys)) = on_a_terminal(script) else { return };
    turn.ack();
    keys.write_all(b"\x03").expect("typed");
    turn.ack();
    let over = turn.over();
    assert_eq!((&over["ended_by"], &over["result"]["exit_code"]), (&"itself".into(), &8.into()));
}

#[test]
fn a_prompt_on_the_terminal_is_answered_in_the_foreground() {
    let script = "exec </dev/tty; : >\"$ACK\"; read -r line; cut -d' ' -f5,8 /proc/$$/stat >\"$ACK\"; [ \"$line\" = bob ]";
    let Some((turn, mut keys)) = on_a_terminal(script) else { return };
    turn.ack();
    keys.write_all(b"bob\r").expect("typed");
    // Its group, and the foreground group of its terminal.
    let groups = pids(&turn.ack());
    assert_eq!(groups, [turn.record.leader.pid; 2]);
    assert_eq!(turn.over()["result"]["exit_code"], 0);
}

#[test]
fn ctrl_z_without_job_control_above_hangs_nothing() {
    let Some((turn, mut keys)) = on_a_terminal(": >\"$ACK\"; read -r x; exit 9") else { return };
    turn.ack();
    keys.write_all(b"\x1a").expect("typed");
    keys.write_all(b"go\r").expect("typed");
    assert_eq!(turn.over()["result"]["exit_code"], 9);
}

#[test]
fn a_killed_supervisor_ends_the_turn() {
    let script = format!(
        "{DAEMON} cat \"$DIR/up\"; trap 'exit 0' TERM; : >\"$ACK\"; while :; do sleep 60 & wait; done"
    );
    let turn = Turn::start("{\"grace_ms\":300}", &script);
    turn.ack();
    let daemon = daemon_pid(turn.dir.path());
    turn.kill_supervisor();
    let over = turn.over();
    assert!(is_gone(daemon));
    assert_eq!(over["supervisor_lost"], true);
    // Even though it heeded SIGTERM and returned 0: this is no success.
    assert_eq!((&over["ended_by"], &over["result"]["exit_code"]), (&"interrupt".into(), &0.into()));
    assert_eq!(over["death"]["Ok"], "no_children");
    assert!(
        over["result"]["killed"].as_array().expect("a list").iter().any(|k| k["pid"] == daemon)
    );
}

#[test]
fn a_stopped_supervisor_is_woken() {
    let turn = Turn::start("{}", r#": >"$ACK"; cat "$ACK"; exit 4"#);
    turn.ack();
    signal(turn.record.supervisor.pid, Signal::STOP);
    std::fs::write(turn.dir.path().join("ack"), "go\n").expect("go");
    assert_eq!(turn.over()["result"]["exit_code"], 4);
}

#[test]
fn both_killed_the_writer_is_found_and_stopped() {
    let script =
        format!("{DAEMON} cat \"$DIR/up\"; trap '' TERM; : >\"$ACK\"; while :; do sleep 60; done");
    let mut turn = Turn::start(r#"{"cgroup":false}"#, &script);
    turn.ack();
    assert_eq!(turn.record.cgroup, None);
    let daemon = daemon_pid(turn.dir.path());
    // Frozen, the supervisor cannot end the turn between the two kills.
    signal(turn.record.supervisor.pid, Signal::STOP);
    turn.kill_coordinator();
    turn.kill_supervisor();
    await_end(turn.record.supervisor.pid);
    let death = check(&turn.record, &turn.record_dir(), false);
    let Death::Alive(living) = death else { panic!("{death:?}") };
    assert!(living.iter().any(|l| l.pid == turn.record.leader.pid));
    let (grace, bound) = (Duration::from_millis(200), Duration::from_secs(10));
    let death = stop(&turn.record, &turn.record_dir(), grace, bound, false);
    assert!(is_gone(turn.record.leader.pid));
    // The daemon left the session, and its parents before the kill: nothing shows whose it is.
    assert!(
        matches!(&death, Death::Unproven(why) if why.contains(&daemon.to_string())),
        "{death:?}"
    );
    let handle =
        pidfd_open(Pid::from_raw(daemon).expect("a pid"), PidfdFlags::empty()).expect("lives");
    pidfd_send_signal(&handle, Signal::KILL).expect("kill");
    await_end(daemon);
    // Its `sleep` is in its session, which nothing explains either; it is the test's to end.
    if let Death::Unproven(why) = check(&turn.record, &turn.record_dir(), false) {
        for word in why.split([' ', ':', ';']).filter_map(|word| word.parse::<i32>().ok()) {
            let line = std::fs::read_to_string(format!("/proc/{word}/stat")).unwrap_or_default();
            if line.contains(&format!(" {daemon} ")) {
                signal(word, Signal::KILL);
            }
        }
    }
}

#[test]
fn both_killed_a_plain_turn_is_stopped_and_proven_or_said_unproven() {
    let mut turn = Turn::start("{}", r#"sleep 600 & echo $! >"$ACK"; wait"#);
    let child = pids(&turn.ack())[0];
    signal(turn.record.supervisor.pid, Signal::STOP);
    turn.kill_coordinator();
    turn.kill_supervisor();
    await_end(turn.record.supervisor.pid);
    let (grace, bound) = (Duration::from_secs(5), Duration::from_secs(10));
    let death = stop(&turn.record, &turn.record_dir(), grace, bound, false);
    assert!(is_gone(turn.record.leader.pid) && is_gone(child));
    // Other tests' orphans may be about: then it is unproven, never alive.
    assert!(!matches!(death, Death::Alive(_)), "{death:?}");
}

#[test]
fn stop_waits_for_a_supervisor_that_does_it() {
    let mut turn = Turn::start(
        r#"{"grace_ms":200}"#,
        r#"trap "" TERM; : >"$ACK"; while :; do sleep 60; done"#,
    );
    turn.ack();
    turn.kill_coordinator();
    let (grace, bound) = (Duration::from_secs(5), Duration::from_secs(10));
    let death = stop(&turn.record, &turn.record_dir(), grace, bound, false);
    assert!(
        matches!(death, Death::Proven(proof) if proof.how() == worktx::tx::writer::DeathProof::NoChildren)
    );
    assert!(is_gone(turn.record.leader.pid));
}

#[test]
fn the_tail_is_kept_though_a_daemon_holds_the_pipe() {
    // The daemon keeps stdout and stderr: it would hang whoever waits for end of file.
    let script = r#"( setsid sh -c 'trap "" TERM; : >"$DIR/up"; while :; do sleep 60; done' & )
cat "$DIR/up"; printf '%06000d\nthe end\n' 0"#;
    let turn = Turn::start_with(
        r#"{"tail":100,"grace_ms":200}"#,
        &["sh", "-c", script],
        Stdio::null(),
        Stdio::piped(),
    );
    let mut turn = turn;
    let mut live = turn.coordinator.stderr.take().expect("piped");
    let outcome = line(&mut turn.from).expect("outcome");
    let tail = outcome["tail"].as_str().expect("tail");
    assert_eq!((tail.len(), tail.ends_with("0\nthe end\n")), (100, true));
    assert_eq!(outcome["truncated"], true);
    turn.coordinator.wait().expect("wait");
    let mut text = String::new();
    live.read_to_string(&mut text).expect("reads");
    assert_eq!(text.len(), 6009);
}

/// One storm at a time: the machine has other things to do.
static STORMS: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn a_fork_bomb_comes_to_a_verdict() {
    let _alone = STORMS.lock();
    // Bounded by itself as well: a few thousand processes that fork while they are killed.
    let script = r#"
trap '' TERM; setsid sh -c "$(echo 'trap "" TERM; b() { [ $1 -le 0 ] || { b $(($1-1)) & b $(($1-1)) & }; sleep 600; }; b 10')" >/dev/null 2>&1 &
: >"$ACK"; exit 0"#;
    let turn = Turn::start(r#"{"grace_ms":500,"bound_ms":20000}"#, script);
    turn.ack();
    let started = Instant::now();
    let over = turn.over();
    assert_eq!(over["death"]["Ok"], "no_children");
    assert!(over["result"]["killed"].as_array().expect("a list").len() <= 100);
    let _ = writeln!(std::io::stderr(), "fork bomb ended in {:?}", started.elapsed());
}

#[test]
fn those_that_fork_for_ever_are_caught() {
    let _alone = STORMS.lock();
    // Four loops, each in a session of its own, that make daemons in sessions of their own.
    let script = r#"
for i in 1 2 3 4; do
  setsid sh -c 'trap "" TERM; while :; do setsid sleep 600 & done' >/dev/null 2>&1 &
done
: >"$ACK"; exit 0"#;
    let turn = Turn::start(r#"{"grace_ms":200,"bound_ms":20000}"#, script);
    turn.ack();
    let over = turn.over();
    assert_eq!(over["death"]["Ok"], "no_children");
    assert!(over["result"]["duration_ms"].as_u64().expect("a time") < 15_000);
}

#[test]
fn one_record_directory_has_one_supervisor() {
    let turn = Turn::start("{}", r#": >"$ACK"; cat "$ACK""#);
    turn.ack();
    let socket = turn.dir.path().join("second");
    let listener = UnixListener::bind(&socket).expect("bind");
    let second = Command::new(env!("CARGO_BIN_EXE_worktx"))
        .arg("__test-turn")
        .args([&socket, &turn.record_dir()])
        .args(["{}", "--", "true"])
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    drop(listener);
    assert_eq!(second.status.code(), Some(70));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("another supervisor"), "{said}");
    std::fs::write(turn.dir.path().join("ack"), "go\n").expect("go");
    assert_eq!(turn.over()["result"]["exit_code"], 0);
}

#[test]
fn ids_tell_processes_apart() {
    let turn = Turn::start("{}", r#": >"$ACK"; cat "$ACK""#);
    turn.ack();
    let record = &turn.record;
    assert_eq!(is_alive(&record.host, &record.leader), Some(true));
    let other = ProcessId { start_ticks: record.leader.start_ticks + 1, ..record.leader };
    assert_eq!(is_alive(&record.host, &other), Some(false));
    std::fs::write(turn.dir.path().join("ack"), "go\n").expect("go");
    turn.over();
}

/// Where cgroups are made for turns; `None`, and said why, where that cannot be here.
fn cgroups() -> Option<PathBuf> {
    let skipped = |why: &str| {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
        None
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let Some(mount) = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let fields: Vec<&str> = left.split(' ').collect();
        (right.starts_with("cgroup2 ") && fields[3] == "/").then(|| PathBuf::from(fields[4]))
    }) else {
        return skipped("no cgroup v2 is mounted");
    };
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("cgroup");
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::")) else {
        return skipped("this process is in no cgroup v2");
    };
    if [".service", ".scope", ".slice"].iter().any(|unit| path.contains(unit)) {
        return skipped("this process is in a unit of systemd");
    }
    let own = mount.join(path.trim_start_matches('/'));
    let probe = own.join(format!("probe-{}", std::process::id()));
    let made = std::fs::create_dir(&probe)
        .and_then(|()| std::fs::write(probe.join("cgroup.procs"), ""))
        .or_else(|error| {
            // Writing nothing is refused by itself; a cgroup that takes nobody says so otherwise.
            let fine = error.kind() == std::io::ErrorKind::InvalidInput;
            if fine { Ok(()) } else { Err(error) }
        });
    let _ = std::fs::remove_dir(&probe);
    match made {
        Ok(()) => Some(mount),
        Err(error) => skipped(&format!("no cgroup can be made: {error}")),
    }
}

impl Turn {
    /// The folder of its cgroup.
    fn cgroup(&self, mount: &Path) -> PathBuf {
        let path = self.record.cgroup.as_deref().expect("a cgroup can be made here");
        mount.join(path.trim_start_matches('/'))
    }

    /// Kills both, so that neither ends the turn. A stopped supervisor goes on for a moment when its
    /// group is orphaned, and asks the turn to end: one that is to live has to be deaf to SIGTERM.
    fn kill_both(&mut self) {
        signal(self.record.supervisor.pid, Signal::STOP);
        self.kill_coordinator();
        self.kill_supervisor();
        await_end(self.record.supervisor.pid);
    }
}

const GRACE: Duration = Duration::from_millis(200);
const BOUND: Duration = Duration::from_secs(20);

#[track_caller]
fn assert_empty_cgroup(death: &Death) {
    let how = worktx::tx::writer::DeathProof::CgroupEmpty;
    assert!(matches!(death, Death::Proven(proof) if proof.how() == how), "{death:?}");
}

#[test]
fn a_turn_has_a_cgroup_of_its_own_and_leaves_none() {
    let Some(mount) = cgroups() else { return };
    for (options, script, death) in [
        ("{}", "cat /proc/self/cgroup > where; cat /proc/$PPID/cgroup > above", "no_children"),
        (r#"{"abandon":true}"#, "true", "never_started"),
        // What it makes beneath is gone with it.
        (
            "{}",
            "c=$CGROUPS$(sed -n s/^0:://p /proc/self/cgroup); mkdir -p $c/a/b; echo $$ > $c/a/b/cgroup.procs; \
             cat /proc/self/cgroup > where; (setsid sleep 600 &)",
            "no_children",
        ),
        // Who moves out of it is a descendant still.
        (
            r#"{"grace_ms":100}"#,
            "echo $$ > $CGROUPS$(sed -n s/^0:://p /proc/$PPID/cgroup)/cgroup.procs; : > where; \
             (trap '' TERM; setsid sleep 600 >/dev/null 2>&1 &)",
            "no_children",
        ),
    ] {
        let script = format!("CGROUPS={}; {script}", mount.display());
        let mut turn = Turn::start(options, &script);
        let path = turn.record.cgroup.clone().expect("a cgroup can be made here");
        let dir = turn.cgroup(&mount);
        let outcome = line(&mut turn.from).expect("an outcome");
        assert!(turn.coordinator.wait().expect("wait").success());
        let how =
            if death == "never_started" { &outcome["death"] } else { &outcome["death"]["Ok"] };
        assert!(how.to_string().contains(death), "{outcome}");
        assert!(!dir.exists(), "{script}");
        let read = |name: &str| std::fs::read_to_string(turn.dir.path().join(name));
        if let (Ok(place), Ok(above)) = (read("where"), read("above")) {
            assert!(place.lines().any(|line| line == format!("0::{path}")), "{place}");
            assert!(!above.contains(&path), "the supervisor is not in it: {above}");
        }
    }
}

#[test]
fn both_killed_an_orphan_in_its_cgroup_is_stopped_and_proven() {
    let Some(mount) = cgroups() else { return };
    let script =
        format!("{DAEMON} cat \"$DIR/up\"; trap '' TERM; : >\"$ACK\"; while :; do sleep 60; done");
    let mut turn = Turn::start("{}", &script);
    turn.ack();
    let (daemon, dir) = (daemon_pid(turn.dir.path()), turn.cgroup(&mount));
    // Somebody else's orphan of init, started since, in a session of its own: without the cgroup
    // nothing would tell it from the turn.
    let other = Command::new("sh")
        .args(["-c", "setsid sh -c 'echo $$; exec sleep 600 >/dev/null 2>&1' & exit 0"])
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let orphan = pids(&String::from_utf8(other.stdout).expect("text"))[0];
    turn.kill_both();
    let death = check(&turn.record, &turn.record_dir(), false);
    let Death::Alive(living) = death else { panic!("{death:?}") };
    for pid in [turn.record.leader.pid, daemon] {
        assert!(living.iter().any(|l| l.pid == pid), "{pid} in {living:?}");
    }
    assert!(!living.iter().any(|l| l.pid == orphan), "{living:?}");
    let death = stop(&turn.record, &turn.record_dir(), GRACE, BOUND, false);
    assert_empty_cgroup(&death);
    assert!(is_gone(daemon) && is_gone(turn.record.leader.pid) && !is_gone(orphan));
    assert!(!dir.exists());
    // Gone for good, and the proof with it: whoever asks later hears the same.
    assert_empty_cgroup(&check(&turn.record, &turn.record_dir(), false));
    signal(orphan, Signal::KILL);
}

#[test]
fn a_cgroup_that_holds_somebody_is_no_proof() {
    let Some(mount) = cgroups() else { return };
    let mut turn = Turn::start(
        "{}",
        &format!("{DAEMON} cat \"$DIR/up\"; trap '' TERM; : >\"$ACK\"; exec sleep 600"),
    );
    turn.ack();
    let daemon = daemon_pid(turn.dir.path());
    turn.kill_both();
    // Whose note is not there, or of another namespace, is judged without; never as dead.
    let note = turn.record_dir().join("cgroup.json");
    let text = std::fs::read_to_string(&note).expect("a note");
    signal(turn.record.leader.pid, Signal::KILL);
    await_end(turn.record.leader.pid);
    std::fs::remove_file(&note).expect("removed");
    let death = check(&turn.record, &turn.record_dir(), false);
    assert!(!matches!(death, Death::Proven(_)), "{death:?}");
    std::fs::write(&note, text).expect("written");
    let death = check(&turn.record, &turn.record_dir(), false);
    assert!(matches!(&death, Death::Alive(living) if living.iter().any(|l| l.pid == daemon)));
    // Another pid namespace sees a cgroup that is there, and takes it for no proof.
    let mut elsewhere = turn.record.clone();
    elsewhere.host.pid_namespace += 1;
    assert!(matches!(check(&elsewhere, &turn.record_dir(), false), Death::Unproven(_)));
    assert_empty_cgroup(&stop(&turn.record, &turn.record_dir(), GRACE, BOUND, false));
    assert!(is_gone(daemon) && !turn.cgroup(&mount).exists());
    if turn.record.host.machine_id.is_empty() {
        return;
    }
    // Gone is known from there too.
    assert_empty_cgroup(&check(&elsewhere, &turn.record_dir(), false));
}

#[test]
fn a_fork_storm_is_killed_at_one_stroke() {
    let Some(mount) = cgroups() else { return };
    let _alone = STORMS.lock();
    // Bounded by itself as well.
    let storm = r#"
for i in 1 2 3 4; do
  setsid sh -c 'trap "" TERM; n=0; while [ $n -lt 250 ]; do setsid sleep 600 & n=$((n+1)); done; wait' >/dev/null 2>&1 &
done
: >"$ACK"; "#;
    // While the supervisor lives, and after both were killed.
    let turn = Turn::start(r#"{"grace_ms":200,"bound_ms":20000}"#, &format!("{storm} exit 0"));
    let dir = turn.cgroup(&mount);
    turn.ack();
    let over = turn.over();
    assert_eq!(over["death"]["Ok"], "no_children");
    assert!(!dir.exists());
    let duration = over["result"]["duration_ms"].as_u64().expect("a time");
    let _ = writeln!(std::io::stderr(), "fork storm ended in {duration} ms, 200 of them grace");
    let mut turn = Turn::start("{}", &format!("{storm} sleep 600"));
    turn.ack();
    turn.kill_both();
    assert_empty_cgroup(&stop(&turn.record, &turn.record_dir(), GRACE, BOUND, false));
    assert!(!turn.cgroup(&mount).exists());
}

#[test]
fn what_a_crash_left_of_cgroups_is_swept() {
    let Some(mount) = cgroups() else { return };
    let mut turn = Turn::start("{}", r#"trap "" TERM; : >"$ACK"; exec sleep 600"#);
    turn.ack();
    let dir = turn.cgroup(&mount);
    turn.kill_both();
    worktx::process::sweep_cgroups(turn.dir.path());
    assert!(dir.exists(), "somebody is in it");
    std::fs::write(dir.join("cgroup.kill"), "1").expect("killed");
    await_end(turn.record.leader.pid);
    worktx::process::sweep_cgroups(turn.dir.path());
    assert!(!dir.exists());
}
