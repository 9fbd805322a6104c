//! The small parts of git's index format (`gitformat-index`): words, numbers, `stat`.
//!
//! # Limitations
//! As those of `index`.

use crate::tx::entry::Stat;

/// `stat` as git keeps it: 32 bits of each. The device is left out, which git does not compare
/// unless built to (`USE_STDEV`); the mode is put in by the caller.
pub(super) fn stat_words(stat: &Stat) -> [u32; 10] {
    let low = |value: u64| u32::try_from(value & 0xffff_ffff).expect("32 bits");
    let time = |ns: i64| {
        let seconds = ns.div_euclid(1_000_000_000);
        let nanos = ns.rem_euclid(1_000_000_000);
        (low(seconds.cast_unsigned()), low(nanos.cast_unsigned()))
    };
    let (ctime, mtime) = (time(stat.ctime_ns), time(stat.mtime_ns));
    // A size that would look like "not known" is told apart, as in git (`munge_st_size`).
    let size = match low(stat.size) {
        0 if stat.size > 0 => 1 << 31,
        size => size,
    };
    [ctime.0, ctime.1, mtime.0, mtime.1, 0, low(stat.inode), 0, stat.uid, stat.gid, size]
}

pub(super) fn cut<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], &'static str> {
    let (taken, left) = rest.split_at_checked(count).ok_or("cut off")?;
    *rest = left;
    Ok(taken)
}

pub(super) fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

/// The number form of version 4: seven bits each, high ones first, each but the last plus one.
pub(super) fn offset(rest: &mut &[u8]) -> Result<usize, &'static str> {
    let mut value = 0usize;
    loop {
        let byte = cut(rest, 1)?[0];
        value = value << 7 | usize::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
        value += 1;
        if value > 1 << 40 {
            return Err("a number that is too large");
        }
    }
}

pub(super) fn put_offset(out: &mut Vec<u8>, mut value: usize) {
    let low = |value: usize| u8::try_from(value & 0x7f).expect("seven bits");
    let mut bytes = vec![low(value)];
    value >>= 7;
    while value > 0 {
        value -= 1;
        bytes.push(0x80 | low(value));
        value >>= 7;
    }
    out.extend(bytes.iter().rev());
}
