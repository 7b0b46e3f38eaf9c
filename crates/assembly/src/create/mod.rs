//! `blockdev-create`: images are made beside, however long the storage takes.

mod file;
mod qcow2;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use qapi::command::BlockdevCreateVariant;

use crate::assembly::Assembly;
use crate::setup_error::SetupError;

/// Makes an image.
///
/// # Errors
/// In QEMU's words.
pub async fn image(
    assembly: &Assembly,
    options: BlockdevCreateVariant,
    cancelled: Arc<AtomicBool>,
) -> Result<(), SetupError> {
    match options {
        BlockdevCreateVariant::File(options) => {
            file::make(assembly.descriptors(), options, cancelled).await
        }
        BlockdevCreateVariant::Qcow2(options) => qcow2::make(assembly, options, cancelled).await,
        BlockdevCreateVariant::HostDevice(_)
        | BlockdevCreateVariant::Raw(_)
        | BlockdevCreateVariant::NullCo(_)
        | BlockdevCreateVariant::NullAio(_)
        | BlockdevCreateVariant::Throttle(_)
        | BlockdevCreateVariant::Quota(_)
        | BlockdevCreateVariant::Blkdebug(_) => {
            Err(SetupError::new("Driver does not support blockdev-create"))
        }
    }
}
