//! What panics say, kept for who caught them instead of being printed.
//!
//! # Limitations
//! The last one of each thread.

use std::cell::RefCell;
use std::panic;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// From now on panics are kept.
pub fn keep() {
    panic::set_hook(Box::new(|info| {
        LAST.with(|last| *last.borrow_mut() = info.to_string());
    }));
}

/// What the last panic of this thread said.
pub fn last() -> String {
    LAST.with(RefCell::take)
}
