//! The file that [`SavedState`] survives in: two slots, written in turn, in place.
//!
//! The file has its full length from the beginning, so a full file system does not matter later. A
//! write goes to the slot that does not hold the newest state; if it is cut short, the checksum of
//! that slot says so and the other one counts. Nothing is synced: a state is good for the boot that
//! it was written in, and as long as that lasts the page cache does. After a power failure no
//! client is left that could hand anything back.
//!
//! A slot begins with a header, little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | `STNDFAST` |
//! | 8 | 8 | generation: 1, 2, ... over both slots; the greater one is newer |
//! | 16 | 4 | length of the payload in bytes |
//! | 20 | 4 | CRC-32C of the first 20 bytes and the payload |
//!
//! The payload follows: the JSON of [`SavedState::encode`].

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::persist::json::DecodeError;
use crate::persist::saved::{SavedBackend, SavedState};

/// The name of the file in its directory.
pub const FILE_NAME: &str = "standfastd.state";

const MAGIC: &[u8; 8] = b"STNDFAST";
const HEADER_BYTES: usize = 24;
/// Where the second slot begins, in bytes. Enough for some hundred exports.
pub const SLOT_BYTES: usize = 256 << 10;
const FILE_BYTES: usize = 2 * SLOT_BYTES;
/// The longest payload.
const PAYLOAD_BYTES_MAX: usize = SLOT_BYTES - HEADER_BYTES;

/// Why there is no state file.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// Another daemon has it.
    #[error(
        "the state directory '{}' is in use by another daemon; end it, or give each daemon a \
         directory of its own",
        .0.display()
    )]
    InUse(PathBuf),
    /// The file system refuses: a daemon can do without.
    #[error("cannot {what} '{}': {source}", .path.display())]
    Unusable {
        /// What was tried.
        what: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a file holds no state.
#[derive(Debug, thiserror::Error)]
pub enum Corrupt {
    /// No slot is whole.
    #[error("neither of its two copies is whole")]
    Slots,
    /// The newest copy is whole, but no state.
    #[error("its content is not understood: {0}")]
    Content(#[from] DecodeError),
}

/// The newest state of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// How often the file has been written.
    pub generation: u64,
    /// The boot that the state belongs to.
    pub boot_id: String,
    /// The state.
    pub state: SavedState,
}

/// What was found in the file.
#[derive(Debug)]
pub enum Found {
    /// It is new.
    Nothing,
    /// The state of a daemon of this boot.
    State(SavedState),
    /// A state from before the machine was started.
    OtherBoot,
    /// Nothing that is understood.
    Corrupt(Corrupt),
}

/// The newest state in the content of a file; none if nothing has ever been written. Total: any
/// bytes are a state, nothing, or an error.
///
/// # Errors
/// If there is something, but no state.
pub fn parse(content: &[u8]) -> Result<Option<Stored>, Corrupt> {
    let Some((generation, payload)) = newest(content) else {
        let written = content.iter().any(|&byte| byte != 0);
        return if written {
            Err(Corrupt::Slots)
        } else {
            Ok(None)
        };
    };
    let (state, boot_id) = SavedState::decode(payload)?;
    Ok(Some(Stored {
        generation,
        boot_id,
        state,
    }))
}

/// Generation and payload of the newer slot of those that are whole.
fn newest(content: &[u8]) -> Option<(u64, &[u8])> {
    let slots = [0, SLOT_BYTES].map(|start| content.get(start..).unwrap_or_default());
    slots.into_iter().filter_map(open_slot).max()
}

/// Generation and payload of a slot that is whole.
fn open_slot(slot: &[u8]) -> Option<(u64, &[u8])> {
    let (signed, rest) = slot.split_at_checked(20)?;
    let (magic, numbers) = signed.split_at_checked(8)?;
    let (generation, bytes) = numbers.split_at_checked(8)?;
    let (sum, rest) = rest.split_at_checked(4)?;
    let generation = u64::from_le_bytes(generation.try_into().ok()?);
    let bytes = u32::from_le_bytes(bytes.try_into().ok()?);
    let bytes = usize::try_from(bytes).ok()?;
    let payload = rest.get(..bytes).filter(|_| bytes <= PAYLOAD_BYTES_MAX)?;
    let whole = magic == MAGIC && sum == checksum(signed, payload).to_le_bytes();
    whole.then_some((generation, payload))
}

/// The bytes of a slot with this content, to lie at a multiple of [`SLOT_BYTES`].
///
/// # Errors
/// If the payload is too long.
pub fn seal_slot(generation: u64, payload: &[u8]) -> io::Result<Vec<u8>> {
    let bytes = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= PAYLOAD_BYTES_MAX);
    let bytes = bytes.ok_or_else(|| {
        io::Error::other(format!(
            "the state has {} bytes, the file has room for {PAYLOAD_BYTES_MAX}: use fewer exports \
             per daemon",
            payload.len()
        ))
    })?;
    let mut slot = Vec::with_capacity(HEADER_BYTES + payload.len());
    slot.extend_from_slice(MAGIC);
    slot.extend_from_slice(&generation.to_le_bytes());
    slot.extend_from_slice(&bytes.to_le_bytes());
    let sum = checksum(&slot, payload);
    slot.extend_from_slice(&sum.to_le_bytes());
    slot.extend_from_slice(payload);
    Ok(slot)
}

