//! The generated tree, and the turn: both know the same paths without a list of them.
//!
//! Twenty files a directory, two to four directories deep, 0.2 to 8 kB of text each; one
//! `.gitignore` in the root and one in every twentieth directory.
//!
//! # Limitations
//! Sizes and paths are a function of the number alone, so that a tree is the same each time.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files in a directory.
const IN_ONE: u64 = 20;

/// How many files a turn edits, and how many it adds and deletes: twelve paths.
const EDITED: u64 = 8;
const ADDED: u64 = 2;

/// A number that looks random and is the same each time (splitmix64).
const fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn directory(number: u64) -> PathBuf {
    let mut path = PathBuf::from(format!("part{:02}", number % 37));
    path.push(format!("module{:03}", number / 37));
    match number % 3 {
        0 => {}
        1 => path.push("src"),
        _ => path.push("src/inner"),
    }
    path
}

/// Where the n-th file stands.
fn file(number: u64) -> PathBuf {
    directory(number / IN_ONE).join(format!("file{:02}.txt", number % IN_ONE))
}

fn added(files: u64, round: u64, number: u64) -> PathBuf {
    let near = mixed(round * 1000 + number) % files;
    directory(near / IN_ONE).join(format!("added{round}-{number}.txt"))
}

fn text(seed: u64) -> Vec<u8> {
    let size = usize::try_from(200 + mixed(seed) % 7_800).unwrap_or(200);
    let mut bytes = Vec::with_capacity(size + 80);
    let mut line = seed;
    while bytes.len() < size {
        line = mixed(line);
        bytes.extend(
            format!(
                "let value_{:x} = call({:x}, {});\n",
                line >> 44,
                line & 0xffff_ffff,
                bytes.len()
            )
            .bytes(),
        );
    }
    bytes.truncate(size);
    bytes
}

/// Makes a repository as a clone has it: one pack, no object beside it, and the tree of its commit.
///
/// No file is deleted on the way: for minutes afterwards ext4 would step over each inode of one
/// whenever a file is made beside it, and that is what would be measured.
pub(crate) fn make(root: &Path, files: u64) -> io::Result<()> {
    fs::create_dir_all(root)?;
    git(root, &["init", "-q", "-b", "main"])?;
    for (key, value) in [
        ("user.name", "A Person"),
        ("user.email", "person@example.org"),
        // Nothing of git's own may run behind the measured commands.
        ("gc.auto", "0"),
        ("maintenance.auto", "false"),
    ] {
        git(root, &["config", key, value])?;
    }
    // Its deltas are of no matter here, and slow to find.
    let words = ["fast-import", "--quiet", "--depth=0"];
    let mut import =
        Command::new("git").current_dir(root).args(words).stdin(Stdio::piped()).spawn()?;
    if let Some(stdin) = import.stdin.take() {
        let mut out = io::BufWriter::with_capacity(1 << 16, stdin);
        write_stream(&mut out, files)?;
        out.flush()?;
    }
    if !import.wait()?.success() {
        return Err(io::Error::other("git fast-import failed"));
    }
    git(root, &["reset", "-q", "--hard"])?;
    // What is still to be written of all that must not be paid for by the first round.
    Command::new("sync").status().map(drop)
}

/// The one commit, as `git fast-import` reads it.
fn write_stream(out: &mut impl io::Write, files: u64) -> io::Result<()> {
    let what = "generated\n";
    write!(
        out,
        "commit refs/heads/main\ncommitter A Person <person@example.org> 1700000000 +0000\n"
    )?;
    write!(out, "data {}\n{what}", what.len())?;
    let mut put = |path: &Path, bytes: &[u8]| {
        write!(out, "M 100644 inline {}\ndata {}\n", path.display(), bytes.len())?;
        out.write_all(bytes)?;
        writeln!(out)
    };
    put(Path::new(".gitignore"), b"target/\n*.o\n*.log\n/build/\n")?;
    for number in 0..files {
        let path = file(number);
        if number % IN_ONE == 0 && (number / IN_ONE) % 20 == 3 {
            put(&path.with_file_name(".gitignore"), b"*.tmp\ncache/\n")?;
        }
        put(&path, &text(number))?;
    }
    for number in 0..ADDED {
        put(&added(files, 0, number), &text(number))?;
    }
    Ok(())
}

/// The turn: edits eight files, adds two and deletes the two that the round `before` added.
pub(crate) fn turn(root: &Path, files: u64, round: u64, before: u64) -> io::Result<()> {
    for number in 0..EDITED {
        let path = root.join(file(mixed(round * 31 + number) % files));
        let mut file = fs::OpenOptions::new().append(true).open(path)?;
        writeln!(file, "edited in round {round} by step {number}")?;
    }
    for number in 0..ADDED {
        fs::write(root.join(added(files, round, number)), text(round * 77 + number))?;
        fs::remove_file(root.join(added(files, before, number)))?;
    }
    Ok(())
}

/// The turn of many paths: the first `count` files are edited as the turn of few edits eight.
pub(crate) fn turn_many(root: &Path, count: u64, round: u64) -> io::Result<()> {
    for number in 0..count {
        let mut file = fs::OpenOptions::new().append(true).open(root.join(file(number)))?;
        writeln!(file, "edited in round {round} by step {number}")?;
    }
    Ok(())
}

/// The turn of one large file, of bytes that cannot be compressed.
pub(crate) fn turn_large(root: &Path, bytes: u64, round: u64) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 20, fs::File::create(root.join("large.bin"))?);
    let mut state = round;
    for _ in 0..bytes / 8 {
        state = mixed(state);
        out.write_all(&state.to_le_bytes())?;
    }
    out.flush()
}

/// Makes a tracked file differ from HEAD, and gives what it held.
pub(crate) fn dirty(root: &Path, files: u64) -> io::Result<(PathBuf, Vec<u8>)> {
    let path = root.join(file(files / 2));
    let before = fs::read(&path)?;
    let mut bytes = before.clone();
    bytes.extend(b"an edit that nobody committed\n");
    fs::write(&path, bytes)?;
    Ok((path, before))
}

/// Runs git, for what is not measured; its standard output.
pub(crate) fn git(root: &Path, args: &[&str]) -> io::Result<String> {
    let out = Command::new("git").current_dir(root).args(args).output()?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(io::Error::other(format!("git {args:?}: {said}")));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
