//! Keeps `docs/cli.md`, `docs/schema/` and the written pages in step with the code.
//!
//! `WORKTX_BLESS=1 cargo test docs_tests` writes the generated ones anew.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::CommandFactory as _;
use schemars::JsonSchema;
use serde_json::{Value, json};

use super::args::Cli;
use super::exit;
use crate::coordinator::attempt::outcome::{Outcome, OutcomeWord};
use crate::coordinator::report::documents as d;
use crate::tx::cause::ErrorCode;
use crate::tx::recovery::{Decision, PinFirst, Stage};
use crate::tx::tag::StateTag;

fn docs() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs"))
}

fn page(name: &str) -> String {
    std::fs::read_to_string(docs().join(name)).expect("the page is there")
}

fn in_step(name: &str, expected: &str) {
    let path = docs().join(name);
    if std::env::var_os("WORKTX_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
        std::fs::write(&path, expected).expect("written");
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{name} is stale: WORKTX_BLESS=1 cargo test docs_tests");
}

#[test]
fn the_command_line_page_is_in_step() {
    let mut command = Cli::command().term_width(88).mut_args(|arg| arg.hide_env_values(true));
    command.build();
    let mut out = String::from(
        "# The command line\n\nMade from `worktx --help` and `worktx COMMAND --help`; edit \
         `src/cli/args.rs`. What the commands exit with: [exit-codes.md](exit-codes.md). What \
         `--json` prints: the schemas in [schema/](schema/).\n",
    );
    let mut add = |title: &str, command: &mut clap::Command| {
        let help = command.render_long_help().to_string();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = write!(out, "\n## `{title}`\n\n```text\n{}\n```\n", lines.join("\n").trim_end());
    };
    add("worktx", &mut command);
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set())
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for name in names {
        let sub = command.find_subcommand_mut(&name).expect("listed");
        let mut sub = sub.clone().term_width(88).mut_args(|arg| {
            // Said once, on top.
            let is_global = arg.is_global_set();
            arg.hide_env_values(true).hide(is_global)
        });
        add(&format!("worktx {name}"), &mut sub);
    }
    in_step("cli.md", &out);
}

fn schema<T: JsonSchema>(name: &str) -> (String, Value) {
    let schema = schemars::schema_for!(T);
    let mut value = serde_json::to_value(schema).expect("plain data");
    value["title"] = json!(format!("worktx {name} --json"));
    (name.to_owned(), value)
}

#[test]
fn the_schemas_are_in_step() {
    let all = [
        schema::<Outcome>("run"),
        schema::<d::ListDocument>("list"),
        schema::<d::ShowDocument>("show"),
        schema::<d::EventsDocument>("events"),
        schema::<d::StatusDocument>("status"),
        schema::<d::DiffDocument>("diff"),
        schema::<d::RestoreDocument>("restore"),
        schema::<d::CancelDocument>("cancel"),
        schema::<d::PostCheckDocument>("post-check"),
        schema::<d::ReconcileDocument>("reconcile"),
        schema::<d::ResolveDocument>("resolve"),
        schema::<d::GcDocument>("gc"),
        schema::<d::InitDocument>("init"),
        schema::<d::DoctorDocument>("doctor"),
    ];
    let command = Cli::command();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let has_json = sub.get_arguments().any(|arg| arg.get_id() == "json");
        let known = all.iter().any(|(name, _)| name == sub.get_name());
        assert_eq!(has_json, known, "{}", sub.get_name());
    }
    for (name, value) in all {
        let file = if name == "run" { "outcome" } else { &name };
        let text = serde_json::to_string_pretty(&value).expect("plain data") + "\n";
        in_step(&format!("schema/{file}.json"), &text);
        jsonschema::validator_for(&value).expect("a schema");
    }
}

#[test]
fn the_description_of_the_api_is_in_step() {
    let text = serde_json::to_string_pretty(&crate::daemon::api()).expect("plain data") + "\n";
    in_step("openapi.json", &text);
}

/// What the page must say of each: a table row that begins with it.
fn has_row(page: &str, cell: &str) {
    assert!(page.contains(&format!("\n| `{cell}` |")), "no row for {cell}");
}