/// The id of this boot of the machine.
///
/// # Errors
/// If the kernel does not say.
pub fn boot_id() -> io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// The file, locked: it is this daemon's as long as this exists.
#[derive(Debug)]
pub struct StateFile {
    file: File,
    path: PathBuf,
    boot_id: String,
    generation: u64,
}

impl StateFile {
    /// Opens the file in `dir`, or makes it (mode 0600) and the directory (mode 0700), locks it, and
    /// reads what a former daemon has left. Only a state of the boot `boot_id` counts, and what is
    /// written will be one.
    ///
    /// # Errors
    /// [`StateFileError::InUse`] if another daemon has it, else what the system says.
    pub fn open(dir: &Path, boot_id: &str) -> Result<(Self, Found), StateFileError> {
        let unusable = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StateFileError::Unusable { what, path, source }
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(unusable("make the state directory", dir))?;
        let path = dir.join(FILE_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(unusable("open the state file", &path))?;
        let metadata = file.metadata();
        let metadata = metadata.map_err(unusable("open the state file", &path))?;
        if !metadata.is_file() {
            let source = io::Error::other("it is not a file");
            return Err(unusable("open the state file", &path)(source));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateFileError::InUse(dir.to_owned())),
            Err(TryLockError::Error(source)) => {
                return Err(unusable("lock the state file", &path)(source));
            }
        }
        let length = usize::try_from(metadata.len()).unwrap_or(FILE_BYTES);
        if length < FILE_BYTES {
            let zeroes = vec![0; FILE_BYTES - length];
            let allocated = file.write_all_at(&zeroes, metadata.len());
            if let Err(source) = allocated {
                // As it was: a later attempt begins with the same length.
                let _ = file.set_len(metadata.len());
                return Err(unusable("allocate the state file", &path)(source));
            }
        }
        let mut content = vec![0; FILE_BYTES];
        let read = file.read_exact_at(&mut content, 0);
        read.map_err(unusable("read the state file", &path))?;
        // Also if its content is not understood: what is written must be newer.
        let generation = newest(&content).map_or(0, |(generation, _)| generation);
        let found = match parse(&content) {
            Ok(None) => Found::Nothing,
            Err(corrupt) => Found::Corrupt(corrupt),
            Ok(Some(stored)) if stored.boot_id == boot_id => Found::State(stored.state),
            Ok(Some(_)) => Found::OtherBoot,
        };
        let boot_id = boot_id.to_owned();
        let file = Self {
            file,
            path,
            boot_id,
            generation,
        };
        Ok((file, found))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves out of `state` as much of its `unclaimed` as has no room, the last first, and returns that.
    pub fn fit(&self, state: &mut SavedState) -> Vec<SavedBackend> {
        let mut left_out = Vec::new();
        while !state.unclaimed.is_empty() && state.encode(&self.boot_id).len() > PAYLOAD_BYTES_MAX {
            left_out.extend(state.unclaimed.pop());
        }
        left_out
    }

    /// Writes the state in place of the older of the two that are there.
    ///
    /// # Errors
    /// What the system says; the newer of the two is still there then.
    pub fn write(&mut self, state: &SavedState) -> io::Result<()> {
        let generation = self.generation.checked_add(1);
        let exhausted = || io::Error::other("its generations are used up: remove the file");
        let generation = generation.ok_or_else(exhausted)?;
        let slot = seal_slot(generation, &state.encode(&self.boot_id))?;
        let start = (generation % 2) * SLOT_BYTES as u64;
        self.file.write_all_at(&slot, start)?;
        self.generation = generation;
        Ok(())
    }
}

/// CRC-32C (Castagnoli, as in iSCSI), of both parts in a row.
fn checksum(signed: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(signed), payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::run_state::RunState;
    use crate::words::vm::VmPause;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn state(run_state: RunState) -> SavedState {
        SavedState {
            run_state,
            backends: vec![SavedBackend {
                device: "vda".to_owned(),
                ..SavedBackend::default()
            }],
            unclaimed: Vec::new(),
            losses: Vec::new(),
            vm_pause: VmPause::Nobody,
        }
    }

    fn open(dir: &Path) -> (StateFile, Found) {
        StateFile::open(dir, "this boot").expect("nobody else has it")
    }

    fn content(dir: &Path) -> Vec<u8> {
        std::fs::read(dir.join(FILE_NAME)).expect("the file exists")
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of the catalogue.
        assert_eq!(checksum(b"1234", b"56789"), 0xe306_9283);
    }

    #[test]
    fn the_newest_whole_slot_wins() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut file, found) = open(dir.path());
        assert!(matches!(found, Found::Nothing));
        for run_state in [RunState::Running, RunState::IoError, RunState::Paused] {
            file.write(&state(run_state)).expect("preallocated");
        }
        drop(file);
        let (_, found) = open(dir.path());
        assert!(matches!(found, Found::State(found) if found == state(RunState::Paused)));

