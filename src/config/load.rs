//! The layers, lowest first, and what a key's value came from.
//!
//! Order: defaults, profile, the repository's file as of the base, the user's file, environment,
//! flags. The user's layers replace; the repository's lists add, its policies only tighten, and
//! what it may not set at all is an error, not a silent nothing.
//!
//! # Limitations
//! The profile is chosen by flag or variable only. A variable of the empty string counts as unset.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use super::error::ConfigError;
use super::file::{self, FileEntry, UserFile, place};
use super::keys::{KEYS, Key, Repository, Slot, Values};
use super::value::{self, Raw};
use crate::tx::path::RepoPath;
use crate::tx::post_check::PostCheckChoice;
use crate::tx::settings::{OnDirty, Settings};

/// The repository's file, at the root of the work tree.
pub const REPOSITORY_FILE: &str = ".worktx.toml";
/// The variable that names the profile.
pub const PROFILE_VARIABLE: &str = "WORKTX_PROFILE";
/// Variables that worktx sets or reads, and that are no keys.
pub const HANDED_OUT: [&str; 14] = [
    PROFILE_VARIABLE,
    "WORKTX_EXECUTION_ID",
    "WORKTX_ATTEMPT",
    "WORKTX_WORKSPACE",
    "WORKTX_REPOSITORY",
    "WORKTX_BASE",
    "WORKTX_CANDIDATE",
    "WORKTX_CHANGED_FILES",
    "WORKTX_POST_CHECK_DIR",
    "WORKTX_PREVIOUS",
    "WORKTX_FAULT",
    "WORKTX_LOG",
    "WORKTX_LOG_FORMAT",
    "WORKTX_CLAIM_TOKEN",
];
/// The profiles, the default first.
pub(super) const PROFILES: [&str; 2] = ["default", "trinity"];

/// What the command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--profile`.
    pub profile: Option<String>,
    /// `--post-check`; a relative path is meant from [`Sources::cwd`].
    pub post_check: Option<PathBuf>,
    /// `--check`.
    pub check: Option<String>,
    /// `--no-post-check`.
    pub no_post_check: bool,
    /// `--post-check-timeout`, in milliseconds ([`value::duration_ms`] reads it).
    pub post_check_timeout_ms: Option<u64>,
    /// `--on-dirty`.
    pub on_dirty: Option<OnDirty>,
    /// `-m`, `--message`.
    pub message: Option<String>,
}

/// Everything that settings are made of.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The bytes of `.worktx.toml` as of the base, if the base has one.
    pub repository: Option<&'a [u8]>,
    /// The user's file ([`UserFile::read`]).
    pub user: Option<&'a UserFile>,
    /// The environment that worktx was started with.
    pub environment: &'a [(OsString, OsString)],
    /// The command line.
    pub flags: &'a Flags,
    /// The root of the work tree, absolute.
    pub workspace: &'a Path,
    /// The current directory, absolute.
    pub cwd: &'a Path,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// The profile of this name.
    Profile(String),
    /// The repository's file.
    Repository {
        /// The line.
        line: usize,
    },
    /// The user's file.
    User {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
    },
    /// This variable.
    Environment(String),
    /// This flag.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Profile(name) => write!(f, "profile {name}"),
            Self::Repository { line } => write!(f, "{REPOSITORY_FILE}:{line}"),
            Self::User { file, line } => f.write_str(&place(file, *line)),
            Self::Environment(name) => write!(f, "${name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Something odd that stops nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The word in an outcome document.
    pub code: &'static str,
    /// For a person.
    pub message: String,
}

/// The settings, and where each came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What all layers together say.
    pub values: Values,
    /// For every key of [`KEYS`] by name.
    pub sources: BTreeMap<&'static str, Source>,
    /// For the outcome document.
    pub warnings: Vec<Warning>,
}

/// Puts the layers over one another.
pub fn load(sources: &Sources<'_>) -> Result<Loaded, ConfigError> {
    let mut loading = Loading::start(sources)?;
    if let Some(bytes) = sources.repository {
        let path = Path::new(REPOSITORY_FILE);
        loading.file(path, &file::parse(path, bytes)?, Layer::Repository)?;
    }
    if let Some(user) = sources.user {
        let entries = file::parse(&user.path, &user.bytes)?;
        loading.file(&user.path, &entries, Layer::User)?;
    }
    loading.environment()?;
    loading.flags()?;
    Ok(loading.loaded)
}

#[derive(Clone, Copy)]
enum Layer {
    Repository,
    User,
    Environment,
}

