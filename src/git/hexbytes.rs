//! Bytes as a string of hex digits, for records: `#[serde(with = "hexbytes")]`.
//!
//! # Limitations
//! Twice the size; meant for the small files of a git directory.

use crate::base::hex::hex;
use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer, Serializer};

/// Writes lower-case hex digits.
pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex(bytes))
}

/// Reads what [`serialize`] writes.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    match bytes.collect::<Option<Vec<u8>>>() {
        Some(bytes) if rest.is_empty() => Ok(bytes),
        _ => Err(D::Error::custom("not a string of hex digits")),
    }
}
