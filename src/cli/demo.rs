//! `worktx demo`: a repository of its own, and three turns in it, as they really run.
//!
//! # Limitations
//! It needs the `git` binary, to make the repository and to show it; worktx itself does not.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::args::{DemoArgs, Global};
use super::style::Style;
use super::{exit, output};
use crate::coordinator::error::Failure;

const NOTES: &str = "plan: ship it\n";
const POST_CHECK: &str = "#!/bin/sh\n# Accept a turn only if the greeting is still polite.\ngrep -q '^hello' greeting.txt\n";

struct Demo {
    style: Style,
    root: PathBuf,
}

/// Shows what worktx does.
#[expect(clippy::needless_pass_by_value, reason = "the form of every command")]
pub(super) fn run(global: &Global, args: DemoArgs) -> Result<u8, Failure> {
    let folder = tempfile::Builder::new()
        .prefix("worktx-demo-")
        .tempdir()
        .map_err(Failure::io("making a folder for the demonstration"))?;
    let demo = Demo { style: Style::stdout(global.color), root: folder.path().to_owned() };
    let shown = demo.show();
    if args.keep {
        let kept = folder.keep();
        output::print(&format!("\nThe repository stays in {}\n", kept.display()))?;
    }
    shown?;
    Ok(exit::OK)
}

impl Demo {
    fn show(&self) -> Result<(), Failure> {
        self.say("A repository: a greeting, a post-check that guards it, a note that git does not track.")?;
        self.git(&["init", "-q", "-b", "main", "."])?;
        self.git(&["config", "user.name", "Demo"])?;
        self.git(&["config", "user.email", "demo@example.org"])?;
        self.write("greeting.txt", "hello, world\n")?;
        self.write("src/one.txt", "1\n")?;
        self.write("src/two.txt", "2\n")?;
        self.write(".worktx/post-check", POST_CHECK)?;
        self.executable(".worktx/post-check")?;
        self.git(&["add", "-A"])?;
        self.git(&["commit", "-q", "-m", "a polite greeting"])?;
        self.write("notes.txt", NOTES)?;
        self.show_git(&["status", "--short"])?;

        self.say(
            "1. A turn that succeeds, and that the post-check passes: it lands as one commit.",
        )?;
        self.turn("echo 'hello, everybody' > greeting.txt; echo 3 > src/three.txt", 0)?;
        self.show_git(&["log", "--oneline", "--stat", "-1"])?;

        self.say("2. A turn that deletes a folder and the note, then fails: all of it goes back, byte for byte.")?;
        self.turn("rm -r src notes.txt; echo half > half-done; exit 1", 10)?;
        self.show_git(&["status", "--short"])?;
        Self::check(self.read("notes.txt")? == NOTES && self.read("src/two.txt")? == "2\n")?;

        self.say("3. A turn that returns 0 with a bad result: the post-check rejects it, and it goes back.")?;
        self.turn("echo 'go away' > greeting.txt", 11)?;

        self.say("4. The same again, and it rewrites the post-check to get through.\n   The copy that was captured before the turn is the one that counts.")?;
        self.turn(
            "echo 'go away' > greeting.txt; printf '#!/bin/sh\\nexit 0\\n' > .worktx/post-check",
            11,
        )?;
        self.show_git(&["status", "--short"])?;
        Self::check(self.read("greeting.txt")? == "hello, everybody\n")?;

        self.say("What happened, newest first. Rejected work is kept: `worktx diff ID`, `worktx restore ID`.")?;
        self.worktx(&["list"], Stdio::inherit(), 0)?;
        self.say(
            "The note stands where it stood, the branch has the one good commit, nothing was lost.",
        )
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        output::print(&format!("\n{}\n", self.style.strong(text)))
    }

    fn turn(&self, script: &str, code: i32) -> Result<(), Failure> {
        output::print(&format!("$ worktx run -- sh -c \"{script}\"\n"))?;
        self.worktx(&["run", "--", "sh", "-c", script], Stdio::null(), code)
    }

    fn worktx(&self, words: &[&str], stdin: Stdio, code: i32) -> Result<(), Failure> {
        if words.first() == Some(&"list") {
            output::print("$ worktx list\n")?;
        }
        let own = std::env::current_exe().map_err(Failure::io("finding worktx itself"))?;
        let status = self
            .command(&own)
            .args(words)
            .stdin(stdin)
            .status()
            .map_err(Failure::io("starting worktx"))?;
        output::print(&format!(
            "{}\n",
            self.style.faint(format!("exit {}", status.code().unwrap_or(-1)))
        ))?;
        Self::check(status.code() == Some(code))
    }

    fn check(fine: bool) -> Result<(), Failure> {
        if fine {
            return Ok(());
        }
        Err(Failure::impossible("the demonstration did not go as it should", "worktx doctor"))
    }

    /// A command that sees nothing of the caller's git and worktx settings.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).env("HOME", &self.root).env("GIT_CONFIG_NOSYSTEM", "1");
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("GIT_") || text.starts_with("WORKTX_") || text.starts_with("XDG_") {
                command.env_remove(&name);
            }
        }
        command
    }

    fn git(&self, words: &[&str]) -> Result<(), Failure> {
        let status = self
            .command(Path::new("git"))
            .args(words)
            .stdin(Stdio::null())
            .status()
            .map_err(Failure::io("starting git, which the demonstration needs"))?;
        // Whoever read it has gone, which is no error: see `output`.
        let is_unheard = status.signal() == Some(rustix::process::Signal::PIPE.as_raw());
        Self::check(status.success() || is_unheard)
    }

    fn show_git(&self, words: &[&str]) -> Result<(), Failure> {
        output::print(&format!("$ git {}\n", words.join(" ")))?;
        self.git(words)
    }

    fn write(&self, path: &str, text: &str) -> Result<(), Failure> {
        let path = self.root.join(path);
        let parent = path.parent().unwrap_or(&self.root);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(Failure::io("writing the demonstration"))
    }

    fn executable(&self, path: &str) -> Result<(), Failure> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(self.root.join(path), std::fs::Permissions::from_mode(0o755))
            .map_err(Failure::io("writing the demonstration"))
    }

    fn read(&self, path: &str) -> Result<String, Failure> {
        std::fs::read_to_string(self.root.join(path))
            .map_err(Failure::io("reading the demonstration"))
    }
}