#[test]
fn the_page_of_exit_codes_has_them_all() {
    let text = page("exit-codes.md");
    for code in exit::ALL {
        assert!(text.contains(&format!("\n| {code} |")), "no row for {code}");
    }
    let codes = [
        ErrorCode::AgentError,
        ErrorCode::Timeout,
        ErrorCode::PostCheckFailed,
        ErrorCode::Policy,
        ErrorCode::Cancelled,
        ErrorCode::Reconciled,
        ErrorCode::Interrupted,
        ErrorCode::Quarantined,
        ErrorCode::Refused,
        ErrorCode::Busy,
        ErrorCode::Internal,
    ];
    for code in codes {
        // No wildcard: a twelfth does not compile, and comes here.
        match code {
            ErrorCode::AgentError
            | ErrorCode::Timeout
            | ErrorCode::PostCheckFailed
            | ErrorCode::Policy
            | ErrorCode::Cancelled
            | ErrorCode::Reconciled
            | ErrorCode::Interrupted
            | ErrorCode::Quarantined
            | ErrorCode::Refused
            | ErrorCode::Busy
            | ErrorCode::Internal => has_row(&text, code.as_str()),
        }
        // The documents and the page agree on the exit code.
        let id = "x".parse().expect("valid");
        let mut outcome = Outcome::without_attempt(id, word_of(code), "/");
        outcome.error_code = Some(code);
        let row = text.lines().find(|line| line.starts_with(&format!("| `{}` |", code.as_str())));
        let cells: Vec<&str> = row.expect("there").split('|').map(str::trim).collect();
        let listed: Vec<&str> = cells[2].split(", ").collect();
        assert!(listed.contains(&outcome.exit_code().to_string().as_str()), "{row:?}");
    }
    let refusals = include_str!("../git/workspace/refusal.rs").split("pub const fn code").nth(1);
    let source = include_str!("../tx/cause.rs").to_owned() + refusals.expect("the codes");
    let words = source.lines().filter_map(|line| line.split_once("=> \"")?.1.split_once("\","));
    let mut seen = 0;
    for (word, _) in words {
        assert!(text.contains(&format!("`{word}`")), "no word about {word}");
        seen += 1;
    }
    assert!(seen > 60, "the words are found: {seen}");
    let own = include_str!("error.rs").split("pub fn report").next().expect("the reasons");
    let words = own.split("error(\"").skip(1).filter_map(|rest| rest.split_once("\")"));
    for (word, _) in words {
        has_row(&text, word);
    }
}

fn word_of(code: ErrorCode) -> OutcomeWord {
    match code {
        ErrorCode::Refused => OutcomeWord::Refused,
        ErrorCode::Busy => OutcomeWord::Busy,
        ErrorCode::Quarantined => OutcomeWord::Quarantined,
        ErrorCode::Internal => OutcomeWord::Error,
        _ => OutcomeWord::RolledBack,
    }
}

#[test]
fn the_page_of_states_has_them_all() {
    let text = page("state-machine.md");
    for tag in StateTag::ALL {
        has_row(&text, tag.as_str());
    }
    let decisions = [
        Decision::Leave,
        Decision::Abandon,
        Decision::StopWriter,
        Decision::Resume(PinFirst::Nothing),
        Decision::RollForward,
        Decision::RollBack(crate::tx::cause::Cause::Crashed, PinFirst::Everything),
        Decision::Quarantine(crate::tx::cause::QuarantineReason::Interrupted),
    ];
    for decision in decisions {
        has_row(&text, decision.name());
    }
    for stage in Stage::ALL {
        let name = format!("{stage:?}");
        assert!(text.contains(&format!("`{name}`")), "no word about {name}");
    }
    let source = include_str!("../tx/state.rs");
    let names = source.split("pub const fn name(&self)").nth(1).expect("the names");
    let names = names.split("\n}\n").next().expect("before the end");
    let mut seen = 0;
    for (name, _) in names.lines().filter_map(|l| l.split_once("=> \"")?.1.split_once("\",")) {
        has_row(&text, name);
        seen += 1;
    }
    assert_eq!(seen, 17, "the events are found");
}

#[test]
fn the_glossary_has_the_words_of_the_design() {
    let text = page("glossary.md");
    for word in [
        "workspace",
        "execution",
        "attempt",
        "turn",
        "base",
        "candidate",
        "seal",
        "post-check",
        "gate",
        "verdict",
        "promote",
        "roll back",
        "drift",
        "quarantine",
        "reconcile",
        "settled",
        "scope",
        "pin",
        "rescue",
        "spill",
        "ledger",
        "journal",
        "commit point",
    ] {
        assert!(text.contains(&format!("\n| **{word}** |")), "no row for {word}");
    }
}
