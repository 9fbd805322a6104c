//! Bytes as hexadecimal digits.
//!
//! # Limitations
//! Lower case only.

use std::fmt::Write as _;

/// The digits, two a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Into a string nothing fails.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
