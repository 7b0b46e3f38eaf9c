//! Which backing file an image names: asked before it is opened, by whoever opens that first.

use std::sync::Arc;

use block::Node;
use drivers::OpenError;

use super::base::Base;
use super::options::{Backing, Qcow2Options};
use super::{errand, open};
use crate::format::{Header, extension};

/// What a header says of the backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// Its name, 1,023 bytes at most: a path, or something that QEMU understands.
    pub name: Vec<u8>,
    /// The name of its format, if that is said.
    pub format: Option<String>,
}

impl BackingName {
    /// What `header` says. An empty name is none.
    pub(super) fn of(header: &Header) -> Option<Self> {
        let name = header.backing_name.clone()?;
        let format = header.extension(extension::BACKING_FORMAT);
        let format = format.map(|format| String::from_utf8_lossy(format).into_owned());
        (!name.is_empty()).then_some(Self { name, format })
    }
}

/// What the image in `file` says of its backing file: none, if it has none. May take as long as the storage likes;
/// dropped before it has ended, it goes on beside.
///
/// # Errors
/// As [`super::Qcow2::open`]: those of the header.
pub async fn backing_of(file: &Arc<Node>) -> Result<Option<BackingName>, OpenError> {
    let options = Qcow2Options {
        backing: Backing::None,
        ..Qcow2Options::new(Arc::clone(file.name()), Arc::clone(file))
    };
    let base = Base::new(options);
    let looked = errand::run(Arc::clone(file), move || async move {
        let header = open::header(&base).await?;
        Ok(BackingName::of(&header))
    });
    looked.await.map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        OpenError::new(errno, format!("Could not read the image: {error}"))
    })?
}
