//! External data files: the guest's data are in a file of their own, each byte where the guest has it, and nobody counts
//! clusters there.

use block::{Child, Io, Result};
use drivers::OpenError;
use futures_util::future::join_all;

use super::base::Base;
use super::cache::Miss;
use super::entry;
use super::state::State;
use crate::format::{EntryError, Header, HostOffset, L2Entry};

/// Whether what the image says of its data file goes together with what it is opened with.
///
/// # Errors
/// In QEMU's words, as far as it has any.
pub fn check(base: &Base, header: &Header) -> std::result::Result<(), OpenError> {
    let refused = |text: &str| Err(OpenError::new(libc::EINVAL, text));
    let Some(data) = &base.data_file else {
        return match header.features.has_external_data() {
            true => refused("'data-file' is required for this image"),
            false => Ok(()),
        };
    };
    if !header.features.has_external_data() {
        return refused("'data-file' can only be set for images with an external data file");
    }
    let (file, data) = (base.file.node().image(), data.node().image());
    if !file.object().is_empty() && file.object() == data.object() {
        return refused("the image cannot be its own data file");
    }
    if header.features.is_raw_external() && base.backing.is_some() {
        return refused("Backing file and data-file-raw cannot be used at the same time");
    }
    Ok(())
}

/// Whether the entries of the slice at `miss` have their clusters where the guest has them.
///
/// # Errors
/// The first that has not, in words.
pub fn check_places(state: &State, miss: Miss, slice: &[u8]) -> std::result::Result<(), String> {
    let geometry = &state.rules.geometry;
    let entries = slice.len() / geometry.l2_entry_bytes();
    let first = miss.number.saturating_mul(entries as u64);
    for number in 0..entries {
        let entry = L2Entry::read(slice, number, geometry).unwrap_or_default();
        // What cannot be is found when it is used.
        let host = entry
            .decode(&state.rules)
            .ok()
            .as_ref()
            .and_then(entry::host_of);
        let guest = first.saturating_add(number as u64) << geometry.cluster_bits();
        if let Some(host) = host.filter(|host| host.0 != guest) {
            let (table, error) = (miss.table, EntryError::NotInPlace(host));
            return Err(format!(
                "L2 table at {table}, guest offset {guest:#x}: {error}"
            ));
        }
    }
    Ok(())
}

/// Makes durable what has been written to the data file, if there is one.
///
/// # Errors
/// The storage's.
pub async fn sync(base: &Base, accepted: u32) -> Result<()> {
    let Some(data) = &base.data_file else {
        return Ok(());
    };
    let flush = Io {
        losses_accepted: accepted,
        ..Io::flush()
    };
    data.submit(flush).await
}

/// From these clusters nothing is read any more: their space is given back, where that is wanted and possible. Whoever
/// calls this has locked them.
///
/// What the guest has discarded is discarded at once: it does not count on it any more. What it has zeroed becomes
/// zeroes, as a cut may leave an entry that says that they are stored.
pub async fn give_back(base: &Base, state: &State, clusters: &[HostOffset], discard: bool) {
    let data = base.data();
    let is_passed = base.discards.request && (discard || data.limits().unmap_zeroes);
    if clusters.is_empty() || !is_passed {
        return;
    }
    let size = state.rules.geometry.cluster_size();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for at in clusters {
        match runs.last_mut() {
            Some((first, bytes)) if *first + *bytes == at.0 => *bytes += size,
            _ => runs.push((at.0, size)),
        }
    }
    let end = data.length();
    let inside = runs.into_iter().filter_map(|(at, bytes)| {
        let bytes = bytes.min(end.saturating_sub(at));
        (bytes > 0).then_some((at, bytes))
    });
    let given = inside.map(|(at, bytes)| {
        data.submit(match discard {
            true => Io::discard(at, bytes),
            false => Io::write_zeroes(at, bytes, true),
        })
    });
    // Where that fails the space cannot be given back; no entry points there.
    let _ended = join_all(given).await;
}

/// Whether the data file can be that of a disk of `length` bytes.
///
/// # Errors
/// It cannot become so long.
pub fn check_length(base: &Base, length: u64) -> Result<()> {
    match base
        .data_file
        .as_ref()
        .filter(|data| data.length() < length)
    {
        None => Ok(()),
        Some(data) => data.node().resized_length(length).map(drop),
    }
}

/// Makes the data file long enough for a disk of `length` bytes. Called where nothing is in flight, on a control thread. Returns up to
/// where there may be something other than zeroes.
///
/// # Errors
/// The storage's.
pub fn lengthen(base: &Base, length: u64) -> Result<u64> {
    let Some(data) = &base.data_file else {
        return Ok(0);
    };
    let before = data.length();
    if before >= length {
        return Ok(before);
    }
    let grows_zeroed = data.limits().grows_zeroed;
    data.node().resize(length)?;
    Ok(if grows_zeroed { before } else { length })
}

/// The disk is `length` bytes long: what its data file has behind that is cut off, as QEMU does it.
pub fn shorten(base: &Base, length: u64) {
    let longer = |data: &&Child| data.length() > length;
    let Some(data) = base.data_file.as_ref().filter(longer) else {
        return;
    };
    if let Err(error) = data.node().resize(length) {
        tracing::warn!(
            "node '{}': the data file '{}' is longer than the disk: {error}",
            base.name,
            data.name()
        );
    }
}
