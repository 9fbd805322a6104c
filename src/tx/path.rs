//! Paths as git has them: bytes, relative to the work-tree root, `/` between the parts.
//!
//! # Limitations
//! A path is bytes, not text. For people and JSON it is shown as git's own commands do: as it is
//! where it is plain UTF-8, else in double quotes with C escapes, which can be read back.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bstr::{BStr, BString, ByteSlice as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::InvalidName;

/// A path below the work-tree root. Never empty, never absolute, without `.`, `..` and empty parts.
/// As text it is as git shows it with `core.quotePath=false`: as it is where it is UTF-8 without
/// control characters, `"` and `\`; else between double quotes, with `\"`, `\\`, `\n`, `\t`, `\r`
/// and three octal digits (`\377`) for a byte. What begins with `"` has to be decoded, nothing else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct RepoPath(BString);

impl RepoPath {
    /// A path from bytes.
    pub fn new(bytes: impl Into<BString>) -> Result<Self, InvalidName> {
        let bytes = bytes.into();
        let fits = !bytes.is_empty()
            && !bytes.contains(&0)
            && bytes.split(|b| *b == b'/').all(|p| !p.is_empty() && p != b"." && p != b"..");
        if fits {
            Ok(Self(bytes))
        } else {
            Err(InvalidName {
                what: "path",
                value: bytes.to_string(),
                rule: "relative, without empty parts, `.` and `..`",
            })
        }
    }

    /// The path of `name` in the directory `parent`; `None` is the root.
    ///
    /// `name` comes from a directory listing: never empty, never with `/`.
    pub fn join(parent: Option<&Self>, name: &[u8]) -> Self {
        debug_assert!(!name.is_empty() && !name.contains(&b'/'));
        let mut bytes = parent.map_or_else(BString::default, |p| {
            let mut bytes = p.0.clone();
            bytes.push(b'/');
            bytes
        });
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, as the glob libraries take them.
    pub fn as_bstr(&self) -> &BStr {
        self.0.as_bstr()
    }

    /// The path as the standard library takes it.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The last part.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// The directory that holds this path; `None` is the root.
    pub fn parent(&self) -> Option<Self> {
        self.0.rfind_byte(b'/').map(|at| Self(self.0[..at].into()))
    }

    /// The parts, outermost first.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/')
    }

    /// Whether this path is `dir` or lies beneath it.
    pub fn is_at_or_beneath(&self, dir: &[u8]) -> bool {
        self.0.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quote(&self.0))
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<RepoPath> for String {
    fn from(path: RepoPath) -> Self {
        quote(&path.0)
    }
}

impl TryFrom<String> for RepoPath {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        match unquote(&text) {
            Some(bytes) => Self::new(bytes),
            None => Err(InvalidName { what: "path", value: text, rule: "quoted as git quotes" }),
        }
    }
}

/// The bytes as git's commands show a path (`core.quotePath=false`).
pub fn quote(bytes: &[u8]) -> String {
    let plain = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.chars().any(|c| c.is_control() || c == '"' || c == '\\'));
    if let Some(text) = plain {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if c.is_control() => {
                    let mut buffer = [0; 4];
                    for byte in c.encode_utf8(&mut buffer).bytes() {
                        octal(&mut out, byte);
                    }
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            octal(&mut out, *byte);
        }
    }
    out.push('"');
    out
}

fn octal(out: &mut String, byte: u8) {
    out.push('\\');
    for shift in [6, 3, 0] {
        out.push(char::from(b'0' + (byte >> shift & 7)));
    }
}

/// The bytes behind [`quote`]; `None` where the text is not of its making.
pub(super) fn unquote(text: &str) -> Option<Vec<u8>> {
    let Some(inner) = text.strip_prefix('"') else { return Some(text.as_bytes().to_vec()) };
    let mut rest = inner.strip_suffix('"')?.bytes();
    let mut out = Vec::new();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next()? {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            c @ (b'"' | b'\\') => c,
            high @ b'0'..=b'3' => {
                let (mid, low) = (rest.next()?, rest.next()?);
                if !(b'0'..=b'7').contains(&mid) || !(b'0'..=b'7').contains(&low) {
                    return None;
                }
                (high - b'0') << 6 | (mid - b'0') << 3 | (low - b'0')
            }
            _ => return None,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_could_leave_the_root() {
        for bad in ["", "/a", "a/", "a//b", ".", "a/../b", "..", "a/.", "a\0b"] {
            assert!(RepoPath::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a/b", ".git2", "...", "a\nb", "-x"] {
            assert!(RepoPath::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn beneath_is_by_part() {
        let path = RepoPath::new("a/bc").expect("valid");
        assert!(path.is_at_or_beneath(b"a"));
        assert!(path.is_at_or_beneath(b"a/bc"));
        assert!(!path.is_at_or_beneath(b"a/b"));
    }

    proptest! {
        #[test]
        fn any_path_survives_json(bytes in proptest::collection::vec(1u8..=255, 1..40)) {
            if let Ok(path) = RepoPath::new(bytes) {
                let json = serde_json::to_string(&path).expect("a string");
                prop_assert_eq!(serde_json::from_str::<RepoPath>(&json).expect("read back"), path);
            }
        }
    }
}
