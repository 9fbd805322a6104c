//! Keeps the table of `docs/configuration.md` in step with [`KEYS`].
//!
//! `WORKTX_BLESS=1 cargo test config::doc` writes the table anew.
//!
//! # Limitations
//! Only the table between the two comments of the page; the prose around it is written by hand.

use std::fmt::Write as _;

use super::keys::{KEYS, Repository, Values};
use crate::tx::settings::Settings;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
const BEGIN: &str = "<!-- keys: begin (made by the tests of src/config) -->\n";
const END: &str = "<!-- keys: end -->";

fn table() -> String {
    let standard = Values::of(Settings::standard());
    let trinity = Values::of(Settings::trinity());
    let mut out =
        String::from("| key | takes | default | repository | meaning |\n|---|---|---|---|---|\n");
    for key in KEYS {
        let shown =
            |values| key.show(values).map_or_else(|| "none".to_owned(), |v| format!("`{v}`"));
        let mut default = shown(&standard);
        if key.show(&standard) != key.show(&trinity) {
            let _ = write!(default, "; trinity: {}", shown(&trinity));
        }
        let repository = match key.repository {
            Repository::No => "no",
            Repository::Yes => "yes",
            Repository::Adds => "adds",
            Repository::Stricter => "stricter",
            Repository::Inside => "inside it",
        };
        let (name, kind, meaning) = (key.name, key.kind(), key.meaning);
        let _ = writeln!(out, "| `{name}` | {kind} | {default} | {repository} | {meaning} |");
    }
    out
}

#[test]
fn the_page_is_in_step() {
    let page = std::fs::read_to_string(PAGE).expect("the page is there");
    let start = page.find(BEGIN).expect("the begin comment") + BEGIN.len();
    let end = page.find(END).expect("the end comment");
    let expected = format!("{}{}{}", &page[..start], table(), &page[end..]);
    if std::env::var_os("WORKTX_BLESS").is_some() {
        std::fs::write(PAGE, &expected).expect("written");
        return;
    }
    assert!(page == expected, "the table is stale: WORKTX_BLESS=1 cargo test config::doc");
}

#[test]
fn the_examples_of_the_page_load() {
    let page = std::fs::read_to_string(PAGE).expect("the page is there");
    let mut examples = 0;
    for block in page.split("```toml\n").skip(1) {
        let text = block.split("```").next().expect("before the fence");
        let file = std::path::Path::new("docs/configuration.md");
        super::file::parse(file, text.as_bytes()).expect("an example of known keys");
        examples += 1;
    }
    assert!(examples >= 2, "the page has lost its examples");
}
