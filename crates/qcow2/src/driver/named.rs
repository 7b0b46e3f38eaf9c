//! Which other files an image names.

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

/// What a header says of the external data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataName {
    /// Its name: a path, or something that QEMU understands. It is as long as a cluster at most, and may be empty: nothing
    /// is said then.
    pub name: Vec<u8>,
}

impl DataName {
    /// What `header` says; none: the image has no such file.
    pub(super) fn of(header: &Header) -> Option<Self> {
        let name = header.extension(extension::DATA_FILE).unwrap_or_default();
        let name = name.to_vec();
        (header.features.has_external_data()).then_some(Self { name })
    }
}

/// What an image names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The backing file, if it has one.
    pub backing: Option<BackingName>,
    /// The external data file, if it has one.
    pub data_file: Option<DataName>,
}

impl Names {
    /// What `header` says.
    pub(super) fn of(header: &Header) -> Self {
        Self {
            backing: BackingName::of(header),
            data_file: DataName::of(header),
        }
    }
}
