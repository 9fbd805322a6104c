//! The kinds of values: what a file or a variable gives, and how it is shown again.
//!
//! # Limitations
//! A duration has hours, minutes, seconds and milliseconds; a day is said as `24h`, since the day
//! of a calendar is not always as long.

use jiff::SignedDuration;
use jiff::fmt::friendly::{SpanParser, SpanPrinter};

/// A value as it was given, before anybody knows what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raw {
    /// A string; every variable is one.
    Text(String),
    /// An integer of a file.
    Integer(i64),
    /// A boolean of a file.
    Flag(bool),
    /// A list of strings of a file.
    List(Vec<String>),
    /// Something that no key takes: its name in TOML.
    Other(&'static str),
}

impl Raw {
    /// What it is, for an error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Flag(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }
}

/// The subject of a commit, which git would not take empty: the first line of a message.
pub fn subject(message: &str) -> Result<(), String> {
    match message.lines().next() {
        Some(line) if !line.trim().is_empty() => Ok(()),
        _ => Err("its first line, the subject of the commit, is empty".to_owned()),
    }
}

/// A duration like `10m`, `90s`, `1h 30m`, in milliseconds.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no duration: write it like 90s, 10m, 1h 30m or 500ms");
    let duration = SpanParser::new().parse_unsigned_duration(text.trim()).map_err(|_| wrong())?;
    u64::try_from(duration.as_millis()).map_err(|_| wrong())
}

/// A duration as it is written: `10m`.
pub fn show_duration(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    SpanPrinter::new().duration_to_string(&SignedDuration::from_millis(ms))
}

/// The units of sizes. `kB` is 1000 bytes and `KiB` 1024; a bare `K` says neither.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// A size like `100MiB`, in bytes. Without a unit it is bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: write it like 100MiB, 2GiB, 500kB or 4096");
    let trimmed = text.trim();
    let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim();
    let factor = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let factor = if unit.is_empty() { 1 } else { factor.ok_or_else(wrong)?.1 };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

/// A size by the largest binary unit that says it exactly.
pub fn show_size(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes >= *factor && bytes.is_multiple_of(*factor);
    match UNITS[..4].iter().find(fits) {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, ms) in [
            ("90s", 90_000),
            ("10m", 600_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("0s", 0),
        ] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for bad in ["", "90", "-5s", "1 fortnight", "1d", "1mo", "5s ago", "9999999999999999999h"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
        assert_eq!(show_duration(600_000), "10m");
        assert_eq!(show_duration(5_400_000), "1h 30m");
    }

    #[test]
    fn sizes_are_exact() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1kB", 1000),
            ("1KB", 1000),
            ("1 KiB", 1024),
            ("100MiB", 100 << 20),
            ("2gib", 2 << 30),
            ("0", 0),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "1K", "1.5GiB", "-1", "99999999999TiB", "1 MiB x"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for bytes in [0, 1, 1000, 1024, 100 << 20, 5 << 30, (5 << 30) + 1] {
            assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
        assert_eq!(show_size(1 << 30), "1GiB");
    }
}
