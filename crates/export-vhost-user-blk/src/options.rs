//! What the user decides about an export.

use crate::request::ID_BYTES;

/// Options of a vhost-user-blk export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The export's id.
    pub id: String,
    /// Whether clients may write.
    pub writable: bool,
    /// Whether a write is durable when it completes, until the guest decides otherwise.
    pub writethrough: bool,
    /// What the guest sees as the disk's serial number; at most 20 bytes.
    pub serial: String,
    /// Offsets and lengths of requests are multiples of it, in bytes; a power of two, 512 to 32768.
    pub logical_block_size: u32,
    /// Largest queue a client may set up; a power of two, 4 to [`QUEUE_SIZE_MAX`].
    pub queue_size_max: u16,
    /// Most queues that a client may use, 1 to [`QUEUES_MAX`]. A queue takes memory once it is used.
    pub num_queues: u16,
    /// Whether the client may tell changes of its memory instead of all of it. A daemon that replaces
    /// another one while the VM is stopped then does not hear of the rest from QEMU.
    pub configure_mem_slots: bool,
    /// Whether a client is served that has seen another image.
    pub other_image: bool,
}

/// Largest queue there can be, as in QEMU.
pub const QUEUE_SIZE_MAX: u16 = 1024;
/// Most queues there can be: SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR have 8 bits for the
/// number of the queue. virtio, and so QEMU's `num-queues`, goes as far as 1024.
pub const QUEUES_MAX: u16 = 256;

impl Options {
    /// The defaults: read-only, writeback, blocks of 512 bytes, one queue of at most 1024.
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            writable: false,
            writethrough: false,
            serial: "vhost_user_blk".to_owned(),
            logical_block_size: 512,
            queue_size_max: QUEUE_SIZE_MAX,
            num_queues: 1,
            configure_mem_slots: false,
            other_image: false,
        }
    }

    /// # Errors
    /// [`OptionError`] names the option, its value and what would be right.
    pub fn check(&self) -> Result<(), OptionError> {
        if self.serial.len() > ID_BYTES {
            return Err(OptionError::Serial {
                serial: self.serial.clone(),
            });
        }
        let size = self.logical_block_size;
        if !size.is_power_of_two() || !(512..=32768).contains(&size) {
            return Err(OptionError::BlockSize { size });
        }
        let size = self.queue_size_max;
        if !size.is_power_of_two() || !(4..=QUEUE_SIZE_MAX).contains(&size) {
            return Err(OptionError::QueueSize { size });
        }
        if !(1..=QUEUES_MAX).contains(&self.num_queues) {
            return Err(OptionError::Queues {
                count: self.num_queues,
            });
        }
        Ok(())
    }

    pub(crate) fn id_string(&self) -> [u8; ID_BYTES] {
        let mut bytes = [0; ID_BYTES];
        for (to, from) in bytes.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        bytes
    }
}

/// An option that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The serial number is too long.
    #[error("serial '{serial}' has {} bytes, the guest can see at most {ID_BYTES}", serial.len())]
    Serial {
        /// The serial number.
        serial: String,
    },
    /// Not a block size.
    #[error("logical-block-size {size} must be a power of two from 512 to 32768")]
    BlockSize {
        /// The size in bytes.
        size: u32,
    },
    /// Not a queue size.
    #[error("queue size {size} must be a power of two from 4 to {QUEUE_SIZE_MAX}")]
    QueueSize {
        /// The size.
        size: u16,
    },
    /// No queue at all, or too many.
    #[error("num-queues {count} must be from 1 to {QUEUES_MAX}")]
    Queues {
        /// How many.
        count: u16,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks() {
        let good = Options::new("disk0");
        assert_eq!(good.check(), Ok(()));
        assert_eq!(&good.id_string()[..15], b"vhost_user_blk\0");
        let serial = "x".repeat(20);
        let longest = Options {
            serial,
            ..good.clone()
        };
        assert_eq!(longest.check(), Ok(()));
        assert_eq!(longest.id_string(), [b'x'; 20]);
        let serial = "x".repeat(21);
        let error = Options {
            serial,
            ..good.clone()
        }
        .check()
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "serial 'xxxxxxxxxxxxxxxxxxxxx' has 21 bytes, the guest can see at most 20"
        );
        for size in [0, 256, 513, 65536] {
            let options = Options {
                logical_block_size: size,
                ..good.clone()
            };
            assert_eq!(options.check(), Err(OptionError::BlockSize { size }));
        }
        for size in [0, 1, 2, 100, 2048] {
            let options = Options {
                queue_size_max: size,
                ..good.clone()
            };
            assert_eq!(options.check(), Err(OptionError::QueueSize { size }));
        }
        for count in [0, 257, u16::MAX] {
            let options = Options {
                num_queues: count,
                ..good.clone()
            };
            assert_eq!(options.check(), Err(OptionError::Queues { count }));
        }
    }
}
