use super::*;
use crate::git::testkit::Repo;

fn env(repo: &Repo, more: &[(&str, &str)]) -> GitEnv {
    let home = repo.home().into_os_string();
    let base = [("HOME".into(), home), ("GIT_CONFIG_NOSYSTEM".into(), "1".into())];
    GitEnv::new(base.into_iter().chain(more.iter().map(|(k, v)| (k.into(), v.into()))))
}

fn capture(repo: &Repo, more: &[(&str, &str)]) -> Result<GitConfig, ConfigError> {
    let workspace = Workspace::discover(repo.root()).expect("found");
    GitConfig::capture(&workspace, &env(repo, more), Some("refs/heads/main"))
}

fn write_home(repo: &Repo, name: &str, text: &str) {
    let path = repo.home().join(name);
    std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
    std::fs::write(path, text).expect("written");
}

/// What git itself has for a key, in the same environment.
fn by_git(repo: &Repo, key: &str) -> Option<String> {
    let out = repo.command(repo.root()).args(["config", "--get", key]).output().expect("runs");
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

#[test]
fn merges_as_git_does() {
    let repo = Repo::new();
    let inc = |name: &str, text: &str| write_home(&repo, name, text);
    inc(".config/git/config", "[user]\nname = xdg\nemail = xdg@x\n[core]\neol = crlf\n");
    inc(
        ".gitconfig",
        "[user]\nname = home\n[include]\npath = one\n[includeIf \"gitdir:~/no/\"]\npath = bad\n\
         [includeIf \"gitdir:repo/\"]\npath = ~/two\n[includeIf \"onbranch:ma*\"]\npath = three\n\
         [includeIf \"gitdir/i:**/REPO/.GIT\"]\npath = four\n[includeIf \"onbranch:x/\"]\npath = bad\n",
    );
    inc("one", "[user]\nname = one\n");
    inc("two", "[core]\nautocrlf = input\n");
    inc("three", "[commit]\ngpgsign\n");
    inc("four", "[core]\nsafecrlf = warn\n");
    inc("bad", "[core]\nsafecrlf = bad\neol = bad\n[user]\nname = bad\n");
    repo.git(&["config", "core.fileMode", "false"]);
    repo.git(&["config", "filter.a.b.clean", "x"]);
    let config = capture(&repo, &[]).expect("captured");

    let author = config.author().expect("set");
    assert_eq!(Some(author.name.clone()), by_git(&repo, "user.name"));
    assert_eq!(Some(author.email.clone()), by_git(&repo, "user.email"));
    assert_eq!(config.eol, by_git(&repo, "core.eol"));
    assert_eq!(config.safecrlf, by_git(&repo, "core.safecrlf"));
    assert_eq!(by_git(&repo, "core.autocrlf").as_deref(), Some("input"));
    assert_eq!(config.autocrlf, AutoCrlf::Input);
    assert_eq!(config.safecrlf.as_deref(), Some("warn"));
    assert!(config.gpg_sign && !config.file_mode);
    assert!(config.filter_drivers.contains("a.b"));

    let json = serde_json::to_string(&config).expect("plain data");
    assert_eq!(serde_json::from_str::<GitConfig>(&json).expect("read back"), config);
}

#[test]
fn reads_the_work_trees_own_file_only_when_asked() {
    let repo = Repo::new();
    repo.commit("file", "x");
    repo.git(&["worktree", "add", "-qb", "side", "../side"]);
    repo.git(&["config", "core.worktree", "/elsewhere"]);
    repo.git(&["config", "core.bare", "true"]);
    let linked = Workspace::discover(&repo.root().with_file_name("side")).expect("found");
    std::fs::write(linked.git_dir().join("config.worktree"), "[core]\neol = lf\n")
        .expect("written");
    let config = GitConfig::capture(&linked, &env(&repo, &[]), None).expect("captured");
    assert_eq!((config.eol, config.worktree, config.bare), (None, None, false));
    assert!(capture(&repo, &[]).expect("captured").bare);

    let text = "[core]\nrepositoryformatversion = 1\n[extensions]\nworktreeConfig = true\n";
    std::fs::write(repo.root().join(".git/config"), text).expect("written");
    let config = GitConfig::capture(&linked, &env(&repo, &[]), None).expect("captured");
    assert_eq!((config.eol.as_deref(), config.format_version), (Some("lf"), 1));
    assert_eq!(config.extensions["worktreeconfig"], "true");
}

#[test]
fn captures_the_files_that_it_names() {
    let repo = Repo::new();
    write_home(&repo, ".config/git/ignore", "xdg\n");
    repo.write(".git/info/exclude", "info\n");
    repo.write(".git/info/attributes", "* text\n");
    let config = capture(&repo, &[]).expect("captured");
    assert_eq!(config.excludes.bytes, b"xdg\n");
    assert_eq!(config.info_exclude.bytes, b"info\n");
    assert_eq!(config.info_attributes.bytes, b"* text\n");
    assert_eq!(config.hooks_path, None);

    write_home(&repo, "mine", "home\n");
    repo.write("in-tree", "tree\n");
    repo.git(&["config", "core.excludesFile", "~/mine"]);
    repo.git(&["config", "core.attributesFile", "in-tree"]);
    repo.git(&["config", "core.hooksPath", ".git/own"]);
    let config = capture(&repo, &[]).expect("captured");
    assert_eq!(config.excludes.bytes, b"home\n");
    assert_eq!(config.attributes.bytes, b"tree\n");
    assert_eq!(config.hooks_path, repo.root().join(".git/own").to_str().map(str::to_owned));
}

#[test]
fn knows_who_commits_or_that_nobody_does() {
    let repo = Repo::new();
    let config = capture(&repo, &[]).expect("captured");
    assert_eq!(config.author(), Err(NoIdentity { role: "author" }));
    assert_eq!(config.committer(), Err(NoIdentity { role: "committer" }));
    let vars = [("GIT_AUTHOR_NAME", " <Ann, "), ("EMAIL", "a@b")];
    let config = capture(&repo, &vars).expect("captured");
    let ann = Identity { name: "Ann".to_owned(), email: "a@b".to_owned() };
    assert_eq!(config.author(), Ok(&ann));
    assert!(config.committer().is_err());
    let vars = [
        ("GIT_CONFIG_COUNT", "2"),
        ("GIT_CONFIG_KEY_0", "User.Name"),
        ("GIT_CONFIG_VALUE_0", "N"),
        ("GIT_CONFIG_KEY_1", "author.email"),
        ("GIT_CONFIG_VALUE_1", "e@f"),
    ];
    let config = capture(&repo, &vars).expect("captured");
    assert_eq!(config.author().expect("set").email, "e@f");
    assert!(config.committer().is_err());
}

#[test]
fn says_what_it_cannot_read() {
    let repo = Repo::new();
    repo.git(&["config", "core.fileMode", "perhaps"]);
    assert!(matches!(capture(&repo, &[]), Err(ConfigError::BadValue { .. })));
    repo.git(&["config", "core.fileMode", "1"]);
    write_home(&repo, ".gitconfig", "[include]\npath = .gitconfig\n");
    assert!(matches!(capture(&repo, &[]), Err(ConfigError::TooDeep { .. })));
    write_home(&repo, ".gitconfig", "[include]\npath = /dev/zero\n");
    assert!(matches!(capture(&repo, &[]), Err(ConfigError::Unreadable { .. })));
    write_home(&repo, ".gitconfig", "[a\n");
    assert!(matches!(capture(&repo, &[]), Err(ConfigError::Syntax { .. })));
}
