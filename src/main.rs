//! The `worktx` binary: everything lives in the library.
fn main() -> std::process::ExitCode {
    worktx::process::run_supervisor_if_asked();
    #[cfg(debug_assertions)]
    worktx::process::test_turn::run_if_asked();
    worktx::cli::main()
}
