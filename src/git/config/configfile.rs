//! One git configuration file as text: read without following anything, and edited key by key.
//!
//! A configuration that a turn may have written is data here. libgit2 follows `include.path` of
//! every file that it reads, and would wait for ever on a FIFO that is named there; this reader
//! follows nothing. The rules are those of git's `config.c`; tests compare with `git config`.
//!
//! Order rules: none; it does no I/O.
//!
//! # Limitations
//! A NUL byte is an error (git reads up to it). Comments on the line of a removed key go with it.

use std::ops::Range;

use bstr::{BString, ByteSlice as _};

/// The file is not what git would read as a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad configuration in line {line}")]
pub struct BadConfig {
    /// The line, from 1.
    pub line: usize,
}

/// One `key = value` of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigLine {
    /// `section.name` or `section.subsection.name`; section and name in lower case. A name above
    /// the first section stands alone, as git has it.
    pub key: BString,
    /// The value; `None` where there is only a name, which means true.
    pub value: Option<BString>,
    /// Where it stands in the text, from the name to before the line's end.
    span: Range<usize>,
}

/// The file, in its order.
pub fn parse(text: &[u8]) -> Result<Vec<ConfigLine>, BadConfig> {
    let start = if text.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    Reader { text, at: start, line: 1 }.file()
}

/// The text without the keys for which `drop` says so, and with `add` at its end (names without a section
/// cannot be added and are left out).
pub fn edit(
    text: &[u8],
    drop: impl Fn(&BString) -> bool,
    add: &[(BString, Option<BString>)],
) -> Result<Vec<u8>, BadConfig> {
    let mut out = Vec::with_capacity(text.len());
    let mut from = 0;
    for line in parse(text)?.iter().filter(|line| drop(&line.key)) {
        let Range { mut start, mut end } = line.span.clone();
        let line_start = text[..start].rfind_byte(b'\n').map_or(0, |at| at + 1);
        if text[line_start..start].iter().all(u8::is_ascii_whitespace) && line_start >= from {
            start = line_start;
            if text[end..].starts_with(b"\r\n") {
                end += 2;
            } else if text[end..].starts_with(b"\n") {
                end += 1;
            }
        }
        out.extend_from_slice(&text[from..start]);
        from = end;
    }
    out.extend_from_slice(&text[from..]);
    if !add.is_empty() && out.last().is_some_and(|b| *b != b'\n') {
        out.push(b'\n');
    }
    let mut last_section = None;
    for (key, value) in add.iter().filter(|(key, _)| key.contains(&b'.')) {
        let (section, name) = split_name(key);
        if last_section.as_ref() != Some(&section) {
            write_header(&mut out, section);
            last_section = Some(section);
        }
        out.push(b'\t');
        out.extend_from_slice(name);
        if let Some(value) = value {
            out.extend_from_slice(b" = ");
            write_value(&mut out, value);
        }
        out.push(b'\n');
    }
    Ok(out)
}

/// What stands before the last dot of a key, and what after it.
pub fn split_name(key: &[u8]) -> (&[u8], &[u8]) {
    key.rfind_byte(b'.').map_or((key, &[][..]), |at| (&key[..at], &key[at + 1..]))
}

fn write_header(out: &mut Vec<u8>, section: &[u8]) {
    out.push(b'[');
    match section.find_byte(b'.') {
        None => out.extend_from_slice(section),
        Some(dot) => {
            out.extend_from_slice(&section[..dot]);
            out.extend_from_slice(b" \"");
            for byte in &section[dot + 1..] {
                if matches!(byte, b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(*byte);
            }
            out.push(b'"');
        }
    }
    out.extend_from_slice(b"]\n");
}

fn write_value(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b'"');
    for byte in value {
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            byte => out.push(*byte),
        }
    }
    out.push(b'"');
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
}

