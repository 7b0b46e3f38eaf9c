//! What a file can do beside its storage ([`Capabilities`](block::Capabilities)).

use block::{
    ContBlocker, DiscardCounters, DiscardStats, FlushLatch, Identify, Image, Loss, Operation,
    Reopen, Resize, Result,
};

use super::driver::FileDriver;

impl FlushLatch for FileDriver {
    fn latched(&self) -> Option<Loss> {
        self.flusher.latched()
    }

    fn latch(&self, loss: Loss) {
        self.flusher.latch(loss);
    }

    fn accept_loss(&self, upto: u32) -> bool {
        self.flusher.clear(upto)
    }
}

impl ContBlocker for FileDriver {
    fn cont_blocker(&self) -> Option<String> {
        let errno = self.flusher.latched()?.errno;
        Some(format!(
            "Node '{node}' has lost data: a flush failed ({reason}), and the page cache has dropped \
             what it could not write. x-node-accept-loss with node-name '{node}' accepts the loss \
             and fails the flushes that are held",
            node = self.node_name,
            reason = block::Cause::of_errno(errno).reason(),
        ))
    }
}

impl Resize for FileDriver {
    fn resized_length(&self, length: u64) -> Result<u64> {
        self.length_after(length)
    }

    fn resize(&self, length: u64) -> Result<()> {
        self.change_length(length)
    }
}

impl Identify for FileDriver {
    fn image(&self) -> Image {
        self.identity.clone()
    }
}

impl Reopen for FileDriver {
    fn hand_over(&self) -> Result<()> {
        // Also if the image stays the same: a flush of O_DIRECT would consume what the page cache could not
        // write, and latch nothing.
        if self.read_only || self.cache_no_flush || self.flusher.latched().is_some() {
            return Ok(());
        }
        let flushed = self.flusher.flush_last(self.fd(), &self.device_size);
        flushed.map_err(|error| {
            error
                .doing(Operation::Flush.name())
                .at(&self.node_name, 0, self.length_now())
        })
    }
}

impl DiscardCounters for FileDriver {
    fn discard_stats(&self) -> DiscardStats {
        self.deallocation.stats()
    }

    fn go_on_from(&self, before: DiscardStats) {
        self.deallocation.go_on_from(before);
    }
}
