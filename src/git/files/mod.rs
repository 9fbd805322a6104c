//! Hands in a work tree and in a git directory: everything is reached beneath a handle that is
//! held, through no link and over no mount; and the small pieces that go with it.
//!
//! # Limitations
//! Each file names its own.

pub(super) mod beneath;
pub mod dir;
pub(super) mod hexbytes;
pub mod listing;
pub mod names;
pub mod root;
pub mod smallfile;
