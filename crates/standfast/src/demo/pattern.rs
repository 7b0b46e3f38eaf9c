//! What is written to the disk: every block says where it belongs and carries a checksum.

/// The unit of the pattern and of what is counted as lost, in bytes.
pub const BLOCK_BYTES: usize = 4096;

const HEAD_BYTES: usize = 16;
const SUM_BYTES: usize = 8;

/// Fills `block` with what belongs at the block of that number.
pub fn fill(block: &mut [u8], number: u64, seed: u64) {
    let (head, rest) = block.split_at_mut(HEAD_BYTES);
    head[..8].copy_from_slice(&number.to_le_bytes());
    head[8..].copy_from_slice(&seed.to_le_bytes());
    let (body, sum) = rest.split_at_mut(rest.len() - SUM_BYTES);
    let mut state = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in body.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bytes = mix(state).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
    sum.copy_from_slice(&checksum(head, body).to_le_bytes());
}

/// Whether `block` is, byte for byte, what [`fill`] makes.
pub fn verify(block: &[u8], number: u64, seed: u64) -> bool {
    let mut expected = [0; BLOCK_BYTES];
    fill(&mut expected, number, seed);
    block == expected
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// FNV-1a, by words.
fn checksum(head: &[u8], body: &[u8]) -> u64 {
    let words = head.chunks(8).chain(body.chunks(8));
    words.fold(0xcbf2_9ce4_8422_2325, |sum, word| {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        (sum ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_block_counts() {
        let mut block = [0; BLOCK_BYTES];
        fill(&mut block, 7, 1);
        assert!(verify(&block, 7, 1));
        assert!(!verify(&block, 8, 1), "a block in the wrong place");
        assert!(!verify(&block, 7, 2), "a block of another run");
        for at in [0, 15, 16, 2000, BLOCK_BYTES - 1] {
            block[at] ^= 1;
            assert!(!verify(&block, 7, 1), "byte {at}");
            block[at] ^= 1;
        }
        assert!(!verify(&[0; BLOCK_BYTES], 0, 0));
    }
}
