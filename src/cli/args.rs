//! The command line: names, options and their help. What they do stands in the files beside.
//!
//! # Limitations
//! Texts here are also the man page and `docs/cli.md`; a test keeps the latter in step.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::tx::cause::QuarantineReason;

/// Run a command in a git work tree as a transaction: it lands whole, or it never happened.
///
/// worktx pins where the work tree stands, runs the command, proves it dead, seals what it did
/// as a commit, asks a post-check, and moves the branch only if the execution's row was won.
/// Otherwise everything in scope goes back byte for byte, and the rejected work is kept under a
/// git ref.
#[derive(Debug, Parser)]
#[command(name = "worktx", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// The options that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The options that every command takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// A directory in the work tree; by default the current one
    #[arg(long, global = true, value_name = "DIR")]
    pub workspace: Option<PathBuf>,
    /// A set of defaults: `default` or `trinity`
    #[arg(long, global = true, value_name = "NAME", env = "WORKTX_PROFILE")]
    pub profile: Option<String>,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
    /// How the log is written, on stderr; `WORKTX_LOG` says what is logged
    #[arg(
        long,
        global = true,
        value_name = "FORM",
        default_value = "text",
        env = "WORKTX_LOG_FORMAT"
    )]
    pub log_format: LogFormat,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people
    Text,
    /// A JSON document a line
    Json,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command as a transaction
    Run(Box<RunArgs>),
    /// Say how the workspace stands, and what can be done about it
    Status(ReaderArgs),
    /// List attempts, newest first
    List(ListArgs),
    /// Show everything that is known of an execution
    Show(IdArgs),
    /// Show what an attempt changed
    Diff(DiffArgs),
    /// Show what was recorded of an execution, in order
    Events(IdArgs),
    /// Cancel an execution: its row says CANCELLED, a running turn is ended and rolled back
    Cancel(IdArgs),
    /// Bring discarded work back, as a branch
    Restore(RestoreArgs),
    /// Run the post-check now, on the tree as it is, and say what would be decided
    PostCheck(PostCheckArgs),
    /// Settle what a crash left behind
    Reconcile(ReaderArgs),
    /// Decide about a quarantined attempt
    Resolve(ResolveArgs),
    /// Drop what is kept of attempts that were settled long ago
    Gc(GcArgs),
    /// Stay, take executions over a socket, and answer while they run
    Serve(ServeArgs),
    /// Run a command while no attempt is at work in the work tree, and none begins
    Guard(GuardArgs),
    /// Prepare a repository: the state directory and, if asked, the guard hook; no file of yours
    Init(InitArgs),
    /// Show in a repository of its own what worktx does
    Demo(DemoArgs),
    /// Look for what could be in the way
    Doctor(ReaderArgs),
    /// Print a shell's completions
    Completions(CompletionsArgs),
    /// Print the manual page
    Man,
    /// Decide about a ref update, for the guard hook
    #[command(hide = true)]
    GuardHook,
    /// Look at the work tree once, for a server that watches it
    #[command(hide = true)]
    WarmUp,
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Names the unit of work; by default a new one. One that succeeded is not run again
    #[arg(long, value_name = "ID")]
    pub execution_id: Option<String>,
    /// An executable that validates the result
    #[arg(long, value_name = "PATH", group = "check_kind")]
    pub post_check: Option<PathBuf>,
    /// A shell command that validates the result, such as 'npm test'
    #[arg(long, value_name = "CMD", group = "check_kind")]
    pub check: Option<String>,
    /// Validate nothing
    #[arg(long, group = "check_kind")]
    pub no_post_check: bool,
    /// The bound on the post-check, such as 90s or 10m
    #[arg(long, value_name = "DUR")]
    pub post_check_timeout: Option<String>,
    /// The bound on the command, such as 90s or 2h; by default none
    #[arg(long, value_name = "DUR")]
    pub timeout: Option<String>,
    /// The time by which everything up to the verdict must be done, RFC 3339
    #[arg(long, value_name = "TIME")]
    pub settle_by: Option<String>,
    /// What to do when tracked files differ from HEAD
    #[arg(long, value_name = "WHAT")]
    pub on_dirty: Option<OnDirtyArg>,
    /// Where to look for changes
    #[arg(long, value_name = "WHAT", default_value = "watched")]
    pub verify: VerifyArg,
    /// How long to wait for a busy workspace, such as 30s; by default not at all
    #[arg(long, value_name = "DUR")]
    pub wait: Option<String>,
    /// What set this off: `validation`, `maintenance` and `health` open no transaction
    #[arg(long, value_name = "KIND")]
    pub triggered_by: Option<String>,
    /// The subject of the commit
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// The fence of a pull-model claim; the row must hold it
    #[arg(long, value_name = "TOKEN", env = "WORKTX_CLAIM_TOKEN", hide_env_values = true)]
    pub claim_token: Option<String>,
    /// Print the outcome as one JSON document on stdout; the command's stdout goes to stderr
    #[arg(long)]
    pub json: bool,
    /// Write the outcome document into this file, too
    #[arg(long, value_name = "FILE")]
    pub outcome_file: Option<PathBuf>,
    /// The command, and what it is given
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `--on-dirty`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDirtyArg {
    /// Refuse to start
    Refuse,
    /// Run without protection, with a warning
    Run,
    /// Take the dirty state as the base (not supported yet)
    Capture,
}

