//! A connected device: its life from negotiation to disconnect.

mod queues;
mod state;

use std::os::fd::AsFd;
use std::path::Path;

pub use self::state::DiskState;
use crate::connection::{BackendChannel, Connection};
use crate::error::{FrontendError, Violation};
use crate::event::signal;
use crate::inflight::InflightRegion;
use crate::memory::GuestMemory;
use crate::options::Options;
use crate::protocol::{BlkConfig, device_status, feature, message, protocol_feature};
use crate::queue::{Dropped, Queue};
use crate::session::{Session, add_status, get_config, get_status, set_status, vring_state};
use crate::token::Token;

/// Offset of `wce` in the configuration space.
const CONFIG_WCE_OFFSET: u32 = 32;

/// A connected vhost-user-blk device with its guest memory and queues.
#[derive(Debug)]
pub struct Disk {
    pub(crate) connection: Connection,
    channel: Option<BackendChannel>,
    running: bool,
    /// Whether this connection knows the memory regions, under CONFIGURE_MEM_SLOTS.
    slots_told: bool,
    pub(crate) state: DiskState,
}

impl Disk {
    /// Connects to the back end at `path`, negotiates, and starts the device.
    ///
    /// # Errors
    /// Errors of the connection, missing features, impossible options.
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Self, FrontendError> {
        let session = Session::open(path.as_ref(), &options, None)?;
        let mut memory = GuestMemory::new(options.memory_bytes, options.memory_regions)?;
        let event_idx = session.features & feature::EVENT_IDX != 0;
        let queues = (0..options.queues)
            .map(|index| Queue::new(index, options.queue_size, event_idx, &mut memory))
            .collect::<Result<_, _>>()?;
        let mut disk = Self {
            connection: session.connection,
            channel: session.channel,
            running: false,
            slots_told: false,
            state: DiskState {
                options,
                memory,
                queues,
                inflight: None,
                features: session.features,
                protocol: session.protocol,
                config: session.config.unwrap_or_default(),
                next_token: 1,
                violations: Vec::new(),
                dropped: Vec::new(),
            },
        };
        disk.start()?;
        Ok(disk)
    }

