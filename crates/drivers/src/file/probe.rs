//! What the storage under a descriptor is, asked for and never found out by writing.

#![expect(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use block::driver::owned::ALIGNMENT;
use block::{ImageId, OwnedBuffer};
use rustix::fs::{AtFlags, StatxFlags};

const BLKROGET: libc::Ioctl = 0x125e;
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

/// Where the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In a regular file.
    Regular,
    /// On a block device.
    Block,
    /// In anything else: not for us.
    Other,
}

/// What [`stat`] tells.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// File type.
    pub kind: Kind,
    /// Length in bytes of a regular file.
    pub size: u64,
    /// Block size of the filesystem, a power of two from 512 to 64 KiB.
    pub block_size: u32,
    /// Which file it is.
    pub image: ImageId,
    /// The device itself, for a block device.
    device: libc::dev_t,
}

impl Stat {
    /// Major and minor number of a block device.
    pub fn device_number(&self) -> (u32, u32) {
        (libc::major(self.device), libc::minor(self.device))
    }

    /// The number of what hangs as a whole: a block device, or the file system of a file.
    pub fn storage(&self) -> u64 {
        match self.kind {
            Kind::Block => self.device,
            _ => self.image.device,
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// fstat(2).
pub fn stat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the descriptor is open, and the call fills the structure if it succeeds.
    check(unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: it succeeded.
    let stat = unsafe { stat.assume_init() };
    let kind = match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => Kind::Regular,
        libc::S_IFBLK => Kind::Block,
        _ => Kind::Other,
    };
    Ok(Stat {
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        block_size: power_of_two(u32::try_from(stat.st_blksize).unwrap_or(4096)),
        image: ImageId {
            device: stat.st_dev,
            inode: stat.st_ino,
        },
        device: stat.st_rdev,
    })
}

fn power_of_two(size: u32) -> u32 {
    match size {
        0 => 4096,
        // A size that is no power of two has one as its lowest bit.
        _ => (1 << size.trailing_zeros()).clamp(512, 65536),
    }
}

/// The largest power of two of 32 bits that divides a number; 0 of 0.
pub fn power_of_two_in(number: u64) -> u32 {
    match number.trailing_zeros() {
        64 => 0,
        zeros => 1 << zeros.min(31),
    }
}

/// Whether a block device refuses writes, although it can be opened for writing.
pub fn is_write_protected(fd: BorrowedFd<'_>) -> bool {
    let mut protected: libc::c_int = 0;
    // SAFETY: the ioctl stores one int.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), BLKROGET, &raw mut protected) };
    // Other files do not know the ioctl.
    result != -1 && protected != 0
}

/// Length in bytes now.
pub fn length(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let stat = stat(fd)?;
    if stat.kind == Kind::Regular {
        return Ok(stat.size);
    }
    device_size(fd)
}

/// Length in bytes of a block device now. Does not wait for the device.
pub fn device_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size: u64 = 0;
    // SAFETY: the ioctl stores one u64.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// Logical block size of a block device in bytes.
pub fn logical_block_size(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the ioctl stores one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKSSZGET, &raw mut size) })?;
    Ok(power_of_two(u32::try_from(size).unwrap_or(512)))
}

/// Bytes allocated to the file, as the kernel knows them; `ask_server`: as the server does. A local file
/// system knows. A question that has reached a FUSE server which does not answer keeps the whole process,
/// whatever kills it, and with it the image's lock; a thread that waits for NFS can be killed.
pub fn allocated(fd: BorrowedFd<'_>, ask_server: bool) -> io::Result<u64> {
    let flags = match ask_server {
        true => AtFlags::EMPTY_PATH,
        false => AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
    };
    let stat = rustix::fs::statx(fd, c"", flags, StatxFlags::BLOCKS)?;
    Ok(stat.stx_blocks.saturating_mul(512))
}

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
const FS_XFLAG_EXTSIZE: u32 = 0x800;

/// The kernel's `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct FsXAttr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// In pieces of how many bytes the file system allocates the file, if somebody has told it so. XFS alone is
/// asked: others have no such thing, or have a server who would be asked.
pub fn extent_size_hint(fd: BorrowedFd<'_>, stat: &Stat) -> Option<u32> {
    let file_system = rustix::fs::fstatfs(fd).ok()?;
    if stat.kind != Kind::Regular || file_system.f_type != libc::XFS_SUPER_MAGIC {
        return None;
    }
    let mut attributes = FsXAttr::default();
    // SAFETY: the descriptor is open, and the structure is the one that the call fills.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    (asked == 0 && attributes.xflags & FS_XFLAG_EXTSIZE != 0).then_some(attributes.extsize)
}

