//! Views of a request's buffers.
//!
//! All of it rests on the contract of [`block::Io`]: its buffers are mapped, and nobody but the
//! client writes to them, until the future of the submission has ended. The client may do so at any
//! time, so the bytes are never borrowed as slices, only copied.

use libc::iovec;

/// Most elements that the kernel takes in one call.
pub const IOV_MAX: usize = 1024;

/// Bytes in all buffers together.
pub fn total(iov: &[iovec]) -> u64 {
    iov.iter()
        .fold(0u64, |sum, one| sum.saturating_add(one.iov_len as u64))
}

/// Fills all buffers with zeroes.
pub fn fill_zero(iov: &[iovec]) {
    for one in iov.iter().filter(|one| one.iov_len > 0) {
        // SAFETY: the buffer is mapped and writable (see the module).
        unsafe { one.iov_base.cast::<u8>().write_bytes(0, one.iov_len) };
    }
}

/// Calls `f` with each contiguous piece of the bytes from `skip` on, at most `bytes` of them.
fn for_pieces(iov: &[iovec], skip: usize, bytes: usize, mut f: impl FnMut(*mut u8, usize)) {
    let (mut skip, mut left) = (skip, bytes);
    for one in iov {
        if left == 0 {
            break;
        }
        if skip >= one.iov_len {
            skip -= one.iov_len;
            continue;
        }
        let piece = left.min(one.iov_len - skip);
        f(one.iov_base.cast::<u8>().wrapping_add(skip), piece);
        skip = 0;
        left -= piece;
    }
}

/// Copies `to.len()` bytes out of the buffers, from byte `skip` on.
pub fn gather(iov: &[iovec], skip: usize, to: &mut [u8]) {
    let mut done = 0;
    for_pieces(iov, skip, to.len(), |piece, bytes| {
        // SAFETY: the piece lies inside a buffer (see the module); `to` is ours alone, and the
        // pieces together are at most as long.
        unsafe { to.as_mut_ptr().add(done).copy_from(piece, bytes) };
        done += bytes;
    });
    debug_assert_eq!(done, to.len(), "buffers shorter than the request");
}

/// Copies `from` into the buffers, from byte `skip` on.
pub fn scatter(iov: &[iovec], skip: usize, from: &[u8]) {
    let mut done = 0;
    for_pieces(iov, skip, from.len(), |piece, bytes| {
        // SAFETY: as in `gather`, the other way round.
        unsafe { piece.copy_from(from.as_ptr().add(done), bytes) };
        done += bytes;
    });
    debug_assert_eq!(done, from.len(), "buffers shorter than the request");
}

/// The first `bytes` bytes of the buffers.
pub fn first(iov: &[iovec], bytes: usize) -> Vec<iovec> {
    let mut first = Vec::new();
    for_pieces(iov, 0, bytes, |piece, bytes| {
        first.push(iovec {
            iov_base: piece.cast(),
            iov_len: bytes,
        });
    });
    first
}

/// The buffers from byte `skip` on, at most [`IOV_MAX`] elements.
pub fn advanced(iov: &[iovec], skip: usize) -> Vec<iovec> {
    let mut rest = Vec::new();
    for_pieces(iov, skip, usize::MAX, |piece, bytes| {
        if rest.len() < IOV_MAX {
            rest.push(iovec {
                iov_base: piece.cast(),
                iov_len: bytes,
            });
        }
    });
    rest
}

/// Whether each buffer begins at a multiple of `memory` and is a multiple of `length` long. Both are
/// powers of two.
pub fn aligned(iov: &[iovec], memory: u32, length: u32) -> bool {
    let (memory, length) = (memory as usize - 1, length as usize - 1);
    iov.iter()
        .all(|one| one.iov_base.addr() & memory == 0 && one.iov_len & length == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iovecs(buffers: &mut [Vec<u8>]) -> Vec<iovec> {
        buffers
            .iter_mut()
            .map(|buffer| iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            })
            .collect()
    }

    #[test]
    fn pieces_copied_at_every_offset() {
        let mut buffers = vec![vec![1, 2, 3], vec![], vec![4], vec![5, 6, 7, 8]];
        let all = [1, 2, 3, 4, 5, 6, 7, 8];
        let iov = iovecs(&mut buffers);
        assert_eq!(total(&iov), 8);
        for from in 0..=8 {
            for to in from..=8 {
                let mut out = vec![0; to - from];
                gather(&iov, from, &mut out);
                assert_eq!(out, all[from..to]);
            }
            let rest = advanced(&iov, from);
            assert_eq!(total(&rest), 8 - from as u64);
            assert!(rest.iter().all(|one| one.iov_len > 0));
        }
        scatter(&iov, 2, &[30, 40, 50]);
        let mut out = [0; 8];
        gather(&iov, 0, &mut out);
        assert_eq!(out, [1, 2, 30, 40, 50, 6, 7, 8]);
        fill_zero(&iov);
        gather(&iov, 0, &mut out);
        assert_eq!(out, [0; 8]);
    }

    #[test]
    fn alignment_looks_at_base_and_length() {
        let at = |addr: usize, len| iovec {
            iov_base: std::ptr::without_provenance_mut(addr),
            iov_len: len,
        };
        assert!(aligned(&[at(4096, 512), at(8192, 1024)], 4096, 512));
        assert!(!aligned(&[at(4096, 512), at(8196, 1024)], 4096, 512));
        assert!(aligned(&[at(4096, 512), at(8196, 1024)], 4, 512));
        assert!(!aligned(&[at(4096, 510)], 4, 512));
        assert!(aligned(&[at(3, 5)], 1, 1));
    }
}
