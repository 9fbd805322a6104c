//! Small tools that everything above uses: the clock, durable writes, notes, writing back, fault points.
//!
//! # Limitations
//! Linux only.

pub mod clock;
pub mod durable;
pub mod fault;
pub mod note;
pub mod writeback;
