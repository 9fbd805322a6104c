//! Colour, tables and the neutralising of what other programs said.
//!
//! # Limitations
//! - Colour never carries meaning alone: every word stands there without it too.
//! - A character counts as one column: wide ones push what follows them to the right.

use std::fmt::Display;
use std::io::IsTerminal as _;

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

    /// A table without lines. On a terminal the last column is cut to the width that is left.
    pub fn table(self, header: &[&str], rows: Vec<Vec<String>>) -> String {
        let width = if self.terminal { terminal_width() } else { None };
        layout(header, rows, width)
    }
}

/// Fewer columns than this are not worth cutting to: the terminal wraps the line then.
const SHORTEST_LAST: usize = 16;

fn layout(header: &[&str], mut rows: Vec<Vec<String>>, width: Option<usize>) -> String {
    rows.insert(0, header.iter().map(|h| h.to_uppercase()).collect());
    let mut columns = vec![0; header.len()];
    for row in &rows {
        for (column, cell) in columns.iter_mut().zip(row) {
            *column = (*column).max(shown_width(cell));
        }
    }
    let before: usize = columns.iter().rev().skip(1).map(|width| width + 2).sum();
    let left = width.map(|width| width.saturating_sub(before).max(SHORTEST_LAST));
    let mut lines = Vec::with_capacity(rows.len());
    for mut row in rows {
        let last = row.pop().unwrap_or_default();
        let mut line = String::new();
        for (cell, column) in row.iter().zip(&columns) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', column + 2 - shown_width(cell)));
        }
        match left {
            Some(left) if shown_width(&last) > left => {
                line.extend(last.chars().take(left - 1).chain(['…']));
            }
            _ => line.push_str(&last),
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

/// How many columns a cell takes: our own colours take none.
fn shown_width(cell: &str) -> usize {
    let mut parts = cell.split("\x1b[");
    let plain = parts.next().map_or(0, |first| first.chars().count());
    let coloured =
        parts.map(|part| part.split_once('m').map_or(0, |(_, text)| text.chars().count()));
    plain + coloured.sum::<usize>()
}

fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
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

    #[test]
    fn a_table_fits_the_terminal_and_colours_take_no_room() {
        let style = Style { colour: true, terminal: true };
        let rows = vec![
            vec!["one".to_owned(), style.bad("red"), "x".repeat(40)],
            vec!["three".to_owned(), "plain".to_owned(), "short".to_owned()],
        ];
        insta::assert_snapshot!(layout(&["a", "b", "c"], rows, Some(34)).replace('\x1b', "^"), @r"
        A      B      C
        one    ^[31mred^[0m    xxxxxxxxxxxxxxxxxxx…
        three  plain  short
        ");
    }
}
