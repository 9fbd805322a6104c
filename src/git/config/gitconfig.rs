//! The captured configuration: what git would have at open, read once, and only what worktx uses.
//!
//! Files are merged in git's order: system, XDG, global, repository, work tree, environment.
//! `include.path` and `includeIf` (`gitdir`, `onbranch`) are followed. Nothing of it is read again
//! during the attempt, so that a turn cannot change the rules that it is judged by.
//!
//! Order rules: captured after the workspace is found and before anything is judged.
//!
//! # Limitations
//! - `includeIf.hasconfig` and `~user/` paths are not followed.
//! - No identity is made up from the host's name, as git would: it must be set.
//! - Values with secrets (URLs, headers) are not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bstr::{BStr, BString, ByteSlice as _};
use serde::{Deserialize, Serialize};

use crate::git::config::configfile;
use crate::git::files::hexbytes;
use crate::git::files::smallfile;
use crate::git::workspace::Workspace;

/// The variables of the caller's environment that have a say: `HOME`, `XDG_CONFIG_HOME`, `EMAIL`,
/// `GIT_*`, `SUDO_UID`.
#[derive(Clone, Debug, Default)]
pub struct GitEnv(BTreeMap<String, OsString>);

impl GitEnv {
    /// From variables, the process's own (`std::env::vars_os()`) or those of a test.
    pub fn new(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let wanted = |name: &str| {
            matches!(name, "HOME" | "XDG_CONFIG_HOME" | "EMAIL" | "SUDO_UID")
                || name.starts_with("GIT_")
        };
        let text = vars.into_iter().filter_map(|(k, v)| Some((k.into_string().ok()?, v)));
        Self(text.filter(|(name, _)| wanted(name)).collect())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(name).filter(|v| !v.is_empty()).map(PathBuf::from)
    }

    fn bytes(&self, name: &str) -> Option<BString> {
        self.0.get(name).map(|v| v.as_bytes().into())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str()
    }

    /// The user who became root by sudo, whose repositories git lets root work in.
    pub fn sudo_uid(&self) -> Option<u32> {
        self.text("SUDO_UID")?.parse().ok()
    }
}

/// The configuration cannot be captured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file is there and cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is no configuration.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where.
        source: configfile::BadConfig,
    },
    /// A value is not of its key's kind.
    #[error("bad value {value:?} of {key}")]
    BadValue {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Files include each other without end.
    #[error("{} is included more than 10 levels deep", path.display())]
    TooDeep {
        /// The file.
        path: PathBuf,
    },
}

/// git knows no name or no address to make a commit with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {role} identity: set user.name and user.email")]
pub struct NoIdentity {
    /// `author` or `committer`.
    pub role: &'static str,
}

/// A name and an address, as they stand in a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name.
    pub name: String,
    /// The address.
    pub email: String,
}

/// `core.autocrlf`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AutoCrlf {
    /// No conversion without attributes.
    #[default]
    False,
    /// CRLF in the work tree, LF in the repository.
    True,
    /// LF in the repository, nothing on the way out.
    Input,
}

/// A file that configuration names, with its bytes at open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedFile {
    /// Where it is; `None` where the environment gives no place.
    pub path: Option<String>,
    /// Its bytes; empty where there is no file.
    #[serde(with = "hexbytes")]
    pub bytes: Vec<u8>,
}

