//! The clocks: wall time for records, monotonic time for bounds.
//!
//! # Limitations
//! Wall time may jump; nothing is decided by it but what a person asked for by date.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::time::{ClockId, clock_gettime};

/// Now, as RFC 3339 in UTC with milliseconds: the form of every document and record.
pub fn now_rfc3339() -> String {
    rfc3339(Timestamp::now())
}

/// A time as RFC 3339 in UTC with milliseconds.
pub fn rfc3339(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// How far local time is ahead of UTC at a time, in seconds: by `TZ`, else by `/etc/localtime`.
///
/// That file is read by itself where `TZ` is not set: looking for the name of the zone as well
/// means a walk through all of the system's zones, which takes longer than packing a small commit.
pub fn local_offset(at: Timestamp) -> i32 {
    let of_file = || TimeZone::tzif("", &std::fs::read("/etc/localtime").ok()?).ok();
    let zone = if std::env::var_os("TZ").is_none() { of_file() } else { None };
    zone.unwrap_or_else(TimeZone::system).to_offset(at).seconds()
}

/// Nanoseconds since the epoch, by the clock that the kernel stamps files with (it is coarser
/// than the precise one, so that this never is later than a stamp given after it).
pub fn file_clock_ns() -> i64 {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// How far the time of day is ahead of the time since boot, in nanoseconds: less than before where
/// somebody set the clock back.
pub fn ahead_of_boot_ns() -> i64 {
    let ns = |id| {
        let now = clock_gettime(id);
        now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
    };
    // What comes between the two calls makes it less: the most of a few is right.
    let ahead = || {
        let day = ns(ClockId::Realtime);
        day.saturating_sub(ns(ClockId::Boottime))
    };
    ahead().max(ahead()).max(ahead())
}

/// Clock ticks since boot: what `/proc/<pid>/stat` counts process starts in.
pub fn ticks_since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * per_second + nanos * per_second / 1_000_000_000
}
