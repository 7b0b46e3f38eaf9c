//! `blockdev-create`: images are made beside, however long the storage takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use drivers::file::{Preallocation, create};
use qapi::command::{BlockdevCreateFile, PreallocMode};
use qapi::os_text;

use crate::setup_error::SetupError;

/// Makes a file.
///
/// # Errors
/// In QEMU's words.
pub async fn file(
    options: BlockdevCreateFile,
    cancelled: Arc<AtomicBool>,
) -> Result<(), SetupError> {
    let preallocation = match options.preallocation.unwrap_or_default() {
        PreallocMode::Off => Preallocation::Off,
        PreallocMode::Metadata => Preallocation::Metadata,
        PreallocMode::Falloc => Preallocation::Falloc,
        PreallocMode::Full => Preallocation::Full,
    };
    let BlockdevCreateFile {
        filename,
        size,
        nocow,
        ..
    } = options;
    let path = PathBuf::from(os_text::to_os(&filename));
    let nocow = nocow.unwrap_or(false);
    let made =
        block::beside(move || create(&path, &filename, size, preallocation, nocow, &cancelled));
    let made = made.await;
    Ok(made.map_err(|error| SetupError::new(error.to_string()))??)
}
