//! The `worktx` binary: everything lives in the library.
fn main() {}
