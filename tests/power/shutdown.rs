//! The shutdown of a file system: from then on nothing reaches the disk, and what its log does not
//! hold yet is dropped. The second unsafe file of this tool.
//!
//! # Limitations
//! ext4 and XFS know it; root only.
#![allow(unsafe_code, reason = "ioctl has no safe interface")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// `_IOR('X', 125, u32)`: `EXT4_IOC_SHUTDOWN`, `XFS_IOC_GOINGDOWN`.
const SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
/// Drop what is not in the log.
const NO_LOG_FLUSH: u32 = 2;

/// Cuts the file system at `mount` off from its disk.
pub fn shut_down(mount: &Path) -> io::Result<()> {
    let dir = File::open(mount)?;
    let flags = NO_LOG_FLUSH;
    // SAFETY: the request reads one u32 at the pointer, which outlives the call.
    if unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &raw const flags) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
