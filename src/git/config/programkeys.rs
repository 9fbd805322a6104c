//! Which configuration keys can make git run a program, or read its rules from somewhere else.
//!
//! The list is from git-config(1) of git 2.47 and the manuals of the commands; the ends of names
//! (`…command`, `…cmd`, `…hook`) also catch keys of newer git versions and of tools around it.
//!
//! Order rules: none; pure.
//!
//! # Limitations
//! An alias that only shortens a command of git is not counted; one that hides a program behind
//! other words than `!`, `-x`, `--exec`, `-c` is not found.

use bstr::ByteSlice as _;

/// Keys of sections without a subsection, whole.
const WHOLE: &[&str] = &[
    "core.askpass",
    "core.attributesfile",
    "core.bare",
    "core.editor",
    "core.excludesfile",
    "core.fsmonitor",
    "core.gitproxy",
    "core.hookspath",
    "core.pager",
    "core.repositoryformatversion",
    "core.sshcommand",
    "core.worktree",
    "diff.external",
    "interactive.difffilter",
    "sendemail.smtpserver",
    "sequence.editor",
];

/// Sections of which every key counts.
const SECTIONS: &[&str] = &[
    "browser",
    "difftool",
    "extensions",
    "guitool",
    "hook",
    "include",
    "includeif",
    "man",
    "mergetool",
    "pager",
    "protocol",
    "url",
];

/// Section and last part, whatever subsection is between.
const PARTS: &[(&str, &str)] = &[
    ("credential", "helper"),
    ("diff", "textconv"),
    ("filter", "clean"),
    ("filter", "process"),
    ("filter", "smudge"),
    ("gpg", "program"),
    ("lfs", "path"),
    ("merge", "driver"),
    ("remote", "proxy"),
    ("remote", "receivepack"),
    ("remote", "uploadpack"),
    ("remote", "vcs"),
];

/// Ends of last parts that name programs, whatever the section.
const ENDS: &[&str] = &["cmd", "command", "editor", "helper", "hook", "pager", "program", "tunnel"];

/// Whether the key with this value (lower-case section and name, as `configfile` gives it) can
/// run a program or redirect git.
pub fn runs_program(key: &[u8], value: &[u8]) -> bool {
    let Some(first) = key.find_byte(b'.') else { return false };
    let section = &key[..first];
    let name = crate::git::config::configfile::split_name(key).1;
    let is = |word: &str| word.as_bytes() == section;
    if WHOLE.iter().any(|whole| whole.as_bytes() == key)
        || SECTIONS.iter().any(|s| is(s))
        || PARTS.iter().any(|(s, part)| is(s) && part.as_bytes() == name)
        || ENDS.iter().any(|end| name.ends_with(end.as_bytes()))
    {
        return true;
    }
    match section {
        b"alias" => {
            let mut words = value.split(u8::is_ascii_whitespace);
            value.trim_start().starts_with(b"!")
                || words.any(|w| matches!(w, b"-c" | b"-x") || w.starts_with(b"--exec"))
        }
        // `ext::`, `fd::` and remote helpers.
        b"remote" => matches!(name, b"url" | b"pushurl") && value.contains_str("::"),
        b"submodule" => name == b"update" && value.trim_start().starts_with(b"!"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_keys_of_the_attacks() {
        for (key, value) in [
            ("core.fsmonitor", "x"),
            ("core.alternaterefscommand", "x"),
            ("core.hookspath", "x"),
            ("filter.a.b.process", "x"),
            ("diff.word.textconv", "x"),
            ("diff.word.command", "x"),
            ("merge.m.driver", "x"),
            ("gpg.program", "x"),
            ("gpg.ssh.program", "x"),
            ("gpg.ssh.defaultkeycommand", "x"),
            ("include.path", "x"),
            ("includeif.gitdir:/.path", "x"),
            ("credential.helper", "x"),
            ("credential.https://h.helper", "x"),
            ("remote.o.uploadpack", "x"),
            ("remote.o.url", "ext::sh -c x"),
            ("alias.st", "!sh"),
            ("alias.st", "rebase -x sh HEAD~1"),
            ("url.a.insteadof", "b"),
            ("trailer.t.cmd", "x"),
            ("uploadpack.packobjectshook", "x"),
            ("submodule.s.update", "!sh"),
            ("extensions.worktreeconfig", "true"),
        ] {
            assert!(runs_program(key.as_bytes(), value.as_bytes()), "{key}");
        }
        for (key, value) in [
            ("user.name", "!x"),
            ("remote.o.url", "https://h/r.git"),
            ("branch.main.merge", "refs/heads/main"),
            ("alias.st", "status -sb"),
            ("core.autocrlf", "true"),
            ("submodule.s.update", "rebase"),
            ("k", "v"),
        ] {
            assert!(!runs_program(key.as_bytes(), value.as_bytes()), "{key}");
        }
    }
}