/// Tells the file system in pieces of how many bytes it is to allocate an empty file, if it is to be told.
///
/// # Errors
/// The system's. Most file systems do not have that.
pub fn set_extent_size_hint(fd: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let mut attributes = FsXAttr::default();
    // SAFETY: the descriptor is open, and the structure is the one that the call fills.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.xflags |= FS_XFLAG_EXTSIZE;
    attributes.extsize = bytes;
    // SAFETY: the descriptor is open, and the structure is the one that the call reads.
    match unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const CIFS_MAGIC: libc::__fsword_t = 0xff53_4d42;
const SMB2_MAGIC: libc::__fsword_t = 0xfe53_4d42;
const CEPH_MAGIC: libc::__fsword_t = 0x00c3_6400;

/// Whether the file lies on a server that may be asked with [`allocated`].
pub fn has_server(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|statfs| {
        matches!(
            statfs.f_type,
            libc::NFS_SUPER_MAGIC | CIFS_MAGIC | SMB2_MAGIC | CEPH_MAGIC
        )
    })
}

const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6;

/// Whether the file lies in memory: what it cannot take it refuses at once, even buffered.
pub fn in_memory(fd: BorrowedFd<'_>, stat: &Stat) -> bool {
    // The node of a block device lies in a tmpfs, too.
    stat.kind == Kind::Regular
        && rustix::fs::fstatfs(fd)
            .is_ok_and(|statfs| matches!(statfs.f_type, libc::TMPFS_MAGIC | RAMFS_MAGIC))
}

/// What O_DIRECT asks of requests, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Of offset and length.
    pub request: u32,
    /// Of buffers.
    pub memory: u32,
}

/// What O_DIRECT asks of requests to this descriptor, which is open with it.
pub fn direct_alignment(fd: BorrowedFd<'_>, stat: &Stat) -> io::Result<DirectAlignment> {
    if in_memory(fd, stat) {
        return Ok(DirectAlignment {
            request: 1,
            memory: 1,
        });
    }
    if let Some(told) = statx_alignment(fd)? {
        return Ok(told);
    }
    if stat.kind == Kind::Block {
        let request = logical_block_size(fd)?;
        return Ok(DirectAlignment {
            request,
            memory: request,
        });
    }
    let request = probe_by_reading(fd)?;
    Ok(DirectAlignment {
        request,
        memory: request,
    })
}

/// What the kernel says (Linux 6.1, filesystem by filesystem).
fn statx_alignment(fd: BorrowedFd<'_>) -> io::Result<Option<DirectAlignment>> {
    let mut statx = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, and the call fills the structure.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            statx.as_mut_ptr(),
        )
    };
    if check(result).is_err() {
        return Ok(None);
    }
    // SAFETY: all zeroes is a valid value, and the call has only stored into it.
    let statx = unsafe { statx.assume_init() };
    if statx.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(None);
    }
    if statx.stx_dio_offset_align == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(Some(DirectAlignment {
        request: statx.stx_dio_offset_align.next_power_of_two(),
        memory: statx.stx_dio_mem_align.max(1).next_power_of_two(),
    }))
}

/// The smallest length that a read is accepted with. Only a read that yields data says something:
/// at the end of the file and in holes some filesystems do not look at the alignment.
fn probe_by_reading(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let fallback = 4096;
    let Some(start) = seek(fd, 0, libc::SEEK_DATA)? else {
        return Ok(fallback);
    };
    let end = match seek(fd, start, libc::SEEK_HOLE)? {
        Some(end) => end,
        None => length(fd)?,
    };
    let mut buffer = OwnedBuffer::new(2 * ALIGNMENT)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    for size in [512u32, 1024, 2048] {
        let at = start.next_multiple_of(ALIGNMENT as u64) + u64::from(size);
        if at + u64::from(size) > end {
            break;
        }
        let place = size as usize..2 * size as usize;
        if rustix::io::pread(fd, &mut buffer[place], at) == Ok(size as usize) {
            return Ok(size);
        }
    }
    Ok(fallback)
}

