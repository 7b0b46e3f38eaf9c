//! Numbers and layouts of vhost-user and of the virtio block device.

use virtio_bindings::{virtio_blk, virtio_config, virtio_ring};

/// Request codes of messages from the front end.
pub mod message {
    /// Offered virtio features.
    pub const GET_FEATURES: u32 = 1;
    /// Chosen virtio features.
    pub const SET_FEATURES: u32 = 2;
    /// First message of a session.
    pub const SET_OWNER: u32 = 3;
    /// Memory regions with their descriptors.
    pub const SET_MEM_TABLE: u32 = 5;
    /// Size of a ring.
    pub const SET_VRING_NUM: u32 = 8;
    /// Addresses of a ring, in the front end's address space.
    pub const SET_VRING_ADDR: u32 = 9;
    /// Next available index to be processed.
    pub const SET_VRING_BASE: u32 = 10;
    /// Stops a ring and asks for its next available index.
    pub const GET_VRING_BASE: u32 = 11;
    /// Event descriptor: buffers available.
    pub const SET_VRING_KICK: u32 = 12;
    /// Event descriptor: buffers used.
    pub const SET_VRING_CALL: u32 = 13;
    /// Event descriptor: the ring is broken.
    pub const SET_VRING_ERR: u32 = 14;
    /// Offered protocol features.
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    /// Chosen protocol features.
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    /// Largest number of queues.
    pub const GET_QUEUE_NUM: u32 = 17;
    /// Enables or disables a ring.
    pub const SET_VRING_ENABLE: u32 = 18;
    /// Socket for requests of the back end.
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    /// Reads the configuration space.
    pub const GET_CONFIG: u32 = 24;
    /// Writes the configuration space.
    pub const SET_CONFIG: u32 = 25;
    /// Asks for a fresh inflight region.
    pub const GET_INFLIGHT_FD: u32 = 31;
    /// Hands the inflight region back.
    pub const SET_INFLIGHT_FD: u32 = 32;
    /// Adds a memory region.
    pub const ADD_MEM_REG: u32 = 37;
    /// Removes a memory region.
    pub const REM_MEM_REG: u32 = 38;
    /// Sets the device status.
    pub const SET_STATUS: u32 = 39;
    /// Reads the device status.
    pub const GET_STATUS: u32 = 40;
    /// Stops a ring without waiting for what is in flight.
    pub const GET_VRING_BASE_SKIP_DRAIN: u32 = 45;

    /// Request code, from the back end: the configuration space changed.
    pub const BACKEND_CONFIG_CHANGE: u32 = 2;

    /// The specification's name of a front-end request.
    #[must_use]
    pub fn name(code: u32) -> &'static str {
        match code {
            GET_FEATURES => "GET_FEATURES",
            SET_FEATURES => "SET_FEATURES",
            SET_OWNER => "SET_OWNER",
            SET_MEM_TABLE => "SET_MEM_TABLE",
            SET_VRING_NUM => "SET_VRING_NUM",
            SET_VRING_ADDR => "SET_VRING_ADDR",
            SET_VRING_BASE => "SET_VRING_BASE",
            GET_VRING_BASE => "GET_VRING_BASE",
            SET_VRING_KICK => "SET_VRING_KICK",
            SET_VRING_CALL => "SET_VRING_CALL",
            SET_VRING_ERR => "SET_VRING_ERR",
            GET_PROTOCOL_FEATURES => "GET_PROTOCOL_FEATURES",
            SET_PROTOCOL_FEATURES => "SET_PROTOCOL_FEATURES",
            GET_QUEUE_NUM => "GET_QUEUE_NUM",
            SET_VRING_ENABLE => "SET_VRING_ENABLE",
            SET_BACKEND_REQ_FD => "SET_BACKEND_REQ_FD",
            GET_CONFIG => "GET_CONFIG",
            SET_CONFIG => "SET_CONFIG",
            GET_INFLIGHT_FD => "GET_INFLIGHT_FD",
            SET_INFLIGHT_FD => "SET_INFLIGHT_FD",
            ADD_MEM_REG => "ADD_MEM_REG",
            REM_MEM_REG => "REM_MEM_REG",
            SET_STATUS => "SET_STATUS",
            GET_STATUS => "GET_STATUS",
            GET_VRING_BASE_SKIP_DRAIN => "GET_VRING_BASE_SKIP_DRAIN",
            _ => "an unknown message",
        }
    }
}