/// What the configuration was at open, as far as worktx uses it. Serializable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitConfig {
    /// Who a commit is by; `None` where git has no name or address. See [`Self::author`].
    pub author: Option<Identity>,
    /// Who makes it.
    pub committer: Option<Identity>,
    /// `core.autocrlf`
    pub autocrlf: AutoCrlf,
    /// `core.eol`: `lf`, `crlf`, `native`.
    pub eol: Option<String>,
    /// `core.safecrlf` as written.
    pub safecrlf: Option<String>,
    /// `core.excludesFile`, or its default `$XDG_CONFIG_HOME/git/ignore`.
    pub excludes: CapturedFile,
    /// `core.attributesFile`, or its default `$XDG_CONFIG_HOME/git/attributes`.
    pub attributes: CapturedFile,
    /// `/etc/gitattributes`, unless `GIT_ATTR_NOSYSTEM` is set.
    pub system_attributes: CapturedFile,
    /// `info/exclude` of the common directory.
    pub info_exclude: CapturedFile,
    /// `info/attributes` of the common directory.
    pub info_attributes: CapturedFile,
    /// `core.hooksPath`, resolved; `None` is `hooks` of the common directory.
    pub hooks_path: Option<String>,
    /// `core.fileMode`; false: the executable bit of the disk means nothing, a tracked file keeps
    /// the mode that the index has, and a new one is not executable.
    pub file_mode: bool,
    /// `core.symlinks`
    pub symlinks: bool,
    /// `core.ignoreCase`
    pub ignore_case: bool,
    /// `core.logAllRefUpdates` as written.
    pub log_all_ref_updates: Option<String>,
    /// `core.fsync` as written.
    pub fsync: Option<String>,
    /// `core.sharedRepository` as written.
    pub shared_repository: Option<String>,
    /// `commit.gpgSign`
    pub gpg_sign: bool,
    /// `i18n.commitEncoding`
    pub commit_encoding: Option<String>,
    /// Names of filter drivers (`filter.<name>.…`) in any file.
    pub filter_drivers: BTreeSet<String>,
    /// `core.sparseCheckout`
    pub sparse_checkout: bool,
    /// Whether `submodule.*` keys are there.
    pub submodules: bool,
    /// `core.repositoryFormatVersion` of the repository's own file.
    pub format_version: i64,
    /// `extensions.*` of the repository's own file, without the prefix, in lower case.
    pub extensions: BTreeMap<String, String>,
    /// `core.bare`, where git looks at it.
    pub bare: bool,
    /// `core.worktree`, where git looks at it.
    pub worktree: Option<String>,
    /// `safe.directory` of the files that may say it (not the repository's).
    pub safe_directories: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    User,
    Repository,
    Worktree,
}

struct Line {
    key: BString,
    value: Option<BString>,
    level: Level,
}

