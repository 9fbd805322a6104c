//! `git worktree add --detach` is the judge of what a checkout holds, `git` of its repository.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;

use super::*;
use crate::git::checkout::scratch;
use crate::git::config::gitconfig::{GitConfig, GitEnv};
use crate::git::refs::Refs;
use crate::git::testkit::Repo;
use crate::git::workspace::Workspace;

const ATTRIBUTES: &[(&str, &str)] = &[
    (".gitattributes", "*.txt text\n*.bin binary\n*.auto text=auto\n*.crlf text eol=crlf\n"),
    ("d/.gitattributes", "*.txt -text\n*.lf text=auto eol=lf\n*.both text=auto eol=crlf\n"),
    ("d/e/.gitattributes", "*.txt text=auto\n/*.top eol=crlf\n"),
];
const NAMES: &[&str] = &[
    "a.txt",
    "a.bin",
    "a.auto",
    "a.crlf",
    "plain",
    "d.txt",
    "d/a.txt",
    "d/a.lf",
    "d/a.both",
    "d/e/a.txt",
    "d/e/a.top",
    "d/e/f/a.top",
    "from.info",
    "from.global",
];
const BYTES: &[&[u8]] = &[
    b"",
    b"one\ntwo\n",
    b"one\r\ntwo\r\n",
    b"one\r\ntwo\n",
    b"lone\rcr\n",
    b"nul\0\n",
    b"\x01\x02\x03\n",
    b"end\n\x1a",
    b"no end",
];

