//! What an attempt needs that did not come to its end by itself: observation and reconcile after a
//! crash, and the decisions of an operator.
//!
//! # Limitations
//! Each file names its own.

pub mod cancel;
pub mod decide;
pub(super) mod leftovers;
pub(super) mod observe;
pub mod reconcile;
pub mod resolve;
