//! A file system of one file that says what it is told to, by FUSE: what no real one does on demand.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::mount::MountPoint;

/// An operation that can fail or hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FuseOp {
    /// open(2).
    Open,
    /// ftruncate(2).
    SetAttr,
    /// read(2).
    Read,
    /// write(2).
    Write,
    /// fsync(2).
    Fsync,
    /// fallocate(2).
    Fallocate,
    /// fstat(2).
    GetAttr,
    /// close(2).
    Flush,
}

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const FALLOCATE: u32 = 43;
/// FORGET, INTERRUPT, BATCH_FORGET: nobody waits for an answer.
const UNANSWERED: [u32; 3] = [2, 36, 42];

const HEADER: usize = 40;
const WRITE_MAX: u32 = 1 << 20;
const ROOT: u64 = 1;
const FILE: u64 = 2;

fn op_of(code: u32) -> Option<FuseOp> {
    match code {
        OPEN => Some(FuseOp::Open),
        SETATTR => Some(FuseOp::SetAttr),
        READ => Some(FuseOp::Read),
        WRITE => Some(FuseOp::Write),
        FSYNC => Some(FuseOp::Fsync),
        FALLOCATE => Some(FuseOp::Fallocate),
        GETATTR => Some(FuseOp::GetAttr),
        FLUSH => Some(FuseOp::Flush),
        _ => None,
    }
}

/// What becomes of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuseFailure {
    /// It fails with this errno (positive), and nothing of it is done.
    Errno(i32),
    /// A read or a write moves so many bytes at most. Of no consequence for others.
    Short(usize),
}

/// A read, write, fsync or fallocate that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseCall {
    /// What.
    pub op: FuseOp,
    /// First byte.
    pub offset: u64,
    /// Length in bytes, as it was asked for.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    data: Vec<u8>,
    /// What is opened without O_DIRECT goes through the page cache.
    cached: bool,
    /// What O_DIRECT asks of offsets and lengths, less 1.
    direct_mask: u64,
    /// Those of a file's data since it was last reset.
    calls: Vec<FuseCall>,
    /// What becomes of the call with this number, from 0.
    failure: Option<(usize, FuseFailure)>,
    errnos: HashMap<FuseOp, i32>,
    hanging: HashSet<FuseOp>,
    counts: HashMap<FuseOp, u64>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The file system, unmounted on drop. Needs root.
#[derive(Debug)]
pub struct FuseFile {
    mount: MountPoint,
    shared: Arc<Shared>,
}

impl FuseFile {
    /// Mounts one whose file has `bytes`, all zero. Nothing of it goes through the page cache.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn new(bytes: usize) -> Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.context("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let mount = MountPoint::new(Path::new("standfast-test"), "fuse", &options)?;
        let shared = Arc::new(Shared::default());
        shared.lock().data = vec![0; bytes];
        let served = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("fuse".to_owned())
            .spawn(move || serve(&Arc::new(device), &served))?;
        Ok(Self { mount, shared })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.mount.path().join("file")
    }

    /// From now on this operation fails with `errno` (positive); 0: it does not.
    pub fn fail(&self, op: FuseOp, errno: i32) {
        self.shared.lock().errnos.insert(op, errno);
    }

    /// Whether this operation hangs from now on; what hangs goes on when it does not.
    pub fn hang(&self, op: FuseOp, hangs: bool) {
        let mut state = self.shared.lock();
        if hangs {
            state.hanging.insert(op);
        } else {
            state.hanging.remove(&op);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Whether what is opened from now on goes through the page cache, if it is opened without O_DIRECT.
    ///
    /// If it does not (FOPEN_DIRECT_IO), Linux (6.18 at least) does the rest of a short transfer through
    /// io_uring at the offset of its beginning: short reads bring wrong data, and with O_DIRECT
    /// short writes go to a wrong place. System calls do not, and FUSE goes by them unless a test asks for
    /// a ring.
    pub fn cache(&self, cached: bool) {
        self.shared.lock().cached = cached;
    }

    /// O_DIRECT takes only offsets and lengths that are multiples of this (a power of two), as on a disk.
    pub fn align_direct(&self, bytes: u64) {
        self.shared.lock().direct_mask = bytes - 1;
    }

    /// The file has this content now; calls are counted from 0 again, and the one with the number of
    /// `failure` fails, once.
    pub fn reset(&self, data: Vec<u8>, failure: Option<(usize, FuseFailure)>) {
        let mut state = self.shared.lock();
        state.data = data;
        state.calls.clear();
        state.failure = failure;
    }

    /// What the file has now.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.shared.lock().data.clone()
    }

    /// The calls since the last [`Self::reset`].
    #[must_use]
    pub fn calls(&self) -> Vec<FuseCall> {
        self.shared.lock().calls.clone()
    }

    /// How often the operation was asked for.
    #[must_use]
    pub fn count(&self, op: FuseOp) -> u64 {
        self.shared.lock().counts.get(&op).copied().unwrap_or(0)
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.hanging.clear();
        drop(state);
        self.shared.changed.notify_all();
        // What waits or comes from now on ends with the mount.
    }
}

