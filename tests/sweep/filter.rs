//! Which system calls change a file, and the seccomp filter that stops exactly these.
//!
//! # Limitations
//! x86-64. Memory that is mapped from a file and written to changes it without a call, and is not
//! seen; worktx maps nothing for writing.

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};

/// How a call names what it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// By a handle, in this argument.
    Fd(usize),
    /// By a path, in this argument.
    Path(usize),
    /// By a handle of a directory and a path, in these arguments.
    At(usize, usize),
    /// By two paths.
    Paths(usize, usize),
    /// By two handles of directories, each with a path.
    Ats(usize, usize, usize, usize),
    /// A path to be opened: only where that may make a file or cut one.
    Open(usize),
    /// As [`Names::Open`], beneath a handle.
    OpenAt(usize, usize),
    /// As [`Names::OpenAt`], its flags in a structure.
    OpenHow(usize, usize, usize),
    /// Nothing: all file systems.
    Everything,
}

/// What a call that fails for want of space or of a disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// It may need space.
    Space,
    /// It frees space, or needs none: a full disk does not refuse it.
    Nothing,
}

/// A call that changes a file.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub number: i64,
    pub name: &'static str,
    pub names: Names,
    pub takes: Takes,
}

const fn call(number: i64, name: &'static str, names: Names, takes: Takes) -> Call {
    Call { number, name, names, takes }
}

/// `ioctl`s that write: clones of a file and of a range.
const FICLONE: u32 = 0x4004_9409;
const FICLONERANGE: u32 = 0x4020_940d;

const SYS_FCHMODAT2: i64 = 452;

/// Every call that changes a file.
pub const CALLS: &[Call] = &{
    use Names::{At, Ats, Everything, Fd, Open, OpenAt, OpenHow, Path, Paths};
    use Takes::{Nothing, Space};
    [
        call(libc::SYS_write, "write", Fd(0), Space),
        call(libc::SYS_pwrite64, "pwrite64", Fd(0), Space),
        call(libc::SYS_writev, "writev", Fd(0), Space),
        call(libc::SYS_pwritev, "pwritev", Fd(0), Space),
        call(libc::SYS_pwritev2, "pwritev2", Fd(0), Space),
        call(libc::SYS_sendfile, "sendfile", Fd(0), Space),
        call(libc::SYS_splice, "splice", Fd(2), Space),
        call(libc::SYS_copy_file_range, "copy_file_range", Fd(2), Space),
        call(libc::SYS_ioctl, "ioctl", Fd(0), Space),
        call(libc::SYS_fallocate, "fallocate", Fd(0), Space),
        call(libc::SYS_ftruncate, "ftruncate", Fd(0), Nothing),
        call(libc::SYS_truncate, "truncate", Path(0), Nothing),
        call(libc::SYS_fsync, "fsync", Fd(0), Space),
        call(libc::SYS_fdatasync, "fdatasync", Fd(0), Space),
        call(libc::SYS_sync_file_range, "sync_file_range", Fd(0), Space),
        call(libc::SYS_syncfs, "syncfs", Fd(0), Space),
        call(libc::SYS_sync, "sync", Everything, Space),
        call(libc::SYS_open, "open", Open(0), Space),
        call(libc::SYS_creat, "creat", Open(0), Space),
        call(libc::SYS_openat, "openat", OpenAt(0, 1), Space),
        call(libc::SYS_openat2, "openat2", OpenHow(0, 1, 2), Space),
        call(libc::SYS_rename, "rename", Paths(0, 1), Space),
        call(libc::SYS_renameat, "renameat", Ats(0, 1, 2, 3), Space),
        call(libc::SYS_renameat2, "renameat2", Ats(0, 1, 2, 3), Space),
        call(libc::SYS_link, "link", Paths(0, 1), Space),
        call(libc::SYS_linkat, "linkat", Ats(0, 1, 2, 3), Space),
        call(libc::SYS_symlink, "symlink", Path(1), Space),
        call(libc::SYS_symlinkat, "symlinkat", At(1, 2), Space),
        call(libc::SYS_unlink, "unlink", Path(0), Nothing),
        call(libc::SYS_unlinkat, "unlinkat", At(0, 1), Nothing),
        call(libc::SYS_mkdir, "mkdir", Path(0), Space),
        call(libc::SYS_mkdirat, "mkdirat", At(0, 1), Space),
        call(libc::SYS_rmdir, "rmdir", Path(0), Nothing),
        call(libc::SYS_mknod, "mknod", Path(0), Space),
        call(libc::SYS_mknodat, "mknodat", At(0, 1), Space),
        call(libc::SYS_chmod, "chmod", Path(0), Nothing),
        call(libc::SYS_fchmod, "fchmod", Fd(0), Nothing),
        call(libc::SYS_fchmodat, "fchmodat", At(0, 1), Nothing),
        call(SYS_FCHMODAT2, "fchmodat2", At(0, 1), Nothing),
        call(libc::SYS_chown, "chown", Path(0), Nothing),
        call(libc::SYS_lchown, "lchown", Path(0), Nothing),
        call(libc::SYS_fchown, "fchown", Fd(0), Nothing),
        call(libc::SYS_fchownat, "fchownat", At(0, 1), Nothing),
        call(libc::SYS_utime, "utime", Path(0), Nothing),
        call(libc::SYS_utimes, "utimes", Path(0), Nothing),
        call(libc::SYS_futimesat, "futimesat", At(0, 1), Nothing),
        call(libc::SYS_utimensat, "utimensat", At(0, 1), Nothing),
        call(libc::SYS_setxattr, "setxattr", Path(0), Space),
        call(libc::SYS_lsetxattr, "lsetxattr", Path(0), Space),
        call(libc::SYS_fsetxattr, "fsetxattr", Fd(0), Space),
        call(libc::SYS_removexattr, "removexattr", Path(0), Nothing),
        call(libc::SYS_lremovexattr, "lremovexattr", Path(0), Nothing),
        call(libc::SYS_fremovexattr, "fremovexattr", Fd(0), Nothing),
    ]
};

