//! What is in a sector: zeroes, or the stamp of the request that wrote it.

/// Bytes of a sector: what storage writes whole or not at all, as image formats assume.
pub const SECTOR: usize = 512;

/// Bytes of `sectors`.
pub const fn bytes_of(sectors: u64) -> u64 {
    sectors * SECTOR as u64
}

/// As an index; what does not fit is nowhere.
pub fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// The content of one sector of a disk, as the guest means it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Zeroes.
    Zero,
    /// What the request with this number has written here.
    Stamp(u32),
}

/// The word at `word` of a sector that `stamp` has written: says who has written it, and where it belongs.
fn word_of(stamp: u32, sector: u64, word: u64) -> u64 {
    (u64::from(stamp) << 24 | sector & 0xff_ffff) ^ word << 57
}

/// Fills `buffer`, which begins at `first` (a sector of the guest's disk), as the request `stamp` writes it.
pub fn fill(buffer: &mut [u8], stamp: u32, first: u64) {
    for (sector, content) in (first..).zip(buffer.chunks_mut(SECTOR)) {
        for (word, bytes) in (0..).zip(content.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word_of(stamp, sector, word).to_le_bytes());
        }
    }
}

/// Whether a sector has nothing but zeroes.
pub fn is_zero(content: &[u8]) -> bool {
    content == &[0; SECTOR][..content.len().min(SECTOR)]
}

/// What is in `content`, which was found at `sector`.
///
/// # Errors
/// What no request has written there, in words.
pub fn value_of(content: &[u8], sector: u64) -> Result<Value, String> {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    if is_zero(content) {
        return Ok(Value::Zero);
    }
    let first = content.get(..8).map_or(0, word);
    let stamp = u32::try_from(first >> 24).unwrap_or(0);
    let belongs = first & 0xff_ffff;
    let whole = (0..)
        .zip(content.chunks_exact(8))
        .all(|(number, bytes)| word(bytes) == word_of(stamp, belongs, number));
    match whole {
        true if belongs == sector => Ok(Value::Stamp(stamp)),
        true => Err(format!("sector {belongs} of request {stamp}")),
        false => Err(format!("bytes of nobody ({first:#018x}...)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_says_whose_it_is_and_where_it_belongs() {
        let mut buffer = vec![0; 2 * SECTOR];
        fill(&mut buffer, 7, 40);
        let (first, second) = buffer.split_at(SECTOR);
        assert_eq!(value_of(first, 40), Ok(Value::Stamp(7)));
        assert_eq!(value_of(second, 41), Ok(Value::Stamp(7)));
        assert!(value_of(second, 40).is_err(), "it belongs elsewhere");
        assert_eq!(value_of(&[0; SECTOR], 3), Ok(Value::Zero));
        let mut other = vec![0; SECTOR];
        fill(&mut other, 8, 40);
        let mut torn = first.to_vec();
        torn[256..].copy_from_slice(&other[256..]);
        assert!(value_of(&torn, 40).is_err(), "torn");
    }
}
