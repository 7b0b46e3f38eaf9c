//! Header extensions: what follows the header, kept as it is whether anybody knows it or not.

use super::bytes;
use super::header_error::HeaderError;

/// The end of the extensions.
pub const END: u32 = 0;
/// The format of the backing file: a string.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The names of feature bits.
pub const FEATURE_NAMES: u32 = 0x6803_f857;
/// Persistent bitmaps.
pub const BITMAPS: u32 = 0x2385_2875;
/// Where the header of the encryption is.
pub const ENCRYPTION: u32 = 0x0537_be77;
/// The name of the external data file: a string.
pub const DATA_FILE: u32 = 0x4441_5441;

const HEAD: usize = 8;

/// One header extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// What it is ([`BACKING_FORMAT`] and the others, or something that nobody knows).
    pub kind: u32,
    /// Its content.
    pub data: Vec<u8>,
}

/// What a feature name table says of one bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// 0: incompatible, 1: compatible, 2: autoclear.
    pub field: u8,
    /// The number of the bit.
    pub bit: u8,
    /// What it is called.
    pub name: String,
}

/// The extensions in `area`, which begins behind the header and ends with the first cluster, or where the backing
/// file's name begins. Without an end mark it ends where the area ends.
///
/// # Errors
/// One that does not end inside the area.
pub fn parse(area: &[u8]) -> Result<Vec<Extension>, HeaderError> {
    let mut found = Vec::new();
    let mut rest = area;
    while let (Some(kind), Some(length)) = (bytes::be32(rest, 0), bytes::be32(rest, 4)) {
        if kind == END {
            break;
        }
        let behind = rest.get(HEAD..).unwrap_or_default();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let data = behind
            .get(..length)
            .ok_or(HeaderError::ExtensionTooLong { kind })?;
        found.push(Extension {
            kind,
            data: data.to_vec(),
        });
        rest = behind.get(bytes::padded(length)..).unwrap_or_default();
    }
    Ok(found)
}

/// The bytes of the extensions with their end mark.
pub fn encode(extensions: &[Extension]) -> Vec<u8> {
    let mut all = Vec::new();
    for Extension { kind, data } in extensions {
        all.extend(kind.to_be_bytes());
        all.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        all.extend(data);
        all.resize(bytes::padded(all.len()), 0);
    }
    all.extend([0; HEAD]);
    all
}

/// The entries of a feature name table; a part of one at the end is left out.
pub fn feature_names(data: &[u8]) -> Vec<FeatureName> {
    const ENTRY: usize = 48;
    let entries = data.chunks_exact(ENTRY);
    let named = entries.filter_map(|entry| {
        let [field, bit, name @ ..] = entry else {
            return None;
        };
        let end = name.iter().position(|byte| *byte == 0);
        let name = name.get(..end.unwrap_or(name.len()))?;
        Some(FeatureName {
            field: *field,
            bit: *bit,
            name: String::from_utf8_lossy(name).into_owned(),
        })
    });
    named.collect()
}
