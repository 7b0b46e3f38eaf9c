//! Big-endian numbers in a slice: nothing where it is too short.

/// The bytes from `at` on, as many as `N`.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

pub fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// Puts `value` at `at`; false if there is no room.
pub fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> bool {
    let room = at.checked_add(N).and_then(|end| bytes.get_mut(at..end));
    room.is_some_and(|room| {
        room.copy_from_slice(&value);
        true
    })
}

/// `length` rounded up to a multiple of 8.
pub fn padded(length: usize) -> usize {
    length.saturating_add(7) & !7
}