    /// Connects again with the memory, rings and inflight region of a device that was disconnected,
    /// and starts it: QEMU's `reconnect=`. Outstanding requests stay outstanding.
    ///
    /// # Errors
    /// The error and the state, so that the caller can try again.
    #[expect(
        clippy::result_large_err,
        reason = "the state must come back; this is no hot path"
    )]
    pub fn reconnect(
        state: DiskState,
        path: impl AsRef<Path>,
    ) -> Result<Self, (FrontendError, DiskState)> {
        let in_use = Some((state.features, state.protocol));
        let session = match Session::open(path.as_ref(), &state.options, in_use) {
            Ok(session) => session,
            Err(error) => return Err((error, state)),
        };
        let (connection, channel) = (session.connection, session.channel);
        let mut disk = Self {
            connection,
            channel,
            running: false,
            slots_told: false,
            state,
        };
        disk.state.config = session.config.unwrap_or(disk.state.config);
        match disk.start() {
            Ok(()) => Ok(disk),
            Err(error) => Err((error, disk.disconnect())),
        }
    }

    /// Closes the connection without a word, as a VMM does that is killed, or that saw the back end
    /// die. Rings that were running resume from their used index.
    #[must_use]
    pub fn disconnect(mut self) -> DiskState {
        if self.running {
            for queue in &mut self.state.queues {
                queue.base = queue.ring.device_used_index();
            }
        }
        self.state
    }

    /// Sets up and enables the rings, as QEMU does when the VM resumes. A device without an inflight
    /// region asks for one; one that has been stopped hands its region back.
    ///
    /// # Errors
    /// [`FrontendError::State`] if it is running; errors of the connection.
    pub fn start(&mut self) -> Result<(), FrontendError> {
        self.check_state("start", false)?;
        let Self {
            connection,
            state,
            slots_told,
            ..
        } = self;
        for queue in &mut state.queues {
            queue.check_stopped(&state.memory, &mut state.violations);
        }
        connection.set(message::SET_FEATURES, &state.features.to_ne_bytes(), &[])?;
        let status = state.protocol & protocol_feature::STATUS != 0;
        if status {
            add_status(connection, device_status::FEATURES_OK)?;
        }
        state.hand_over_inflight(connection)?;
        if state.protocol & protocol_feature::CONFIGURE_MEM_SLOTS == 0 {
            state.set_mem_table(connection)?;
        } else if !*slots_told {
            state.add_mem_regions(connection)?;
            *slots_told = true;
        }
        for queue in &state.queues {
            let index = queue.index;
            let size = u32::from(queue.ring.size());
            connection.set(message::SET_VRING_NUM, &vring_state(index, size), &[])?;
            let base = u32::from(queue.base);
            connection.set(message::SET_VRING_BASE, &vring_state(index, base), &[])?;
            let mut address = [0; 40];
            address[..4].copy_from_slice(&u32::from(index).to_ne_bytes());
            let [table, avail, used] = queue.ring.addresses();
            for (at, value) in [(8, table), (16, used), (24, avail)] {
                address[at..at + 8].copy_from_slice(&value.to_ne_bytes());
            }
            connection.set(message::SET_VRING_ADDR, &address, &[])?;
            let which = u64::from(index).to_ne_bytes();
            connection.set(message::SET_VRING_ERR, &which, &[queue.err.as_fd()])?;
            connection.set(message::SET_VRING_CALL, &which, &[queue.call.as_fd()])?;
            connection.set(message::SET_VRING_KICK, &which, &[queue.kick.as_fd()])?;
        }
        self.running = true;
        for index in 0..self.state.options.queues {
            self.set_enabled(index, true)?;
        }
        if status {
            let ready =
                device_status::ACKNOWLEDGE | device_status::DRIVER | device_status::DRIVER_OK;
            add_status(&mut self.connection, ready)?;
        }
        if self.state.options.kick_on_start {
            let queues = &self.state.queues;
            queues
                .iter()
                .filter(|queue| queue.outstanding() > 0)
                .try_for_each(|queue| signal(&queue.kick))?;
        }
        Ok(())
    }

    /// Stops the rings, as QEMU does when the VM stops, and returns each one's next available index.
    /// It does not wait for requests; a back end that does is timed out.
    ///
    /// # Errors
    /// [`FrontendError::State`] if it is not running; errors of the connection.
    pub fn stop(&mut self) -> Result<Vec<u16>, FrontendError> {
        self.stop_by(message::GET_VRING_BASE)
    }

    /// As [`Disk::stop`], by GET_VRING_BASE_SKIP_DRAIN: what is in flight may go on, but must not be
    /// seen in the ring before the next start.
    ///
    /// # Errors
    /// As [`Disk::stop`].
    pub fn suspend(&mut self) -> Result<Vec<u16>, FrontendError> {
        self.stop_by(message::GET_VRING_BASE_SKIP_DRAIN)
    }

    fn stop_by(&mut self, code: u32) -> Result<Vec<u16>, FrontendError> {
        self.check_state("stop", true)?;
        if self.state.protocol & protocol_feature::STATUS != 0 {
            self.set_status(0)?;
        }
        for index in 0..self.state.options.queues {
            self.set_enabled(index, false)?;
        }
        let Self {
            connection, state, ..
        } = self;
        let mut bases = Vec::with_capacity(state.queues.len());
        for queue in &mut state.queues {
            let reply = connection
                .get(code, &vring_state(queue.index, 0))?
                .u64(code)?;
            let bytes = reply.to_ne_bytes();
            let base = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let (used, avail) = (queue.ring.device_used_index(), queue.ring.avail_index());
            match u16::try_from(base) {
                Ok(base) if base.wrapping_sub(used) <= avail.wrapping_sub(used) => {
                    queue.base = base
                }
                _ => {
                    let queue_index = queue.index;
                    let bad = Violation::BadBase {
                        queue: queue_index,
                        base,
                        used,
                        avail,
                    };
                    state.violations.push(bad);
                    queue.base = used;
                }
            }
            bases.push(queue.base);
            queue.note_stopped(&state.memory);
        }
        self.running = false;
        Ok(bases)
    }

    /// The device status, [`device_status`] masks, as the device knows it.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn status(&mut self) -> Result<u8, FrontendError> {
        get_status(&mut self.connection)
    }

    /// Sets the device status.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn set_status(&mut self, status: u8) -> Result<(), FrontendError> {
        set_status(&mut self.connection, status)
    }

    /// Resets the device as QEMU does: stop, forget the inflight region, rings zeroed, start afresh.
    /// Returns the requests that were outstanding: the device must never complete them nor touch
    /// their buffers, which [`Disk::check_dropped`] verifies.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn reset(&mut self) -> Result<Vec<Token>, FrontendError> {
        if self.running {
            self.stop()?;
        }
        let state = &mut self.state;
        state.inflight = None;
        let mut tokens = Vec::new();
        for queue in &mut state.queues {
            let dropped = queue.reset(&mut state.memory)?;
            tokens.extend(dropped.iter().map(Dropped::token));
            state.dropped.extend(dropped);
        }
        self.start()?;
        Ok(tokens)
    }

    /// Looks whether the device has written into the buffers of dropped requests. Each finding is
    /// also a violation.
    ///
    /// # Errors
    /// The violations found.
    pub fn check_dropped(&mut self) -> Result<(), Vec<Violation>> {
        let state = &mut self.state;
        let found: Vec<_> = state
            .dropped
            .iter()
            .filter_map(|dropped| dropped.check(&state.memory))
            .collect();
        state.violations.extend(found.iter().cloned());
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    /// Stops watching the buffers of dropped requests and uses them again.
    pub fn forget_dropped(&mut self) {
        let state = &mut self.state;
        state
            .dropped
            .drain(..)
            .for_each(|dropped| dropped.forget(&mut state.memory));
    }

    /// SET_VRING_ENABLE, which alone is how Cloud Hypervisor pauses a device.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn set_enabled(&mut self, queue: u16, on: bool) -> Result<(), FrontendError> {
        self.connection.set(
            message::SET_VRING_ENABLE,
            &vring_state(queue, u32::from(on)),
            &[],
        )
    }

    /// Adds a region of guest memory and, if the device is running, tells it.
    ///
    /// # Errors
    /// Errors of the connection, or no room for a region.
    pub fn add_memory(&mut self, bytes: u64) -> Result<(), FrontendError> {
        self.state.memory.add_region(bytes)?;
        if self.running {
            self.state.set_mem_table(&mut self.connection)
        } else {
            Ok(())
        }
    }

    /// The configuration space as last read.
    #[must_use]
    pub fn config(&self) -> BlkConfig {
        self.state.config
    }

    /// Reads the configuration space again.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn refresh_config(&mut self) -> Result<BlkConfig, FrontendError> {
        self.state.config = get_config(&mut self.connection)?;
        Ok(self.state.config)
    }

    /// Switches the device's write cache by SET_CONFIG of `wce`.
    ///
    /// # Errors
    /// Errors of the connection, among them a refusal.
    pub fn set_write_cache(&mut self, on: bool) -> Result<(), FrontendError> {
        self.set_config(CONFIG_WCE_OFFSET, &[u8::from(on)])
    }

    /// SET_CONFIG of any bytes.
    ///
    /// # Errors
    /// Errors of the connection, among them a refusal.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), FrontendError> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut payload = [offset, len, 0].map(u32::to_ne_bytes).concat();
        payload.extend_from_slice(bytes);
        self.connection.set(message::SET_CONFIG, &payload, &[])
    }

    /// How many configuration changes the back end has announced since the last call; 0 if there is
    /// no channel for it.
    ///
    /// # Errors
    /// [`FrontendError::Malformed`] if it sent something else.
    pub fn take_config_changes(&mut self) -> Result<u32, FrontendError> {
        self.channel
            .as_mut()
            .map_or(Ok(0), BackendChannel::take_config_changes)
    }

    /// Negotiated virtio features, [`feature`] masks.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.state.features
    }

    /// Negotiated protocol features, [`protocol_feature`] masks.
    #[must_use]
    pub fn protocol_features(&self) -> u64 {
        self.state.protocol
    }

    /// Whether the rings are started.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Frees the inflight region of a device that is stopped, as QEMU does when the device is
    /// unplugged: the connection stays.
    pub fn free_inflight(&mut self) {
        self.state.inflight = None;
    }

    /// The inflight region, if there is one.
    #[must_use]
    pub fn inflight(&self) -> Option<&InflightRegion> {
        self.state.inflight.as_ref()
    }

    /// What the device has done wrong so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.state.violations
    }

    /// As [`Disk::violations`], and forgets them.
    pub fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.state.violations)
    }

    /// The connection, to be watched for its end.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The connection, for tests that send messages of their own.
    pub fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    fn check_state(&self, what: &'static str, running: bool) -> Result<(), FrontendError> {
        let word = |running| if running { "running" } else { "stopped" };
        if self.running == running {
            Ok(())
        } else {
            Err(FrontendError::State {
                what,
                is: word(self.running),
                needed: word(running),
            })
        }
    }
}
