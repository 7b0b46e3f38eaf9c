//! `blockdev-create` of driver `file`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use drivers::OpenError;
use drivers::file::{NewFile, create};
use monitor::Descriptors;
use qapi::command::BlockdevCreateFile;
use qapi::os_text;

use super::room::preallocation;
use crate::fdset;
use crate::setup_error::SetupError;

/// In pieces of how many bytes a file is allocated unless something else is said, as in QEMU: images that grow
/// in small writes are in few pieces then. Bytes.
const EXTENT_SIZE_HINT_BYTES: u64 = 1 << 20;

/// Makes a file.
///
/// # Errors
/// In QEMU's words.
pub async fn make(
    descriptors: &Arc<Descriptors>,
    options: BlockdevCreateFile,
    cancelled: Arc<AtomicBool>,
) -> Result<(), SetupError> {
    let preallocation = preallocation(options.preallocation);
    let BlockdevCreateFile {
        filename,
        size,
        nocow,
        extent_size_hint,
        ..
    } = options;
    let hint = extent_size_hint.map_or(EXTENT_SIZE_HINT_BYTES, |hint| hint.0);
    let hint = u32::try_from(hint).map_err(|_| SetupError::new("Extent size hint is too large"))?;
    let path = PathBuf::from(os_text::to_os(&filename));
    let opener = fdset::opener(descriptors, &filename)?;
    let made = block::beside(move || {
        let new = NewFile {
            path: &path,
            name: &filename,
            opener: opener.as_deref(),
            size,
            preallocation,
            nocow: nocow.unwrap_or(false),
            extent_size_hint: Some(hint).filter(|hint| *hint > 0),
        };
        let refused = create(&new, &cancelled)?;
        if let (Some(error), Some(_)) = (refused, extent_size_hint) {
            tracing::warn!("'{filename}': failed to set extent size hint: {error}");
        }
        Ok(())
    });
    let made: Result<Result<(), OpenError>, _> = made.await;
    Ok(made.map_err(|error| SetupError::new(error.to_string()))??)
}