impl Reader<'_> {
    /// The next character as git sees it: CRLF is one line feed, and so is the end.
    fn next(&mut self) -> Result<u8, BadConfig> {
        let Some(byte) = self.text.get(self.at).copied() else { return Ok(b'\n') };
        self.at += 1;
        match byte {
            0 => Err(BadConfig { line: self.line }),
            b'\r' if self.text.get(self.at) == Some(&b'\n') => {
                self.at += 1;
                self.line += 1;
                Ok(b'\n')
            }
            b'\n' => {
                self.line += 1;
                Ok(byte)
            }
            byte => Ok(byte),
        }
    }

    fn at_end(&self) -> bool {
        self.at >= self.text.len()
    }

    fn file(mut self) -> Result<Vec<ConfigLine>, BadConfig> {
        let mut lines = Vec::new();
        let mut section: Option<BString> = None;
        while !self.at_end() {
            let line = self.line;
            let start = self.at;
            match self.next()? {
                b'#' | b';' => while !self.at_end() && self.next()? != b'\n' {},
                b'[' => section = Some(self.header().map_err(|_| BadConfig { line })?),
                byte if is_space(byte) => {}
                byte if byte.is_ascii_alphabetic() => {
                    let (name, value) =
                        self.key(byte).map_err(|_| BadConfig { line: self.line })?;
                    let mut end = self.at;
                    if self.text[start..end].ends_with(b"\n") {
                        end -= 1;
                        if self.text[start..end].ends_with(b"\r") {
                            end -= 1;
                        }
                    }
                    let mut key = section.clone().unwrap_or_default();
                    if section.is_some() {
                        key.push(b'.');
                    }
                    key.extend_from_slice(&name);
                    lines.push(ConfigLine { key, value, span: start..end });
                }
                _ => return Err(BadConfig { line }),
            }
        }
        Ok(lines)
    }

    fn header(&mut self) -> Result<BString, BadConfig> {
        let wrong = BadConfig { line: self.line };
        let mut section = BString::default();
        loop {
            if self.at_end() {
                return Err(wrong);
            }
            match self.next()? {
                b']' => return Ok(section),
                b'\n' => return Err(wrong),
                byte if is_space(byte) => break,
                byte if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.') => {
                    section.push(byte.to_ascii_lowercase());
                }
                _ => return Err(wrong),
            }
        }
        section.push(b'.');
        loop {
            match self.next()? {
                b'\n' => return Err(wrong),
                byte if is_space(byte) => {}
                b'"' => break,
                _ => return Err(wrong),
            }
        }
        loop {
            let byte = match self.next()? {
                b'"' => break,
                b'\\' => self.next()?,
                byte => byte,
            };
            if byte == b'\n' {
                return Err(wrong);
            }
            section.push(byte);
        }
        if self.next()? == b']' { Ok(section) } else { Err(wrong) }
    }

    fn key(&mut self, first: u8) -> Result<(Vec<u8>, Option<BString>), BadConfig> {
        let mut name = vec![first.to_ascii_lowercase()];
        let mut byte = self.next()?;
        while byte.is_ascii_alphanumeric() || byte == b'-' {
            name.push(byte.to_ascii_lowercase());
            byte = self.next()?;
        }
        while matches!(byte, b' ' | b'\t') {
            byte = self.next()?;
        }
        match byte {
            b'\n' => Ok((name, None)),
            b'=' => Ok((name, Some(self.value()?))),
            _ => Err(BadConfig { line: self.line }),
        }
    }

    fn value(&mut self) -> Result<BString, BadConfig> {
        let wrong = BadConfig { line: self.line };
        let mut value = BString::default();
        // The length to cut back to, since white space at the end does not count.
        let mut trim = None;
        let (mut quoted, mut comment) = (false, false);
        loop {
            let byte = self.next()?;
            if byte == b'\n' {
                if quoted {
                    return Err(wrong);
                }
                if let Some(len) = trim {
                    value.truncate(len);
                }
                return Ok(value);
            }
            if comment {
                continue;
            }
            if is_space(byte) && !quoted {
                trim = trim.or(Some(value.len()));
                if !value.is_empty() {
                    value.push(byte);
                }
                continue;
            }
            if !quoted && matches!(byte, b'#' | b';') {
                comment = true;
                continue;
            }
            trim = None;
            match byte {
                b'\\' => match self.next()? {
                    b'\n' => {}
                    b't' => value.push(b'\t'),
                    b'b' => value.push(8),
                    b'n' => value.push(b'\n'),
                    byte @ (b'\\' | b'"') => value.push(byte),
                    _ => return Err(wrong),
                },
                b'"' => quoted = !quoted,
                byte => value.push(byte),
            }
        }
    }
}

