//! The calls of fanotify(7) and `open_by_handle_at(2)` that a mark needs, and what the first one
//! tells, taken apart.
//!
//! # Limitations
//! Events with handles and names need Linux 5.9.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use libc::{
    FAN_ATTRIB, FAN_CLOEXEC, FAN_CLOSE_WRITE, FAN_CREATE, FAN_DELETE, FAN_EVENT_INFO_TYPE_DFID,
    FAN_EVENT_INFO_TYPE_DFID_NAME, FAN_EVENT_INFO_TYPE_FID, FAN_MARK_ADD, FAN_MARK_FILESYSTEM,
    FAN_MARK_FLUSH, FAN_MODIFY, FAN_MOVED_FROM, FAN_MOVED_TO, FAN_NONBLOCK, FAN_ONDIR, FAN_OPEN,
    FAN_Q_OVERFLOW, FAN_REPORT_DFID_NAME, FAN_REPORT_FID,
};

/// Everything by which a name, bytes or stat data become others.
const CHANGES: u64 = FAN_CREATE
    | FAN_DELETE
    | FAN_MOVED_FROM
    | FAN_MOVED_TO
    | FAN_MODIFY
    | FAN_CLOSE_WRITE
    | FAN_ATTRIB
    | FAN_ONDIR;

/// What a group is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    /// Every change, by directory and name, and by the file.
    Changes,
    /// Every file that is opened, by the file.
    Opens,
}

/// `struct file_handle`, in units of four bytes: it begins with two numbers of that size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Handle(Vec<u32>);

/// One thing that happened.
#[derive(Debug, Default)]
pub(super) struct Event {
    mask: u64,
    /// The directory, and the name in it; `.` is the directory itself.
    pub(super) place: Option<(Handle, Vec<u8>)>,
    /// The file that it happened to, where that was no change of a directory's names.
    pub(super) file: Option<Handle>,
}

impl Event {
    /// More came than the kernel keeps.
    pub(super) const fn is_overflow(&self) -> bool {
        self.mask & FAN_Q_OVERFLOW != 0
    }

    /// A directory came there, or went.
    pub(super) const fn moves_directory(&self) -> bool {
        self.mask & FAN_ONDIR != 0 && self.mask & (FAN_MOVED_FROM | FAN_MOVED_TO) != 0
    }

    /// A directory was made there, or came there.
    pub(super) const fn brings_directory(&self) -> bool {
        self.mask & FAN_ONDIR != 0 && self.mask & (FAN_CREATE | FAN_MOVED_TO) != 0
    }
}

/// A new group of events, marked for everything on the file system of `dir`.
pub(super) fn mark(dir: BorrowedFd<'_>, told: Told) -> io::Result<OwnedFd> {
    let (names, mask) = match told {
        Told::Changes => (FAN_REPORT_DFID_NAME, CHANGES),
        Told::Opens => (0, FAN_OPEN),
    };
    let flags = FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_FID | names;
    // SAFETY: takes no pointer; returns a new handle that nobody else owns, or -1.
    let group = unsafe { libc::fanotify_init(flags, libc::O_RDONLY.unsigned_abs()) };
    if group < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned it just now.
    let group = unsafe { OwnedFd::from_raw_fd(group) };
    let what = FAN_MARK_ADD | FAN_MARK_FILESYSTEM;
    // SAFETY: both handles are open; without a path the kernel takes the directory itself.
    let marked = unsafe {
        libc::fanotify_mark(group.as_raw_fd(), what, mask, dir.as_raw_fd(), std::ptr::null())
    };
    if marked == 0 { Ok(group) } else { Err(io::Error::last_os_error()) }
}

