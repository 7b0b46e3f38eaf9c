//! Feature bits of the transport.
//!
//! Not offered on purpose:
//! - VHOST_F_LOG_ALL: a migration would lose what is held; without it QEMU refuses to migrate;
//! - protocol feature CONFIGURE_MEM_SLOTS, unless the user wants it: QEMU (7.2 was looked at) tells
//!   only what has changed in its memory, and when the daemon was replaced while the VM was stopped,
//!   it believes that the new one knows what the former one knew. Without the feature it sends the
//!   whole table whenever it starts the device. The messages are served in any case.

use virtio_bindings::{virtio_config, virtio_ring};

use crate::class::Shape;

pub(crate) const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
pub(crate) const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;

/// The virtio features that every device offers.
pub(crate) const TRANSPORT: u64 = VERSION_1 | EVENT_IDX | INDIRECT_DESC | PROTOCOL_FEATURES;

const P_MQ: u64 = 1 << 0;
const P_REPLY_ACK: u64 = 1 << 3;
const P_BACKEND_REQ: u64 = 1 << 5;
const P_CONFIG: u64 = 1 << 9;
const P_INFLIGHT_SHMFD: u64 = 1 << 12;
const P_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
const P_STATUS: u64 = 1 << 16;
const P_GET_VRING_BASE_INFLIGHT: u64 = 1 << 20;
pub(crate) const P_GET_VRING_BASE_SKIP_DRAIN: u64 = 1 << 23;

/// Device status bit: a queue is broken, only a reset helps.
pub(crate) const NEEDS_RESET: u8 = 0x40;

/// The protocol features that are offered. GET_VRING_BASE_INFLIGHT needs INFLIGHT_SHMFD beside it:
/// what is held when the ring's index is told stays marked in the region. So does, with
/// GET_VRING_BASE_SKIP_DRAIN, what is in flight.
pub(crate) fn protocol(shape: &Shape) -> u64 {
    let mut features = P_MQ
        | P_REPLY_ACK
        | P_BACKEND_REQ
        | P_CONFIG
        | P_INFLIGHT_SHMFD
        | P_STATUS
        | P_GET_VRING_BASE_INFLIGHT
        | P_GET_VRING_BASE_SKIP_DRAIN;
    if shape.configure_mem_slots {
        features |= P_CONFIGURE_MEM_SLOTS;
    }
    features
}
