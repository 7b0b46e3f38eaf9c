//! The three fields of feature bits of version 3.

/// Refcounts may be behind: they have to be repaired before the image is written.
pub const DIRTY: u64 = 1 << 0;
/// The image is known to be corrupt: it must not be written.
pub const CORRUPT: u64 = 1 << 1;
/// Guest clusters are in another file.
pub const EXTERNAL_DATA: u64 = 1 << 2;
/// Compressed clusters are not deflated but something else.
pub const COMPRESSION_TYPE: u64 = 1 << 3;
/// L2 entries have subclusters.
pub const EXTENDED_L2: u64 = 1 << 4;
/// All incompatible bits that the specification has.
pub const INCOMPATIBLE_KNOWN: u64 =
    DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

/// Compatible bit: refcounts may be written late, if [`DIRTY`] is set.
pub const LAZY_REFCOUNTS: u64 = 1 << 0;
/// All compatible bits that the specification has.
pub const COMPATIBLE_KNOWN: u64 = LAZY_REFCOUNTS;

/// Autoclear bit: the bitmaps extension is consistent.
pub const BITMAPS: u64 = 1 << 0;
/// Autoclear bit: the external data file is a raw image of its own.
pub const RAW_EXTERNAL: u64 = 1 << 1;
/// All autoclear bits that the specification has.
pub const AUTOCLEAR_KNOWN: u64 = BITMAPS | RAW_EXTERNAL;

/// The feature bits of an image; none of them is set in version 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Who does not know one of these must not open the image.
    pub incompatible: u64,
    /// These may be ignored.
    pub compatible: u64,
    /// Who does not know one of these clears it before the first write.
    pub autoclear: u64,
}

impl Features {
    /// Incompatible bits that the specification does not have.
    pub const fn unknown_incompatible(&self) -> u64 {
        self.incompatible & !INCOMPATIBLE_KNOWN
    }

    /// Autoclear bits that the specification does not have.
    pub const fn unknown_autoclear(&self) -> u64 {
        self.autoclear & !AUTOCLEAR_KNOWN
    }

    /// [`DIRTY`].
    pub const fn is_dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    /// [`CORRUPT`].
    pub const fn is_corrupt(&self) -> bool {
        self.incompatible & CORRUPT != 0
    }

    /// [`EXTERNAL_DATA`].
    pub const fn has_external_data(&self) -> bool {
        self.incompatible & EXTERNAL_DATA != 0
    }

    /// [`EXTENDED_L2`].
    pub const fn has_extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    /// [`LAZY_REFCOUNTS`].
    pub const fn has_lazy_refcounts(&self) -> bool {
        self.compatible & LAZY_REFCOUNTS != 0
    }

    /// [`BITMAPS`].
    pub const fn has_bitmaps(&self) -> bool {
        self.autoclear & BITMAPS != 0
    }

    /// [`RAW_EXTERNAL`].
    pub const fn is_raw_external(&self) -> bool {
        self.autoclear & RAW_EXTERNAL != 0
    }
}

/// The numbers of the bits that are set.
pub fn bits(field: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |bit| field >> bit & 1 != 0)
}
