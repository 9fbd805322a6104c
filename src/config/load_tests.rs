//! The layers over one another, and every way to be told off.

use super::*;
use crate::tx::settings::{FailOpen, OnChanged, OnDrift, OnGitChange, OnUnignored, Untracked};

/// The layers of one test.
#[derive(Default)]
struct Case {
    repository: Option<&'static str>,
    user: Option<&'static str>,
    environment: &'static [(&'static str, &'static str)],
    flags: Flags,
}

impl Case {
    fn load(&self) -> Result<Loaded, ConfigError> {
        let user = self.user.map(|text| UserFile {
            path: PathBuf::from("/home/u/.config/worktx/config.toml"),
            bytes: text.into(),
        });
        let mut environment: Vec<(OsString, OsString)> =
            self.environment.iter().map(|(k, v)| (k.into(), v.into())).collect();
        environment.push(("HOME".into(), "/home/u".into()));
        load(&Sources {
            repository: self.repository.map(str::as_bytes),
            user: user.as_ref(),
            environment: &environment,
            flags: &self.flags,
            workspace: Path::new("/ws"),
            cwd: Path::new("/ws/sub"),
        })
    }

    fn ok(&self) -> Loaded {
        self.load().expect("loads")
    }

    fn error(&self) -> String {
        self.load().expect_err("is refused").to_string()
    }
}

fn repository(text: &'static str) -> Case {
    Case { repository: Some(text), ..Case::default() }
}

fn user(text: &'static str) -> Case {
    Case { user: Some(text), ..Case::default() }
}

fn environment(environment: &'static [(&'static str, &'static str)]) -> Case {
    Case { environment, ..Case::default() }
}

#[test]
fn nothing_is_the_defaults() {
    let loaded = Case::default().ok();
    assert_eq!(loaded.values, Values::of(Settings::standard()));
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.sources.len(), KEYS.len());
    assert!(loaded.sources.values().all(|source| *source == Source::Default));
}

#[test]
fn each_layer_outranks_those_below() {
    let mut case =
        Case { repository: Some("[commit]\nmessage = \"repository\"\n"), ..Case::default() };
    let message = |case: &Case| {
        let loaded = case.ok();
        (loaded.values.settings.message.expect("set"), loaded.sources["commit.message"].to_string())
    };
    let expect = |text: &str, from: &str| (text.to_owned(), from.to_owned());
    assert_eq!(message(&case), expect("repository", ".worktx.toml:2"));
    case.user = Some("\n[commit]\nmessage = 'user'\n");
    let from = "/home/u/.config/worktx/config.toml:3";
    assert_eq!(message(&case), expect("user", from));
    case.environment = &[("WORKTX_COMMIT_MESSAGE", "environment")];
    assert_eq!(message(&case), expect("environment", "$WORKTX_COMMIT_MESSAGE"));
    case.flags.message = Some("flag".to_owned());
    assert_eq!(message(&case), expect("flag", "--message"));
}

#[test]
fn profiles_come_first() {
    let case = environment(&[("WORKTX_PROFILE", "trinity")]);
    let loaded = case.ok();
    assert_eq!(loaded.values.settings, Settings::trinity());
    assert_eq!(loaded.sources["base.untracked"], Source::Profile("trinity".to_owned()));
    assert_eq!(loaded.sources["on_dirty"], Source::Default);
    let flags = Flags { profile: Some("default".to_owned()), ..Flags::default() };
    let case = Case { flags, ..environment(&[("WORKTX_PROFILE", "trinity")]) };
    assert_eq!(case.ok().values.settings.profile, "default");
    let error = environment(&[("WORKTX_PROFILE", "trinty")]).error();
    assert_eq!(error, "WORKTX_PROFILE: there is no profile \"trinty\"; there are default, trinity");
}

