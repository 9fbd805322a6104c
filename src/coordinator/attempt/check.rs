//! The post-check by itself: run now, on the tree as it stands, or on a checkout of HEAD, under the
//! lock.
//!
//! # Limitations
//! What it writes into the tree stays: there is no seal to put back to. With `view = "checkout"` it
//! sees HEAD: what is not committed stands in no commit that could be checked out.

use std::os::fd::AsFd as _;
use std::time::Duration;

use crate::base::durable;
use crate::base::rmtree::remove_tree;
use crate::coordinator::attempt::checkout;
use crate::coordinator::attempt::drive::chain;
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::place::PRIVATE_DIR;
use crate::coordinator::report::documents::PostCheckDocument;
use crate::coordinator::session::Session;
use crate::git::config::gitconfig::GitConfig;
use crate::git::refs::Head;
use crate::hook::capture::{Request as CaptureRequest, capture};
use crate::hook::launch::{self, Facts};
use crate::hook::{Capture, Origin, PostCheckDecision, Ran, Recheck, Step, after_run, before_run};
use crate::process::{self, Bounds, Output, Requests, Signals, Stdin};
use crate::tx::id::{AttemptKey, AttemptNo};
use crate::tx::settings::View;
use crate::tx::state::PostCheckRecord;
use crate::tx::writer::EndedBy;

/// Runs the post-check that the next `run` would use.
pub fn post_check(context: &Context) -> Result<PostCheckDocument, Failure> {
    let signals = Signals::install().map_err(Failure::io("installing signal handlers"))?;
    let session = Session::open(context.workspace.clone(), context.place.clone(), "post-check")?;
    let at = session.refs.head()?;
    let head = match at {
        Head::Branch(_, Some(id)) | Head::Detached(id) => id,
        Head::Branch(..) | Head::Other(_) => {
            return Err(Failure::impossible("there is no commit yet", "git commit"));
        }
    };
    let tree = session.store.commit(head)?.tree;
    let loaded = context.settings(&session.store, tree)?;
    let folder = session.place.state.join("post-check");
    process::sweep_cgroups(&folder);
    // What cannot go is named where it is in the way.
    let _ = remove_tree(&folder);
    durable::create_dir_all(&folder, PRIVATE_DIR).map_err(Failure::io("making a folder"))?;
    let home = context.variable("HOME").map(std::path::PathBuf::from);
    let captured = capture(
        &CaptureRequest {
            choice: &loaded.values.post_check,
            workspace: session.workspace.root(),
            home: home.as_deref(),
            search_path: context.variable("PATH").unwrap_or_default(),
        },
        &folder,
    )?;
    let settings = &loaded.values.settings.post_check;
    let mut record = PostCheckRecord {
        sha256: captured.sha256().map(str::to_owned),
        ..PostCheckRecord::absent()
    };
    let mut origin = None;
    let mut why = None;
    let mut is_interrupted = false;
    let decision = match (before_run(&captured, &Recheck::Same, settings), &captured) {
        (Step::Decided(judged), _) => {
            record.outcome = judged.outcome;
            if let Capture::Misconfigured { path, why: reason } = &captured {
                origin = Some(path.display().to_string());
                why = Some(reason.to_string());
            }
            judged.decision
        }
        (Step::Run(_), Capture::Ready(ready)) => {
            origin = Some(match &ready.origin {
                Origin::File { named, .. } => named.display().to_string(),
                Origin::Command { words } => words.clone(),
            });
            let changed = folder.join("changed-files");
            launch::write_changed_files(&changed, std::iter::empty())
                .map_err(Failure::io("writing the list of changed files"))?;
            let execution = "post-check".parse().map_err(Failure::bug)?;
            let key = AttemptKey { execution, attempt: AttemptNo(0) };
            let root = session.workspace.root();
            let made = match settings.view {
                View::Tree => None,
                View::Checkout => {
                    let branch = match &at {
                        Head::Branch(name, _) => Some(name.as_str()),
                        _ => None,
                    };
                    let git = GitConfig::capture(&session.workspace, &context.git_env(), branch)
                        .map_err(Failure::other("reading git's configuration"))?;
                    let prefix = &loaded.values.settings.ref_prefix;
                    let made = checkout::make(&session, &git, prefix, &folder, head);
                    Some(made.map_err(Failure::other("writing the checkout"))?)
                }
            };
            let launched = launch::command(
                ready,
                &Facts {
                    environment: &context.invocation.environment,
                    key: &key,
                    workspace: made.as_ref().map_or(root, |made| &made.root),
                    repository: root,
                    base: head,
                    candidate: head,
                    changed_files: &changed,
                },
            )
            .map_err(Failure::other("starting the post-check"))?;
            let command = process::Command {
                program: launched.argv.first().map(Into::into).unwrap_or_default(),
                argv: launched.argv,
                cwd: launched.cwd,
                env: launched.environment,
                stdin: Stdin::Null,
                output: Output::KeepTail { bytes: 32_000 },
                terminal: false,
                cgroup: true,
            };
            let lock = session.lock.share().map_err(Failure::io("sharing the lock"))?;
            let waiting = process::start(&command, &folder.join("run"), &[lock.as_fd()])?;
            let bounds = Bounds {
                timeout: Some(Duration::from_millis(settings.timeout_ms)),
                ..Bounds::default()
            };
            let over = waiting.run(&bounds, &mut Requests { signals, poll: &mut || None });
            record.exit_code = over.result.exit_code;
            record.duration_ms = Some(over.result.duration_ms);
            record.output = Some(String::from_utf8_lossy(&over.output_tail).into_owned());
            is_interrupted = matches!(over.ended_by, EndedBy::Interrupt | EndedBy::Cancel);
            let ran = match (over.ended_by, over.result.exit_code, over.exec_error) {
                (_, _, Some(error)) => Ran::Unstartable(error),
                (EndedBy::Timeout, ..) => Ran::TimedOut,
                (_, Some(code), _) => Ran::Exited(code),
                (_, None, _) => Ran::Signalled(over.result.signal.unwrap_or_default()),
            };
            let judged = after_run(&ran);
            record.outcome = judged.outcome;
            judged.decision
        }
        (Step::Run(_), _) => return Err(Failure::bug("a post-check that was not captured")),
    };
    if let Err(error) = remove_tree(&folder) {
        tracing::warn!(error = %chain(&error), "the post-check's folder stays");
    }
    Ok(PostCheckDocument {
        schema: SCHEMA,
        workspace: session.workspace.root().display().to_string(),
        decision: match decision {
            // It was kept from saying anything.
            _ if is_interrupted => "interrupted",
            PostCheckDecision::Commit => "commit",
            PostCheckDecision::RollBack(_) => "roll_back",
            PostCheckDecision::Quarantine(_) => "error",
        }
        .to_owned(),
        origin,
        why,
        view: match settings.view {
            View::Tree => "tree",
            View::Checkout => "checkout",
        }
        .to_owned(),
        post_check: record,
    })
}
