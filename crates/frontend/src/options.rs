//! What a front end wants of a device.

use std::time::Duration;

/// What a front end wants. Features that the back end does not offer are done without, except
/// VERSION_1, protocol features and CONFIG.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of queues.
    pub queues: u16,
    /// Entries per queue: a power of two up to 32768.
    pub queue_size: u16,
    /// Negotiate EVENT_IDX.
    pub event_idx: bool,
    /// Negotiate INDIRECT_DESC, and use indirect tables by default.
    pub indirect: bool,
    /// Negotiate INFLIGHT_SHMFD.
    pub inflight: bool,
    /// Ask for an inflight region with this queue size instead of that of the queues: as QEMU does
    /// for virtio-mmio, where the driver makes queues larger than the device's `queue-size`.
    pub inflight_queue_size: Option<u16>,
    /// Negotiate GET_VRING_BASE_INFLIGHT.
    pub base_inflight: bool,
    /// Negotiate GET_VRING_BASE_SKIP_DRAIN, for [`crate::Disk::suspend`].
    pub skip_drain: bool,
    /// Negotiate REPLY_ACK and have every message acknowledged.
    pub reply_ack: bool,
    /// Negotiate BACKEND_REQ, to hear of configuration changes.
    pub backend_channel: bool,
    /// Negotiate STATUS, and set the device status as QEMU does: 0 before every stop.
    pub device_status: bool,
    /// Negotiate CONFIGURE_MEM_SLOTS, and tell the back end of each region once per connection
    /// instead of all of them at every start.
    pub mem_slots: bool,
    /// Read the configuration space at a reconnect, too. QEMU does not: it goes on with its copy.
    pub config_again: bool,
    /// Guest memory, rings included.
    pub memory_bytes: u64,
    /// Number of regions the guest memory is divided into, 1 to 8.
    pub memory_regions: u16,
    /// Default number of data descriptors per request.
    pub segments: u16,
    /// By how many bytes data buffers are shifted from their natural alignment.
    pub buffer_shift: u16,
    /// Return what was read. Off for benchmarks: read buffers are neither poisoned nor copied.
    pub keep_read_data: bool,
    /// Virtio features that may be negotiated, as a mask over all others.
    pub features_mask: u64,
    /// Kick queues with outstanding requests when they are started. The specification starts a
    /// ring at its kick; QEMU does not send one.
    pub kick_on_start: bool,
    /// Bound for each send and each reply.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 128,
            event_idx: true,
            indirect: true,
            inflight: true,
            inflight_queue_size: None,
            base_inflight: false,
            skip_drain: false,
            reply_ack: true,
            backend_channel: true,
            device_status: true,
            mem_slots: false,
            config_again: true,
            memory_bytes: 64 << 20,
            memory_regions: 2,
            segments: 1,
            buffer_shift: 0,
            keep_read_data: true,
            features_mask: u64::MAX,
            kick_on_start: true,
            timeout: Duration::from_secs(10),
        }
    }
}
