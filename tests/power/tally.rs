//! What came of many cases, and how it is told.
//!
//! # Limitations
//! Of many failures the first few are told.

use std::collections::BTreeMap;

use crate::laws::Judged;

/// How many failures are told.
const SHOWN: usize = 5;

/// What came of the cases of a job.
#[derive(Default)]
pub struct Tally {
    /// How many were checked.
    pub checked: usize,
    ends: BTreeMap<String, usize>,
    platforms_loss: usize,
    gits_loss: usize,
    taken_back: usize,
    unseen: usize,
    failures: Vec<(String, Vec<String>)>,
}

impl Tally {
    /// Adds a case; `name` is what the command line calls it.
    pub fn add(&mut self, name: impl FnOnce() -> String, judged: Judged) {
        self.checked += 1;
        *self.ends.entry(judged.state).or_default() += 1;
        self.platforms_loss += usize::from(judged.platforms_loss);
        self.gits_loss += usize::from(judged.gits_loss);
        self.taken_back += usize::from(judged.taken_back);
        self.unseen += usize::from(judged.unseen);
        if !judged.failures.is_empty() {
            self.failures.push((name(), judged.failures));
        }
    }

    /// In how many a law was broken.
    pub fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Says how they ended and what failed; `again` gives the command that tries a case again.
    pub fn tell(&self, again: impl Fn(&str) -> String) -> Vec<String> {
        let ends: Vec<String> = self
            .ends
            .iter()
            .map(|(state, count)| match state.as_str() {
                "" => format!("{count} without an attempt"),
                state => format!("{count} {state}"),
            })
            .collect();
        let mut lines = vec![format!("  ended: {}", ends.join(", "))];
        if self.taken_back > 0 {
            let count = self.taken_back;
            lines.push(format!("  {count} of the quarantined were discarded: the base again"));
        }
        if self.platforms_loss > 0 {
            let count = self.platforms_loss;
            lines.push(format!(
                "  in {count} the turn's own git files were damaged, the base whole"
            ));
        }
        if self.gits_loss > 0 {
            let count = self.gits_loss;
            lines.push(format!(
                "  in {count} the disk took what a git gc removes before what it makes: git lost the base"
            ));
        }
        if self.unseen > 0 {
            let count = self.unseen;
            lines.push(format!(
                "  in {count} the tree lost bytes of the commit, and git status sees none"
            ));
        }
        for (case, failures) in self.failures.iter().take(SHOWN) {
            lines.push(format!("  {case}: {}", failures.join("; ")));
            lines.push(format!("    again: {}", again(case)));
        }
        if self.failures.len() > SHOWN {
            lines.push(format!("  and {} more", self.failures.len() - SHOWN));
        }
        lines
    }
}