/// Version bits of every message's flags.
pub const FLAG_VERSION: u32 = 0x1;
/// The message is a reply.
pub const FLAG_REPLY: u32 = 0x4;
/// The sender wants an acknowledgement (REPLY_ACK).
pub const FLAG_NEED_REPLY: u32 = 0x8;
/// Size of a message header in bytes.
pub const HEADER_BYTES: usize = 12;
/// Largest payload this front end accepts in a reply, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 4096;

/// Protocol feature bits, as masks.
pub mod protocol_feature {
    /// Several queues.
    pub const MQ: u64 = 1 << 0;
    /// Messages can be acknowledged.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The back end can send requests.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// GET_CONFIG and SET_CONFIG.
    pub const CONFIG: u64 = 1 << 9;
    /// Inflight region.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// ADD_MEM_REG and REM_MEM_REG.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// SET_STATUS and GET_STATUS.
    pub const STATUS: u64 = 1 << 16;
    /// What is in flight when a ring is stopped stays in the inflight region.
    pub const GET_VRING_BASE_INFLIGHT: u64 = 1 << 20;
    /// GET_VRING_BASE_SKIP_DRAIN.
    pub const GET_VRING_BASE_SKIP_DRAIN: u64 = 1 << 23;
}

/// Device status bits.
pub mod device_status {
    /// The driver has found the device.
    pub const ACKNOWLEDGE: u8 = 0x01;
    /// It knows how to drive it.
    pub const DRIVER: u8 = 0x02;
    /// It is ready.
    pub const DRIVER_OK: u8 = 0x04;
    /// The features are agreed upon.
    pub const FEATURES_OK: u8 = 0x08;
    /// The device cannot go on.
    pub const NEEDS_RESET: u8 = 0x40;
}

/// Virtio feature bits, as masks.
pub mod feature {
    use super::{virtio_blk, virtio_config, virtio_ring};

    /// `size_max` is valid.
    pub const SIZE_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SIZE_MAX;
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
    /// The device is read-only.
    pub const RO: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
    /// Flush requests.
    pub const FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;
    /// The topology fields are valid.
    pub const TOPOLOGY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_TOPOLOGY;
    /// The guest can switch the write cache.
    pub const CONFIG_WCE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;
    /// Several queues.
    pub const MQ: u64 = 1 << virtio_blk::VIRTIO_BLK_F_MQ;
    /// Discard requests.
    pub const DISCARD: u64 = 1 << virtio_blk::VIRTIO_BLK_F_DISCARD;
    /// Write-zeroes requests.
    pub const WRITE_ZEROES: u64 = 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;
    /// Indirect descriptor tables.
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// `used_event` and `avail_event`.
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// vhost-user: protocol features can be negotiated.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
}

/// Status byte: done.
pub const STATUS_OK: u8 = 0;
/// Status byte: device or driver error.
pub const STATUS_IOERR: u8 = 1;
/// Status byte: request not supported.
pub const STATUS_UNSUPP: u8 = 2;
/// What a status byte contains before the device has written it. No device status.
pub const STATUS_POISON: u8 = 0xee;

/// Length of the answer to a GET_ID request in bytes.
pub const ID_BYTES: u32 = virtio_blk::VIRTIO_BLK_ID_BYTES;
/// Bytes per sector of all virtio block offsets, whatever the block size.
pub const SECTOR_BYTES: u64 = 512;

/// Request types of the virtio block header.
pub mod request_type {
    use super::virtio_blk;