/// Commits these files as they are, whatever attributes and configuration say.
fn commit(repo: &Repo, files: &[(String, &str, Vec<u8>)]) -> Oid {
    let mut lines = Vec::new();
    for (path, mode, bytes) in files {
        let mut hash = repo
            .command(repo.root())
            .args(["hash-object", "-w", "--stdin", "--no-filters"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("git runs");
        hash.stdin.take().expect("piped").write_all(bytes).expect("written");
        let out = hash.wait_with_output().expect("it ends");
        let id = String::from_utf8(out.stdout).expect("text");
        lines.extend(format!("{mode} {} 0\t{path}\0", id.trim()).into_bytes());
    }
    let mut index = repo
        .command(repo.root())
        .args(["update-index", "-z", "--index-info"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("git runs");
    index.stdin.take().expect("piped").write_all(&lines).expect("written");
    assert!(index.wait().expect("it ends").success());
    repo.git(&["commit", "-q", "--allow-empty", "-m", "files"]);
    repo.git(&["rev-parse", "HEAD"]).parse().expect("an id")
}

/// Kind, permission bits and bytes of everything but `.git`.
fn listing(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for path in fs::read_dir(dir).expect("listed").map(|e| e.expect("an entry").path()) {
            let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            if name == ".git" {
                continue;
            }
            let meta = path.symlink_metadata().expect("there");
            let bytes = if meta.is_symlink() {
                fs::read_link(&path).expect("a link").into_os_string().as_bytes().to_vec()
            } else if meta.is_dir() {
                todo.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).expect("read")
            };
            all.insert(name, (meta.mode(), bytes));
        }
    }
    all
}

struct Scratch {
    dir: tempfile::TempDir,
    written: Written,
}

impl Scratch {
    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("scratch")
    }
}

fn check_out(repo: &Repo, id: Oid) -> Result<Scratch, CheckoutError> {
    let workspace = Workspace::discover(repo.root()).expect("found");
    let env = [("HOME", repo.home().into_os_string()), ("GIT_CONFIG_NOSYSTEM", "1".into())];
    let env = GitEnv::new(env.map(|(name, value)| (name.into(), value)));
    let git = GitConfig::capture(&workspace, &env, None).expect("captured");
    let store = Store::open(workspace.common_dir()).expect("opened");
    let refs = Refs::open(workspace.git_dir(), workspace.common_dir()).expect("opened");
    let rules = Rules::captured(&git);
    let tree = store.commit(id).expect("there").tree;
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path().join("scratch");
    fs::create_dir(&root).expect("made");
    let written = write(&store, tree, &root, &rules)?;
    let from = scratch::Source {
        store: &store,
        refs: &refs,
        common_dir: workspace.common_dir(),
        git: &git,
        own_prefix: "refs/worktx/tx",
    };
    scratch::make(&root, id, tree, &written, &from).expect("made");
    Ok(Scratch { dir, written })
}

#[test]
fn as_git_checks_out() {
    for config in [
        &[][..],
        &["core.autocrlf=true"],
        &["core.autocrlf=input"],
        &["core.eol=crlf"],
        &["core.eol=crlf", "core.autocrlf=false", "core.symlinks=false"],
    ] {
        let repo = Repo::new();
        for pair in config {
            let (key, value) = pair.split_once('=').expect("a pair");
            repo.git(&["config", key, value]);
        }
        let global = repo.root().join(".git/global-attributes");
        fs::write(&global, "*.global text eol=crlf\n").expect("written");
        fs::create_dir_all(repo.root().join(".git/info")).expect("made");
        fs::write(repo.root().join(".git/info/attributes"), "*.info text\n").expect("written");
        repo.git(&["config", "core.attributesFile", global.to_str().expect("text")]);
        let mut files: Vec<(String, &str, Vec<u8>)> = ATTRIBUTES
            .iter()
            .map(|(path, text)| ((*path).to_owned(), "100644", text.as_bytes().to_vec()))
            .collect();
        for name in NAMES {
            for (number, bytes) in BYTES.iter().enumerate() {
                let (dir, file) = name.rsplit_once('/').unwrap_or(("", name));
                let path = format!("{dir}/{number}{file}");
                let mode = if number % 2 == 0 { "100644" } else { "100755" };
                files.push((path.trim_start_matches('/').to_owned(), mode, bytes.to_vec()));
            }
        }
        let odd = [("link", "nowhere\nat all"), ("d/up", "../a.txt"), ("d.x/in", "d"), ("l2", "d")];
        files.extend(odd.map(|(path, to)| (path.to_owned(), "120000", to.as_bytes().to_vec())));
        files.push(("new\nline/\u{e4}".to_owned(), "100644", b"x\n".to_vec()));
        let id = commit(&repo, &files);

        let judge = repo.home().with_file_name("judge");
        repo.git(&["worktree", "add", "-q", "--detach", judge.to_str().expect("text"), "HEAD"]);
        let scratch = check_out(&repo, id).expect("written");
        assert!(scratch.written.raw.is_empty());
        let (ours, gits) = (listing(&scratch.root()), listing(&judge));
        assert!(ours.len() > 100);
        for (path, found) in &gits {
            assert_eq!(ours.get(path), Some(found), "{path}, {config:?}");
        }
        assert_eq!(ours.len(), gits.len(), "{config:?}");
    }
}

#[test]
fn git_works_in_it_and_on_it_alone() {
    let repo = Repo::new();
    repo.commit("a.txt", "one\n");
    repo.commit("d/run", "two\n");
    repo.git(&["tag", "v1"]);
    repo.git(&["update-ref", "refs/worktx/tx/x/1/base", "HEAD"]);
    repo.git(&["update-ref", "refs/stash", "HEAD"]);
    let id = repo.commit("a.txt", "three\n").parse().expect("an id");
    repo.git(&["reset", "-q", "--hard", "HEAD~1"]);
    let picture = || {
        let state = repo.git(&["for-each-ref"]) + &repo.git(&["ls-files", "-s", "-v"]);
        let files = ["HEAD", "config", "logs/HEAD"].map(|f| repo.root().join(".git").join(f));
        (state, files.map(|file| fs::read(file).expect("read")), repo.git(&["count-objects", "-v"]))
    };
    let before = picture();
    let scratch = check_out(&repo, id).expect("written");
    let root = scratch.root();
    let git = |args: &[&str]| {
        let out = repo.command(&root).args(args).output().expect("git runs");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text").trim_end().to_owned()
    };
    assert_eq!(git(&["status", "--porcelain"]), "");
    assert_eq!(git(&["rev-parse", "HEAD"]), id.to_string());
    assert_eq!(git(&["rev-parse", "--show-toplevel"]), root.to_str().expect("text"));
    assert_eq!(git(&["diff", "--name-only", "main", "HEAD"]), "a.txt");
    assert_eq!(git(&["describe", "--tags"]).split('-').next(), Some("v1"));
    assert_eq!(git(&["for-each-ref", "--format=%(refname)"]), "refs/heads/main\nrefs/tags/v1");
    assert_eq!(git(&["log", "--format=%s"]), "a.txt\nd/run\na.txt");
    // No file has to be read again to see that it is unchanged.
    assert_eq!(git(&["diff-files"]), "");
    git(&["fsck", "--strict"]);
    fs::write(root.join("more"), "more\n").expect("written");
    git(&["checkout", "-q", "-b", "own"]);
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "own"]);
    git(&["branch", "-q", "-f", "main", "HEAD"]);
    git(&["config", "user.name", "changed"]);
    git(&["gc", "-q", "--prune=now"]);
    git(&["stash", "list"]);
    assert_eq!(picture(), before);
    repo.git(&["fsck", "--strict"]);
}

