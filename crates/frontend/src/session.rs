//! A new connection up to the point where the rings can be set up: negotiation.

use std::os::fd::AsFd;
use std::path::Path;

use crate::connection::{BackendChannel, Connection};
use crate::error::FrontendError;
use crate::options::Options;
use crate::protocol::{BlkConfig, CONFIG_BYTES, device_status, feature, message, protocol_feature};

/// Virtio features the front end takes if they are offered and not masked.
const FEATURES: u64 = feature::SIZE_MAX
    | feature::SEG_MAX
    | feature::RO
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::TOPOLOGY
    | feature::CONFIG_WCE
    | feature::MQ
    | feature::DISCARD
    | feature::WRITE_ZEROES
    | feature::PROTOCOL_FEATURES
    | feature::VERSION_1;

/// A session whose features are chosen and whose rings are not set up.
pub(crate) struct Session {
    pub connection: Connection,
    pub channel: Option<BackendChannel>,
    pub features: u64,
    pub protocol: u64,
    pub config: Option<BlkConfig>,
}

impl Session {
    /// Negotiates. `in_use` are the features a guest already relies on; then no others are taken.
    pub fn open(
        path: &Path,
        options: &Options,
        in_use: Option<(u64, u64)>,
    ) -> Result<Self, FrontendError> {
        let mut connection = Connection::connect(path, options.timeout)?;
        let offered = connection.get_u64(message::GET_FEATURES)?;
        for (bit, what) in [
            (feature::VERSION_1, "VERSION_1"),
            (feature::PROTOCOL_FEATURES, "protocol features"),
        ] {
            if offered & bit == 0 {
                return Err(FrontendError::NotOffered { what, offered });
            }
        }
        let mut wanted = FEATURES;
        wanted |= if options.event_idx {
            feature::EVENT_IDX
        } else {
            0
        };
        wanted |= if options.indirect {
            feature::INDIRECT_DESC
        } else {
            0
        };
        let needed = feature::VERSION_1 | feature::PROTOCOL_FEATURES;
        let features = offered & wanted & (options.features_mask | needed);

        let protocol_offered = connection.get_u64(message::GET_PROTOCOL_FEATURES)?;
        if protocol_offered & protocol_feature::CONFIG == 0 {
            return Err(FrontendError::NotOffered {
                what: "CONFIG",
                offered: protocol_offered,
            });
        }
        let mut protocol = protocol_feature::CONFIG | protocol_feature::MQ;
        for (wanted, bit) in [
            (options.reply_ack, protocol_feature::REPLY_ACK),
            (options.inflight, protocol_feature::INFLIGHT_SHMFD),
            (
                options.base_inflight,
                protocol_feature::GET_VRING_BASE_INFLIGHT,
            ),
            (
                options.skip_drain,
                protocol_feature::GET_VRING_BASE_SKIP_DRAIN,
            ),
            (options.backend_channel, protocol_feature::BACKEND_REQ),
            (options.device_status, protocol_feature::STATUS),
            (options.mem_slots, protocol_feature::CONFIGURE_MEM_SLOTS),
        ] {
            protocol |= if wanted { bit } else { 0 };
        }
        protocol &= protocol_offered;

        let (features, protocol) = match in_use {
            None => (features, protocol),
            Some((guest, ours)) => {
                lost("virtio features", guest & !offered)?;
                lost("protocol features", ours & !protocol_offered)?;
                (guest, ours)
            }
        };
        connection.set(message::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[])?;
        connection.set_reply_ack(protocol & protocol_feature::REPLY_ACK != 0);
        let queues_max = if protocol & protocol_feature::MQ == 0 {
            1
        } else {
            connection.get_u64(message::GET_QUEUE_NUM)?
        };
        if u64::from(options.queues) > queues_max || options.queues == 0 {
            return Err(FrontendError::Options(format!(
                "{} queues, the device has {queues_max}",
                options.queues
            )));
        }
        connection.set(message::SET_OWNER, &[], &[])?;
        let channel = if protocol & protocol_feature::BACKEND_REQ == 0 {
            None
        } else {
            let (ours, theirs) = BackendChannel::new()?;
            connection.set(message::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
            Some(ours)
        };
        let config = match in_use {
            Some(_) if !options.config_again => None,
            _ => Some(get_config(&mut connection)?),
        };
        Ok(Self {
            connection,
            channel,
            features,
            protocol,
            config,
        })
    }
}

fn lost(what: &'static str, missing: u64) -> Result<(), FrontendError> {
    if missing == 0 {
        Ok(())
    } else {
        Err(FrontendError::FeaturesLost { what, missing })
    }
}

pub(crate) fn get_config(connection: &mut Connection) -> Result<BlkConfig, FrontendError> {
    let mut question = [0; 12 + CONFIG_BYTES];
    question[4..8].copy_from_slice(&u32::try_from(CONFIG_BYTES).unwrap_or(0).to_ne_bytes());
    let answer = connection.get(message::GET_CONFIG, &question)?;
    match answer
        .payload
        .get(12..)
        .and_then(|bytes| bytes.try_into().ok())
    {
        Some(bytes) => Ok(BlkConfig::parse(bytes)),
        None => Err(FrontendError::Malformed {
            during: message::name(message::GET_CONFIG),
            detail: format!(
                "{} bytes, expected {}",
                answer.payload.len(),
                question.len()
            ),
        }),
    }
}

pub(crate) fn get_status(connection: &mut Connection) -> Result<u8, FrontendError> {
    let status = connection.get_u64(message::GET_STATUS)?;
    u8::try_from(status).map_err(|_| FrontendError::Malformed {
        during: message::name(message::GET_STATUS),
        detail: format!("status {status:#x}"),
    })
}

pub(crate) fn set_status(connection: &mut Connection, status: u8) -> Result<(), FrontendError> {
    let payload = u64::from(status).to_ne_bytes();
    connection.set(message::SET_STATUS, &payload, &[])
}

/// Adds bits to what the device has, and looks whether they are there: QEMU's way.
pub(crate) fn add_status(connection: &mut Connection, bits: u8) -> Result<(), FrontendError> {
    let former = get_status(connection)?;
    set_status(connection, former | bits)?;
    let now = get_status(connection)?;
    if now & !device_status::NEEDS_RESET == (former | bits) & !device_status::NEEDS_RESET {
        Ok(())
    } else {
        Err(FrontendError::Malformed {
            during: message::name(message::GET_STATUS),
            detail: format!("status {now:#x} after {former:#x} and {bits:#x}"),
        })
    }
}

/// Payload of the messages that say something about a ring: its index and a number.
pub(crate) fn vring_state(queue: u16, value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&u32::from(queue).to_ne_bytes());
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    bytes
}
