//! An image that is looked at: its header, and what it lies in.

use std::fmt;
use std::io;

use crate::format::extension;
use crate::format::features::bits;
use crate::format::l2::EntryRules;
use crate::format::{CryptMethod, Geometry, Header, HeaderError};
use crate::storage::ReadAt;

/// Why there is nothing to be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The storage fails.
    #[error("{0}")]
    Storage(#[from] io::Error),
    /// The header is none, or breaks a rule.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// What is in there means something that nobody here knows.
    #[error("Unsupported qcow2 feature(s): {0}")]
    Features(String),
}

/// An image that is looked at.
pub struct Image<'a> {
    /// What it lies in.
    pub storage: &'a dyn ReadAt,
    /// The bytes of the file.
    pub length: u64,
    /// Its header, which keeps its rules.
    pub header: Header,
}

impl fmt::Debug for Image<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("length", &self.length)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl<'a> Image<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// If the storage fails; if the header breaks a rule, or there is something in it that is not known.
    pub fn open(storage: &'a dyn ReadAt) -> Result<Self, OpenError> {
        let length = storage.length()?;
        let mut start = vec![0; bounded(length, 24)];
        storage.read_at(0, &mut start)?;
        let mut cluster = vec![0; bounded(length, Header::first_cluster(&start)?)];
        storage.read_at(0, &mut cluster)?;
        let header = Header::parse(&cluster)?;
        let unknown = header.features.unknown_incompatible();
        if unknown != 0 {
            let names = bits(unknown).map(|bit| {
                let name = header.feature_name(bit);
                name.unwrap_or_else(|| format!("Unknown incompatible feature: {:x}", 1u64 << bit))
            });
            return Err(OpenError::Features(names.collect::<Vec<_>>().join(", ")));
        }
        header.check()?;
        Ok(Self {
            storage,
            length,
            header,
        })
    }

    /// How it is divided.
    pub const fn geometry(&self) -> &Geometry {
        &self.header.geometry
    }

    /// What its L2 entries may say.
    pub const fn rules(&self) -> EntryRules {
        EntryRules {
            geometry: self.header.geometry,
            version: self.header.version,
            external_data: self.header.features.has_external_data(),
        }
    }

    /// A string of the header's extensions.
    pub fn text(&self, kind: u32) -> Option<String> {
        let text = self.header.extension(kind)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// The name of the backing file.
    pub fn backing_name(&self) -> Option<String> {
        let name = self.header.backing_name.as_deref()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// The format of the backing file.
    pub fn backing_format(&self) -> Option<String> {
        self.text(extension::BACKING_FORMAT)
    }

    /// Whether what the guest sees is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.header.crypt_method != CryptMethod::None
    }
}

fn bounded(length: u64, wanted: usize) -> usize {
    usize::try_from(length).map_or(wanted, |length| length.min(wanted))
}
