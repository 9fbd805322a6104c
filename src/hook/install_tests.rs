//! The guard in real repositories: git runs the hook, a small script stands for `worktx`.

use std::fs::{self, Permissions};
use std::process::{Command, Output};

use super::*;

struct Repo {
    dir: tempfile::TempDir,
}

impl Repo {
    fn new() -> Self {
        let repo = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        fs::create_dir_all(repo.path("bin")).expect("made");
        assert!(repo.git(&["init", "-q", "-b", "main", "."]).status.success());
        fs::remove_dir_all(repo.hooks()).expect("the samples");
        fs::create_dir(repo.hooks()).expect("made");
        repo
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn hooks(&self) -> PathBuf {
        self.path(".git/hooks")
    }

    fn git(&self, args: &[&str]) -> Output {
        let own = self.path("bin");
        Command::new("git")
            .args(["-c", "user.name=n", "-c", "user.email=e@x"])
            .args(args)
            .current_dir(self.dir.path())
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", own.display()))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .expect("git runs")
    }

    fn commit(&self) -> Output {
        self.git(&["commit", "-q", "--allow-empty", "-m", "x"])
    }

    fn hook(&self, text: &str, mode: u32) {
        Self::script(&self.hooks().join(HOOK), text, mode);
    }

    fn script(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
    }

    /// A `worktx` that notes what it is asked and answers with `code`.
    fn worktx(&self, code: u8) {
        let asked = self.path("asked");
        let text = format!(
            "#!/bin/sh\necho \"args $*\" >>'{0}'\ncat >>'{0}'\nexit {code}\n",
            asked.display()
        );
        Self::script(&self.path("bin/worktx"), &text, 0o755);
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.path("asked")).unwrap_or_default()
    }

    fn read_hook(&self) -> Vec<u8> {
        fs::read(self.hooks().join(HOOK)).expect("there")
    }
}

#[test]
fn git_asks_worktx_and_obeys() {
    let repo = Repo::new();
    assert_eq!(install(&repo.hooks(), HooksFolder::Outside).expect("installed"), Change::Installed);
    assert!(repo.commit().status.success(), "no worktx in PATH: passes");

    repo.worktx(0);
    assert!(repo.commit().status.success());
    let asked = repo.asked();
    assert!(asked.starts_with("args guard-hook\n"), "{asked}");
    assert!(asked.contains(" refs/heads/main\n"), "{asked}");
    let updates = asked.lines().filter(|line| !line.starts_with("args")).collect::<Vec<_>>();
    let parsed = crate::hook::guard::parse_updates(updates.join("\n").as_bytes());
    assert_eq!(parsed.expect("git's lines").len(), updates.len());

    for code in [1, 2, 101, 137] {
        repo.worktx(code);
        assert!(repo.commit().status.success(), "{code} is no refusal");
    }
    let before = repo.git(&["rev-parse", "HEAD"]).stdout;
    repo.worktx(22);
    let refused = repo.commit();
    assert!(!refused.status.success());
    assert_eq!(repo.git(&["rev-parse", "HEAD"]).stdout, before);
    assert!(!repo.path(".git/refs/heads/main.lock").exists());
}

#[test]
fn a_users_hook_gets_the_same_lines() {
    let repo = Repo::new();
    let seen = repo.path("seen");
    let own = format!(
        "#!/bin/sh -eu\nset -o noglob\nwhile IFS= read -r line; do printf '%s|%s\\n' \"$1\" \"$line\" >>'{}'; done\n",
        seen.display()
    );
    repo.hook(&own, 0o755);
    assert!(repo.commit().status.success());
    let without = fs::read_to_string(&seen).expect("written");
    fs::remove_file(&seen).expect("removed");
    assert!(repo.git(&["update-ref", "-d", "HEAD"]).status.success());
    fs::remove_file(&seen).expect("removed");

    assert_eq!(install(&repo.hooks(), HooksFolder::Outside).expect("installed"), Change::Installed);
    for code in [0, 1] {
        repo.worktx(code);
        assert!(repo.commit().status.success());
        let with = fs::read_to_string(&seen).expect("written");
        let shape = |text: &str| -> Vec<String> {
            let refs = |line: &str| {
                let name = line.rsplit(' ').next().unwrap_or_default().to_owned();
                format!("{}:{name}", line.split('|').next().unwrap_or_default())
            };
            text.lines().map(refs).collect()
        };
        assert_eq!(shape(&with), shape(&without), "worktx exits {code}");
        assert!(repo.git(&["update-ref", "-d", "HEAD"]).status.success());
        fs::remove_file(&seen).expect("removed");
    }
}