#[test]
fn a_file_sets_every_key() {
    let loaded = user(
        r#"
        on_dirty = "run"
        on_drift = "quarantine"
        on_unignored = "allow"
        on_git_change = "allow"
        on_interrupted = "roll_back"
        grace = "1s"
        bound = "1m"
        base.untracked = "refuse"
        scope = { exclude = ["out/"], survives = ["/notes/**"] }
        [limits]
        file = "1MiB"
        total = 4096
        files = 7
        [post_check]
        check = "npm test"
        timeout = "90s"
        on_changed = "ignore"
        on_absent = "reject"
        on_misconfigured = "reject"
        view = "tree"
        [commit]
        author = "A B <a@b>"
        message = "m"
        [state]
        dir = "~/.worktx/./state"
        [container]
        exclusive_volume = true
        [gc]
        days = 1
        attempts = 2
        discarded = "1GiB"
        [operator]
        queue_file = "/q.json"
        command = "mail ops"
        [serve]
        workspaces = ["/srv/./site", "~/tools"]
        watches = 5
        "#,
    )
    .ok();
    let settings = &loaded.values.settings;
    assert_eq!(settings.on_dirty, OnDirty::Run);
    assert_eq!(settings.on_drift, OnDrift::Quarantine);
    assert_eq!(settings.on_unignored, OnUnignored::Allow);
    assert_eq!(settings.on_git_change, OnGitChange::Allow);
    assert_eq!((settings.grace_ms, settings.bound_ms), (1_000, 60_000));
    assert_eq!(settings.untracked, Untracked::Refuse);
    assert_eq!(settings.scope.exclude, ["out/"]);
    assert_eq!(settings.scope.survives, ["/notes/**"]);
    let limits = settings.limits;
    assert_eq!((limits.file_bytes, limits.total_bytes, limits.files), (1 << 20, 4096, 7));
    assert_eq!(settings.post_check.timeout_ms, 90_000);
    assert_eq!(settings.post_check.on_changed, OnChanged::Ignore);
    assert_eq!(settings.post_check.on_absent, FailOpen::Reject);
    assert_eq!(settings.author.as_deref(), Some("A B <a@b>"));
    assert!(settings.exclusive_volume);
    assert_eq!(settings.retention.discarded_bytes, 1 << 30);
    let command = PostCheckChoice::Command { words: "npm test".to_owned() };
    assert_eq!(loaded.values.post_check, command);
    assert_eq!(loaded.values.state_dir, Some(PathBuf::from("/home/u/.worktx/state")));
    assert_eq!(loaded.values.operator.command.as_deref(), Some("mail ops"));
    let trees = [PathBuf::from("/srv/site"), PathBuf::from("/home/u/tools")];
    assert_eq!((loaded.values.workspaces, loaded.values.watches), (trees.to_vec(), 5));
    let defaults = loaded.sources.iter().filter(|(_, source)| **source == Source::Default);
    let defaults: Vec<_> = defaults.map(|(key, _)| *key).collect();
    assert_eq!(defaults, ["commit.sign", "post_check.path", "scope.also"]);
}

#[test]
fn unknown_keys_are_told_with_line_and_neighbour() {
    let at = "/home/u/.config/worktx/config.toml";
    for (text, line, key, nearest) in [
        ("on_drfit = 'leave'", 1, "on_drfit", "on_drift"),
        ("\n[limits]\n# big\nfiel = 3", 4, "limits.fiel", "limits.file"),
        ("[post-check]\npath = 'x'", 1, "post-check", "post_check"),
        ("[limits]\ntimeout = '1s'", 2, "limits.timeout", "post_check.timeout"),
        ("[post_check]\non_drift = 'leave'", 2, "post_check.on_drift", "on_drift"),
    ] {
        let expected = format!("{at}:{line}: there is no key {key:?}; did you mean {nearest:?}?");
        assert_eq!(user(text).error(), expected, "{text:?}");
    }
}

#[test]
fn values_that_do_not_fit_are_told() {
    for (text, said) in [
        (
            "on_drift = 'levae'",
            ":1: on_drift: \"levae\" is none of its values: leave, restore, quarantine",
        ),
        ("on_drift = true", ":1: on_drift: it takes a word, not a boolean"),
        ("grace = 5", ":1: grace: it takes a duration like \"10m\", not an integer"),
        ("grace = '5'", ":1: grace: \"5\" is no duration"),
        ("post_check.timeout = '0s'", "it must be more than nothing"),
        ("[limits]\nfile = '1K'", ":2: limits.file: \"1K\" is no size"),
        ("[limits]\nfiles = -1", "-1 is less than nothing"),
        ("[limits]\nfiles = '1'", "it takes a number, not \"1\""),
        ("[gc]\ndays = 4294967296", "4294967296 is too large"),
        ("[gc]\ndays = 1.5", "it takes a number, not a float"),
        ("[scope]\nexclude = 'a'", "it takes a list of patterns, not a string"),
        ("[scope]\nexclude = ['a', 3]", "not a list of other things than strings"),
        ("[scope]\nexclude = ['']", "\"\" is no pattern"),
        ("scope = 3", ":1: scope: it is a section: write [scope]"),
        ("[commit]\nauthor = 'me'", "\"me\" is not of the form Name <mail>"),
        ("[commit]\nmessage = \"a\\nb\"", "it takes one line"),
        ("[commit]\nmessage = ' '", "it is empty"),
        ("[state]\ndir = 'here'", "it must be absolute, or begin with ~/"),
        ("[container]\nexclusive_volume = 'yes'", "it takes true or false, not a string"),
        ("a = ", ":1: "),
        ("[limits]\nfile = '1B'\nfile = '2B'", ":3: "),
        ("[scope]\nalso = ['.env']", ":2: scope.also is not supported yet"),
        ("on_dirty = 'capture'", ":1: on_dirty = \"capture\" is not supported yet"),
        ("[commit]\nsign = true", ":2: commit.sign is not supported yet"),
        ("[post_check]\npath = 'a'\ncheck = 'b'", "post_check.path and post_check.check exclude"),
    ] {
        let error = user(text).error();
        assert!(error.contains(said), "{text:?}: {error}");
    }
}

