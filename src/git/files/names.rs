//! Which names git would store, as its `verify_path` judges on Linux with default settings
//! (`core.protectNTFS` on, `core.protectHFS` off).
//!
//! # Limitations
//! A repository that turns `core.protectNTFS` off may store more; such a name is still refused
//! here, since nobody with another setting could check it out.

/// Whether git stores a file or link under this name (one part of a path).
///
/// From git's `read-cache.c` (`verify_path`, `verify_dotfile`) and `path.c` (`is_ntfs_dotgit`,
/// `is_ntfs_dotgitmodules`).
pub fn storable_name(name: &[u8], is_symlink: bool) -> bool {
    if matches!(name, b"" | b"." | b"..") {
        return false;
    }
    if is_symlink && name.eq_ignore_ascii_case(b".gitmodules") {
        return false;
    }
    // A backslash separates parts on Windows: each of them is judged. Not one at the start: git
    // does not look at the first byte.
    let starts = std::iter::once(0).chain(
        name.iter().enumerate().filter(|(at, b)| *at > 0 && **b == b'\\').map(|(at, _)| at + 1),
    );
    starts
        .map(|start| &name[start..])
        .all(|rest| !(is_ntfs_dotgit(rest) || is_symlink && is_ntfs_dotgitmodules(rest)))
}

fn is_ntfs_dotgit(name: &[u8]) -> bool {
    let starts = |prefix: &[u8]| {
        name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let rest = if starts(b".git") {
        &name[4..]
    } else if starts(b"git~1") {
        &name[5..]
    } else {
        return false;
    };
    let end = rest.iter().position(|b| matches!(b, b'\\' | b':')).unwrap_or(rest.len());
    rest[..end].iter().all(|b| matches!(b, b'.' | b' '))
}

fn is_ntfs_dotgitmodules(name: &[u8]) -> bool {
    let tail = |at: usize| {
        let rest = name.get(at..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == b':').unwrap_or(rest.len());
        rest[..end].iter().all(|b| matches!(b, b'.' | b' '))
    };
    let starts = |prefix: &[u8]| {
        name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    if starts(b".gitmodules") {
        return tail(11);
    }
    if starts(b"gitmod~") && name.get(7).is_some_and(|b| (b'1'..=b'4').contains(b)) {
        return tail(8);
    }
    // The short name that Windows falls back to: up to six of `gi7eba`, `~`, digits; eight in all.
    let Some(short) = name.get(..8) else { return false };
    let Some(tilde) = short.iter().position(|b| *b == b'~').filter(|at| *at <= 6) else {
        return false;
    };
    let digits = &short[tilde + 1..];
    short[..tilde].eq_ignore_ascii_case(&b"gi7eba"[..tilde])
        && matches!(digits.first(), Some(b'1'..=b'9'))
        && digits.iter().all(u8::is_ascii_digit)
        && tail(8)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Git's own answer: whether it takes the name into an index.
    fn git_stores(names: &[Vec<u8>], is_symlink: bool) -> Vec<bool> {
        let dir = tempfile::tempdir().expect("a folder");
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(dir.path()).args(args);
            command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
            command
        };
        assert!(git(&["init", "-q"]).status().expect("runs").success());
        let mode = if is_symlink { "120000" } else { "100644" };
        names
            .iter()
            .map(|name| {
                let mut child = git(&["update-index", "-z", "--index-info"])
                    .stdin(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("runs");
                let mut line =
                    format!("{mode} e69de29bb2d1d6434b8b29ae775ad8c2e48c5391 0\t").into_bytes();
                line.extend(name);
                line.push(0);
                child.stdin.take().expect("piped").write_all(&line).expect("written");
                let _ = child.wait().expect("ends");
                let listed = git(&["ls-files", "-z"]).output().expect("runs").stdout;
                let stored = listed.split(|b| *b == 0).any(|found| found == name);
                let _ = std::fs::remove_file(dir.path().join(".git/index"));
                stored
            })
            .collect()
    }

    #[test]
    fn as_git_judges() {
        let names: Vec<Vec<u8>> = [
            "a",
            ".git",
            ".GIT",
            ".gIt",
            ".git ",
            ".git.",
            ".git. .",
            ".git:x",
            ".git\\x",
            "git~1",
            "GIT~1",
            "git~1.",
            "git~2",
            "git~10",
            ".gitx",
            ".gitignore",
            "a\\b",
            "a\\.git",
            "a\\git~1",
            "a\\.git\\b",
            "\\.git",
            ".gitmodules",
            ".GITmodules",
            ".gitmodules ",
            "gitmod~1",
            "gitmod~4",
            "gitmod~5",
            "gi7eba~1",
            "gi7e~123",
            "gi7eb~01",
            "~1000000",
            "gi7eba~1.",
            "...",
            " ",
            "-x",
            "a\nb",
            ".g\u{200c}it",
            "x:.git",
        ]
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .chain([b"\xff\xfe".to_vec(), b".git\xff".to_vec()])
        .collect();
        for is_symlink in [false, true] {
            let by_git = git_stores(&names, is_symlink);
            for (name, stored) in names.iter().zip(by_git) {
                let name_text = crate::tx::path::quote(name);
                assert_eq!(storable_name(name, is_symlink), stored, "{name_text} {is_symlink}");
            }
        }
    }
}