#[test]
fn what_git_would_not_check_out_is_refused() {
    let repo = Repo::new();
    repo.commit("a.txt", "one\n");
    let blob = repo.git(&["rev-parse", "HEAD:a.txt"]);
    let make = |line: String| {
        let mut child = repo
            .command(repo.root())
            .args(["mktree", "-z"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("git runs");
        child.stdin.take().expect("piped").write_all(line.as_bytes()).expect("written");
        let out = child.wait_with_output().expect("it ends");
        String::from_utf8(out.stdout).expect("text").trim().to_owned()
    };
    let hooks = make(format!("100755 blob {blob}\tpost-checkout\0"));
    let inner = make(format!("040000 tree {hooks}\thooks\0"));
    for line in [
        format!("040000 tree {inner}\t.git\0"),
        format!("040000 tree {inner}\t.GIT\0"),
        format!("120000 blob {blob}\t.gitmodules\0"),
    ] {
        let tree = make(line.clone());
        let id = repo.git(&["commit-tree", "-m", "odd", &tree]).parse().expect("an id");
        let refused = check_out(&repo, id);
        assert!(matches!(refused, Err(CheckoutError::Name(_))), "{line:?}");
    }
    // A link and a folder of one name: git's own order of entries lets both stand.
    let tree = make(format!("120000 blob {blob}\td\0040000 tree {hooks}\td\0"));
    if !tree.is_empty() {
        let id = repo.git(&["commit-tree", "-m", "odd", &tree]).parse().expect("an id");
        assert!(check_out(&repo, id).is_err());
    }
}

#[test]
fn what_is_not_converted_is_told_and_submodules_are_empty() {
    let repo = Repo::new();
    repo.write(".gitattributes", "*.psd filter=lfs\n*.c ident\n");
    repo.write("a.psd", "pointer\n");
    repo.write("a.c", "$Id$\n");
    repo.git(&["add", "-A"]);
    let id = repo.git(&["hash-object", "-t", "tree", "/dev/null"]);
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{id},module")]);
    repo.git(&["commit", "-qm", "odd"]);
    let scratch = check_out(&repo, repo.git(&["rev-parse", "HEAD"]).parse().expect("an id"))
        .expect("written");
    let told: Vec<String> =
        scratch.written.raw.iter().map(|(path, what)| format!("{path} {what}")).collect();
    assert_eq!(told, ["a.c ident", "a.psd filter=lfs"]);
    assert_eq!(fs::read(scratch.root().join("a.c")).expect("read"), b"$Id$\n");
    assert_eq!(fs::read_dir(scratch.root().join("module")).expect("a folder").count(), 0);
}
