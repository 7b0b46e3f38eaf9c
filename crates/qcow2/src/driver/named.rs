//! Which other files an image names: asked before it is opened, by whoever opens those first.

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
        Ok(Names {
            backing: BackingName::of(&header),
            data_file: DataName::of(&header),
        })
    });
    looked.await.map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        OpenError::new(errno, format!("Could not read the image: {error}"))
    })?
}
