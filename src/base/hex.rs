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

/// The bytes of hex digits, two each; `None` where they are none.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    rest.is_empty().then(|| bytes.collect()).flatten()
}
