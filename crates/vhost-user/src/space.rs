//! Parts of a configuration space, as clients ask for them.

use crate::protocol::message::{CONFIG_BYTES_MAX, ConfigRange};

/// Where in the part that a client asks for, or writes, the byte at `offset` of the configuration space is,
/// if it is in there.
pub fn place(range: ConfigRange, offset: u32) -> Option<usize> {
    let start = match range.offset {
        start if start as usize >= CONFIG_BYTES_MAX => 0,
        start => start,
    };
    let place = offset.checked_sub(start).filter(|place| *place < range.len);
    place.and_then(|place| usize::try_from(place).ok())
}

/// The part of the configuration space that a client asks for, with as many bytes as it asks for: an
/// answer without payload is the protocol's sign of an error, but the crate `vhost` waits for the rest
/// of it for ever. Behind the space's end are zeroes.
///
/// Who asks for what lies behind it as a whole means its beginning: Cloud Hypervisor up to v50, with
/// the crate's own constant, asks at 0x100.
pub fn part(space: &[u8], offset: u32, size: u32) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let from = space.get(start..).filter(|rest| !rest.is_empty());
    let zeroes = std::iter::repeat(&0);
    let bytes = from.unwrap_or(space).iter().chain(zeroes);
    bytes.take(size as usize).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cloud Hypervisor v50 hung at the empty answer to its question at 0x100.
    #[test]
    fn every_part_has_the_length_that_was_asked_for() {
        let mut space = [0; CONFIG_BYTES_MAX];
        for (at, byte) in space.iter_mut().enumerate() {
            *byte = u8::try_from(at % 251).unwrap();
        }
        for (offset, size, first, last) in [
            (0_u32, 256_u32, 0, 4),
            (32, 1, 32, 32),
            (255, 1, 4, 4),
            (255, 2, 4, 0),
            (1, 256, 1, 0),
            (256, 60, 0, 59),
            (257, 1, 0, 0),
            (u32::MAX, 256, 0, 4),
        ] {
            let part = part(&space, offset, size);
            assert_eq!(part.len(), size as usize, "{size} at {offset}");
            assert_eq!((part[0], part[part.len() - 1]), (first, last));
        }
        assert!(part(&space, 0, 0).is_empty());
    }

    #[test]
    fn who_reads_or_writes_a_byte() {
        for (offset, len, expected) in [
            (0, 60, Some(32)),
            (0, 33, Some(32)),
            (0, 32, None),
            (32, 1, Some(0)),
            (32, 0, None),
            (31, 4, Some(1)),
            (33, 4, None),
            (255, 256, None),
            (256, 60, Some(32)),
            (u32::MAX, 60, Some(32)),
            (u32::MAX, 8, None),
        ] {
            let range = ConfigRange {
                offset,
                len,
                flags: 0,
            };
            assert_eq!(place(range, 32), expected, "{len} at {offset}");
        }
    }
}
