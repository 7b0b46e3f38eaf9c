//! What of a device survives a reconnect, and how a back end is told of it.

use crate::connection::Connection;
use crate::error::{FrontendError, Violation};
use crate::inflight::InflightRegion;
use crate::memory::GuestMemory;
use crate::options::Options;
use crate::protocol::{BlkConfig, message, protocol_feature};
use crate::queue::{Dropped, Queue};
use crate::token::Token;

/// Everything of a device but its connection: what survives a reconnect.
#[derive(Debug)]
pub struct DiskState {
    pub(crate) options: Options,
    pub(super) memory: GuestMemory,
    pub(crate) queues: Vec<Queue>,
    pub(super) inflight: Option<InflightRegion>,
    pub(super) features: u64,
    pub(super) protocol: u64,
    pub(super) config: BlkConfig,
    pub(super) next_token: u64,
    pub(crate) violations: Vec<Violation>,
    pub(super) dropped: Vec<Dropped>,
}

impl DiskState {
    /// Negotiated virtio features, [`feature`](crate::protocol::feature) masks.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The inflight region, if there is one.
    #[must_use]
    pub fn inflight(&self) -> Option<&InflightRegion> {
        self.inflight.as_ref()
    }

    /// All requests that have not been completed, in no particular order.
    #[must_use]
    pub fn outstanding_tokens(&self) -> Vec<Token> {
        self.queues.iter().flat_map(Queue::tokens).collect()
    }

    /// Hands the inflight region to the back end, or asks for one if there is none.
    pub(super) fn hand_over_inflight(
        &mut self,
        connection: &mut Connection,
    ) -> Result<(), FrontendError> {
        if self.protocol & protocol_feature::INFLIGHT_SHMFD == 0 {
            return Ok(());
        }
        let region = match self.inflight.take() {
            Some(region) => region,
            None => {
                let Options { queues, .. } = self.options;
                let queue_size = self.options.inflight_queue_size;
                let queue_size = queue_size.unwrap_or(self.options.queue_size);
                let question = InflightRegion::question(queues, queue_size);
                let answer = connection.get(message::GET_INFLIGHT_FD, &question)?;
                let fd = answer.fds.into_iter().next();
                InflightRegion::from_answer(&answer.payload, fd, queues, queue_size)?
            }
        };
        let region = self.inflight.insert(region);
        connection.set(message::SET_INFLIGHT_FD, &region.payload(), &[region.fd()])
    }

    /// Tells the memory region by region, under CONFIGURE_MEM_SLOTS.
    pub(super) fn add_mem_regions(&self, connection: &mut Connection) -> Result<(), FrontendError> {
        for region in self.memory.regions() {
            let mapping = region.mapping();
            let words = [
                0,
                region.guest_address(),
                region.len(),
                mapping.address(),
                0,
            ];
            let payload = words.map(u64::to_ne_bytes).concat();
            connection.set(message::ADD_MEM_REG, &payload, &[mapping.fd()])?;
        }
        Ok(())
    }

    /// Tells all of the memory at once.
    pub(super) fn set_mem_table(&self, connection: &mut Connection) -> Result<(), FrontendError> {
        let regions = self.memory.regions();
        let count = u64::try_from(regions.len()).unwrap_or(u64::MAX);
        let mut payload = count.to_ne_bytes().to_vec();
        for region in regions {
            let address = region.mapping().address();
            for word in [region.guest_address(), region.len(), address, 0] {
                payload.extend_from_slice(&word.to_ne_bytes());
            }
        }
        let fds: Vec<_> = regions.iter().map(|region| region.mapping().fd()).collect();
        connection.set(message::SET_MEM_TABLE, &payload, &fds)
    }
}