    /// Read.
    pub const IN: u32 = virtio_blk::VIRTIO_BLK_T_IN;
    /// Write.
    pub const OUT: u32 = virtio_blk::VIRTIO_BLK_T_OUT;
    /// Flush.
    pub const FLUSH: u32 = virtio_blk::VIRTIO_BLK_T_FLUSH;
    /// Read the device's id string.
    pub const GET_ID: u32 = virtio_blk::VIRTIO_BLK_T_GET_ID;
    /// Discard ranges.
    pub const DISCARD: u32 = virtio_blk::VIRTIO_BLK_T_DISCARD;
    /// Zero ranges.
    pub const WRITE_ZEROES: u32 = virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES;
}

/// Write-zeroes flag: the device may deallocate.
pub const WRITE_ZEROES_UNMAP: u32 = virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

/// Bytes of configuration space that are read: `struct virtio_blk_config` up to and including the
/// write-zeroes fields.
pub const CONFIG_BYTES: usize = 60;

/// The device's configuration space. A field is meaningful only if its feature was negotiated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the fields are those of struct virtio_blk_config"
)]
pub struct BlkConfig {
    /// In sectors of 512 bytes.
    pub capacity: u64,
    pub size_max: u32,
    pub seg_max: u32,
    /// In bytes.
    pub blk_size: u32,
    pub physical_block_exp: u8,
    pub alignment_offset: u8,
    /// In logical blocks.
    pub min_io_size: u16,
    /// In logical blocks.
    pub opt_io_size: u32,
    pub wce: u8,
    pub num_queues: u16,
    /// In sectors of 512 bytes.
    pub max_discard_sectors: u32,
    pub max_discard_seg: u32,
    /// In sectors of 512 bytes.
    pub discard_sector_alignment: u32,
    /// In sectors of 512 bytes.
    pub max_write_zeroes_sectors: u32,
    pub max_write_zeroes_seg: u32,
    pub write_zeroes_may_unmap: u8,
}

impl BlkConfig {
    /// Takes the fields from the bytes of the configuration space.
    #[must_use]
    pub fn parse(bytes: &[u8; CONFIG_BYTES]) -> Self {
        Self {
            capacity: u64::from_le_bytes(field(bytes, 0)),
            size_max: u32::from_le_bytes(field(bytes, 8)),
            seg_max: u32::from_le_bytes(field(bytes, 12)),
            blk_size: u32::from_le_bytes(field(bytes, 20)),
            physical_block_exp: bytes[24],
            alignment_offset: bytes[25],
            min_io_size: u16::from_le_bytes(field(bytes, 26)),
            opt_io_size: u32::from_le_bytes(field(bytes, 28)),
            wce: bytes[32],
            num_queues: u16::from_le_bytes(field(bytes, 34)),
            max_discard_sectors: u32::from_le_bytes(field(bytes, 36)),
            max_discard_seg: u32::from_le_bytes(field(bytes, 40)),
            discard_sector_alignment: u32::from_le_bytes(field(bytes, 44)),
            max_write_zeroes_sectors: u32::from_le_bytes(field(bytes, 48)),
            max_write_zeroes_seg: u32::from_le_bytes(field(bytes, 52)),
            write_zeroes_may_unmap: bytes[56],
        }
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity.saturating_mul(SECTOR_BYTES)
    }
}

/// `N` bytes at `offset`. The caller's constants keep it in range.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_fields_are_at_the_offsets_of_the_specification() {
        let bytes: [u8; CONFIG_BYTES] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let config = BlkConfig::parse(&bytes);
        assert_eq!(config.capacity, 0x0706_0504_0302_0100);
        assert_eq!(config.blk_size, 0x1716_1514);
        assert_eq!(config.wce, 32);
        assert_eq!(config.num_queues, 0x2322);
        assert_eq!(config.max_discard_sectors, 0x2726_2524);
        assert_eq!(config.max_write_zeroes_sectors, 0x3332_3130);
        assert_eq!(config.write_zeroes_may_unmap, 56);
    }
}
