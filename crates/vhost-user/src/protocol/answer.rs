//! Answers to bytes, and what the back end says unasked.

use super::code::Code;
use super::message::{ConfigRange, HEADER_BYTES, Header, Inflight, VERSION, VringState};

const INFLIGHT_BYTES: usize = 20;
const FLAG_REPLY: u32 = 0x4;

/// Request code of the back end: the configuration space has changed.
const BACKEND_CONFIG_CHANGE: u32 = 2;

/// What a message is answered with.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<F> {
    /// Nothing but that it is done, if the client wants to hear that.
    Done,
    /// It cannot be done, if the client wants to hear that.
    Failed,
    /// A number.
    Number(u64),
    /// GET_VRING_BASE.
    VringBase(VringState),
    /// A part of the configuration space.
    Config(ConfigRange, Vec<u8>),
    /// A fresh inflight region.
    Inflight(Inflight, F),
}

impl<F> Answer<F> {
    /// The bytes to send, with the descriptor that goes along; none if nothing is to be sent.
    pub fn encode(self, to: Header) -> Option<(Vec<u8>, Option<F>)> {
        let number = u64::to_ne_bytes;
        let (payload, fd) = match self {
            Self::Done | Self::Failed if !to.need_reply => return None,
            Self::Done => (number(0).to_vec(), None),
            Self::Failed => (number(1).to_vec(), None),
            Self::Number(value) => (number(value).to_vec(), None),
            Self::VringBase(state) => (words(&[state.index, state.value]), None),
            Self::Config(range, mut bytes) => {
                let mut payload = words(&[range.offset, range.len, range.flags]);
                payload.append(&mut bytes);
                (payload, None)
            }
            Self::Inflight(Inflight { spec, padded }, fd) => {
                let mut payload = Vec::with_capacity(INFLIGHT_BYTES + 4);
                payload.extend(number(spec.bytes));
                payload.extend(number(spec.offset));
                payload.extend(spec.queues.to_ne_bytes());
                payload.extend(spec.queue_size.to_ne_bytes());
                if padded {
                    payload.extend([0; 4]);
                }
                (payload, Some(fd))
            }
        };
        Some((reply(to.code, &payload), fd))
    }
}

/// What a client hears that waits for a message to be done, if it cannot be; none if it has been
/// promised another answer, or none at all.
pub fn refusal(to: Header) -> Option<Vec<u8>> {
    (to.need_reply && !to.has_answer()).then(|| reply(to.code, &1_u64.to_ne_bytes()))
}

/// The message that tells the client to read the configuration space again.
pub fn config_change() -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&BACKEND_CONFIG_CHANGE.to_ne_bytes());
    bytes[4..8].copy_from_slice(&VERSION.to_ne_bytes());
    bytes
}

fn reply(code: Code, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = words(&[code.0, VERSION | FLAG_REPLY, size]);
    bytes.extend_from_slice(payload);
    bytes
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