/// Takes the mark of a group away.
pub(super) fn unmark(group: &OwnedFd) -> io::Result<()> {
    let what = FAN_MARK_FLUSH | FAN_MARK_FILESYSTEM;
    // SAFETY: the handle is open; the kernel reads nothing else for this.
    let done = unsafe {
        libc::fanotify_mark(group.as_raw_fd(), what, 0, libc::AT_FDCWD, std::ptr::null())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens, for looking only, what a handle stands for. `ESTALE`: it is gone.
pub(super) fn open(mount: BorrowedFd<'_>, handle: &Handle) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `Handle`'s are made by `handle` below alone, which checked that as many bytes follow
    // the two numbers as the first of them says, aligned as the structure is; the kernel reads them
    // during the call only, and returns a new handle that nobody else owns, or -1.
    let fd = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), handle.0.as_ptr(), flags)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call above returned it just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What one read gave; `None` where it is not as the manual page has it.
pub(super) fn events(mut bytes: &[u8]) -> Option<Vec<Event>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let length = size(bytes, 0)?;
        let event = bytes.get(..length)?;
        let header = usize::from(u16::from_ne_bytes(event.get(6..8)?.try_into().ok()?));
        let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
        let mut told = Event { mask, ..Event::default() };
        let mut info = event.get(header..).filter(|_| header >= 24)?;
        while !info.is_empty() {
            let length = usize::from(u16::from_ne_bytes(info.get(2..4)?.try_into().ok()?));
            let one = info.get(..length).filter(|one| one.len() >= 20)?;
            match info[0] {
                FAN_EVENT_INFO_TYPE_FID => told.file = Some(handle(one)?.0),
                FAN_EVENT_INFO_TYPE_DFID | FAN_EVENT_INFO_TYPE_DFID_NAME => {
                    let (dir, rest) = handle(one)?;
                    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
                    told.place = Some((dir, rest[..end].to_vec()));
                }
                _ => {}
            }
            info = &info[length..];
        }
        all.push(told);
        bytes = &bytes[length..];
    }
    Some(all)
}

/// The handle in a record, after its header (4 bytes) and the file system's id (8), and what
/// follows it.
fn handle(record: &[u8]) -> Option<(Handle, &[u8])> {
    let length = size(record, 12)?;
    let bytes = record.get(12..20 + length)?;
    let words = bytes.chunks(4).map(|word| {
        let mut whole = [0; 4];
        whole[..word.len()].copy_from_slice(word);
        u32::from_ne_bytes(whole)
    });
    Some((Handle(words.collect()), &record[20 + length..]))
}

fn size(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let length = (20 + handle.len() + name.len()).next_multiple_of(4);
        let mut bytes = vec![kind, 0];
        bytes.extend(u16::try_from(length).expect("short").to_ne_bytes());
        bytes.extend([7; 8]);
        bytes.extend(u32::try_from(handle.len()).expect("short").to_ne_bytes());
        bytes.extend(1_i32.to_ne_bytes());
        bytes.extend(handle);
        bytes.extend(name);
        bytes.resize(length, 0);
        bytes
    }

    fn event(mask: u64, records: &[Vec<u8>]) -> Vec<u8> {
        let records = records.concat();
        let mut bytes = u32::try_from(24 + records.len()).expect("short").to_ne_bytes().to_vec();
        bytes.extend([3, 0]);
        bytes.extend(24_u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(records);
        bytes
    }

    #[test]
    fn takes_apart_what_the_manual_page_says() {
        let bytes = [
            event(FAN_CREATE | FAN_ONDIR, &[record(2, b"12345678", b"name\0")]),
            event(FAN_MODIFY, &[record(2, b"12345678", b"x\0"), record(1, b"abcdef", b"")]),
            event(FAN_Q_OVERFLOW, &[]),
        ];
        let told = events(&bytes.concat()).expect("in order");
        let (dir, name) = told[0].place.as_ref().expect("a place");
        assert_eq!((name.as_slice(), told[0].file.is_none()), (b"name".as_slice(), true));
        assert!(told[0].brings_directory() && !told[1].brings_directory());
        assert_eq!(told[1].place.as_ref().map(|place| &place.0), Some(dir));
        assert_eq!(told[1].file.as_ref().map(|handle| handle.0[0]), Some(6));
        assert_eq!(told.iter().map(Event::is_overflow).collect::<Vec<_>>(), [false, false, true]);
    }

    proptest! {
        #[test]
        fn anything_else_is_no_event(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0_usize..60,
        ) {
            let _ = events(&bytes);
            let whole = event(FAN_MODIFY, &[record(2, b"12345678", b"name\0")]);
            if cut < whole.len() && cut > 0 {
                prop_assert!(events(&whole[..cut]).is_none());
            }
        }
    }
}