struct Loading<'a> {
    sources: &'a Sources<'a>,
    loaded: Loaded,
}

impl<'a> Loading<'a> {
    fn start(sources: &'a Sources<'a>) -> Result<Self, ConfigError> {
        let variable = variable(sources.environment, PROFILE_VARIABLE)?;
        let (name, at) = match (&sources.flags.profile, variable) {
            (Some(name), _) => (name.clone(), "--profile"),
            (None, Some(name)) => (name, PROFILE_VARIABLE),
            (None, None) => (PROFILES[0].to_owned(), ""),
        };
        let standard = Values::of(Settings::standard());
        let values = match name.as_str() {
            "default" => standard.clone(),
            "trinity" => Values::of(Settings::trinity()),
            _ => return Err(ConfigError::UnknownProfile { at: at.to_owned(), name }),
        };
        let source = |key: &Key| {
            let same = key.show(&values) == key.show(&standard);
            if same { Source::Default } else { Source::Profile(name.clone()) }
        };
        let by_key = KEYS.iter().map(|key| (key.name, source(key))).collect();
        let loaded = Loaded { values, sources: by_key, warnings: Vec::new() };
        Ok(Self { sources, loaded })
    }

    fn file(
        &mut self,
        path: &Path,
        entries: &[FileEntry],
        layer: Layer,
    ) -> Result<(), ConfigError> {
        let of = |name| entries.iter().find(|entry| entry.key.name == name);
        if let (Some(_), Some(second)) = (of("post_check.path"), of("post_check.check")) {
            return Err(both_named(place(path, second.line)));
        }
        entries.iter().try_for_each(|entry| {
            let source = match layer {
                Layer::Repository => Source::Repository { line: entry.line },
                Layer::User | Layer::Environment => {
                    Source::User { file: path.to_owned(), line: entry.line }
                }
            };
            self.set(entry.key, &entry.value, layer, place(path, entry.line), source)
        })
    }

    fn environment(&mut self) -> Result<(), ConfigError> {
        let mut named = None;
        for key in KEYS {
            let name = key.variable();
            let Some(text) = variable(self.sources.environment, &name)? else { continue };
            if matches!(key.slot, Slot::PostCheckPath | Slot::PostCheckCommand)
                && named.replace(key.name).is_some()
            {
                return Err(both_named(name));
            }
            let raw = match key.slot {
                Slot::Flag(_) if text == "true" || text == "1" => Raw::Flag(true),
                Slot::Flag(_) if text == "false" || text == "0" => Raw::Flag(false),
                Slot::Count(_) | Slot::Count32(_) => {
                    text.parse().map_or(Raw::Text(text), Raw::Integer)
                }
                Slot::Patterns(_) | Slot::Paths(_) => {
                    Raw::List(text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect())
                }
                _ => Raw::Text(text),
            };
            let source = Source::Environment(name.clone());
            self.set(key, &raw, Layer::Environment, format!("${name}"), source)?;
        }
        self.unknown_variables();
        Ok(())
    }

