//! Which backing file an image names.

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
