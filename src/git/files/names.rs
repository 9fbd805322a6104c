//! Which names git would store, as its `verify_path` judges on Linux with default settings
//! (`core.protectNTFS` on, `core.protectHFS` off), and which of these its `fsck --strict` takes.
//!
//! # Limitations
//! A repository that turns `core.protectNTFS` off may store more; such a name is still refused
//! here, since nobody with another setting could check it out. What `fsck` says of the bytes of a
//! `.gitmodules` or `.gitattributes` is not asked.

use bstr::ByteSlice as _;

use crate::tx::path::RepoPath;

/// A name that git knows, and the start of the short one that Windows falls back to.
type Known = (&'static str, &'static [u8]);
const MODULES: Known = (".gitmodules", b"gi7eba");
const ATTRIBUTES: Known = (".gitattributes", b"gi7d29");

/// Whether git stores a file or link at a path.
pub fn storable_path(path: &RepoPath, is_symlink: bool) -> bool {
    let last = path.parts().count() - 1;
    path.parts().enumerate().all(|(at, name)| storable_name(name, is_symlink && at == last))
}

/// Whether `git fsck --strict` takes a path, and with it whoever lets it look at what is pushed: what
/// would be `.git` on a Mac too, and no folder where git reads a file.
///
/// From git's `fsck.c` (`fsck_tree`, `fsck_blobs`) and `utf8.c` (`is_hfs_dot_generic`).
pub fn passes_fsck(path: &RepoPath, is_symlink: bool) -> bool {
    let last = path.parts().count() - 1;
    storable_path(path, is_symlink)
        && path.parts().enumerate().all(|(at, name)| {
            let is = |known: Known| is_hfs(name, known.0) || is_ntfs(name, known);
            let is_bad_kind =
                if at < last { is(MODULES) || is(ATTRIBUTES) } else { is_symlink && is(MODULES) };
            !is_hfs(name, ".git") && !is_bad_kind
        })
}

/// Whether git stores a file or link under this name (one part of a path).
///
/// From git's `read-cache.c` (`verify_path`, `verify_dotfile`) and `path.c` (`is_ntfs_dotgit`,
/// `is_ntfs_dotgitmodules`).
fn storable_name(name: &[u8], is_symlink: bool) -> bool {
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
        .all(|rest| !(is_ntfs_dotgit(rest) || is_symlink && is_ntfs(rest, MODULES)))
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

/// Whether HFS+ takes the name for another, which is in lower case: some characters mean nothing to
/// it. What is no UTF-8 ends a name, as in git.
fn is_hfs(name: &[u8], other: &str) -> bool {
    let letters = name.char_indices().map(|(from, to, letter)| match letter {
        '\u{fffd}' if &name[from..to] != "\u{fffd}".as_bytes() => '\0',
        letter => letter.to_ascii_lowercase(),
    });
    let means_nothing = |letter: &char| {
        matches!(letter, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{206a}'..='\u{206f}' | '\u{feff}')
    };
    letters.take_while(|l| *l != '\0').filter(|l| !means_nothing(l)).eq(other.chars())
}

fn is_ntfs(name: &[u8], (long, fallback): Known) -> bool {
    let tail = |at: usize| {
        let rest = name.get(at..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == b':').unwrap_or(rest.len());
        rest[..end].iter().all(|b| matches!(b, b'.' | b' '))
    };
    let starts = |prefix: &[u8]| {
        name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    if starts(long.as_bytes()) {
        return tail(long.len());
    }
    let number = name.get(7).filter(|_| name[6] == b'~');
    if starts(&long.as_bytes()[1..7]) && number.is_some_and(|b| (b'1'..=b'4').contains(b)) {
        return tail(8);
    }
    // The short name that Windows falls back to: up to six such bytes, `~`, digits; eight in all.
    let Some(short) = name.get(..8) else { return false };
    let Some(tilde) = short.iter().position(|b| *b == b'~').filter(|at| *at <= 6) else {
        return false;
    };
    let digits = &short[tilde + 1..];
    short[..tilde].eq_ignore_ascii_case(&fallback[..tilde])
        && matches!(digits.first(), Some(b'1'..=b'9'))
        && digits.iter().all(u8::is_ascii_digit)
        && tail(8)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn path(bytes: &[u8]) -> RepoPath {
        RepoPath::new(bytes).expect("a path")
    }

    /// Git's own answer: whether it takes a tree with such a path.
    fn git_passes(paths: &[&[u8]], is_symlink: bool) -> Vec<bool> {
        let judge = |path: &&[u8]| {
            let dir = tempfile::tempdir().expect("a folder");
            let git = |args: &[&str], input: &[u8]| {
                let mut command = Command::new("git");
                command.arg("-C").arg(dir.path()).args(args);
                command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
                let mut child = command.spawn().expect("runs");
                child.stdin.take().expect("piped").write_all(input).expect("written");
                child.wait_with_output().expect("ends")
            };
            git(&["init", "-q"], b"");
            let blob = git(&["hash-object", "-w", "--stdin"], b"").stdout;
            let (mut mode, mut tree) =
                (if is_symlink { "120000 blob" } else { "100644 blob" }, blob);
            // Innermost first; `mktree` asks no name.
            for name in path.rsplit(|b| *b == b'/') {
                let line = [mode.as_bytes(), b" ", tree.trim_end(), b"\t", name, b"\0"].concat();
                tree = git(&["mktree", "-z"], &line).stdout;
                mode = "040000 tree";
            }
            assert_eq!(tree.len(), 41, "{}", path.as_bstr());
            git(&["fsck", "--strict"], b"").status.success()
        };
        paths.iter().map(judge).collect()
    }

    #[test]
    fn as_fsck_judges() {
        let paths: [&[u8]; 29] = [
            b"a/b",
            b".gitmodules",
            b".gitattributes",
            b".gitattributes/x",
            b"a/.GitAttributes/x",
            b".gitattributes /x",
            b"gitatt~1/x",
            b"gitatt~5/x",
            b"gi7d29~1/x",
            b"gi7eba~1/x",
            b".gitmodules/x",
            b".gitmodules:x/x",
            b".gitignore/x",
            b".mailmap/x",
            ".g\u{200c}it".as_bytes(),
            ".G\u{200d}it/x".as_bytes(),
            ".git\u{feff}/config".as_bytes(),
            "\u{206a}.git/config".as_bytes(),
            ".g\u{200b}it/x".as_bytes(),
            ".gıt".as_bytes(),
            ".gitx\u{200c}".as_bytes(),
            ".gitm\u{200c}odules".as_bytes(),
            ".gitm\u{200c}odules/x".as_bytes(),
            ".gita\u{202e}ttributes/x".as_bytes(),
            b".git\xff",
            b".git\xffx/y",
            ".git\u{fffd}".as_bytes(),
            b"\xff.git",
            b"git~1/x",
        ];
        for is_symlink in [false, true] {
            let by_git = git_passes(&paths, is_symlink);
            for (name, passes) in paths.iter().zip(by_git) {
                let own = passes_fsck(&path(name), is_symlink);
                assert_eq!(own, passes, "{} {is_symlink}", name.as_bstr());
            }
        }
    }

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
