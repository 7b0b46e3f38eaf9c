//! Feature bits of a disk, and the configuration space.

use block::Limits;
use virtio_bindings::virtio_blk;

use crate::options::Options;
use crate::request::{DISCARD_SECTORS_MAX, SECTOR_BYTES, WRITE_ZEROES_SECTORS_MAX};
use crate::topology::Topology;

pub(crate) const F_FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;
pub(crate) const F_CONFIG_WCE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;
const F_SIZE_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SIZE_MAX;
const F_SEG_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
const F_RO: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;
const F_BLK_SIZE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
const F_TOPOLOGY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_TOPOLOGY;
const F_MQ: u64 = 1 << virtio_blk::VIRTIO_BLK_F_MQ;
const F_DISCARD: u64 = 1 << virtio_blk::VIRTIO_BLK_F_DISCARD;
const F_WRITE_ZEROES: u64 = 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;

/// Offset of the byte that says whether there is a write cache.
pub(crate) const WCE_OFFSET: u32 = 32;
/// Size of the configuration space in bytes; what we know of it, and zeroes for newer drivers.
const CONFIG_BYTES: usize = 256;
/// Data segments of one request, as QEMU announces them.
const SEGMENTS_MAX: u32 = 126;
/// Largest data segment in bytes. Longer ones work; the guest is told a bound because some firmware
/// does not do without.
const SEGMENT_BYTES_MAX: u32 = 1 << 20;

/// The virtio features of the disk that are offered.
pub(crate) fn virtio_features(options: &Options) -> u64 {
    let mut features = F_SIZE_MAX
        | F_SEG_MAX
        | F_BLK_SIZE
        | F_TOPOLOGY
        | F_FLUSH
        | F_CONFIG_WCE
        | F_DISCARD
        | F_WRITE_ZEROES;
    if !options.writable {
        features |= F_RO;
    }
    if options.num_queues > 1 {
        features |= F_MQ;
    }
    features
}

/// The configuration space of a disk of `length` bytes.
pub(crate) fn space(
    options: &Options,
    length: u64,
    limits: Limits,
    writeback: bool,
) -> [u8; CONFIG_BYTES] {
    let block = options.logical_block_size;
    let topology = Topology::of(&limits, block);
    let mut space = [0; CONFIG_BYTES];
    let mut put =
        |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &(length / SECTOR_BYTES).to_le_bytes());
    put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
    let segments = SEGMENTS_MAX
        .min(u32::from(options.queue_size_max) - 2)
        .max(1);
    put(12, &segments.to_le_bytes());
    put(20, &block.to_le_bytes());
    put(
        24,
        &[topology.physical_block_exp, topology.alignment_offset],
    );
    put(26, &topology.min_io_size.to_le_bytes());
    put(28, &topology.opt_io_size.to_le_bytes());
    put(32, &[u8::from(writeback)]);
    put(34, &options.num_queues.to_le_bytes());
    put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(40, &1_u32.to_le_bytes());
    put(44, &topology.discard_sector_alignment.to_le_bytes());
    put(48, &WRITE_ZEROES_SECTORS_MAX.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    space
}

#[cfg(test)]
mod tests {
    use super::*;
    use frontend::BlkConfig;

    #[test]
    fn layout_of_the_specification() {
        let options = Options {
            logical_block_size: 1024,
            num_queues: 3,
            ..Options::new("d")
        };
        let limits = Limits {
            request_alignment: 4096,
            discard_alignment: 8192,
            ..Limits::default()
        };
        let bytes = space(&options, 10 * 4096 + 511, limits, true);
        let found = BlkConfig::parse(&bytes[..60].try_into().unwrap());
        assert_eq!(
            (found.capacity, found.seg_max, found.blk_size),
            (80, 126, 1024)
        );
        assert_eq!(found.size_max, 1 << 20);
        assert_eq!((found.physical_block_exp, found.alignment_offset), (2, 0));
        assert_eq!((found.min_io_size, found.opt_io_size, found.wce), (1, 1, 1));
        assert_eq!((found.num_queues, found.max_discard_seg), (3, 1));
        assert_eq!(
            (found.max_discard_sectors, found.discard_sector_alignment),
            (32768, 16)
        );
        assert_eq!(
            (found.max_write_zeroes_sectors, found.max_write_zeroes_seg),
            (32768, 1)
        );
        assert_eq!(found.write_zeroes_may_unmap, 1);
    }

    #[test]
    fn read_only_is_a_feature() {
        let options = Options::new("d");
        assert_ne!(virtio_features(&options) & F_RO, 0);
        let writable = Options {
            writable: true,
            ..options
        };
        assert_eq!(virtio_features(&writable) & (F_RO | F_MQ), 0);
    }
}