#[test]
fn the_repository_never_outranks_the_user() {
    for (text, said) in [
        ("on_dirty = 'run'", "\"run\" is laxer than the default \"refuse\""),
        ("on_unignored = 'allow'", "laxer"),
        ("on_git_change = 'allow'", "laxer"),
        ("on_interrupted = 'roll_back'", "laxer"),
        ("post_check.on_changed = 'ignore'", "laxer"),
        ("post_check.timeout = '1h'", "only a user may"),
        ("post_check.path = '/bin/true'", "not a plain path inside the repository"),
        ("post_check.path = '../true'", "not a plain path inside the repository"),
        ("post_check.path = 'a/../../b'", "not a plain path inside the repository"),
        ("[commit]\nauthor = 'A <a@b>'", ":2: commit.author cannot be set by the repository"),
        ("[state]\ndir = '/tmp/x'", "only a user may"),
        ("[operator]\ncommand = 'rm -rf /'", "only a user may"),
        ("[base]\nuntracked = 'keep'", "only a user may"),
        ("[gc]\ndays = 0", "only a user may"),
        ("[container]\nexclusive_volume = true", "only a user may"),
        ("grace = '1h'", "only a user may"),
        ("[scope]\nexclude = ['!content/']", "the repository can add to the list"),
    ] {
        let error = repository(text).error();
        assert!(error.starts_with(".worktx.toml:") && error.contains(said), "{text:?}: {error}");
    }
}

#[test]
fn the_repository_may_tighten_and_add() {
    let text = "on_drift = 'restore'\non_dirty = 'refuse'\npost_check.on_absent = 'reject'\n\
                post_check.path = 'ci/check'\nlimits.files = 9\n[scope]\nexclude = ['out/']\n";
    let loaded = repository(text).ok();
    assert_eq!(loaded.values.settings.on_drift, OnDrift::Restore);
    assert_eq!(loaded.values.settings.post_check.on_absent, FailOpen::Reject);
    assert_eq!(loaded.values.settings.limits.files, 9);
    let path = PathBuf::from("/ws/ci/check");
    assert_eq!(loaded.values.post_check, PostCheckChoice::Path { path });

    let trinity = Flags { profile: Some("trinity".to_owned()), ..Flags::default() };
    let case = Case { flags: trinity.clone(), ..repository("[scope]\nexclude = ['out/']") };
    let exclude = case.ok().values.settings.scope.exclude;
    assert!(exclude.contains(&"content/".to_owned()) && exclude.ends_with(&["out/".to_owned()]));
    // As lax as the default and laxer than the profile: the profile stands, and it is no error.
    let case = Case { flags: trinity, ..repository("on_drift = 'leave'") };
    let loaded = case.ok();
    assert_eq!(loaded.values.settings.on_drift, OnDrift::Restore);
    assert_eq!(loaded.sources["on_drift"], Source::Profile("trinity".to_owned()));

    let case =
        Case { user: Some("on_drift = 'leave'\nscope.exclude = ['mine/']"), ..repository(text) };
    let loaded = case.ok();
    assert_eq!(loaded.values.settings.on_drift, OnDrift::Leave, "the user has the last word");
    assert_eq!(loaded.values.settings.scope.exclude, ["mine/"]);
}

