//! Bytes as a string of hex digits, for records: `#[serde(with = "hexbytes")]`.
//!
//! # Limitations
//! Twice the size; meant for the small files of a git directory.

use crate::base::hex::{hex, unhex};
use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer, Serializer};

/// Writes lower-case hex digits.
pub(in crate::git) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex(bytes))
}

/// Reads what [`serialize`] writes.
pub(in crate::git) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    unhex(&text).ok_or_else(|| D::Error::custom("not a string of hex digits"))
}
