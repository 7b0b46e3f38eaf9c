//! The end of an image whose length is no multiple of 512 bytes, or of the blocks of O_DIRECT.
//!
//! A node is as long as its image, rounded up to whole sectors of 512 bytes: nothing of the image is
//! out of the guest's reach, and behind its end there are zeroes. What a guest writes there makes the
//! image longer, up to that and never beyond: whoever opens it the next time finds a node of the same
//! length, even if this process is killed half way.
//!
//! O_DIRECT cannot do that where blocks are larger than a sector: a whole block would have to be
//! written, and the image be as long as that from then on. So the last block, if it is not a whole one,
//! is written through the page cache, by a second descriptor, which carries the same image locks
//! ([`super::lock`]). Each such write is durable when it ends (RWF_DSYNC), so that a failure is the failure
//! of this write and of no later flush.
//!
//! Only requests that end there are dealt with like this ([`super::tail_io`]); all others cost one
//! comparison.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::lock::Locked;
use super::probe::Kind;

/// A node's length is a multiple of it.
const SECTOR_BYTES: u64 = 512;

/// The length of a node on an image of `bytes` bytes: a file is rounded up to whole sectors; none beyond
/// what there can be. What a block device has beyond its last whole block even the kernel cannot reach.
pub fn node_length(kind: Kind, bytes: u64, logical_block: u32) -> Option<u64> {
    match kind {
        Kind::Block => Some(bytes & !(u64::from(logical_block) - 1)),
        _ => bytes.checked_next_multiple_of(SECTOR_BYTES),
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Tail {
    /// What is known to be there: up to here reads have to be whole, from here on zeroes are read.
    end: AtomicU64,
    /// Requests that end here, or before, are as all others.
    plain: AtomicU64,
    /// What the image is written in, by O_DIRECT.
    block: u64,
    /// Several writes at once reach the end, and it never goes back for one of them.
    changing: Mutex<()>,
}

impl Tail {
    /// An image of `end` bytes, written in blocks of `block` bytes, under a node of `length` bytes.
    pub fn new(end: u64, length: u64, block: u32) -> Self {
        let tail = Self {
            end: AtomicU64::new(0),
            plain: AtomicU64::new(0),
            block: u64::from(block),
            changing: Mutex::new(()),
        };
        tail.set(end, length);
        tail
    }

    /// The image has `end` bytes now, the node `length`.
    pub fn set(&self, end: u64, length: u64) {
        let _one = self.changing.lock();
        self.store(end, length);
    }

    fn store(&self, end: u64, length: u64) {
        self.end.store(end, Ordering::Release);
        let whole = end >= length && self.has_whole_blocks(length);
        let plain = if whole {
            u64::MAX
        } else {
            self.blocks_end(end)
        };
        self.plain.store(plain, Ordering::Release);
    }

    fn has_whole_blocks(&self, length: u64) -> bool {
        length & (self.block - 1) == 0
    }

    /// Where the last whole block ends.
    pub fn blocks_end(&self, length: u64) -> u64 {
        length & !(self.block - 1)
    }

    /// Whether a request that ends at `end` is one to the tail ([`super::tail_io`]).
    pub fn is_reached(&self, end: u64) -> bool {
        end > self.plain.load(Ordering::Acquire)
    }

    /// What is known to be there.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Opens what is needed for an image under a node of `length` bytes, unless that was done before.
    /// `image` is open with O_DIRECT.
    pub fn prepare(&self, length: u64, image: &Locked) -> io::Result<()> {
        if self.has_whole_blocks(length) {
            return Ok(());
        }
        image.open_second()
    }

    /// A write that ends at `end` has succeeded, and left the node as long as it is.
    pub fn written(&self, end: u64, length: &AtomicU64) {
        let _one = self.changing.lock();
        let length = length.load(Ordering::Acquire);
        let end = end.min(length);
        if self.end() < end {
            self.store(end, length);
        }
    }

    /// A write has made the image at least `end` bytes long, and the node `node`.
    pub fn grown(&self, end: u64, node: u64, length: &AtomicU64) {
        let _one = self.changing.lock();
        let node = length.fetch_max(node, Ordering::AcqRel).max(node);
        if self.end() < end {
            self.store(end, node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_in_the_last_part_is_no_plain_request() {
        // Image, node, block, the end of what is plain.
        for (end, length, block, plain) in [
            (4096, 4096, 1, u64::MAX),
            (4096, 4096, 4096, u64::MAX),
            (4096, 4096, 512, u64::MAX),
            (4100, 4608, 1, 4100),
            (4100, 4608, 512, 4096),
            (4100, 4608, 4096, 4096),
            (4608, 4608, 512, u64::MAX),
            (4608, 4608, 4096, 4096),
            (100, 512, 4096, 0),
            (0, 0, 4096, u64::MAX),
        ] {
            let tail = Tail::new(end, length, block);
            assert_eq!(tail.plain.load(Ordering::Acquire), plain, "{end} {block}");
        }
        let tail = Tail::new(4100, 4608, 512);
        tail.written(4608, &AtomicU64::new(4608));
        assert!(!tail.is_reached(4608), "it is there now");
        tail.written(4200, &AtomicU64::new(4608));
        assert_eq!(tail.end(), 4608, "whoever ends later, but wrote less");
        let length = AtomicU64::new(4608);
        tail.grown(12_288, 12_288, &length);
        tail.grown(8192, 8192, &length);
        tail.written(4608, &length);
        assert_eq!((tail.end(), length.into_inner()), (12_288, 12_288));
    }
}