/// The call of this number.
pub fn by_number(number: u64) -> Option<&'static Call> {
    CALLS.iter().find(|call| u64::try_from(call.number) == Ok(number))
}

/// Flags of `open` that make a file or cut one.
pub const MAKES: u32 =
    (libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u32;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const X86_64: u32 = 0xc000_003e;

/// The low half of an argument in `seccomp_data`.
const fn arg(at: u32) -> u32 {
    16 + 8 * at
}

const fn step(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

const fn load(offset: u32) -> sock_filter {
    step(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

const fn give(what: u32) -> sock_filter {
    step(BPF_RET | BPF_K, what, 0, 0)
}

/// The filter: what changes a file is told to the tracer, all else goes through. `prctl` may not
/// make a process untraceable: the supervisor does so against its turn, and the tracer would not
/// see its handles any more.
pub fn program() -> Vec<sock_filter> {
    const EQ: u32 = BPF_JMP | BPF_JEQ | BPF_K;
    const ANY: u32 = BPF_JMP | BPF_JSET | BPF_K;
    let allow = give(libc::SECCOMP_RET_ALLOW);
    let trace = give(libc::SECCOMP_RET_TRACE);
    let mut all = vec![load(ARCH), step(EQ, X86_64, 1, 0), allow, load(NUMBER)];
    // Each block leaves the number loaded for the next one.
    let dumpable = libc::PR_SET_DUMPABLE as u32;
    all.extend([
        step(EQ, libc::SYS_prctl as u32, 0, 4),
        load(arg(0)),
        step(EQ, dumpable, 0, 1),
        give(libc::SECCOMP_RET_ERRNO),
        allow,
    ]);
    for call in CALLS {
        let number = call.number as u32;
        match call.names {
            _ if call.number == libc::SYS_ioctl => all.extend([
                step(EQ, number, 0, 5),
                load(arg(1)),
                step(EQ, FICLONE, 1, 0),
                step(EQ, FICLONERANGE, 0, 1),
                trace,
                allow,
            ]),
            Names::Open(path) if call.number == libc::SYS_open => all.extend([
                step(EQ, number, 0, 4),
                load(arg(path as u32 + 1)),
                step(ANY, MAKES, 0, 1),
                trace,
                allow,
            ]),
            Names::OpenAt(_, path) => all.extend([
                step(EQ, number, 0, 4),
                load(arg(path as u32 + 1)),
                step(ANY, MAKES, 0, 1),
                trace,
                allow,
            ]),
            _ => all.extend([step(EQ, number, 0, 1), trace]),
        }
    }
    all.push(allow);
    all
}