        // Whatever part of the last write is missing: the state before it counts.
        let whole = content(dir.path());
        let newest = SLOT_BYTES
            ..SLOT_BYTES + HEADER_BYTES + state(RunState::Paused).encode("this boot").len();
        for torn in newest.clone() {
            let mut bytes = whole.clone();
            bytes[torn] ^= 1;
            let stored = parse(&bytes).expect("the other slot").expect("is there");
            assert_eq!(
                (stored.generation, stored.state),
                (2, state(RunState::IoError)),
                "{torn}"
            );
        }
        let mut bytes = whole;
        bytes[0..8].fill(0xee);
        bytes[newest].fill(0xee);
        assert!(matches!(parse(&bytes), Err(Corrupt::Slots)));
    }

    #[test]
    fn a_state_is_good_for_one_boot() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut file, _) = open(dir.path());
        file.write(&state(RunState::IoError)).expect("preallocated");
        drop(file);
        let other = StateFile::open(dir.path(), "another boot");
        let (mut other, found) = other.expect("unlocked");
        assert!(matches!(found, Found::OtherBoot));
        other.write(&state(RunState::Paused)).expect("preallocated");
        drop(other);
        assert!(matches!(open(dir.path()).1, Found::OtherBoot));
    }

    #[test]
    fn after_a_corrupt_file_what_is_written_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(FILE_NAME), vec![0x5a; 1000]).expect("a file");
        let (mut file, found) = open(dir.path());
        assert!(matches!(found, Found::Corrupt(Corrupt::Slots)));
        file.write(&state(RunState::Paused)).expect("preallocated");
        drop(file);
        let (_, found) = open(dir.path());
        assert!(matches!(found, Found::State(found) if found == state(RunState::Paused)));
    }

    #[test]
    fn what_another_version_has_written_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, _) = open(dir.path());
        let foreign = seal_slot(70, br#"{"version":2}"#).expect("it fits");
        file.file.write_all_at(&foreign, 0).expect("preallocated");
        drop(file);
        let (mut file, found) = open(dir.path());
        assert!(matches!(found, Found::Corrupt(Corrupt::Content(_))));
        file.write(&state(RunState::Paused)).expect("preallocated");
        drop(file);
        let (_, found) = open(dir.path());
        assert!(matches!(found, Found::State(found) if found == state(RunState::Paused)));
    }

    #[test]
    fn the_file_has_one_owner_and_its_full_length() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("state");
        let (file, _) = open(&dir);
        let refused = StateFile::open(&dir, "this boot").expect_err("locked");
        assert!(
            refused.to_string().contains("in use by another daemon"),
            "{refused}"
        );
        let mode = |path: &Path| {
            let metadata = std::fs::metadata(path).expect("it exists");
            metadata.permissions().mode() & 0o777
        };
        assert_eq!((mode(&dir), mode(file.path())), (0o700, 0o600));
        assert_eq!(content(&dir).len(), FILE_BYTES);
        drop(file);
        drop(open(&dir));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE_NAME);
        std::fs::create_dir(&path).expect("a directory");
        StateFile::open(dir.path(), "b").expect_err("a directory");
        std::fs::remove_dir(&path).expect("empty");
        std::os::unix::fs::symlink("/dev/zero", &path).expect("a link");
        StateFile::open(dir.path(), "b").expect_err("a link");
        StateFile::open(Path::new("/dev/null/x"), "b").expect_err("no directory");
    }

    #[test]
    fn too_much_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut file, _) = open(dir.path());
        file.write(&state(RunState::Paused)).expect("preallocated");
        let before = content(dir.path());
        let many = SavedState {
            backends: vec![SavedBackend::default(); 10_000],
            ..SavedState::default()
        };
        let refused = file.write(&many).expect_err("too large").to_string();
        assert!(refused.contains("fewer exports"), "{refused}");
        assert_eq!(content(dir.path()), before);
    }

    #[test]
    fn what_is_unclaimed_makes_room() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut file, _) = open(dir.path());
        let named = |number: usize| SavedBackend {
            device: format!("{number}{}", "x".repeat(10_000)),
            ..SavedBackend::default()
        };
        let mut state = SavedState {
            backends: (0..20).map(named).collect(),
            unclaimed: (20..30).map(named).collect(),
            ..SavedState::default()
        };
        let all = state.clone();
        file.write(&all).expect_err("too large");
        let left_out = file.fit(&mut state);
        let kept = state.unclaimed.len();
        assert!((1..10).contains(&kept), "{kept}");
        assert!(left_out.iter().eq(all.unclaimed[kept..].iter().rev()));
        assert!(file.fit(&mut state).is_empty(), "no more than needed");
        file.write(&state).expect("it fits");
        drop(file);
        let (_, found) = open(dir.path());
        let Found::State(found) = found else {
            panic!("{found:?}");
        };
        let expected: Vec<_> = (0..20 + kept).map(named).collect();
        assert_eq!(found.backends, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn slots_are_read_back(state in crate::persist::json::tests::state(), generation: u64) {
            let slot = seal_slot(generation, &state.encode("b")).expect("it fits");
            let stored = parse(&slot).expect("whole").expect("there");
            prop_assert_eq!((stored.generation, stored.state), (generation, state));
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>, at in 0..FILE_BYTES, sealed: bool) {
            let mut content = vec![0; FILE_BYTES];
            if sealed {
                let slot = seal_slot(1, &bytes).expect("it fits");
                content[..slot.len()].copy_from_slice(&slot);
            } else {
                let end = (at + bytes.len()).min(FILE_BYTES);
                content[at..end].copy_from_slice(&bytes[..end - at]);
            }
            let parsed = parse(&content);
            prop_assert!(matches!(parsed, Ok(None) | Err(_)), "{:?}", parsed);
        }
    }
}