impl GitConfig {
    /// Reads everything, once. `branch` is HEAD's (`refs/heads/…`), for `onbranch` includes.
    pub fn capture(
        workspace: &Workspace,
        env: &GitEnv,
        branch: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let common = workspace.common_dir();
        let own = OwnFile::read(&common.join("config"))?;
        let mut merge = Merge { workspace, env, branch, lines: Vec::new() };
        let no_system = env.text("GIT_CONFIG_NOSYSTEM").is_some_and(is_true);
        if !no_system {
            let system = env.path("GIT_CONFIG_SYSTEM").unwrap_or("/etc/gitconfig".into());
            merge.file(&system, Level::User, 0)?;
        }
        let home = env.path("HOME");
        let xdg = env.path("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
        if let Some(global) = env.0.get("GIT_CONFIG_GLOBAL") {
            merge.file(Path::new(global), Level::User, 0)?;
        } else {
            if let Some(xdg) = &xdg {
                merge.file(&xdg.join("git/config"), Level::User, 0)?;
            }
            if let Some(home) = &home {
                merge.file(&home.join(".gitconfig"), Level::User, 0)?;
            }
        }
        merge.file(&common.join("config"), Level::Repository, 0)?;
        if own.extensions.get("worktreeconfig").is_some_and(|v| is_true(v)) {
            merge.file(&workspace.git_dir().join("config.worktree"), Level::Worktree, 0)?;
        }
        merge.environment();
        let merged = Merged { lines: merge.lines, home: home.clone() };

        let file = |key: &str, default: &str| -> Result<CapturedFile, ConfigError> {
            let path = match merged.path(key) {
                Some(path) => Some(workspace.root().join(path)),
                None => xdg.as_ref().map(|xdg| xdg.join("git").join(default)),
            };
            path.map_or_else(|| Ok(CapturedFile::default()), |path| captured(&path))
        };
        // In a linked work tree git takes these two from its own file only.
        let places = |line: &&Line| !workspace.is_linked() || line.level == Level::Worktree;
        let placed = |key: &str| {
            merged
                .lines
                .iter()
                .filter(places)
                .rfind(|line| line.key == key && line.level != Level::User)
        };
        let safe =
            merged.lines.iter().filter(|l| l.level == Level::User && l.key == "safe.directory");
        let mut safe_directories = Vec::new();
        for value in safe.filter_map(|l| l.value.as_ref()) {
            if value.is_empty() {
                safe_directories.clear();
            } else {
                safe_directories.push(
                    expand(value, home.as_deref()).map_or_else(
                        || value.to_string(),
                        |path| path.to_string_lossy().into_owned(),
                    ),
                );
            }
        }
        let no_system_attributes = env.text("GIT_ATTR_NOSYSTEM").is_some_and(is_true);
        Ok(Self {
            author: merged.identity(env, "author"),
            committer: merged.identity(env, "committer"),
            autocrlf: match merged.last("core.autocrlf") {
                Some(Some(value)) if value.eq_ignore_ascii_case(b"input") => AutoCrlf::Input,
                _ if merged.bool("core.autocrlf", false)? => AutoCrlf::True,
                _ => AutoCrlf::False,
            },
            eol: merged.string("core.eol").map(|v| v.to_ascii_lowercase()),
            safecrlf: merged.string("core.safecrlf"),
            excludes: file("core.excludesfile", "ignore")?,
            attributes: file("core.attributesfile", "attributes")?,
            system_attributes: if no_system_attributes {
                CapturedFile::default()
            } else {
                captured(Path::new("/etc/gitattributes"))?
            },
            info_exclude: captured(&common.join("info/exclude"))?,
            info_attributes: captured(&common.join("info/attributes"))?,
            hooks_path: merged
                .path("core.hookspath")
                .map(|p| workspace.root().join(p).to_string_lossy().into_owned()),
            file_mode: merged.bool("core.filemode", true)?,
            symlinks: merged.bool("core.symlinks", true)?,
            ignore_case: merged.bool("core.ignorecase", false)?,
            log_all_ref_updates: merged.string("core.logallrefupdates"),
            fsync: merged.string("core.fsync"),
            shared_repository: merged.string("core.sharedrepository"),
            gpg_sign: merged.bool("commit.gpgsign", false)?,
            commit_encoding: merged.string("i18n.commitencoding"),
            filter_drivers: merged.subsections("filter"),
            sparse_checkout: merged.bool("core.sparsecheckout", false)?,
            submodules: !merged.subsections("submodule").is_empty(),
            format_version: own.format_version,
            extensions: own.extensions,
            bare: match placed("core.bare") {
                Some(line) => bool_of("core.bare", line.value.as_ref())?,
                None => false,
            },
            worktree: placed("core.worktree")
                .and_then(|line| line.value.as_ref())
                .map(ToString::to_string),
            safe_directories,
        })
    }

    /// The identity that a commit is made with, or the typed reason that there is none.
    pub fn author(&self) -> Result<&Identity, NoIdentity> {
        self.author.as_ref().ok_or(NoIdentity { role: "author" })
    }

    /// Who makes the commit, or the typed reason that nobody can.
    pub fn committer(&self) -> Result<&Identity, NoIdentity> {
        self.committer.as_ref().ok_or(NoIdentity { role: "committer" })
    }

    /// Whether git would write a reflog for a branch, without the turn's environment.
    pub fn logs_branches(&self) -> bool {
        self.log_all_ref_updates
            .as_deref()
            .is_none_or(|v| v.eq_ignore_ascii_case("always") || is_true(v))
    }
}

/// What counts only in the repository's own file, without includes: git's
/// `check_repository_format`.
struct OwnFile {
    format_version: i64,
    extensions: BTreeMap<String, String>,
}

impl OwnFile {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut own = Self { format_version: 0, extensions: BTreeMap::new() };
        for line in read_lines(path)?.unwrap_or_default() {
            let value = line.value.as_ref().map_or_else(|| "true".to_owned(), ToString::to_string);
            if line.key == "core.repositoryformatversion" {
                own.format_version = value.trim().parse().map_err(|_| ConfigError::BadValue {
                    key: line.key.to_string(),
                    value: value.clone(),
                })?;
            } else if let Some(name) = line.key.strip_prefix(b"extensions.") {
                own.extensions.insert(name.to_str_lossy().into_owned(), value);
            }
        }
        Ok(own)
    }
}

