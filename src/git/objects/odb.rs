//! The object database, over explicit folders: libgit2's readers of loose objects and packs, and
//! nothing of libgit2 beside.
//!
//! It is put together by hand, because opening a repository or an object folder as a whole makes
//! libgit2 read what a turn may have written: the repository's configuration, `info/alternates`,
//! `commondir`, the commit graph. Replace refs are unknown at this level. Every read is checked
//! against its id (strict hash verification), so that a swapped object is an error, never an
//! answer.
//!
//! # Limitations
//! Reading only; objects are read whole into memory. SHA-1.

// The bindings have no safe way to add a reader of one folder. This file alone is unsafe: every
// pointer is made, checked and freed here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Once;

use libgit2_sys as raw;

use crate::tx::id::Oid;

/// How much of a pack is mapped at once, in bytes; four such at most.
const PACK_WINDOW: usize = 16 << 20;

/// What kind of object it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A commit.
    Commit,
    /// A tree.
    Tree,
    /// A blob.
    Blob,
    /// An annotated tag.
    Tag,
}

impl ObjectKind {
    /// git's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Tree => "tree",
            Self::Blob => "blob",
            Self::Tag => "tag",
        }
    }

    const fn from_raw(kind: raw::git_object_t) -> Option<Self> {
        match kind {
            raw::GIT_OBJECT_COMMIT => Some(Self::Commit),
            raw::GIT_OBJECT_TREE => Some(Self::Tree),
            raw::GIT_OBJECT_BLOB => Some(Self::Blob),
            raw::GIT_OBJECT_TAG => Some(Self::Tag),
            _ => None,
        }
    }
}

/// An object could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OdbError {
    /// The folder of objects cannot be used.
    #[error("object folder {}: {why}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// libgit2's words.
        why: String,
    },
    /// No such object.
    #[error("object {0} is missing")]
    Missing(Oid),
    /// It is there and cannot be read, or its bytes are not those that its id stands for.
    #[error("object {id} is damaged: {why}")]
    Damaged {
        /// Which.
        id: Oid,
        /// libgit2's words.
        why: String,
    },
}

/// Readers of the objects of some folders.
pub(crate) struct Odb(*mut raw::git_odb);

// SAFETY: a `git_odb` belongs to no thread (libgit2 is built with thread support, its state is
// behind a lock of its own), so that the one owner may move between threads. It is not `Sync`.
unsafe impl Send for Odb {}

/// The bytes of an object, as libgit2 holds them.
pub(crate) struct Object {
    raw: *mut raw::git_odb_object,
    pub(crate) kind: ObjectKind,
}

impl Object {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `raw` is a live object until drop; data and size are of the same buffer, which
        // is never changed. An empty object may have no buffer at all.
        unsafe {
            let size = raw::git_odb_object_size(self.raw);
            let data = raw::git_odb_object_data(self.raw).cast::<u8>();
            if size == 0 || data.is_null() {
                return &[];
            }
            std::slice::from_raw_parts(data, size)
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: made by `git_odb_read`, freed once.
        unsafe { raw::git_odb_object_free(self.raw) }
    }
}

impl Drop for Odb {
    fn drop(&mut self) {
        // SAFETY: made by `git_odb_new`, freed once; objects hold no pointer into it.
        unsafe { raw::git_odb_free(self.0) }
    }
}

impl Odb {
    /// Readers of exactly these object folders, in this order.
    pub(crate) fn open(folders: &[PathBuf]) -> Result<Self, OdbError> {
        set_up_library();
        let mut odb = ptr::null_mut();
        // SAFETY: the out pointer is valid; it is checked before use.
        let code = unsafe { raw::git_odb_new(&raw mut odb) };
        if code < 0 {
            return Err(OdbError::Folder { path: PathBuf::new(), why: last_error() });
        }
        let odb = Self(odb);
        for folder in folders {
            odb.add(folder)?;
        }
        Ok(odb)
    }

    fn add(&self, folder: &Path) -> Result<(), OdbError> {
        let fail = |why| OdbError::Folder { path: folder.to_owned(), why };
        if !folder.is_dir() {
            return Err(fail("not a directory".to_owned()));
        }
        let name = CString::new(folder.as_os_str().as_bytes())
            .map_err(|_| fail("holds a zero byte".to_owned()))?;
        // Packs first, as git looks: a pack of ours wins over a loose object that was tampered
        // with. The numbers are libgit2's own priorities.
        for (priority, packed) in [(2, true), (1, false)] {
            let mut backend = ptr::null_mut();
            // SAFETY: out pointer and C string are valid for the call, which copies the name.
            // The backend is handed to the database, which frees it with itself.
            let code = unsafe {
                let code = if packed {
                    raw::git_odb_backend_pack(&raw mut backend, name.as_ptr())
                } else {
                    raw::git_odb_backend_loose(&raw mut backend, name.as_ptr(), -1, 1, 0, 0)
                };
                if code < 0 { code } else { raw::git_odb_add_backend(self.0, backend, priority) }
            };
            if code < 0 {
                return Err(fail(last_error()));
            }
        }
        Ok(())
    }

