//! Names of things: executions, attempts, git objects, refs.
//!
//! # Limitations
//! Object ids are SHA-1; a repository of another object format is refused before an id is read.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A name that does not have the form that it must have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct InvalidName {
    /// What the name was to be.
    pub what: &'static str,
    /// What was given.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Names one unit of work; `[A-Za-z0-9_-]{1,128}`, as the platform's rows have it.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ExecutionId(String);

impl ExecutionId {
    /// The longest id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first characters, for people: enough to tell attempts of one day apart.
    ///
    /// An id that worktx made itself (a ULID) starts with its time, so the end is shown of those.
    pub fn short(&self) -> &str {
        let is_ulid = self.0.len() == 26 && self.0.bytes().all(|b| b.is_ascii_alphanumeric());
        if is_ulid { &self.0[18..] } else { &self.0[..self.0.len().min(12)] }
    }
}

impl FromStr for ExecutionId {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let fits = (1..=Self::MAX_LEN).contains(&value.len())
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if fits {
            Ok(Self(value.to_owned()))
        } else {
            Err(InvalidName {
                what: "execution id",
                value: value.to_owned(),
                rule: "1 to 128 of A-Z a-z 0-9 _ -",
            })
        }
    }
}

impl TryFrom<String> for ExecutionId {
    type Error = InvalidName;
    fn try_from(value: String) -> Result<Self, InvalidName> {
        value.parse()
    }
}

impl From<ExecutionId> for String {
    fn from(id: ExecutionId) -> Self {
        id.0
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a try of an execution, from 1.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct AttemptNo(pub u32);

impl fmt::Display for AttemptNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One attempt of one execution: the key of everything that is recorded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptKey {
    /// The execution.
    pub execution: ExecutionId,
    /// Which try of it.
    pub attempt: AttemptNo,
}

impl fmt::Display for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.execution, self.attempt)
    }
}

/// A git object id (SHA-1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Oid([u8; 20]);

impl Oid {
    /// The id of no object: git's way to write "does not exist".
    pub const ZERO: Self = Self([0; 20]);
    /// The tree without entries.
    pub const EMPTY_TREE: Self = Self([
        0x4b, 0x82, 0x5d, 0xc6, 0x42, 0xcb, 0x6e, 0xb9, 0xa0, 0x60, 0xe5, 0x4b, 0xf8, 0xd6, 0x92,
        0x88, 0xfb, 0xee, 0x49, 0x04,
    ]);

    /// An id from its 20 bytes.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The 20 bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Whether this is [`Oid::ZERO`].
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The first ten hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..10].to_owned()
    }
}

impl FromStr for Oid {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let wrong = || InvalidName {
            what: "object id",
            value: value.to_owned(),
            rule: "40 lower-case hex digits",
        };
        let digits = value.as_bytes();
        if digits.len() != 40 {
            return Err(wrong());
        }
        let mut bytes = [0; 20];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| match c {
                b'0'..=b'9' => Some(c - b'0'),
                b'a'..=b'f' => Some(c - b'a' + 10),
                _ => None,
            };
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return Err(wrong()),
            }
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Oid {
    type Error = InvalidName;
    fn try_from(value: String) -> Result<Self, InvalidName> {
        value.parse()
    }
}

impl From<Oid> for String {
    fn from(id: Oid) -> Self {
        id.to_string()
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let halves = self.0.map(|byte| [byte >> 4, byte & 0xf]);
        let digits = halves.map(|two| two.map(|half| DIGITS[usize::from(half)]));
        f.write_str(std::str::from_utf8(digits.as_flattened()).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The full name of a ref, `HEAD` among them.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct RefName(pub String);

impl RefName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as people say it: `main` for `refs/heads/main`.
    pub fn short(&self) -> &str {
        self.0.strip_prefix("refs/heads/").unwrap_or(&self.0)
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an attempt keeps its refs: `<prefix>/<execution>/<attempt>/…`, recorded per attempt, so
/// that a changed configuration never loses an old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RefPrefix(pub String);

impl RefPrefix {
    /// The folder of an attempt's refs, without a slash at its end.
    pub fn folder(&self, key: &AttemptKey) -> String {
        format!("{}/{}/{}", self.0, key.execution, key.attempt)
    }

    fn under(&self, key: &AttemptKey, leaf: &str) -> RefName {
        RefName(format!("{}/{leaf}", self.folder(key)))
    }

    /// The ref that keeps the base alive.
    pub fn base(&self, key: &AttemptKey) -> RefName {
        self.under(key, "base")
    }

    /// The ref that keeps the candidate alive.
    pub fn candidate(&self, key: &AttemptKey) -> RefName {
        self.under(key, "candidate")
    }

    /// The `k`-th ref with rejected work, from 1.
    pub fn discarded(&self, key: &AttemptKey, k: u32) -> RefName {
        self.under(key, &format!("discarded/{k}"))
    }

    /// The `k`-th ref with somebody else's bytes, from 1.
    pub fn rescue(&self, key: &AttemptKey, k: u32) -> RefName {
        self.under(key, &format!("rescue/{k}"))
    }
}

/// A ref that keeps an object alive: recorded before it is made, never reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pin {
    /// The ref.
    pub name: RefName,
    /// What it names.
    pub id: Oid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn execution_ids_follow_the_platform() {
        for good in ["a", "A-b_9", &"x".repeat(128)] {
            assert!(good.parse::<ExecutionId>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "..", "é", &"x".repeat(129), "a.lock"] {
            assert!(bad.parse::<ExecutionId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn oids_round_trip() {
        let text = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        assert_eq!(text.parse::<Oid>().expect("valid"), Oid::EMPTY_TREE);
        assert_eq!(Oid::EMPTY_TREE.to_string(), text);
        for bad in ["", "4b", &text.to_uppercase(), &format!("{text}0"), &"é".repeat(20)] {
            assert!(bad.parse::<Oid>().is_err(), "{bad}");
        }
    }
}