    /// A misspelt variable has no effect, which nobody would notice.
    fn unknown_variables(&mut self) {
        for (name, _) in self.sources.environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with("WORKTX_")) else {
                continue;
            };
            let known = HANDED_OUT.contains(&name) || KEYS.iter().any(|k| k.variable() == name);
            if !known {
                let message = format!("the variable {name} is none that worktx knows");
                self.loaded.warnings.push(Warning { code: "unknown_variable", message });
            }
        }
    }

    fn flags(&mut self) -> Result<(), ConfigError> {
        let flags = self.sources.flags;
        let choices = [
            flags.post_check.is_some().then_some("--post-check"),
            flags.check.is_some().then_some("--check"),
            flags.no_post_check.then_some("--no-post-check"),
        ];
        let mut given = choices.into_iter().flatten();
        if let (Some(first), Some(second)) = (given.next(), given.next()) {
            let (at, first) = ("command line".to_owned(), first.to_owned());
            return Err(ConfigError::Conflict { at, first, second: second.to_owned() });
        }
        if let Some(path) = &flags.post_check {
            let path = self.sources.cwd.join(path);
            self.choose(
                PostCheckChoice::Path { path },
                "post_check.path",
                &Source::Flag("--post-check"),
            );
        }
        if let Some(words) = &flags.check {
            let choice = PostCheckChoice::Command { words: words.clone() };
            self.choose(choice, "post_check.check", &Source::Flag("--check"));
        }
        if flags.no_post_check {
            self.choose(PostCheckChoice::Off, "post_check.path", &Source::Flag("--no-post-check"));
        }
        let Loaded { values, sources, .. } = &mut self.loaded;
        if let Some(ms) = flags.post_check_timeout_ms {
            values.settings.post_check.timeout_ms = ms;
            sources.insert("post_check.timeout", Source::Flag("--post-check-timeout"));
        }
        if let Some(on_dirty) = flags.on_dirty {
            values.settings.on_dirty = on_dirty;
            sources.insert("on_dirty", Source::Flag("--on-dirty"));
        }
        if let Some(message) = &flags.message {
            values.settings.message = Some(message.clone());
            sources.insert("commit.message", Source::Flag("--message"));
        }
        Ok(())
    }

    /// Path and command are one choice: the higher layer's replaces the other too.
    fn choose(&mut self, choice: PostCheckChoice, key: &'static str, source: &Source) {
        self.loaded.values.post_check = choice;
        for name in ["post_check.path", "post_check.check"] {
            let source = if name == key { source.clone() } else { Source::Default };
            self.loaded.sources.insert(name, source);
        }
    }

    fn set(
        &mut self,
        key: &'static Key,
        raw: &Raw,
        layer: Layer,
        at: String,
        source: Source,
    ) -> Result<(), ConfigError> {
        let by_repository = matches!(layer, Layer::Repository);
        let name = || key.name.to_owned();
        if by_repository && key.repository == Repository::No {
            let why = "only a user may, in their own file, by variable or flag".to_owned();
            return Err(ConfigError::NotTheRepositorys { at, key: name(), why });
        }
        let wrong = |why: String| ConfigError::Value { at: at.clone(), key: name(), why };
        let values = &mut self.loaded.values;
        match key.slot {
            Slot::Unsupported => return Err(ConfigError::NotSupported { at, key: name() }),
            Slot::Word { words, get, set } => {
                let word = text(raw, "a word").map_err(wrong)?;
                if (key.name, word) == ("on_dirty", "capture") {
                    let key = format!("{} = {word:?}", key.name);
                    return Err(ConfigError::NotSupported { at, key });
                }
                let rank = |word: &str| words.iter().position(|w| *w == word);
                let Some(new) = rank(word) else {
                    let known = words.join(", ");
                    return Err(wrong(format!("{word:?} is none of its values: {known}")));
                };
                if by_repository {
                    let default = get(&Values::of(Settings::standard()));
                    if Some(new) < rank(&default) {
                        let why = format!("{word:?} is laxer than the default {default:?}");
                        return Err(ConfigError::NotTheRepositorys { at, key: name(), why });
                    }
                    // The user's profile is stricter still: it stands.
                    if Some(new) < rank(&get(values)) {
                        return Ok(());
                    }
                }
                set(values, word);
            }
            Slot::Millis(field) => {
                let ms = text(raw, "a duration like \"10m\"")
                    .and_then(value::duration_ms)
                    .map_err(wrong)?;
                if ms == 0 && key.name == "post_check.timeout" {
                    return Err(wrong("it must be more than nothing".to_owned()));
                }
                *field(values) = ms;
            }
            Slot::Bytes(field) => {
                *field(values) = match raw {
                    Raw::Integer(_) => count(raw),
                    _ => text(raw, "a size like \"100MiB\"").and_then(value::size),
                }
                .map_err(wrong)?;
            }
            Slot::Count(field) => *field(values) = count(raw).map_err(wrong)?,
            Slot::Count32(field) => {
                let number = count(raw).map_err(wrong)?;
                *field(values) =
                    u32::try_from(number).map_err(|_| wrong(format!("{number} is too large")))?;
            }
            Slot::Flag(field) => match raw {
                Raw::Flag(flag) => *field(values) = *flag,
                other => {
                    return Err(wrong(format!("it takes true or false, not {}", other.kind())));
                }
            },
            Slot::Text(field) => {
                let text = text(raw, "a string").and_then(|text| line_of(key, text));
                *field(values) = Some(text.map_err(wrong)?);
            }
            Slot::Patterns(field) => {
                let list = patterns(raw, by_repository).map_err(wrong)?;
                let standing = field(values);
                if by_repository {
                    standing.extend(list);
                } else {
                    *standing = list;
                }
            }
            Slot::Path(field) => {
                let path = text(raw, "a path").map_err(wrong)?;
                *field(values) = Some(absolute(path, layer, self.sources).map_err(wrong)?);
            }
            Slot::Paths(field) => {
                let Raw::List(list) = raw else {
                    return Err(wrong(format!("it takes a list of paths, not {}", raw.kind())));
                };
                let paths = list.iter().map(|path| absolute(path, layer, self.sources));
                *field(values) = paths.collect::<Result<_, _>>().map_err(wrong)?;
            }
            Slot::PostCheckPath => {
                let path = text(raw, "a path").map_err(wrong)?;
                if by_repository && RepoPath::new(path).is_err() {
                    let why = format!("{path:?} is not a plain path inside the repository");
                    return Err(ConfigError::NotTheRepositorys { at, key: name(), why });
                }
                let path =
                    if by_repository { PathBuf::from(path) } else { expand(path, self.sources) };
                let path = self.sources.workspace.join(path);
                self.choose(PostCheckChoice::Path { path }, key.name, &source);
                return Ok(());
            }
            Slot::PostCheckCommand => {
                let words = text(raw, "a command").and_then(not_blank).map_err(wrong)?;
                self.choose(PostCheckChoice::Command { words }, key.name, &source);
                return Ok(());
            }
        }
        self.loaded.sources.insert(key.name, source);
        Ok(())
    }
}

