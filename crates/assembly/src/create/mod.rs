//! `blockdev-create`: images are made beside, however long the storage takes.

mod file;
mod place;
mod qcow2;
mod room;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use qapi::command::BlockdevCreateVariant;

use crate::setup_error::SetupError;

pub use self::file::make as make_file;
pub use self::place::Place;

/// Makes an image.
///
/// # Errors
/// In QEMU's words.
pub async fn image(
    place: Place<'_>,
    options: BlockdevCreateVariant,
    cancelled: Arc<AtomicBool>,
) -> Result<(), SetupError> {
    match options {
        BlockdevCreateVariant::File(options) => {
            file::make(place.means.descriptors, options, cancelled).await
        }
        BlockdevCreateVariant::Qcow2(options) => qcow2::make(place, options, cancelled).await,
        BlockdevCreateVariant::HostDevice(_)
        | BlockdevCreateVariant::Raw(_)
        | BlockdevCreateVariant::NullCo(_)
        | BlockdevCreateVariant::NullAio(_)
        | BlockdevCreateVariant::Throttle(_)
        | BlockdevCreateVariant::CopyOnRead(_)
        | BlockdevCreateVariant::Quota(_)
        | BlockdevCreateVariant::Blkdebug(_) => {
            Err(SetupError::new("Driver does not support blockdev-create"))
        }
    }
}
