//! The files that an image names: asked before it is opened, by whoever opens those first.

use std::sync::Arc;

use block::Node;
use drivers::OpenError;

use super::base::Base;
use super::named::Names;
use super::options::{Backing, Qcow2Options};
use super::{errand, open};

/// What the image in `file` names. May take as long as the storage likes; dropped before it has ended, it goes on
/// beside.
///
/// # Errors
/// As [`super::Qcow2::open`]: those of the header.
pub async fn names_of(file: &Arc<Node>) -> Result<Names, OpenError> {
    let options = Qcow2Options {
        backing: Backing::None,
        ..Qcow2Options::new(Arc::clone(file.name()), Arc::clone(file))
    };
    let base = Base::new(options);
    let looked = errand::run(vec![Arc::clone(file)], move || async move {
        let header = open::header(&base).await?;
        Ok(Names::of(&header))
    });
    looked.await.map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        OpenError::new(errno, format!("Could not read the image: {error}"))
    })?
}