fn read_lines(path: &Path) -> Result<Option<Vec<configfile::ConfigLine>>, ConfigError> {
    let text = smallfile::read(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let Some(text) = text else { return Ok(None) };
    configfile::parse(&text)
        .map(Some)
        .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })
}

fn captured(path: &Path) -> Result<CapturedFile, ConfigError> {
    let bytes = smallfile::read(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let path = Some(path.to_string_lossy().into_owned());
    Ok(CapturedFile { path, bytes: bytes.unwrap_or_default() })
}

struct Merge<'a> {
    workspace: &'a Workspace,
    env: &'a GitEnv,
    branch: Option<&'a str>,
    lines: Vec<Line>,
}

impl Merge<'_> {
    fn file(&mut self, path: &Path, level: Level, depth: u32) -> Result<(), ConfigError> {
        // git's MAX_INCLUDE_DEPTH
        if depth > 10 {
            return Err(ConfigError::TooDeep { path: path.to_owned() });
        }
        let Some(lines) = read_lines(path)? else { return Ok(()) };
        let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
        for line in lines {
            let included = match configfile::split_name(&line.key) {
                (b"include", b"path") => true,
                (condition, b"path") => condition
                    .strip_prefix(b"includeif.")
                    .is_some_and(|condition| self.holds(condition, &dir)),
                _ => false,
            };
            let target = line.value.clone().filter(|_| included);
            self.lines.push(Line { key: line.key, value: line.value, level });
            if let Some(target) = target
                && let Some(target) = expand(&target, self.env.path("HOME").as_deref())
            {
                self.file(&dir.join(target), level, depth + 1)?;
            }
        }
        Ok(())
    }

    /// `gitdir:`, `gitdir/i:` and `onbranch:` by the rules of git-config(1).
    fn holds(&self, condition: &[u8], dir: &Path) -> bool {
        use gix_glob::wildmatch::Mode;
        let (pattern, mode, is_dir) = if let Some(p) = condition.strip_prefix(b"gitdir:") {
            (p, Mode::NO_MATCH_SLASH_LITERAL, true)
        } else if let Some(p) = condition.strip_prefix(b"gitdir/i:") {
            (p, Mode::NO_MATCH_SLASH_LITERAL | Mode::IGNORE_CASE, true)
        } else if let Some(p) = condition.strip_prefix(b"onbranch:") {
            (p, Mode::NO_MATCH_SLASH_LITERAL, false)
        } else {
            return false;
        };
        let mut pattern = BString::from(pattern);
        if is_dir {
            let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
            if let Some(rest) = pattern.strip_prefix(b"./") {
                let rest = rest.to_vec();
                pattern = real(dir).as_os_str().as_bytes().into();
                pattern.push(b'/');
                pattern.extend_from_slice(&rest);
            } else if pattern.starts_with(b"~/") {
                let Some(home) = self.env.path("HOME") else { return false };
                pattern = [real(&home).as_os_str().as_bytes(), &pattern[1..]].concat().into();
            } else if !pattern.starts_with(b"/") {
                pattern = [b"**/", pattern.as_slice()].concat().into();
            }
        }
        if pattern.ends_with(b"/") {
            pattern.extend_from_slice(b"**");
        }
        let value = if is_dir {
            self.workspace.git_dir().as_os_str().as_bytes()
        } else {
            match self.branch.and_then(|b| b.strip_prefix("refs/heads/")) {
                Some(branch) => branch.as_bytes(),
                None => return false,
            }
        };
        gix_glob::wildmatch(pattern.as_bstr(), BStr::new(value), mode)
    }

    /// `GIT_CONFIG_COUNT` and its pairs: the last word.
    fn environment(&mut self) {
        let count = self.env.text("GIT_CONFIG_COUNT").and_then(|n| n.parse().ok()).unwrap_or(0);
        for n in 0..count {
            let key = self.env.bytes(&format!("GIT_CONFIG_KEY_{n}"));
            let value = self.env.bytes(&format!("GIT_CONFIG_VALUE_{n}"));
            let (Some(key), Some(value)) = (key, value) else { return };
            let mut key = key;
            let first = key.find_byte(b'.').unwrap_or(key.len());
            let last = key.rfind_byte(b'.').unwrap_or(0);
            key[..first].make_ascii_lowercase();
            key[last..].make_ascii_lowercase();
            self.lines.push(Line { key, value: Some(value), level: Level::User });
        }
    }
}