#[test]
fn in_and_out_is_byte_for_byte() {
    for (text, mode) in [
        ("#!/bin/sh\nexit 0\n", 0o755),
        ("#!/bin/sh\n", 0o775),
        ("#!/bin/bash", 0o700),
        ("#!/usr/bin/env bash\nexit 0", 0o755),
        ("#! /usr/bin/env -S bash -eu\n\n\n", 0o755),
        ("exit 0\n", 0o755),
        ("", 0o755),
    ] {
        let repo = Repo::new();
        let mode_now = || {
            let hook = repo.hooks().join(HOOK);
            fs::metadata(hook).expect("there").permissions().mode() & 0o7777
        };
        repo.hook(text, mode);
        let put = || install(&repo.hooks(), HooksFolder::Outside).expect("installed");
        assert_eq!(put(), Change::Installed, "{text:?}");
        let with = repo.read_hook();
        assert_eq!((put(), repo.read_hook()), (Change::Unchanged, with), "{text:?}");
        assert_eq!(mode_now(), mode);
        assert!(repo.commit().status.success(), "{text:?}");
        assert_eq!(remove(&repo.hooks()).expect("removed"), Change::Removed);
        assert_eq!((repo.read_hook().as_bstr(), mode_now()), (text.into(), mode), "{text:?}");
        assert_eq!(remove(&repo.hooks()).expect("nothing"), Change::Unchanged);
    }
}

#[test]
fn our_own_file_goes_whole() {
    let repo = Repo::new();
    let folder = repo.path("elsewhere/hooks");
    assert_eq!(remove(&folder).expect("nothing"), Change::Unchanged);
    assert_eq!(install(&folder, HooksFolder::Ignored).expect("made"), Change::Installed);
    assert_eq!(fs::read(folder.join(HOOK)).expect("there").as_bstr(), TEMPLATE);
    assert_eq!(remove(&folder).expect("removed"), Change::Removed);
    assert!(!folder.join(HOOK).exists());
}

#[test]
fn an_older_block_is_replaced_in_place() {
    let repo = Repo::new();
    repo.hook(&format!("#!/bin/sh\necho a\n{BEGIN}old\n{END}\necho b\n"), 0o755);
    assert_eq!(install(&repo.hooks(), HooksFolder::Outside).expect("done"), Change::Upgraded);
    let expected = format!("#!/bin/sh\necho a\n{}\necho b\n", block());
    assert_eq!(repo.read_hook().as_bstr(), expected);
    assert_eq!(remove(&repo.hooks()).expect("removed"), Change::Removed);
    assert_eq!(repo.read_hook().as_bstr(), "#!/bin/sh\necho a\necho b\n");
}

#[test]
fn what_is_not_ours_to_change_is_refused_and_untouched() {
    type Kind = fn(&InstallError) -> bool;
    let cases: [(&str, u32, Kind); 5] = [
        ("#!/usr/bin/env python3\n", 0o755, |e| matches!(e, InstallError::NotShell { .. })),
        ("\x7fELF\0\0", 0o755, |e| matches!(e, InstallError::NotShell { .. })),
        ("#!/usr/bin/fish\n", 0o755, |e| matches!(e, InstallError::NotShell { .. })),
        ("#!/bin/sh\n", 0o644, |e| matches!(e, InstallError::Asleep { .. })),
        ("#!/bin/sh\n# >>> worktx guard >>>\n", 0o755, |e| {
            matches!(e, InstallError::BrokenMarkers { .. })
        }),
    ];
    for (text, mode, expected) in cases {
        let repo = Repo::new();
        repo.hook(text, mode);
        let error = install(&repo.hooks(), HooksFolder::Outside).expect_err("refused");
        assert!(expected(&error), "{text:?}: {error}");
        assert_eq!(repo.read_hook().as_bstr(), text);
    }
    let repo = Repo::new();
    let target = repo.path("shared");
    Repo::script(&target, "#!/bin/sh\n", 0o755);
    std::os::unix::fs::symlink(&target, repo.hooks().join(HOOK)).expect("a link");
    let error = install(&repo.hooks(), HooksFolder::Outside).expect_err("refused");
    assert!(matches!(error, InstallError::NotAFile { .. }));
    let error = install(&repo.path("hooks"), HooksFolder::InTree).expect_err("refused");
    assert!(error.to_string().contains("core.hooksPath"), "{error}");
    assert!(!repo.path("hooks").exists());
}

#[test]
fn git_finds_it_by_hooks_path() {
    let repo = Repo::new();
    let folder = hooks_folder(&repo.path(".git"), repo.dir.path(), Some(Path::new("my/hooks")));
    assert_eq!(folder, repo.path("my/hooks"));
    assert_eq!(hooks_folder(&repo.path(".git"), repo.dir.path(), None), repo.hooks());
    assert!(repo.git(&["config", "core.hooksPath", "my/hooks"]).status.success());
    install(&folder, HooksFolder::Ignored).expect("installed");
    repo.worktx(22);
    assert!(!repo.commit().status.success());
}

#[test]
fn the_template_is_whole() {
    assert!(TEMPLATE.starts_with("#!/bin/sh\n"));
    assert!(TEMPLATE.ends_with(&format!("{END}\n")));
    assert_eq!((TEMPLATE.matches(BEGIN).count(), TEMPLATE.matches(END).count()), (1, 1));
    assert!(TEMPLATE.contains(&format!("-ne {}", crate::hook::guard::REFUSED)));
}
