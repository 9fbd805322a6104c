//! Git's built-in conversion between what stands in the tree and what it stores: line ends, by
//! `text`, `eol`, their old name `crlf`, `core.autocrlf` and, on the way out, `core.eol`.
//!
//! An unchanged path keeps the blob that its commit has, whatever the attributes say now: that is
//! the caller's rule, not decided here.
//!
//! # Limitations
//! `core.safecrlf` is not asked: it only warns or fails. Links are never converted: do not ask.

use std::borrow::Cow;

use gix_filter::eol::{self, AttributesDigest, convert_to_git, convert_to_worktree};

use crate::git::config::attributes::{Attributes, Text};
use crate::git::config::gitconfig::{self, GitConfig};
use crate::tx::path::RepoPath;

/// `core.autocrlf`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCrlf {
    /// `false`
    #[default]
    Off,
    /// `true`
    On,
    /// `input`
    Input,
}

impl AutoCrlf {
    /// That of a captured configuration.
    pub const fn of(git: &GitConfig) -> Self {
        match git.autocrlf {
            gitconfig::AutoCrlf::False => Self::Off,
            gitconfig::AutoCrlf::True => Self::On,
            gitconfig::AutoCrlf::Input => Self::Input,
        }
    }
}

/// `core.eol`: what ends a line in the tree where nothing else says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eol {
    /// `lf`, `native`, or not set.
    #[default]
    Lf,
    /// `crlf`
    Crlf,
}

/// The conversions of one view of the tree.
#[derive(Debug)]
pub struct Conversions {
    attributes: Attributes,
    autocrlf: AutoCrlf,
}

impl Conversions {
    /// From a view's attributes and the configuration captured at open.
    pub const fn new(attributes: Attributes, autocrlf: AutoCrlf) -> Self {
        Self { attributes, autocrlf }
    }

    /// The attributes.
    pub const fn attributes(&mut self) -> &mut Attributes {
        &mut self.attributes
    }

    /// Whether a file's bytes may be another than its blob's. Where not, they can be streamed.
    pub fn needs_conversion(&mut self, path: &RepoPath) -> bool {
        self.digest(path) != AttributesDigest::Binary
    }

