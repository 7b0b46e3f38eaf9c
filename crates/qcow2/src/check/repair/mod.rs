//! Mending an image. What is on disk is at every instant at least as good as before: whoever is cut off in the middle
//! leaves an image that can be mended, and no write to it could do more harm than one before.
//!
//! The order, with a flush after each step:
//!
//! 1. Autoclear bits that nobody knows are cleared: their data is not valid any more.
//! 2. The flag of what may be written in place is taken from what has several references ([`Fix::All`]). From then on
//!    a write copies. Entries that mean nothing (a preallocation between two clusters) lose it.
//! 3. If refcounts are missing, or their tables are broken: new tables are written where nothing is, and then
//!    taken into use by one write into the header's first sector.
//! 4. Refcounts that are too low are raised.
//! 5. Refcounts that are too high are lowered, and only if all tables could be followed: what seems to be leaked is
//!    perhaps used by one that could not. Nor where refcounts are broken and stay so ([`Fix::Leaks`]).
//! 6. The flag is set where there is one reference.
//! 7. If nothing but leaks is left, the dirty bit and the corrupt bit are cleared.
//!
//! Nothing that the guest has written is thrown away: what only that would mend is left as it is, and is told.

mod counted;
mod flags;
mod rebuild;

use std::io;

pub use self::counted::{Fix, RepairError};

use self::counted::{Counted, count, put};
use super::report::{Limits, Report};
use crate::format::refcount;
use crate::format::{Header, features};
use crate::storage::{WriteAt, read_table};

/// Offset of the incompatible features in the header.
const INCOMPATIBLE_AT: u64 = 72;
/// Offset of the autoclear features in the header.
const AUTOCLEAR_AT: u64 = 88;

/// What has come of it.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// What was found.
    pub before: Report,
    /// What is left.
    pub after: Report,
}

impl Fixed {
    /// Leaked clusters that are free again.
    pub const fn leaks(&self) -> u64 {
        self.before.leaks.saturating_sub(self.after.leaks)
    }

    /// Corruptions that are no more.
    pub const fn corruptions(&self) -> u64 {
        self.before
            .corruptions
            .saturating_sub(self.after.corruptions)
    }
}

/// Checks an image, and mends it.
///
/// # Errors
/// If it cannot be opened, or its storage fails.
pub fn repair(storage: &mut dyn WriteAt, fix: Fix, limits: &Limits) -> Result<Fixed, RepairError> {
    let (before, mut counted) = count(storage, limits)?;
    if before.errors == 0 && !before.is_clean() {
        clear_autoclear(storage, &counted.header)?;
        if fix == Fix::All {
            if flags::clear(storage, &counted)? {
                (_, counted) = count(storage, limits)?;
            }
            if counted.needs_rebuild() && counted.beyond {
                return Err(RepairError::NoPlace);
            }
            if counted.needs_rebuild() {
                rebuild::rebuild(storage, &counted, limits)?;
                (_, counted) = count(storage, limits)?;
            }
            set_refcounts(storage, &counted, |stored, counted| stored < counted)?;
        }
        // A block that is also something else, or counts for two parts of the file, is not written.
        if !counted.hidden && !counted.blocks_broken {
            set_refcounts(storage, &counted, |stored, counted| stored > counted)?;
            flags::set(storage, &counted, fix)?;
        }
    }
    let (mut after, counted) = count(storage, limits)?;
    let sound = after.errors == 0 && after.corruptions == 0;
    if sound && clear_marks(storage, &counted.header)? {
        (after, _) = count(storage, limits)?;
    }
    Ok(Fixed { before, after })
}

/// Makes those refcounts that are `wrong` (stored, counted) what was counted.
fn set_refcounts(
    storage: &mut dyn WriteAt,
    counted: &Counted,
    wrong: impl Fn(u64, u64) -> bool,
) -> Result<(), RepairError> {
    let geometry = counted.geometry();
    let order = geometry.refcount_order();
    let mut written = false;
    for block in &counted.blocks {
        let mut content = read_table(storage, block.offset, geometry.cluster_bytes())?;
        let first = block.index << geometry.refcount_block_bits();
        let mut changed = false;
        for index in 0..geometry.refcounts_per_block() {
            let cluster = first + index as u64;
            let stored = refcount::get(&content, index, order).unwrap_or(0);
            let count = counted.usage.count(cluster);
            if wrong(stored, count) {
                put(&mut content, index, count, cluster, &geometry)?;
                changed = true;
            }
        }
        if changed {
            storage.write_at(block.offset, &content)?;
            written = true;
        }
    }
    if written {
        storage.flush()?;
    }
    Ok(())
}

fn clear_autoclear(storage: &mut dyn WriteAt, header: &Header) -> io::Result<()> {
    if header.features.unknown_autoclear() != 0 {
        let known = header.features.autoclear & features::AUTOCLEAR_KNOWN;
        storage.write_at(AUTOCLEAR_AT, &known.to_be_bytes())?;
        storage.flush()?;
    }
    Ok(())
}

/// False: there was none.
fn clear_marks(storage: &mut dyn WriteAt, header: &Header) -> io::Result<bool> {
    let marks = features::DIRTY | features::CORRUPT;
    let marked = header.features.incompatible & marks != 0;
    if marked {
        clear_autoclear(storage, header)?;
        // Whoever wrote the image last may have ended without it, and nothing need have been mended.
        storage.flush()?;
        let rest = header.features.incompatible & !marks;
        storage.write_at(INCOMPATIBLE_AT, &rest.to_be_bytes())?;
        storage.flush()?;
    }
    Ok(marked)
}