/// git's `isspace`.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// What `git config --list -z` reads, or `None` where it gives up.
    fn by_git(text: &[u8]) -> Option<Vec<(BString, Option<BString>)>> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        let out = Command::new("git")
            .args(["config", "--list", "-z", "--no-includes", "--file"])
            .arg(file.path())
            .output()
            .expect("git runs");
        out.status.success().then(|| {
            out.stdout
                .split(|b| *b == 0)
                .filter(|record| !record.is_empty())
                .map(|record| match record.split_once_str(&b"\n"[..]) {
                    Some((key, value)) => (key.into(), Some(value.into())),
                    None => (record.into(), None),
                })
                .collect()
        })
    }

    fn by_us(text: &[u8]) -> Option<Vec<(BString, Option<BString>)>> {
        Some(parse(text).ok()?.into_iter().map(|l| (l.key, l.value)).collect())
    }

    #[test]
    fn reads_what_git_reads() {
        for text in [
            "",
            "[a]",
            "\u{feff}[a]\nb=c",
            "[a]\nb\n",
            "[a]\nb # no\n",
            "[A]B = C ; comment\n",
            "[a \"S \\\" \\\\ x\"]\n\tk = \" v # x\" y  # z\n",
            "[a.B]\nk = v\n",
            "[a]\nk = one \\\n   two\n",
            "[a]\r\nk = v\r\nl = \"a\\tb\\nc\"\r\n",
            "[a]\nk = \"open\n",
            "[a]\nk = \\x\n",
            "k = v\n",
            "[a\nk = v\n",
            "[a \"b\" ]\nk = v\n",
            "[a]\nk =\n[b] c = d\n",
            "[a] k = v # x \\\n l = w\n",
            "[a]\n1k = v\n",
            "[a]\nk-1 = v\\",
        ] {
            assert_eq!(by_us(text.as_bytes()), by_git(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn edits_one_key_and_keeps_the_rest() {
        let text =
            b"# top\n[core]\n\tbare = false\n\tpager = evil\n[x] core = 1\n[core] pager = b\n";
        let add = [("core.pager".into(), Some("le\"ss # \n".into())), ("core.flag".into(), None)];
        let out = edit(text, |key| key == "core.pager", &add).expect("parses");
        assert!(out.starts_with(b"# top\n[core]\n\tbare = false\n[x] core = 1\n[core] \n"));
        assert_eq!(by_us(&out), by_git(&out));
        let read = by_us(&out).expect("parses");
        assert_eq!(read.len(), 4);
        assert_eq!(read[2], add[0]);
        assert_eq!(read[3], add[1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]
        #[test]
        fn agrees_with_git_on_noise(text in r#"(\[a( "b")?\]|k|K1|=|"|\\|#| |\n|\r\n|v|\t|n){0,40}"#) {
            prop_assert_eq!(by_us(text.as_bytes()), by_git(text.as_bytes()));
        }

        #[test]
        fn what_is_added_is_read_back(
            value in proptest::collection::vec(1u8..=255, 0..20),
            sub in "[a-zA-Z\"\\\\. ]{0,6}",
        ) {
            let key = BString::from(format!("filter.{sub}.clean"));
            let add = [(key, Some(BString::from(value)))];
            let out = edit(b"[z]\n\tq = r", |_| false, &add).expect("parses");
            let read = by_us(&out).expect("parses");
            prop_assert_eq!(&read[1], &add[0]);
            prop_assert_eq!(Some(read), by_git(&out));
        }
    }
}