struct Merged {
    lines: Vec<Line>,
    home: Option<PathBuf>,
}

impl Merged {
    fn last(&self, key: &str) -> Option<&Option<BString>> {
        self.lines.iter().rfind(|line| line.key == key).map(|line| &line.value)
    }

    fn string(&self, key: &str) -> Option<String> {
        self.last(key).map(|v| v.as_ref().map_or_else(|| "true".to_owned(), ToString::to_string))
    }

    fn bool(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        self.last(key).map_or(Ok(default), |value| bool_of(key, value.as_ref()))
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        let value = self.last(key)?.as_ref().filter(|v| !v.is_empty())?;
        expand(value, self.home.as_deref())
    }

    fn subsections(&self, section: &str) -> BTreeSet<String> {
        let prefix = format!("{section}.");
        let rest = self.lines.iter().filter_map(|l| l.key.strip_prefix(prefix.as_bytes()));
        rest.filter_map(|rest| Some(rest[..rest.rfind_byte(b'.')?].to_str_lossy().into_owned()))
            .collect()
    }

    fn identity(&self, env: &GitEnv, role: &str) -> Option<Identity> {
        let one = |field: &str| {
            let variable = format!("GIT_{}_{}", role.to_uppercase(), field.to_uppercase());
            env.bytes(&variable)
                .filter(|v| !v.is_empty())
                .or_else(|| self.string(&format!("{role}.{field}")).map(Into::into))
                .or_else(|| self.string(&format!("user.{field}")).map(Into::into))
                .or_else(|| env.bytes("EMAIL").filter(|v| field == "email" && !v.is_empty()))
                .map(|value| without_crud(&value.to_str_lossy()))
                .filter(|value| !value.is_empty())
        };
        Some(Identity { name: one("name")?, email: one("email")? })
    }
}

/// What git takes out of names and addresses: `strbuf_addstr_without_crud`.
fn without_crud(text: &str) -> String {
    let crud = |c: char| u32::from(c) <= 32 || ".,:;<>\"\\'".contains(c);
    text.trim_matches(crud).chars().filter(|c| !matches!(c, '\n' | '<' | '>')).collect()
}

fn expand(path: &[u8], home: Option<&Path>) -> Option<PathBuf> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    match path.strip_prefix("~") {
        Ok(rest) => home.map(|home| home.join(rest)),
        Err(_) if path.as_os_str().as_bytes().starts_with(b"~") => None,
        Err(_) => Some(path.to_owned()),
    }
}

fn is_true(value: &str) -> bool {
    bool_of("", Some(&value.into())).unwrap_or(false)
}

/// git's `git_config_bool`.
fn bool_of(key: &str, value: Option<&BString>) -> Result<bool, ConfigError> {
    let Some(value) = value else { return Ok(true) };
    let text = value.to_str_lossy().to_ascii_lowercase();
    match text.as_str() {
        "true" | "yes" | "on" => Ok(true),
        "" | "false" | "no" | "off" => Ok(false),
        number => {
            let digits = number.trim_end_matches(['k', 'm', 'g']);
            digits.parse::<i64>().map(|n| n != 0).map_err(|_| ConfigError::BadValue {
                key: key.to_owned(),
                value: value.to_string(),
            })
        }
    }
}

#[cfg(test)]
mod tests;