/// What sysfs says about the queue of a block device.
pub fn queue_file(stat: &Stat, name: &str) -> Option<String> {
    let (major, minor) = stat.device_number();
    let base = format!("/sys/dev/block/{major}:{minor}");
    // A partition has no queue of its own.
    fs::read_to_string(format!("{base}/queue/{name}"))
        .or_else(|_| fs::read_to_string(format!("{base}/../queue/{name}")))
        .ok()
}

/// How space can be given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deallocates {
    /// By a discard.
    pub discard: bool,
    /// By zeroing.
    pub zeroes: bool,
}

/// How the storage gives space back.
///
/// A hole far beyond the end of a file changes nothing, but tells whether the filesystem knows how: only
/// for whoever keeps others from making it longer. For a block device the limits of its queue tell.
pub fn deallocates(fd: BorrowedFd<'_>, stat: &Stat) -> Deallocates {
    match stat.kind {
        Kind::Regular => {
            let beyond = stat.size.next_multiple_of(1 << 20).saturating_add(1 << 20);
            let punched = i64::try_from(beyond).is_ok_and(|beyond| {
                // SAFETY: the descriptor is open; no memory is involved.
                check(unsafe {
                    libc::fallocate(
                        fd.as_raw_fd(),
                        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                        beyond,
                        4096,
                    )
                })
                .is_ok()
            });
            Deallocates {
                discard: punched,
                zeroes: punched,
            }
        }
        Kind::Block => {
            let limit =
                |name: &str| queue_file(stat, name).is_some_and(|bytes| bytes.trim() != "0");
            let discard = limit("discard_max_bytes");
            Deallocates {
                discard,
                zeroes: discard && limit("write_zeroes_max_bytes"),
            }
        }
        Kind::Other => Deallocates::default(),
    }
}

/// Where the next data or hole begins; none if there is no more.
pub fn seek(fd: BorrowedFd<'_>, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    #[cfg(test)]
    tests::SEEKS.set(tests::SEEKS.get() + 1);
    let from = i64::try_from(from).map_err(io::Error::other)?;
    // SAFETY: no memory is involved, and nobody uses the position of the descriptor.
    let found = unsafe { libc::lseek(fd.as_raw_fd(), from, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            // Filesystems that do not know answer as if all were data.
            error if error.raw_os_error() == Some(libc::EINVAL) => {
                Ok((whence == libc::SEEK_DATA).then(|| u64::try_from(from).unwrap_or(0)))
            }
            error => Err(error),
        },
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::cell::Cell;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    thread_local! {
        /// How often this thread has asked where data is.
        pub static SEEKS: Cell<u32> = const { Cell::new(0) };
    }

    /// An image in many pieces took seconds to open: 16,385 seeks for 8,192 extents, of which the first
    /// was looked at.
    #[test]
    fn one_extent_is_enough_to_probe() {
        let file = tempfile::tempfile().expect("a temporary file");
        for piece in 0..64 {
            file.write_all_at(&[1; 4096], piece << 16).expect("space");
        }
        SEEKS.set(0);
        probe_by_reading(file.as_fd()).expect("readable");
        assert_eq!(SEEKS.get(), 2);
    }

    #[test]
    fn block_sizes_are_powers_of_two_in_range() {
        for (size, expected) in [
            (0, 4096),
            (1, 512),
            (512, 512),
            (4096, 4096),
            (131_072, 65536),
            (12288, 4096),
        ] {
            assert_eq!(power_of_two(size), expected);
        }
    }

    #[test]
    fn powers_of_two_in_numbers() {
        for (number, expected) in [
            (0, 0),
            (1, 1),
            (4096, 4096),
            (192 << 10, 64 << 10),
            (1 << 40, 1 << 31),
        ] {
            assert_eq!(power_of_two_in(number), expected);
        }
    }

    #[test]
    fn probing_changes_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().write_all_at(&[7; 10_000], 0).expect("space");
        let before = stat(file.as_file().as_fd()).expect("stat");
        let space = || allocated(file.as_file().as_fd(), false).expect("statx");
        let used = space();
        let found = deallocates(file.as_file().as_fd(), &before);
        assert!(found.discard && found.zeroes);
        let reader = File::open(file.path()).expect("it exists");
        let request = probe_by_reading(reader.as_fd()).expect("readable");
        assert!(request.is_power_of_two());
        let after = stat(file.as_file().as_fd()).expect("stat");
        assert_eq!((before.size, used), (after.size, space()));
        let content = fs::read(file.path()).expect("readable");
        assert_eq!(content, [7; 10_000]);
    }
}