fn serve(device: &Arc<File>, shared: &Arc<Shared>) {
    let mut buffer = vec![0; WRITE_MAX as usize + 65536];
    loop {
        let bytes = match (&**device).read(&mut buffer) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A request that was given up before it was read.
            Err(error) if error.raw_os_error() == Some(2) => continue,
            // Unmounted.
            Err(_) => return,
        };
        let message = buffer[..bytes].to_vec();
        let (device, shared) = (Arc::clone(device), Arc::clone(shared));
        // One each, because some hang. Without a thread nobody answers, and the test says so.
        let _ = std::thread::Builder::new()
            .name("fuse-request".to_owned())
            .spawn(move || {
                if let Some(reply) = answer(&message, &shared) {
                    // Nobody waits for it any more.
                    let _ = (&*device).write(&reply);
                }
            });
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok());
    u32::from_ne_bytes(field.unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes
        .get(at..at + 8)
        .and_then(|field| field.try_into().ok());
    u64::from_ne_bytes(field.unwrap_or_default())
}

/// The reply, with its header.
fn answer(message: &[u8], shared: &Shared) -> Option<Vec<u8>> {
    let (code, unique, inode) = (u32_at(message, 4), u64_at(message, 8), u64_at(message, 16));
    if UNANSWERED.contains(&code) {
        return None;
    }
    let body = message.get(HEADER..).unwrap_or_default();
    let result = execute(code, inode, body, shared);
    let (errno, data) = match result {
        Ok(data) => (0, data),
        Err(errno) => (errno, Vec::new()),
    };
    let length = u32::try_from(16 + data.len()).unwrap_or(u32::MAX);
    let mut reply = length.to_ne_bytes().to_vec();
    reply.extend((-errno).to_ne_bytes());
    reply.extend(unique.to_ne_bytes());
    reply.extend(data);
    Some(reply)
}

fn execute(code: u32, inode: u64, body: &[u8], shared: &Shared) -> Result<Vec<u8>, i32> {
    let mut state = shared.lock();
    if let Some(op) = op_of(code) {
        *state.counts.entry(op).or_default() += 1;
        while state.hanging.contains(&op) {
            shared.changed.wait(&mut state);
        }
        match state.errnos.get(&op) {
            None | Some(0) => {}
            Some(&errno) => return Err(errno),
        }
    }
    let limit = note_call(code, body, &mut state)?;
    let size = state.data.len();
    // The part of the file that a range has.
    let range = |at: usize, length: u64| {
        let start = usize::try_from(u64_at(body, at)).map_or(size, |at| at.min(size));
        let length = usize::try_from(length).unwrap_or(size);
        start..start.saturating_add(length).min(size)
    };
    Ok(match code {
        INIT => words(&[7, 31, 0, 1 << 5])
            .into_iter()
            .chain([12, 10].map(u16::to_ne_bytes).concat())
            .chain(words(&[WRITE_MAX, 1, 256, 0]))
            .chain([0; 28])
            .collect(),
        LOOKUP if body == b"file\0" => {
            let mut entry = [FILE, 0, 1, 0].map(u64::to_ne_bytes).concat();
            entry.extend(words(&[0, 0]));
            entry.extend(attributes(FILE, size));
            entry
        }
        // ENOENT.
        LOOKUP => return Err(2),
        GETATTR | SETATTR => {
            // FATTR_SIZE.
            if code == SETATTR && u32_at(body, 0) & 8 != 0 {
                let size = usize::try_from(u64_at(body, 16)).unwrap_or(0);
                state.data.resize(size, 0);
            }
            let size = state.data.len();
            let mut reply = 0_u64.to_ne_bytes().to_vec();
            reply.extend(words(&[0, 0]));
            reply.extend(attributes(inode, size));
            reply
        }
        OPEN | OPENDIR => {
            let mut reply = 1_u64.to_ne_bytes().to_vec();
            // FOPEN_DIRECT_IO.
            reply.extend(words(&[u32::from(!state.cached), 0]));
            reply
        }
        READ => state.data[range(8, u64::from(u32_at(body, 16)).min(limit))].to_vec(),
        WRITE => {
            let range = range(8, u64::from(u32_at(body, 16)).min(limit));
            let data = body.get(HEADER..HEADER + range.len()).unwrap_or_default();
            let written = u32::try_from(data.len()).unwrap_or(0);
            state.data[range.start..range.start + data.len()].copy_from_slice(data);
            words(&[written, 0])
        }
        FALLOCATE => {
            let range = range(8, u64_at(body, 16));
            state.data[range].fill(0);
            Vec::new()
        }
        FSYNC | FLUSH | RELEASE | RELEASEDIR => Vec::new(),
        // ENOSYS.
        _ => return Err(38),
    })
}

