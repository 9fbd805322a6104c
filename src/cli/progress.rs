//! A line on a terminal for looks at the work tree that take long.
//!
//! # Limitations
//! It shows how much was looked at, not how much there is: nobody knows that before.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::coordinator::attempt::begin::Watcher;

/// What is over sooner than this is not worth a line.
const QUIET: Duration = Duration::from_secs(1);

/// Shows itself on standard error, only where that is a terminal and only after [`QUIET`].
#[derive(Debug)]
pub(super) struct Spinner {
    bar: ProgressBar,
    began: Instant,
}

impl Spinner {
    /// One that has not been drawn yet.
    pub(super) fn new() -> Self {
        let style = ProgressStyle::with_template("worktx: looking at the work tree: {human_pos}")
            .expect("the template is a constant, and a test builds it");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
        Self { bar: bar.with_style(style), began: Instant::now() }
    }
}

impl Default for Spinner {
    fn default() -> Self {
        Self::new()
    }
}

impl Watcher for Spinner {
    fn looked_at(&self, names: u64) {
        if self.began.elapsed() >= QUIET {
            self.bar.set_position(names);
        }
    }

    fn over(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_built_and_ended() {
        let spinner = Spinner::new();
        spinner.looked_at(1);
        spinner.over();
    }
}
