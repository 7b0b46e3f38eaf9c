//! Slices of L2 tables: reading what is not in memory, and changing entries.

use std::sync::Arc;

use block::Result;

use super::base::Base;
use super::cache::{Miss, Slice};
use super::corrupt;
use super::data_file;
use super::entry;
use super::map::Mapped;
use super::redo;
use super::rounds;
use super::state::{Lookup, State};
use super::tables::Freed;
use crate::format::{GuestOffset, L2Entry};

/// A slice that was just read, or was found where it had not been looked for.
pub struct Loaded<'a> {
    state: &'a State,
    place: Miss,
    slice: Option<Arc<Slice>>,
}

impl Loaded<'_> {
    /// The slice, as it was then.
    pub fn slice(&self) -> Arc<Slice> {
        match &self.slice {
            Some(slice) => Arc::clone(slice),
            None => Slice::new(self.place, Box::default()),
        }
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        self.state.writer.tables().end_to_load(self.place.slice);
    }
}

/// Reads a slice that was not found in the cache.
///
/// # Errors
/// The storage's, and a table that does not lie inside the file.
pub async fn load<'a>(base: &Base, state: &'a State, miss: Miss) -> Result<Loaded<'a>> {
    loop {
        let mut loaded = {
            let mut tables = state.writer.tables();
            tables.begin_to_load(miss.slice);
            let dirty = tables.dirty(miss.slice).cloned();
            if let Some(slice) = &dirty {
                state.cache.put(Arc::clone(slice));
            }
            // Others may have read it meanwhile.
            let known = || state.cache.find(miss)?.slice();
            let dirty = dirty.or_else(known);
            Loaded {
                state,
                place: miss,
                slice: dirty,
            }
        };
        if loaded.slice.is_some() {
            return Ok(loaded);
        }
        let cluster = state.rules.geometry.cluster_size();
        if !state.reaches(base, miss.table.0.saturating_add(cluster)) {
            let what = format!(
                "L2 table at {}: the file ends before the table does",
                miss.table
            );
            return Err(base.corrupt(GuestOffset(0), 0, what));
        }
        state.cache.missed();
        let bytes = base.read(miss.slice, state.cache.slice_bytes()).await?;
        let slice = Slice::new(miss, bytes.to_vec().into());
        let tables = state.writer.tables();
        if !tables.is_stale(miss.slice) {
            state.cache.put(Arc::clone(&slice));
            drop(tables);
            loaded.slice = Some(slice);
            return Ok(loaded);
        }
        // Somebody has changed it meanwhile.
        drop(tables);
    }
}

/// [`State::lookup`], after reading what is not remembered.
///
/// # Errors
/// As there, and the storage's.
pub async fn map(base: &Base, state: &State, guest: GuestOffset, wanted: u64) -> Result<Mapped> {
    match state.lookup(base, guest, wanted)? {
        Lookup::Known(mapped) => Ok(mapped),
        Lookup::Unknown(miss) => {
            let loaded = load(base, state, miss).await?;
            state.ask(base, guest, wanted, miss.table, &loaded.slice().bytes)
        }
    }
}

/// A slice as it is now.
///
/// # Errors
/// As [`load`].
pub async fn current(base: &Base, state: &State, miss: Miss) -> Result<Arc<Slice>> {
    if let Some(found) = state.cache.find(miss).and_then(|found| found.slice()) {
        return Ok(found);
    }
    Ok(load(base, state, miss).await?.slice())
}

/// The same, to be changed, or written where it points to: none of its entries points to a table, or in an external data
/// file to another place than the guest's.
///
/// # Errors
/// As [`load`]; an entry does: the image is corrupt.
pub async fn sound(base: &Base, state: &State, miss: Miss) -> Result<Arc<Slice>> {
    let slice = current(base, state, miss).await?;
    let made = state.writer.made();
    if slice.is_sound(made) {
        return Ok(slice);
    }
    let geometry = &state.rules.geometry;
    if state.rules.external_data {
        if let Err(what) = data_file::check_places(state, miss, &slice.bytes) {
            return Err(corrupt::fatal(base, state, 0, &what).await);
        }
        slice.set_sound(made);
        return Ok(slice);
    }
    let overlapped = {
        let tables = state.writer.tables();
        let entries = 0..slice.bytes.len() / geometry.l2_entry_bytes();
        let mut clusters = entries.filter_map(|number| {
            let entry = L2Entry::read(&slice.bytes, number, geometry)?;
            // What cannot be is found when it is used.
            entry::clusters_of(&entry.decode(&state.rules).ok()?, geometry)
        });
        clusters.find_map(|clusters| {
            let kind = tables.metadata_in(clusters.clone())?;
            Some((clusters.start, kind))
        })
    };
    match overlapped {
        None => {
            slice.set_sound(made);
            Ok(slice)
        }
        Some((cluster, kind)) => Err(corrupt::overlaps(base, state, cluster, kind).await),
    }
}

/// Most entries that are changed at once: so many are recorded in any case, when a round has made room.
pub const CHANGES_MAX: u64 = 8192;
const _: () = assert!(CHANGES_MAX < redo::RECORDS_MAX as u64);

/// What a change of entries leaves unused.
pub type Unused = Vec<Freed>;

/// Changes entries of the slice at `miss`: `edit` gets its bytes, and says what is not used any more. Where that cannot be done yet, it is
/// called again. If it fails, nothing has been changed.
///
/// # Errors
/// Those of `edit`, and the storage's.
pub async fn change(
    base: &Base,
    state: &State,
    miss: Miss,
    mut edit: impl FnMut(&mut [u8]) -> Result<Unused>,
) -> Result<()> {
    let mut loaded: Option<Loaded<'_>> = None;
    loop {
        let mut lack = None;
        let full = {
            // Dropped before `loaded`, whose drop takes the lock, too.
            let mut tables = state.writer.change();
            let dirty = tables.dirty(miss.slice).cloned();
            let full = dirty.is_none() && tables.dirty_slices() >= dirty_max(state);
            let known = dirty.or_else(|| state.cache.find(miss)?.slice());
            let fresh = loaded.as_ref().filter(|_| !tables.is_stale(miss.slice));
            match known.or_else(|| fresh.map(Loaded::slice)) {
                Some(current) if !full => {
                    let mut bytes = current.bytes.clone();
                    let unused = edit(&mut bytes)?;
                    let records = match tables.redo.is_wanted() {
                        true => {
                            let first = miss.number << state.slice_entry_bits();
                            let both = (&current.bytes[..], &bytes[..]);
                            tables.redo.records(redo::changes(both, first, state))
                        }
                        false => Vec::new(),
                    };
                    lack = tables.redo.lack(&records);
                    if lack.is_none() {
                        tables.redo.push(&records);
                        tables.change(current.changed(bytes), &state.cache);
                        tables.unlinked.extend(unused);
                        return Ok(());
                    }
                    false
                }
                _ => full,
            }
        };
        // Its drop takes the lock.
        drop(loaded.take());
        if full {
            rounds::make_room(base, state).await?;
        } else if let Some(lack) = lack {
            redo::supply(base, state, lack).await?;
        } else {
            loaded = Some(load(base, state, miss).await?);
        }
    }
}

/// Most slices that are not on disk: the others have room for what is read.
fn dirty_max(state: &State) -> usize {
    (state.cache.slices() / 2).max(1)
}
