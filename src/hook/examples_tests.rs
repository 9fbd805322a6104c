//! The example post-checks of `hooks/examples`, run on small trees as worktx runs them: the
//! environment of [`super::launch`], stdin from `/dev/null`, in the workspace.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::launch::write_changed_files;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/examples");

struct Tree {
    dir: tempfile::TempDir,
    changed: Vec<Vec<u8>>,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("ws")).expect("made");
        Self { dir, changed: Vec::new() }
    }

    /// A file that the turn changed.
    fn with(mut self, name: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Self {
        let path = self.root().join(OsStr::from_bytes(name.as_ref()));
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::write(path, bytes).expect("written");
        self.changed.push(name.as_ref().to_vec());
        self
    }

    /// A path that the turn deleted.
    fn without(mut self, name: &str) -> Self {
        self.changed.push(name.into());
        self
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("ws")
    }

    /// The exit code, and both outputs.
    fn run(&self, example: &str) -> (Option<i32>, String) {
        let list = self.dir.path().join("changed");
        write_changed_files(&list, self.changed.iter().map(Vec::as_slice)).expect("written");
        let output = Command::new(Path::new(FOLDER).join(example))
            .current_dir(self.root())
            .env("WORKTX_WORKSPACE", self.root())
            .env("WORKTX_CHANGED_FILES", &list)
            .env_remove("CARGO_TARGET_DIR")
            .env("CARGO_NET_OFFLINE", "true")
            .stdin(Stdio::null())
            .output()
            .expect("the example starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    #[track_caller]
    fn passes(&self, example: &str) -> String {
        let (code, text) = self.run(example);
        assert_eq!(code, Some(0), "{text}");
        text
    }

    #[track_caller]
    fn fails(&self, example: &str, said: &str) {
        let (code, text) = self.run(example);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(said), "{said:?} is not in {text}");
    }
}

/// Whether a program is there; says what is not tested where it is not.
fn has(program: &str, args: &[&str]) -> bool {
    let found = Command::new(program).args(args).output().is_ok_and(|o| o.status.success());
    if !found {
        skipped(program);
    }
    found
}

#[expect(clippy::print_stderr, reason = "a test that is left out says so")]
fn skipped(what: &str) {
    eprintln!("SKIPPED: {what} is not here");
}

#[test]
fn each_shell_can_read_them() {
    let mut names = 0;
    for entry in fs::read_dir(FOLDER).expect("the folder") {
        let path = entry.expect("an entry").path();
        names += 1;
        for shell in ["sh", "dash", "bash"] {
            if has(shell, &["-c", "exit 0"]) {
                let status = Command::new(shell).arg("-n").arg(&path).status().expect("runs");
                assert!(status.success(), "{shell} {}", path.display());
            }
        }
        if has("shellcheck", &["--version"]) {
            let status = Command::new("shellcheck").arg(&path).status().expect("runs");
            assert!(status.success(), "{}", path.display());
        }
    }
    assert_eq!(names, 4);
}

#[test]
fn no_secrets_lets_ordinary_work_through() {
    let tree = Tree::new()
        .with("src/a b.rs", "let password = \"hunter2\";\n")
        .with(b"odd\n-name\xff", "x")
        .with("-rf", "x")
        .with(".env.example", "TOKEN=\n")
        .with("binary", [0, 159, 146, 150])
        .without("gone")
        .with("docs", "AKIAIOSFODNN7EXAMPLE is one (worktx:allow-secret)\n");
    assert!(tree.passes("no-secrets").contains("no secrets"));
    assert!(Tree::new().passes("no-secrets").contains("no secrets"));
    let own = fs::read(Path::new(FOLDER).join("no-secrets")).expect("there");
    Tree::new().with(".worktx/post-check", own).passes("no-secrets");
}

#[test]
fn no_secrets_refuses_each_kind() {
    // Put together here, so that this file passes the check itself.
    let aws = format!("key = {}{}\n", "AKIA", "IOSFODNN7EXAMPLE");
    let github = format!("\n\nx {}{}", "ghp_", "a1".repeat(18));
    let private = format!("{}{}", "-----BEGIN RSA PRIV", "ATE KEY-----\n");
    Tree::new().with("a.txt", &aws).fails("no-secrets", "a.txt: holds a secret, line 1");
    Tree::new().with("a b", &github).fails("no-secrets", "a b: holds a secret, line 3");
    Tree::new().with("-e", &private).fails("no-secrets", "-e: holds a secret, line 1");
    let binary = [b"\0\x01\n".as_slice(), aws.as_bytes(), b"\0"].concat();
    Tree::new().with("b", binary).fails("no-secrets", "b: holds a secret, line 2");
    Tree::new().with("x/.env", "").fails("no-secrets", "x/.env: a file of that name");
    let large = vec![b'x'; 5 * 1024 * 1024 + 1];
    Tree::new().with("large", large).fails("no-secrets", "large: larger than 5242880 bytes");
    let (_, text) = Tree::new().with("a.txt", &aws).run("no-secrets");
    assert!(!text.contains("IOSFODNN7"), "the secret itself is not printed: {text}");
}

#[test]
fn no_secrets_takes_more_files_than_one_batch() {
    let mut tree = Tree::new();
    for number in 0..1_000 {
        tree = tree.with(format!("folder with a longer name/{number}"), "x\n");
    }
    tree.passes("no-secrets");
    let late = format!("{}{}", "glpat-", "a1".repeat(10));
    tree.with("zzz", late).fails("no-secrets", "zzz: holds a secret");
}

const MANIFEST: &str = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
const GOOD: &str = "#[test]\nfn adds() {\n    assert_eq!(1 + 1, 2);\n}\n";

#[test]
fn rust_checks_a_package() {
    assert!(Tree::new().with("a", "").passes("rust").contains("no Cargo.toml"));
    if !has("cargo", &["--version"]) {
        return;
    }
    let package =
        |source: &str| Tree::new().with("Cargo.toml", MANIFEST).with("src/lib.rs", source);
    assert!(package(GOOD).passes("rust").contains("post-check: passed"));
    package(&GOOD.replace(", 2", ", 3")).fails("rust", "cargo test");
    if has("cargo", &["fmt", "--version"]) {
        package(&GOOD.replace("    assert", "assert")).fails("rust", "cargo fmt");
    }
    if has("cargo", &["clippy", "--version"]) {
        let lint = "pub fn f(x: bool) -> bool {\n    x == true\n}\n";
        package(lint).fails("rust", "cargo clippy");
    }
    // A lock file that the change has left behind is a failure, not silently mended.
    let stale = "version = 4\n\n[[package]]\nname = \"other\"\nversion = \"0.1.0\"\n";
    package(GOOD).with("Cargo.lock", stale).fails("rust", "lock file");
    let mut unchanged = package("broken");
    unchanged.changed.clear();
    assert!(unchanged.passes("rust").contains("nothing changed"));
}

#[test]
fn node_checks_syntax_and_scripts() {
    assert!(Tree::new().with("a", "").passes("node").contains("no package.json"));
    if !has("node", &["--version"]) {
        return;
    }
    let package = |json: &str| Tree::new().with("package.json", json);
    let good = package("{}").with("a b.js", "const a = 1;\n").with("c.txt", "(((").without("d.js");
    assert!(good.passes("node").contains("post-check: passed"));
    package("{}").with("a\nb.mjs", "const = 1;\n").fails("node", "syntax errors");
    package("{").fails("node", "no JSON");
    if !has("npm", &["--version"]) {
        return;
    }
    let placeholder = r#"{"scripts":{"test":"echo \"Error: no test specified\" && exit 1"}}"#;
    package(placeholder).passes("node");
    package(r#"{"scripts":{"test":"node t.js"}}"#).with("t.js", "").passes("node");
    let failing = r#"{"scripts":{"lint":"exit 0","test":"node t.js"}}"#;
    package(failing).with("t.js", "process.exit(3)").fails("node", "npm run test");
}

#[test]
fn python_checks_syntax_and_tests() {
    if !has("python3", &["--version"]) {
        return;
    }
    let good = Tree::new()
        .with("a b.py", "x = 1\n")
        .with(b"odd\xff.py", "y = 2\n")
        .with("c.txt", "(((")
        .without("gone.py");
    assert!(good.passes("python").contains("post-check: passed"));
    Tree::new().with("p/bad.py", "def f(:\n").fails("python", "p/bad.py:1:");
    let suite = |value: u8| {
        let text = format!(
            "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual({value}, 1)\n"
        );
        Tree::new().with("tests/test_a.py", text)
    };
    let tree = suite(1);
    tree.passes("python");
    let left: Vec<_> = fs::read_dir(tree.root().join("tests")).expect("there").collect();
    assert_eq!(left.len(), 1, "no bytecode is left: {left:?}");
    assert!(!tree.root().join(".pytest_cache").exists());
    suite(2).fails("python", "tests failed");
}

/// The script that the page begins with; what runs the project's own tests is left out.
fn of_the_page() -> String {
    let page = include_str!("../../docs/hook-contract.md");
    let (_, rest) = page.split_once("```sh\n").expect("the page has a script");
    let (script, _) = rest.split_once("```").expect("it ends");
    assert!(script.contains("\nmake test\n"), "{script}");
    script.replace("\nmake test\n", "\n")
}

#[test]
fn the_one_of_the_page_refuses_what_it_says() {
    let marked = "DO NOT COMMIT\n";
    let run = |tree: Tree| {
        let path = tree.dir.path().join("of-the-page");
        fs::write(&path, of_the_page()).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        tree.run(path.to_str().expect("text"))
    };
    let passes = |tree: Tree| {
        let (code, text) = run(tree);
        assert_eq!(code, Some(0), "{text}");
    };
    let fails = |tree: Tree, said: &str| {
        let (code, text) = run(tree);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(said), "{said:?} is not in {text}");
    };
    passes(Tree::new());
    passes(Tree::new().with("a b", "x\n").without("gone"));
    fails(Tree::new().with("n", marked), "take the marked lines out:\nn");
    // grep fails for a path that is gone, whether it found something in the others or not.
    fails(Tree::new().without("gone").with("-n a", marked), "-n a");
    // More than one batch, and the last one finds nothing.
    let mut tree = Tree::new().with("first", marked);
    for number in 0..3_000 {
        tree = tree.without(&format!("{}/{number}", "a folder with a long name ".repeat(4)));
    }
    fails(tree, "first");
}