    /// The bytes that git would store. `base_blob` gives what the index holds for the path: with
    /// `text=auto` a file that is stored with CRLF stays so.
    pub fn to_git<'b>(
        &mut self,
        path: &RepoPath,
        bytes: &'b [u8],
        base_blob: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Cow<'b, [u8]> {
        let digest = self.digest(path);
        let mut out = Vec::new();
        let mut base_blob = Some(base_blob);
        let mut stored = |buffer: &mut Vec<u8>| {
            let blob = base_blob.take().and_then(|read| read());
            Ok(blob.map(|blob| *buffer = blob))
        };
        let options = eol::convert_to_git::Options::default();
        match convert_to_git(bytes, digest, &mut out, &mut stored, options) {
            Ok(true) => Cow::Owned(out),
            // An error comes from a round-trip check or the index only: neither is asked for.
            Ok(false) | Err(_) => Cow::Borrowed(bytes),
        }
    }

    /// Whether a checkout may write another than the stored bytes.
    pub fn may_change(&mut self, path: &RepoPath, eol: Eol) -> bool {
        let digest = self.digest(path);
        digest.to_eol(self.configuration(eol)) == Some(eol::Mode::CrLf)
    }

    /// The bytes that a checkout by git would write.
    pub fn to_worktree<'b>(&mut self, path: &RepoPath, bytes: &'b [u8], eol: Eol) -> Cow<'b, [u8]> {
        let digest = self.digest(path);
        let mut out = Vec::new();
        match convert_to_worktree(bytes, digest, &mut out, self.configuration(eol)) {
            Ok(true) => Cow::Owned(out),
            // An error is a buffer that cannot be had: the write after it would fail as well.
            Ok(false) | Err(_) => Cow::Borrowed(bytes),
        }
    }

    const fn configuration(&self, eol: Eol) -> eol::Configuration {
        eol::Configuration {
            auto_crlf: match self.autocrlf {
                AutoCrlf::Off => eol::AutoCrlf::Disabled,
                AutoCrlf::On => eol::AutoCrlf::Enabled,
                AutoCrlf::Input => eol::AutoCrlf::Input,
            },
            eol: match eol {
                Eol::Lf => Some(eol::Mode::Lf),
                Eol::Crlf => Some(eol::Mode::CrLf),
            },
        }
    }

    /// Git's `convert_attrs`.
    fn digest(&mut self, path: &RepoPath) -> AttributesDigest {
        if self.autocrlf == AutoCrlf::Off && !self.attributes.may_convert() {
            return AttributesDigest::Binary;
        }
        let said = self.attributes.line_ends(path);
        match (said.text, said.crlf) {
            (Some(Text::Unset), _) => AttributesDigest::Binary,
            (Some(Text::Auto), Some(true)) => AttributesDigest::TextAutoCrlf,
            (Some(Text::Auto), Some(false)) => AttributesDigest::TextAutoInput,
            (Some(Text::Auto), None) => AttributesDigest::TextAuto,
            (_, Some(true)) => AttributesDigest::TextCrlf,
            (_, Some(false)) | (Some(Text::Input), None) => AttributesDigest::TextInput,
            (Some(Text::Set), None) => AttributesDigest::Text,
            (None, None) => match self.autocrlf {
                AutoCrlf::Off => AttributesDigest::Binary,
                AutoCrlf::On => AttributesDigest::TextAutoCrlf,
                AutoCrlf::Input => AttributesDigest::TextAutoInput,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::git::config::attributes::{CapturedAttributes, GITATTRIBUTES, Unsupported};
    use crate::git::scan::blob_id;

    fn path(text: &str) -> RepoPath {
        RepoPath::new(text).expect("valid")
    }

    fn git(dir: &Path, args: &[&str]) -> String {
        let out = Command::new("git")
            .arg("-C")
            .arg(dir)
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .output()
            .expect("runs");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    }

    const ATTRIBUTES: &[(&str, &str)] = &[
        ("", "*.txt text\n*.bin binary\n*.auto text=auto\n*.no -text\n*.old crlf\n*.older -crlf\n"),
        ("", "*.in crlf=input\n*.crlf eol=crlf\n*.lf text=auto eol=lf\n*.mac lines\n"),
        ("", "[attr]lines text eol=crlf\nd/*.x text\nquoted?name text\n\"sp ace\" text\n"),
        ("", "*.reset text\n*.reset !text\n!neg text\n*.weird text=strange eol=strange\n"),
        ("d", "*.txt -text\n*.mine text=auto eol=crlf\n[attr]bad text\n*.q bad\n"),
        ("d/e", "*.txt text=auto\n/*.top text\n"),
    ];
    const NAMES: &[&str] = &[
        "a.txt",
        "a.bin",
        "a.auto",
        "a.no",
        "a.old",
        "a.older",
        "a.in",
        "a.crlf",
        "a.lf",
        "a.mac",
        "a.reset",
        "a.weird",
        "plain",
        "neg",
        "sp ace",
        "quoted1name",
        "d/a.x",
        "d/a.txt",
        "d/a.mine",
        "d/a.q",
        "d/e/a.txt",
        "d/e/a.top",
        "d/e/f/a.top",
        "d/e/f/a.txt",
        "from.info",
        "from.global",
    ];
    const BYTES: &[&[u8]] = &[
        b"",
        b"one\ntwo\n",
        b"one\r\ntwo\r\n",
        b"one\r\ntwo\n",
        b"lone\rcr\r\n",
        b"nul\0\r\n",
        b"\x01\x02\x03\r\n",
        b"end\r\n\x1a",
        b"\r\n",
    ];

    /// Every name with all contents, with nothing and with CRLF in the index, as git adds it.
    #[test]
    fn as_git_adds() {
        for (word, autocrlf) in
            [("false", AutoCrlf::Off), ("true", AutoCrlf::On), ("input", AutoCrlf::Input)]
        {
            let dir = tempfile::tempdir().expect("a folder");
            let at = dir.path();
            git(at, &["init", "-q"]);
            let global = at.join(".git/global-attributes");
            git(at, &["config", "core.attributesFile", global.to_str().expect("text")]);
            std::fs::create_dir_all(at.join("d/e/f")).expect("made");
            let mut files = std::collections::BTreeMap::<Vec<u8>, Vec<u8>>::new();
            for (dir, lines) in ATTRIBUTES {
                files.entry(dir.as_bytes().to_vec()).or_default().extend(lines.as_bytes());
            }
            let captured = CapturedAttributes {
                attributes_file: b"*.global text\n*.info -text\n".to_vec(),
                info: b"*.info text\n".to_vec(),
                ..CapturedAttributes::default()
            };
            std::fs::write(&global, &captured.attributes_file).expect("written");
            std::fs::create_dir_all(at.join(".git/info")).expect("made");
            std::fs::write(at.join(".git/info/attributes"), &captured.info).expect("written");
            for (number, bytes) in BYTES.iter().enumerate() {
                for stored in [None, Some(&b"with\r\ncrlf\r\n"[..])] {
                    // In the index as they are, without attributes and configuration.
                    for dir in files.keys() {
                        let _ = std::fs::remove_file(child(at, dir));
                    }
                    std::fs::rename(at.join(".git/info/attributes"), at.join(".git/info/off"))
                        .expect("moved");
                    let _ = std::fs::remove_file(at.join(".git/index"));
                    if let Some(stored) = stored {
                        for name in NAMES {
                            std::fs::write(at.join(name), stored).expect("written");
                        }
                        let off = ["-c", "core.attributesFile=/dev/null", "add", "-A"];
                        git(at, &off);
                    }
                    std::fs::rename(at.join(".git/info/off"), at.join(".git/info/attributes"))
                        .expect("moved");
                    for (dir, lines) in &files {
                        std::fs::write(child(at, dir), lines).expect("written");
                    }
                    for name in NAMES {
                        std::fs::write(at.join(name), bytes).expect("written");
                    }
                    git(at, &["-c", &format!("core.autocrlf={word}"), "add", "-A"]);
                    let listed = git(at, &["ls-files", "-s", "-z"]);
                    let attributes = Attributes::new(&captured, files.clone());
                    let mut ours = Conversions::new(attributes, autocrlf);
                    for name in NAMES {
                        let git_id = listed
                            .split('\0')
                            .find_map(|line| line.strip_suffix(&format!("\t{name}")))
                            .map(|line| &line[7..47])
                            .expect("added");
                        let base = || stored.map(<[u8]>::to_vec);
                        let converted = ours.to_git(&path(name), bytes, base);
                        assert_eq!(
                            blob_id(&converted).to_string(),
                            git_id,
                            "{name}, content {number}, autocrlf={word}, stored {}",
                            stored.is_some()
                        );
                        if !ours.needs_conversion(&path(name)) {
                            assert_eq!(converted.as_ref(), *bytes);
                        }
                    }
                }
            }
        }
    }

    fn child(root: &Path, dir: &[u8]) -> std::path::PathBuf {
        root.join(std::str::from_utf8(dir).expect("text"))
            .join(std::str::from_utf8(GITATTRIBUTES).expect("text"))
    }

    #[test]
    fn what_is_not_supported_is_found() {
        let lines = b"*.psd filter=lfs diff=lfs -text\n*.no filter=lfs\n*.no -filter\n\
            *.u16 working-tree-encoding=UTF-16\n*.u8 working-tree-encoding=utf-8\n*.c ident\n\
            [attr]big filter=lfs\nbig/** big\n"
            .to_vec();
        let files = [(Vec::new(), lines)];
        let mut attributes = Attributes::new(&CapturedAttributes::default(), files);
        let names = ["a.psd", "a.no", "a.u16", "a.u8", "a.c", "big/x/y", "plain"].map(path);
        let filter = || Unsupported::Filter("lfs".to_owned());
        assert_eq!(
            attributes.unsupported(&names),
            [
                (path("a.psd"), filter()),
                (path("a.u16"), Unsupported::Encoding("UTF-16".to_owned())),
                (path("a.c"), Unsupported::Ident),
                (path("big/x/y"), filter()),
            ]
        );
        let none = Attributes::new(&CapturedAttributes::default(), []);
        let mut plain = Conversions::new(none, AutoCrlf::Off);
        assert!(!plain.needs_conversion(&path("a")));
    }
}
