//! How failures look, whole.

use super::*;
use crate::cli::args::ColorChoice;
use crate::coordinator::attempt::outcome::{Outcome, OutcomeWord};
use crate::git::workspace::refusal::Refusal;
use crate::tx::path::RepoPath;

fn plain(failure: &Failure) -> String {
    report(Style::stderr(ColorChoice::Never), "run", failure)
}

#[test]
fn a_refusal_names_paths_and_a_command() {
    let paths = (0..12).map(|n| RepoPath::new(format!("f{n}")).expect("valid")).collect();
    let refusals = vec![
        Refusal::ModifiedTracked { paths },
        Refusal::OperationInProgress {
            operation: crate::git::workspace::refusal::Operation::Merge,
            file: "MERGE_HEAD".to_owned(),
        },
    ];
    let failure = Failure::Refused { refusals, warnings: Vec::new() };
    insta::assert_snapshot!(plain(&failure), @r"
    Error: the workspace cannot be a base; nothing ran
      modified_tracked: tracked files differ from HEAD
        f0
        f1
        f2
        f3
        f4
        f5
        f6
        f7
        f8
        f9
        … and 2 more
      Hint: commit or stash it, or say --on-dirty run to go without a transaction
      operation_in_progress: a merge is in progress (MERGE_HEAD)
      Hint: finish it, or: git merge --abort
    ");
    assert_eq!(reason(&failure), ("modified_tracked", ErrorCode::Refused, exit::REFUSED));
}

#[test]
fn causes_are_said_once_and_escapes_do_not_reach_the_terminal() {
    let source = std::io::Error::other("no \x1b[31msuch luck");
    let failure = Failure::Io { what: "reading the file".to_owned(), source };
    assert_eq!(plain(&failure), "Error: reading the file\nCaused by: no \\u{1b}[31msuch luck\n");
    let path = "/x".into();
    let source = std::io::Error::other("no luck");
    let failure = Failure::Workspace(OpenError::Io { path, source });
    assert_eq!(
        plain(&failure),
        "Error: cannot read /x: no luck\nHint: name a directory in a git work tree: --workspace DIR\n"
    );
}

#[test]
fn each_kind_has_its_exit_code() {
    let impossible = Failure::impossible("no", "worktx list");
    let cases = [
        (Failure::Usage("no".to_owned()), exit::USAGE),
        (impossible, exit::ERROR),
        (Failure::Busy { holder: None }, exit::BUSY),
        (Failure::WaitEnded { holder: None }, exit::BUSY),
        (Failure::Standing(Status::Cancelled), exit::VERDICT_LOST),
        (Failure::Refused { refusals: Vec::new(), warnings: Vec::new() }, exit::REFUSED),
        (Failure::Bug("no".to_owned()), exit::INTERNAL),
    ];
    for (failure, code) in cases {
        assert_eq!(reason(&failure).2, code, "{failure:?}");
        // Who has only the document says the same.
        let (word, error_code, _) = reason(&failure);
        let outcome = match error_code {
            ErrorCode::Refused => OutcomeWord::Refused,
            ErrorCode::Busy => OutcomeWord::Busy,
            _ => OutcomeWord::Error,
        };
        let id = "x".parse().expect("valid");
        let mut document = Outcome::without_attempt(id, outcome, "/");
        (document.reason, document.error_code) = (Some(word.to_owned()), Some(error_code));
        assert_eq!(document.exit_code(), code, "{failure:?}");
        let text = plain(&failure);
        assert!(text.starts_with("Error: ") && text.ends_with('\n'), "{text}");
        assert!(matches!(failure, Failure::Refused { .. }) || text.contains("Hint: "), "{text}");
    }
}
