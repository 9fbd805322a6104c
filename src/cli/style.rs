//! Colour, tables and the neutralising of what other programs said.
//!
//! # Limitations
//! Colour never carries meaning alone: every word stands there without it too.

use std::fmt::Display;
use std::io::IsTerminal as _;

use comfy_table::{ContentArrangement, Table, presets};

use super::args::ColorChoice;

/// How things are shown.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    colour: bool,
    /// Standard output is a terminal: tables are drawn to its width.
    pub terminal: bool,
}

impl Style {
    /// The style for standard output.
    pub fn stdout(choice: ColorChoice) -> Self {
        Self::of(choice, std::io::stdout().is_terminal())
    }

    /// The style for standard error.
    pub fn stderr(choice: ColorChoice) -> Self {
        Self::of(choice, std::io::stderr().is_terminal())
    }

    fn of(choice: ColorChoice, terminal: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let colour = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !plain,
        };
        Self { colour, terminal }
    }

    fn paint(self, code: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// It went well.
    pub fn good(self, text: impl Display) -> String {
        self.paint("32", text)
    }

    /// It went wrong.
    pub fn bad(self, text: impl Display) -> String {
        self.paint("31", text)
    }

    /// Somebody should look.
    pub fn notice(self, text: impl Display) -> String {
        self.paint("33", text)
    }

    /// Of less weight.
    pub fn faint(self, text: impl Display) -> String {
        self.paint("2", text)
    }

    /// Of more weight.
    pub fn strong(self, text: impl Display) -> String {
        self.paint("1", text)
    }

    /// A table without lines; columns as wide as the terminal lets them be.
    pub fn table(self, header: &[&str], rows: Vec<Vec<String>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(if self.terminal {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        });
        table.set_header(header.iter().map(|h| h.to_uppercase()));
        for row in rows {
            table.add_row(row);
        }
        let text = table.to_string();
        let lines: Vec<&str> =
            text.lines().map(|l| l.strip_prefix(' ').unwrap_or(l).trim_end()).collect();
        lines.join("\n")
    }
}

/// Text of another program, safe to show: control characters but newline and tab are escaped.
pub fn neutral(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_do_not_reach_the_terminal() {
        assert_eq!(neutral("a\x1b]0;x\x07\nb\tc"), "a\\u{1b}]0;x\\u{7}\nb\tc");
    }

    #[test]
    fn tables_are_plain_without_a_terminal() {
        let style = Style::of(ColorChoice::Never, false);
        let rows = vec![vec!["one".to_owned(), "x".repeat(300)]];
        let table = style.table(&["a", "b"], rows);
        assert!(table.starts_with('A'), "{table:?}");
        assert!(table.contains(&"x".repeat(300)), "{table:?}");
    }
}