#[test]
fn variables_are_read_and_misspelt_ones_are_told() {
    let loaded = environment(&[
        ("WORKTX_STATE_DIR", "state"),
        ("WORKTX_POST_CHECK_TIMEOUT", "2m"),
        ("WORKTX_LIMITS_FILES", "12"),
        ("WORKTX_LIMITS_FILE", "2MiB"),
        ("WORKTX_SCOPE_EXCLUDE", "a/\nb c/\n"),
        ("WORKTX_CONTAINER_EXCLUSIVE_VOLUME", "1"),
        ("WORKTX_ON_DRIFT", ""),
        ("WORKTX_ON_DRFIT", "restore"),
        ("WORKTX_EXECUTION_ID", "of an outer turn"),
    ])
    .ok();
    let settings = &loaded.values.settings;
    assert_eq!(loaded.values.state_dir, Some(PathBuf::from("/ws/sub/state")));
    assert_eq!(settings.post_check.timeout_ms, 120_000);
    assert_eq!((settings.limits.files, settings.limits.file_bytes), (12, 2 << 20));
    assert_eq!(settings.scope.exclude, ["a/", "b c/"]);
    assert!(settings.exclusive_volume);
    assert_eq!(settings.on_drift, OnDrift::Leave, "empty is unset");
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].message.contains("WORKTX_ON_DRFIT"));
    let error = environment(&[("WORKTX_GRACE", "soon")]).error();
    assert!(error.starts_with("$WORKTX_GRACE: grace: \"soon\" is no duration"), "{error}");
}

#[test]
fn one_post_check_at_a_time() {
    let path = |text: &str| PostCheckChoice::Path { path: PathBuf::from(text) };
    let flags = Flags { check: Some("make".to_owned()), ..Flags::default() };
    let case = Case { flags, ..user("post_check.path = 'own'") };
    let loaded = case.ok();
    let words = "make".to_owned();
    assert_eq!(loaded.values.post_check, PostCheckChoice::Command { words });
    assert_eq!(loaded.sources["post_check.path"], Source::Default);
    assert_eq!(loaded.sources["post_check.check"], Source::Flag("--check"));

    assert_eq!(user("post_check.path = 'own'").ok().values.post_check, path("/ws/own"));
    assert_eq!(user("post_check.path = '~/own'").ok().values.post_check, path("/home/u/own"));
    let flags = Flags { post_check: Some("own".into()), ..Flags::default() };
    let case = Case { flags, ..Case::default() };
    assert_eq!(case.ok().values.post_check, path("/ws/sub/own"));
    let flags = Flags { no_post_check: true, ..Flags::default() };
    let case = Case { flags, ..repository("post_check.check = 'make'") };
    assert_eq!(case.ok().values.post_check, PostCheckChoice::Off);

    let flags = Flags { no_post_check: true, check: Some("x".to_owned()), ..Flags::default() };
    let error = Case { flags, ..Case::default() }.error();
    assert!(error.contains("--check and --no-post-check exclude each other"), "{error}");
}

#[test]
fn the_users_file_is_found_by_xdg() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let read = |xdg: &Path, home: &Path| {
        UserFile::read(&[("XDG_CONFIG_HOME".into(), xdg.into()), ("HOME".into(), home.into())])
    };
    let (xdg, home) = (dir.path().join("xdg"), dir.path().join("home"));
    assert_eq!(read(&xdg, &home)?, None);
    for (folder, text) in [(xdg.join("worktx"), "# xdg"), (home.join(".config/worktx"), "# home")] {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("config.toml"), text)?;
    }
    assert_eq!(read(&xdg, &home)?.expect("found").bytes, b"# xdg");
    assert_eq!(read(Path::new("relative"), &home)?.expect("found").bytes, b"# home");
    std::fs::remove_file(xdg.join("worktx/config.toml"))?;
    std::fs::create_dir(xdg.join("worktx/config.toml"))?;
    assert!(matches!(read(&xdg, &home), Err(ConfigError::Unreadable { .. })));
    Ok(())
}

#[test]
fn a_file_that_is_no_text_is_told_by_line() {
    let file = UserFile { path: PathBuf::from("/c.toml"), bytes: b"# a\ngrace = '\xff'\n".into() };
    let sources = Sources {
        repository: None,
        user: Some(&file),
        environment: &[],
        flags: &Flags::default(),
        workspace: Path::new("/ws"),
        cwd: Path::new("/ws"),
    };
    let error = load(&sources).expect_err("no text").to_string();
    assert_eq!(error, "/c.toml:2: it is not UTF-8");
}
