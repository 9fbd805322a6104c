//! HEAD and single refs, read as files: before libgit2 is let near the repository, and without
//! following links.
//!
//! Order rules: none; it only reads.
//!
//! # Limitations
//! The `files` format of refs only; reftable is recognised and refused in `judge`.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::smallfile;
use super::workspace::Workspace;
use crate::tx::id::{Oid, RefName};

/// Where HEAD is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "at", rename_all = "snake_case")]
pub enum Head {
    /// On a branch, which may not exist yet.
    Branch(RefName),
    /// On a commit.
    Detached(Oid),
}

impl Head {
    /// What an attempt moves: the branch, or `HEAD` itself.
    pub fn name(&self) -> RefName {
        match self {
            Self::Branch(name) => name.clone(),
            Self::Detached(_) => RefName("HEAD".to_owned()),
        }
    }
}

/// A ref that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RefError {
    /// Neither an id nor a name.
    #[error("{name} is damaged: {why}")]
    Damaged {
        /// The ref.
        name: RefName,
        /// What is wrong.
        why: String,
    },
    /// The system said no.
    #[error("cannot read {name}: {source}")]
    Io {
        /// The ref.
        name: RefName,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads HEAD of this work tree.
pub fn read_head(workspace: &Workspace) -> Result<Head, RefError> {
    let name = RefName("HEAD".to_owned());
    let text = open_and_read(workspace.git_dir(), &name)?;
    let text = text.ok_or_else(|| damaged(&name, "it is missing"))?;
    if let Some(target) = text.strip_prefix("ref:") {
        let target = target.trim();
        return if is_safe(target) {
            Ok(Head::Branch(RefName(target.to_owned())))
        } else {
            Err(damaged(&name, "it names no ref"))
        };
    }
    match text.trim_end().parse() {
        Ok(id) => Ok(Head::Detached(id)),
        Err(_) => Err(damaged(&name, "neither an id nor a ref")),
    }
}

/// What a ref of the common directory names; `None` where there is none.
///
/// A ref that is only another name of a ref is damaged for this purpose: no attempt can move it.
pub fn read_ref(workspace: &Workspace, name: &RefName) -> Result<Option<Oid>, RefError> {
    if !is_safe(name.as_str()) {
        return Err(damaged(name, "not a ref's name"));
    }
    match open_and_read(workspace.common_dir(), name)? {
        Some(text) if text.starts_with("ref:") => Err(damaged(name, "it is symbolic")),
        Some(text) => match text.trim_end().parse() {
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(damaged(name, "it holds no id")),
        },
        None => packed(workspace.common_dir(), name),
    }
}

/// What the thing that an attempt moves names now: [`read_ref`], or HEAD itself when detached.
pub fn read_tip(workspace: &Workspace, name: &RefName) -> Result<Option<Oid>, RefError> {
    if name.as_str() != "HEAD" {
        return read_ref(workspace, name);
    }
    match read_head(workspace)? {
        Head::Detached(id) => Ok(Some(id)),
        Head::Branch(branch) => read_ref(workspace, &branch),
    }
}

fn packed(common_dir: &Path, name: &RefName) -> Result<Option<Oid>, RefError> {
    let failed = |source| RefError::Io { name: name.clone(), source };
    let file = match File::open(common_dir.join("packed-refs")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(damaged(name, "packed-refs is not a file"));
    }
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(None);
        }
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let Some((id, found)) = line.split_at_checked(41) else { continue };
        if found == name.as_str().as_bytes() {
            let id = std::str::from_utf8(&id[..40]).ok().and_then(|id| id.parse().ok());
            return id.map(Some).ok_or_else(|| damaged(name, "packed-refs holds no id of it"));
        }
    }
}

fn open_and_read(dir: &Path, name: &RefName) -> Result<Option<String>, RefError> {
    let failed = |source| RefError::Io { name: name.clone(), source };
    let handle = File::open(dir).map_err(failed)?;
    match smallfile::read_beneath(&handle, Path::new(name.as_str())) {
        Ok(None) => Ok(None),
        // A folder of that name (`refs/heads/a/` for a gone `a`) is no ref.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput && dir.join(name.as_str()).is_dir() => {
            Ok(None)
        }
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Err(damaged(name, "a symbolic link"))
        }
        Err(error) => Err(failed(error)),
        Ok(Some(bytes)) => {
            String::from_utf8(bytes).map(Some).map_err(|_| damaged(name, "it is not text"))
        }
    }
}

fn damaged(name: &RefName, why: &str) -> RefError {
    RefError::Damaged { name: name.clone(), why: why.to_owned() }
}

/// A name that leads nowhere but into `refs/`.
fn is_safe(name: &str) -> bool {
    name.starts_with("refs/")
        && name.split('/').all(|p| !p.is_empty() && p != "." && p != ".." && !p.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::super::testkit::Repo;
    use super::*;

    #[test]
    fn reads_what_git_reads() {
        let repo = Repo::new();
        let workspace = Workspace::discover(repo.root()).expect("found");
        let main = RefName("refs/heads/main".to_owned());
        assert_eq!(read_head(&workspace).expect("read"), Head::Branch(main.clone()));
        assert_eq!(read_ref(&workspace, &main).expect("read"), None);
        let id: Oid = repo.commit("file", "x").parse().expect("an id");
        assert_eq!(read_tip(&workspace, &main).expect("read"), Some(id));
        repo.git(&["branch", "a/b"]);
        repo.git(&["pack-refs", "--all"]);
        assert!(!workspace.git_dir().join("refs/heads/main").exists());
        assert_eq!(read_ref(&workspace, &main).expect("packed"), Some(id));
        let a = RefName("refs/heads/a".to_owned());
        std::fs::create_dir_all(workspace.git_dir().join("refs/heads/a")).expect("made");
        assert_eq!(read_ref(&workspace, &a).expect("read"), None);
        repo.git(&["checkout", "-q", "--detach"]);
        assert_eq!(read_head(&workspace).expect("read"), Head::Detached(id));
        let head = RefName("HEAD".to_owned());
        assert_eq!(read_tip(&workspace, &head).expect("read"), Some(id));
    }

    #[test]
    fn follows_nothing() {
        let repo = Repo::new();
        repo.commit("file", "x");
        let workspace = Workspace::discover(repo.root()).expect("found");
        repo.git(&["symbolic-ref", "refs/heads/other", "refs/heads/main"]);
        let other = RefName("refs/heads/other".to_owned());
        assert!(matches!(read_ref(&workspace, &other), Err(RefError::Damaged { .. })));
        for bad in ["refs/../HEAD", "HEAD", "/refs/x", "refs//x"] {
            assert!(read_ref(&workspace, &RefName(bad.to_owned())).is_err(), "{bad}");
        }
        let refs = workspace.git_dir().join("refs");
        let moved = repo.root().with_file_name("moved");
        std::fs::rename(&refs, &moved).expect("moved");
        std::os::unix::fs::symlink(&moved, &refs).expect("linked");
        let main = RefName("refs/heads/main".to_owned());
        assert!(matches!(read_ref(&workspace, &main), Err(RefError::Damaged { .. })));
        for bad in ["ref: ../x\n", "nonsense\n", ""] {
            std::fs::write(workspace.git_dir().join("HEAD"), bad).expect("written");
            assert!(matches!(read_head(&workspace), Err(RefError::Damaged { .. })), "{bad}");
        }
    }
}
