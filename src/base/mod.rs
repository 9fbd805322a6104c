//! Small tools that everything above uses: the clock, durable writes, notes, removing a folder,
//! writing back, threads on several processors, fault points.
//!
//! # Limitations
//! Linux only.

pub mod clock;
pub mod durable;
pub mod fault;
pub mod handover;
pub mod hex;
pub mod note;
pub mod rmtree;
pub mod spread;
pub mod writeback;
