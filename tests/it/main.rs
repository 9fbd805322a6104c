//! The tests on the real binary, real repositories and real processes: one test binary.

mod readers;
mod run;
mod support;
mod tidy;