/// Takes note of a call, and says how many bytes it may move.
fn note_call(code: u32, body: &[u8], state: &mut State) -> Result<u64, i32> {
    const EINVAL: i32 = 22;
    let (op, offset, bytes) = match code {
        READ => (FuseOp::Read, u64_at(body, 8), u64::from(u32_at(body, 16))),
        WRITE => (FuseOp::Write, u64_at(body, 8), u64::from(u32_at(body, 16))),
        FALLOCATE => (FuseOp::Fallocate, u64_at(body, 8), u64_at(body, 16)),
        FSYNC => (FuseOp::Fsync, 0, 0),
        _ => return Ok(u64::MAX),
    };
    // The flags of the descriptor.
    let flags = if code == READ || code == WRITE {
        u32_at(body, 32)
    } else {
        0
    };
    let is_direct = flags & rustix::fs::OFlags::DIRECT.bits() != 0;
    if is_direct && (offset | bytes) & state.direct_mask != 0 {
        return Err(EINVAL);
    }
    let number = state.calls.len();
    state.calls.push(FuseCall { op, offset, bytes });
    match state.failure {
        Some((at, FuseFailure::Errno(errno))) if at == number => Err(errno),
        Some((at, FuseFailure::Short(bytes))) if at == number => Ok(bytes as u64),
        _ => Ok(u64::MAX),
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn attributes(inode: u64, size: usize) -> Vec<u8> {
    let (mode, size) = match inode {
        ROOT => (0o40755, 0),
        _ => (0o100_644, size as u64),
    };
    let mut attributes = [inode, size, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
    attributes.extend(words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]));
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn does_as_it_is_told() {
        let fuse = FuseFile::new(1 << 20).unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .open(fuse.path())
            .unwrap();
        file.write_all_at(&[7; 9000], 4000).unwrap();
        let mut data = vec![0; 9002];
        file.read_exact_at(&mut data, 3999).unwrap();
        assert!(data[0] == 0 && data[9001] == 0 && data[1..9001] == [7; 9000]);
        fuse.fail(FuseOp::Write, 28);
        let error = file.write_all_at(&[1; 512], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(28));
        fuse.fail(FuseOp::Write, 0);
        fuse.hang(FuseOp::Read, true);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| file.read_exact_at(&mut [0; 512], 0));
            while fuse.count(FuseOp::Read) < 2 {
                std::thread::yield_now();
            }
            assert!(!reader.is_finished());
            fuse.hang(FuseOp::Read, false);
            reader.join().unwrap().unwrap();
        });
    }

    /// Threads that closed such a file asked for it when the thread that served it had ended with the
    /// test's process: it never went away, and whoever waited for it neither.
    #[test]
    fn who_comes_after_its_end_does_not_wait() {
        let fuse = FuseFile::new(4096).unwrap();
        let file = File::open(fuse.path()).unwrap();
        let second = File::open(fuse.path()).unwrap();
        fuse.hang(FuseOp::Flush, true);
        let closer = std::thread::spawn(move || drop(file));
        while fuse.count(FuseOp::Flush) == 0 {
            std::thread::yield_now();
        }
        drop(fuse);
        closer.join().unwrap();
        let read = second.read_at(&mut [0; 512], 0);
        assert_eq!(read.unwrap_err().raw_os_error(), Some(107), "ENOTCONN");
    }
}