    /// The object, checked against its id.
    pub(crate) fn read(&self, id: Oid) -> Result<Object, OdbError> {
        let mut object = ptr::null_mut();
        let name = raw_id(id);
        // SAFETY: both pointers are valid for the call.
        let code = unsafe { raw::git_odb_read(&raw mut object, self.0, &raw const name) };
        if code == raw::GIT_ENOTFOUND {
            return Err(OdbError::Missing(id));
        }
        if code < 0 {
            return Err(OdbError::Damaged { id, why: last_error() });
        }
        // SAFETY: the read succeeded, so the object is live.
        let kind = ObjectKind::from_raw(unsafe { raw::git_odb_object_type(object) });
        let Some(kind) = kind else {
            // SAFETY: as above; freed once, not used after.
            unsafe { raw::git_odb_object_free(object) };
            return Err(OdbError::Damaged { id, why: "of no known kind".to_owned() });
        };
        Ok(Object { raw: object, kind })
    }

    /// Size and kind, without a check of the bytes.
    pub(crate) fn header(&self, id: Oid) -> Result<Option<(u64, ObjectKind)>, OdbError> {
        let (mut size, mut kind) = (0, raw::GIT_OBJECT_INVALID);
        let name = raw_id(id);
        // SAFETY: all pointers are valid for the call.
        let code = unsafe {
            raw::git_odb_read_header(&raw mut size, &raw mut kind, self.0, &raw const name)
        };
        if code == raw::GIT_ENOTFOUND {
            return Ok(None);
        }
        match ObjectKind::from_raw(kind) {
            Some(kind) if code >= 0 => Ok(Some((size as u64, kind))),
            _ => Err(OdbError::Damaged { id, why: last_error() }),
        }
    }

    pub(crate) fn exists(&self, id: Oid) -> bool {
        let name = raw_id(id);
        // SAFETY: the pointer is valid for the call.
        unsafe { raw::git_odb_exists(self.0, &raw const name) == 1 }
    }

    /// Looks for packs that came since.
    pub(crate) fn refresh(&self) {
        // SAFETY: plain call on a live database. A failure shows at the next read.
        let _ = unsafe { raw::git_odb_refresh(self.0) };
    }
}

fn raw_id(id: Oid) -> raw::git_oid {
    raw::git_oid { id: *id.as_bytes() }
}

fn last_error() -> String {
    // SAFETY: the message belongs to this thread's last error and is copied before another call.
    unsafe {
        let error = raw::git_error_last();
        if error.is_null() || (*error).message.is_null() {
            return "no reason given".to_owned();
        }
        CStr::from_ptr((*error).message).to_string_lossy().into_owned()
    }
}

/// Sets libgit2's process-wide switches, once: every read is checked against its id, what is made
/// must be sound, what is written is synced, no configuration of system or user is read by itself
/// (the captured one is what counts), and whose the repository is is judged by
/// [`crate::git::workspace::judge`] alone: libgit2 would ask for a `safe.directory` that it cannot
/// read.
///
/// Whoever opens a `git2::Repository` calls this first.
pub fn set_up_library() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        raw::init();
        git2::opts::strict_hash_verification(true);
        git2::opts::strict_object_creation(true);
        // Objects are read once; a cache would hold a quarter of a gigabyte.
        git2::opts::enable_caching(false);
        // SAFETY: inside `Once`, after the library is initialised; the options take the argument
        // types given here (`int`; `int` and a C string).
        unsafe {
            raw::git_libgit2_opts(raw::GIT_OPT_ENABLE_FSYNC_GITDIR.cast_signed(), 1);
            let _ = git2::opts::set_mwindow_size(PACK_WINDOW);
            let _ = git2::opts::set_mwindow_mapped_limit(4 * PACK_WINDOW);
            for level in [
                git2::ConfigLevel::System,
                git2::ConfigLevel::Global,
                git2::ConfigLevel::XDG,
                git2::ConfigLevel::ProgramData,
            ] {
                let _ = git2::opts::set_search_path(level, "");
            }
            let _ = git2::opts::set_verify_owner_validation(false);
        }
    });
}
