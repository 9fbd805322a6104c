//! The tests on the real binary, real repositories and real processes: one test binary.

mod attacks;
mod crash;
mod lab;
mod run;
mod support;
mod tidy;