fn both_named(at: String) -> ConfigError {
    let [first, second] = ["post_check.path", "post_check.check"].map(str::to_owned);
    ConfigError::Conflict { at, first, second }
}

fn variable(
    environment: &[(OsString, OsString)],
    name: &str,
) -> Result<Option<String>, ConfigError> {
    let found = environment.iter().find(|(key, _)| key == name);
    let Some((_, value)) = found.filter(|(_, value)| !value.is_empty()) else { return Ok(None) };
    value.to_str().map(|text| Some(text.to_owned())).ok_or_else(|| ConfigError::Value {
        at: format!("${name}"),
        key: name.to_owned(),
        why: "it is not UTF-8".to_owned(),
    })
}

fn text<'r>(raw: &'r Raw, wanted: &str) -> Result<&'r str, String> {
    match raw {
        Raw::Text(text) => Ok(text),
        other => Err(format!("it takes {wanted}, not {}", other.kind())),
    }
}

fn count(raw: &Raw) -> Result<u64, String> {
    match raw {
        Raw::Integer(number) => {
            u64::try_from(*number).map_err(|_| format!("{number} is less than nothing"))
        }
        Raw::Text(text) => Err(format!("it takes a number, not {text:?}")),
        other => Err(format!("it takes a number, not {}", other.kind())),
    }
}

fn not_blank(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn line_of(key: &Key, text: &str) -> Result<String, String> {
    if text.contains(['\n', '\r', '\0']) {
        return Err("it takes one line".to_owned());
    }
    if key.name == "commit.author" {
        let identity = text.strip_suffix('>').and_then(|rest| rest.split_once('<'));
        let fits = identity
            .is_some_and(|(name, mail)| !name.trim().is_empty() && !mail.contains(['<', '>']));
        if !fits {
            return Err(format!("{text:?} is not of the form Name <mail>"));
        }
    }
    not_blank(text)
}

fn patterns(raw: &Raw, by_repository: bool) -> Result<Vec<String>, String> {
    let Raw::List(list) = raw else {
        return Err(format!("it takes a list of patterns, not {}", raw.kind()));
    };
    for pattern in list {
        if pattern.trim().is_empty() || pattern.contains(['\n', '\0']) {
            return Err(format!("{pattern:?} is no pattern"));
        }
        // Its patterns come after the profile's, and the last one counts.
        if by_repository && pattern.starts_with('!') {
            return Err(format!(
                "{pattern:?}: the repository can add to the list, not take from it"
            ));
        }
    }
    Ok(list.clone())
}

/// A path of a file stands for itself, one of the environment is meant from the current directory.
fn absolute(path: &str, layer: Layer, sources: &Sources<'_>) -> Result<PathBuf, String> {
    let path = expand(path, sources);
    let path = match layer {
        Layer::Environment => sources.cwd.join(path),
        _ if path.is_absolute() => path,
        _ => return Err("it must be absolute, or begin with ~/".to_owned()),
    };
    Ok(tidy(&path))
}

fn expand(path: &str, sources: &Sources<'_>) -> PathBuf {
    let home = sources.environment.iter().find(|(key, _)| key == "HOME").map(|(_, value)| value);
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => PathBuf::from(path),
    }
}

/// Without `.` parts and doubled slashes; `..` stays, since links decide what it means.
fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