/// `--verify`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VerifyArg {
    /// Where a server that watches the work tree saw something happen; without one everywhere
    Watched,
    /// Everywhere
    Full,
}

/// Commands that only read.
#[derive(Debug, Args)]
pub struct ReaderArgs {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only what is not settled
    #[arg(long)]
    pub unsettled: bool,
    /// At most this many; 0 is all
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: u32,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Commands about one execution.
#[derive(Debug, Args)]
pub struct IdArgs {
    /// The execution; a unique beginning is enough
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The execution; a unique beginning is enough
    #[arg(value_name = "ID")]
    pub id: String,
    /// Which attempt; by default the last
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
    /// Only the names of the paths
    #[arg(long)]
    pub name_only: bool,
    /// Print one JSON document: the paths and what happened to each
    #[arg(long)]
    pub json: bool,
}

/// `restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The execution; a unique beginning is enough
    #[arg(value_name = "ID")]
    pub id: String,
    /// Which attempt; by default the last that has discarded work
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
    /// The branch to make; by default `worktx/restored-<id>-<attempt>`
    #[arg(long, value_name = "NAME")]
    pub branch: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `post-check`
#[derive(Debug, Args)]
pub struct PostCheckArgs {
    /// An executable to run instead of the configured one
    #[arg(long, value_name = "PATH", group = "check_kind")]
    pub post_check: Option<PathBuf>,
    /// A shell command to run instead of the configured one
    #[arg(long, value_name = "CMD", group = "check_kind")]
    pub check: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `resolve`
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("decision").required(true)))]
pub struct ResolveArgs {
    /// The execution; a unique beginning is enough
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub id: Option<String>,
    /// Seal the tree as it stands, validate it, and let it land
    #[arg(long, group = "decision", conflicts_with = "all")]
    pub adopt: bool,
    /// Pin what stands there, then restore the base
    #[arg(long, group = "decision")]
    pub discard: bool,
    /// Pin what stands there, leave it, and call the execution failed
    #[arg(long, group = "decision", conflicts_with = "all")]
    pub keep: bool,
    /// Every attempt of the repository that is quarantined for --reason; with --discard only
    #[arg(long, requires = "reason", conflicts_with = "id")]
    pub all: bool,
    /// The reason to look for
    #[arg(
        long,
        value_name = "REASON",
        requires = "all",
        value_parser = PossibleValuesParser::new(QuarantineReason::WORDS)
    )]
    pub reason: Option<String>,
    /// Your word that nobody of the turn writes any more; it is recorded
    #[arg(long)]
    pub writer_dead: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `gc`
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Say what would go, and leave it
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Directories in the work trees to serve; by default those of `serve.workspaces`, or the current one
    #[arg(value_name = "DIR")]
    pub workspaces: Vec<PathBuf>,
    /// Ask a running server whether it is ready; exit 0 if it is
    #[arg(long)]
    pub check: bool,
    /// Listen on this address too, such as 127.0.0.1:7070
    #[arg(long, value_name = "ADDRESS", requires = "token_file")]
    pub listen: Option<std::net::SocketAddr>,
    /// The file with the token that is wanted there; nobody else may read it
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The address may be one that other machines reach
    #[arg(long, requires = "listen")]
    pub listen_anywhere: bool,
    /// Run at most this many executions at once; 0 is one a work tree
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_running: usize,
    /// After a SIGTERM, let running executions go on for so long before they are interrupted
    #[arg(long, value_name = "DUR", default_value = "30s")]
    pub drain: String,
}

/// `guard`
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Do not wait for a workspace that is busy: exit 22
    #[arg(long)]
    pub nowait: bool,
    /// Wait so long at most, such as 30s; by default without a bound
    #[arg(long, value_name = "DUR", conflicts_with = "nowait")]
    pub wait: Option<String>,
    /// The command, and what it is given
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Install the reference-transaction hook that guards the branch during a turn
    #[arg(long)]
    pub guard: bool,
    /// Remove that hook
    #[arg(long, conflicts_with = "guard")]
    pub no_guard: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leave the repository there, and say where
    #[arg(long)]
    pub keep: bool,
}

/// `completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}
