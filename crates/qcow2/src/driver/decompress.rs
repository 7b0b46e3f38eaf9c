//! Compressed clusters. They have a known length, so what they become is bounded by it.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::format::CompressionType;

thread_local! {
    /// Large, and used again.
    static INFLATE: RefCell<Option<Box<Decompress>>> = const { RefCell::new(None) };
}

/// Fills `cluster` with what `packed` begins with; behind that may be anything.
///
/// # Errors
/// It is not compressed in that way, or is not as long as the cluster.
pub fn decompress(
    method: CompressionType,
    packed: &[u8],
    cluster: &mut [u8],
) -> Result<(), String> {
    match method {
        CompressionType::Deflate => inflate(packed, cluster),
        CompressionType::Zstd => unzstd(packed, cluster),
    }
}

fn inflate(packed: &[u8], cluster: &mut [u8]) -> Result<(), String> {
    let mut state = INFLATE
        .take()
        .unwrap_or_else(|| Box::new(Decompress::new(false)));
    state.reset(false);
    let status = state.decompress(packed, cluster, FlushDecompress::Finish);
    let written = state.total_out();
    INFLATE.set(Some(state));
    match status {
        // The end of the stream need not be seen: the cluster is full.
        Ok(Status::Ok | Status::StreamEnd | Status::BufError)
            if written == cluster.len() as u64 =>
        {
            Ok(())
        }
        Ok(_) => Err(format!("it ends after {written} bytes of a cluster")),
        Err(error) => Err(error.to_string()),
    }
}

fn unzstd(packed: &[u8], cluster: &mut [u8]) -> Result<(), String> {
    let mut rest = packed;
    let mut decoder = FrameDecoder::new();
    let frame = window(packed).ok_or("it is no frame of zstd's")?;
    // Nothing refers to more than there is; a window that is larger takes memory that nobody needs.
    if frame > WINDOW_MAX {
        return Err(format!("a window of {frame} bytes"));
    }
    decoder.init(&mut rest).map_err(|error| error.to_string())?;
    let mut written = 0;
    while written < cluster.len() {
        let strategy = BlockDecodingStrategy::UptoBlocks(1);
        let ended = decoder.decode_blocks(&mut rest, strategy);
        let ended = ended.map_err(|error| error.to_string())?;
        let room = cluster.get_mut(written..).unwrap_or_default();
        let read = std::io::Read::read(&mut decoder, room).map_err(|error| error.to_string())?;
        written += read;
        if ended && read == 0 {
            return Err(format!("it ends after {written} bytes of a cluster"));
        }
    }
    Ok(())
}

/// Largest window in bytes that is decoded: far more than a cluster has.
const WINDOW_MAX: u64 = 8 << 20;

/// The window of a frame in bytes, by its header (RFC 8878, 3.1.1.1); none if it is no frame.
fn window(frame: &[u8]) -> Option<u64> {
    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    let rest = frame.strip_prefix(&MAGIC)?;
    let (descriptor, rest) = rest.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let byte = *rest.first()?;
        let (exponent, mantissa) = (u32::from(byte >> 3), u64::from(byte & 7));
        let base = 1u64 << (10 + exponent);
        return Some(base + base / 8 * mantissa);
    }
    let dictionary = [0usize, 1, 2, 4][usize::from(descriptor & 3)];
    let rest = rest.get(dictionary..)?;
    let size = match descriptor >> 6 {
        0 => u64::from(*rest.first()?),
        1 => u64::from(u16::from_le_bytes(*rest.first_chunk()?)) + 256,
        2 => u64::from(u32::from_le_bytes(*rest.first_chunk()?)),
        _ => u64::from_le_bytes(*rest.first_chunk()?),
    };
    Some(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::with_capacity(bytes.len() * 2 + 64);
        let mut state = Compress::new(Compression::default(), false);
        let status = state.compress_vec(bytes, &mut packed, FlushCompress::Finish);
        assert_eq!(status.expect("there is room"), Status::StreamEnd);
        packed
    }

    #[test]
    fn what_was_deflated_comes_back_whatever_follows() {
        let cluster: Vec<u8> = (0..65536u32).map(|at| (at / 7 % 251) as u8).collect();
        let mut packed = deflate(&cluster);
        let whole = packed.len();
        packed.extend([0xff; 600]);
        let mut back = vec![0; 65536];
        assert_eq!(inflate(&packed, &mut back), Ok(()));
        assert_eq!(back, cluster);
        inflate(&packed[..whole / 2], &mut back).expect_err("half of it");
        let error = inflate(&packed, &mut vec![0; 65537]).expect_err("it is shorter");
        assert!(error.contains("65536"), "{error}");
        inflate(&[0xff; 512], &mut back).expect_err("it is nothing");
        // And the state is sound after all of that.
        assert_eq!(inflate(&packed, &mut back), Ok(()));
    }

    proptest! {
        /// Nothing panics, and nothing takes much memory.
        #[test]
        fn foreign_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..600), zstd in any::<bool>()) {
            let mut cluster = vec![0; 4096];
            if zstd {
                bytes.splice(0..0, [0x28, 0xb5, 0x2f, 0xfd]);
                let _ = unzstd(&bytes, &mut cluster);
            } else {
                let _ = inflate(&bytes, &mut cluster);
            }
        }
    }

    #[test]
    fn a_huge_window_is_refused() {
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0, 0, 0, 0];
        let error = unzstd(&frame, &mut [0; 512]).expect_err("2 TiB");
        assert!(error.contains("window"), "{error}");
    }
}
