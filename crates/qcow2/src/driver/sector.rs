//! The first 512 bytes of an image, in which all fields are that change while it is open: each change is one write of one
//! sector, so that either all of it is on disk, or nothing.

use crate::format::HostOffset;
use crate::format::bytes;
use crate::format::features::Features;

/// How long it is.
pub const BYTES: usize = 512;

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sector(Box<[u8]>);

impl Sector {
    /// Of the beginning of the file, which may be shorter.
    pub fn of(start: &[u8]) -> Self {
        let mut all = vec![0; BYTES];
        for (to, from) in all.iter_mut().zip(start) {
            *to = *from;
        }
        Self(all.into())
    }

    /// As it is written.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The feature bits of version 3.
    pub fn features(&self) -> Features {
        let field = |at| bytes::be64(&self.0, at).unwrap_or(0);
        Features {
            incompatible: field(72),
            compatible: field(80),
            autoclear: field(88),
        }
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(field) = self.0.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
    }

    /// With another length of the disk, in bytes.
    #[must_use]
    pub fn with_size(mut self, size: u64) -> Self {
        self.put(24, &size.to_be_bytes());
        self
    }

    /// With another L1 table.
    #[must_use]
    pub fn with_l1(mut self, at: HostOffset, entries: u32) -> Self {
        self.put(36, &entries.to_be_bytes());
        self.put(40, &at.0.to_be_bytes());
        self
    }

    /// With another refcount table.
    #[must_use]
    pub fn with_refcount_table(mut self, at: HostOffset, clusters: u32) -> Self {
        self.put(48, &at.0.to_be_bytes());
        self.put(56, &clusters.to_be_bytes());
        self
    }

    /// With other feature bits, of version 3.
    #[must_use]
    pub fn with_features(mut self, features: &Features) -> Self {
        self.put(72, &features.incompatible.to_be_bytes());
        self.put(80, &features.compatible.to_be_bytes());
        self.put(88, &features.autoclear.to_be_bytes());
        self
    }
}
