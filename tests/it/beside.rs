//! A hundred attempts beside what a platform's auto-sync does all the time, unguarded: nothing is
//! lost, nothing is blessed, nothing is stuck.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::Repo;

/// Everything is committed, rebased and pushed, whether an attempt runs or not. What fails is tried
/// again the next time. A rebase that git's own locks stop in the wrong moment leaves a folder that
/// no `--abort` takes away.
const SYNC: &str = "
    echo $1 > sync/$1
    git add -A && git commit -q -m auto-sync
    git fetch -q origin && git rebase -q --autostash origin/main || git rebase --abort ||
        rm -rf .git/rebase-merge
    git push -q --force-with-lease origin HEAD:main
    true";

/// Somebody else pushes too, so that there is something to rebase onto.
const UPSTREAM: &str = "
    { git pull -q --rebase || ! git rebase --abort; } && echo $1 > upstream/$1 && git add -A && git commit -q -m upstream &&
    git push -q; true";

/// Ends the loop, also where a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The operator: where the loop writes into the tree in the same moment, keeping is tried again.
fn keep(repo: &Repo, id: &str) {
    let mut said = Vec::new();
    while said.len() < 50 {
        let ran = repo.call(&["resolve", id, "--keep"]);
        if ran.code == 0 {
            return;
        }
        said.push(format!("{} {}", ran.code, ran.stderr));
    }
    panic!("{id} cannot be kept: {said:?}");
}

fn beside(attempts: usize, hook: bool) {
    let repo = Repo::new();
    let remote = repo.outside().join("remote.git").display().to_string();
    repo.git(&["init", "-q", "--bare", "-b", "main", &remote]);
    repo.git(&["remote", "add", "origin", &remote]);
    repo.write("sync/start", "0\n");
    repo.write("upstream/start", "0\n");
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-q", "-m", "sync"]);
    repo.git(&["push", "-q", "-u", "origin", "main"]);
    let elsewhere = repo.outside().join("elsewhere");
    repo.git(&["clone", "-q", &remote, &elsewhere.display().to_string()]);
    if hook {
        repo.call(&["init", "--guard"]).exits(0);
    }
    let over = AtomicBool::new(false);
    let sync = |number: usize| {
        let mut command = repo.command("sh");
        repo.finish(command.args(["-c", SYNC, "sync", &number.to_string()])).exits(0);
        let mut command = repo.command("sh");
        command.args(["-c", UPSTREAM, "sync", &number.to_string()]).current_dir(&elsewhere);
        repo.finish(&mut command).exits(0);
    };
    let mut wrote = Vec::new();
    let mut ends = std::collections::BTreeMap::<i32, usize>::new();
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                sync(number);
            }
            number
        });
        let ends_with_this = Over(&over);
        for number in 0..attempts {
            let id = format!("n{number}");
            let script = match number % 3 {
                0 => format!("echo {id} > ok-{number}; git status -s > /dev/null"),
                1 => format!("echo {id} > bad-{number}; rm -r sync; exit 1"),
                _ => format!("echo {id} > ok-{number}; rm sync/start; git rm -q README.md"),
            };
            // One that is refused or busy did not run: the platform sends it again.
            let ran = loop {
                let ran = repo.run(&["--wait", "120s", "--execution-id", &id], &script);
                if ran.code != 21 {
                    break ran;
                }
            };
            *ends.entry(ran.code).or_default() += 1;
            match ran.code {
                0 | 10 | 11 => {}
                // The branch moved under it: an operator keeps what is there.
                20 => keep(&repo, &id),
                code => panic!("{id}: {code} {}", ran.stderr),
            }
            wrote.push((id, script, ran.code));
        }
        drop(ends_with_this);
        sync(syncing.join().expect("it ends") + 1);
    });
    println!("ends: {ends:?}");

    // Nothing stuck.
    let open =
        "select count(*) from attempt where state not in ('done', 'rolled_back', 'released')";
    assert_eq!(repo.sql(open), "0");
    assert_eq!(repo.status(), "");
    repo.fsck();
    // Nothing blessed: worktx's commits are those of the successful rows, each once.
    let landed =
        repo.git(&["log", "--format=%H %(trailers:key=Worktx-Execution,valueonly,separator=)"]);
    let landed: Vec<(&str, &str)> = landed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, id)| !id.is_empty())
        .collect();
    let successful: BTreeSet<String> = repo
        .sql("select execution_id from execution where status = 'success'")
        .lines()
        .map(Into::into)
        .collect();
    let once: BTreeSet<&str> = landed.iter().map(|(_, id)| *id).collect();
    assert_eq!(landed.len(), once.len(), "{landed:?}");
    let blessed: Vec<_> = once.iter().filter(|id| !successful.contains(**id)).collect();
    assert!(blessed.is_empty(), "{blessed:?}");
    // Each was on the branch. One that is not any more was taken off by a rebase of the loop that had
    // begun before it landed, and is kept by its pin.
    for id in successful.iter().filter(|id| !once.contains(id.as_str())) {
        let candidate = repo.git(&["rev-parse", &format!("refs/worktx/tx/{id}/1/candidate")]);
        // A rebase that was stopped may leave HEAD detached: then the attempt moved HEAD itself.
        let shown = repo.call(&["show", id, "--json"]).exits(0).json();
        let branch = shown["attempts"][0]["branch"].as_str().unwrap_or("HEAD").to_owned();
        let moves = repo.git(&["log", "-g", "--format=%H", &branch]);
        assert!(
            moves.lines().any(|moved| moved == candidate),
            "{id} never landed on {branch}: {}\n{}",
            repo.call(&["events", id]).stdout,
            repo.read(".git/logs/refs/heads/main")
        );
        println!("{id} landed, and was taken off the branch");
    }
    // Nothing lost: what a turn wrote is in the tree, or named by a ref.
    let all = repo.git(&["rev-list", "--objects", "--all"]);
    for (id, script, code) in wrote {
        let blob = repo.outside().join("blob");
        std::fs::write(&blob, format!("{id}\n")).expect("written");
        let blob = repo.git(&["hash-object", &blob.display().to_string()]);
        assert!(all.contains(&blob), "{id} ({code}) is lost: {script}");
        if code == 0 {
            // In its commit. A rebase of the loop that had begun before may have it removed by one of
            // the loop's own commits.
            let own = format!("refs/worktx/tx/{id}/1/candidate");
            let commit =
                landed.iter().find(|(_, of)| *of == id).map_or(&*own, |(commit, _)| commit);
            assert_eq!(repo.git(&["show", &format!("{commit}:ok-{}", &id[1..])]), id);
        }
    }
}

#[test]
fn an_unguarded_sync_blesses_and_loses_nothing() {
    beside(100, false);
}

#[test]
fn a_sync_that_the_hook_keeps_off_blesses_and_loses_nothing() {
    beside(50, true);
}
