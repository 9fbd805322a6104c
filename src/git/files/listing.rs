//! The listing of one directory: names in one piece of memory, sorted by their bytes.
//!
//! # Limitations
//! At most [`MAX_NAMES`] names; more are `EOVERFLOW`.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;

/// The most names of one directory.
pub(in crate::git) const MAX_NAMES: usize = 4_000_000;
/// The buffer for a listing.
pub(in crate::git) const LISTING: usize = 64 << 10;

/// The names of one directory, sorted, in one piece of memory.
#[derive(Default)]
pub(in crate::git) struct Names {
    pub(super) bytes: Vec<u8>,
    /// Start and end (of the zero that ends it) in `bytes`.
    pub(in crate::git) list: Vec<(usize, usize, FileType)>,
}

impl Names {
    pub(in crate::git) fn read(
        &mut self,
        dir: &OwnedFd,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        self.bytes.clear();
        self.list.clear();
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            if name == b".\0" || name == b"..\0" {
                continue;
            }
            let start = self.bytes.len();
            self.bytes.extend(name);
            self.list.push((start, self.bytes.len() - 1, entry.file_type()));
            if self.list.len() > MAX_NAMES {
                return Err(Errno::OVERFLOW);
            }
        }
        let bytes = &self.bytes;
        self.list.sort_unstable_by(|a, b| bytes[a.0..a.1].cmp(&bytes[b.0..b.1]));
        Ok(())
    }

    pub(in crate::git) fn name(&self, at: usize) -> Option<&[u8]> {
        self.list.get(at).map(|(start, end, _)| &self.bytes[*start..*end])
    }

    pub(in crate::git) fn c_name(&self, at: usize) -> &CStr {
        let (start, end, _) = self.list[at];
        CStr::from_bytes_with_nul(&self.bytes[start..=end]).expect("ends with its only zero")
    }

    pub(in crate::git) fn find(&self, name: &[u8]) -> Option<usize> {
        self.list.binary_search_by(|(start, end, _)| self.bytes[*start..*end].cmp(name)).ok()
    }
}
