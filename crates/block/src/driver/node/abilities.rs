//! What only some drivers can do, of the one that a node has: nobody has to look whether it can.

use super::Node;
use crate::driver::capabilities::{AllocationLimit, DiscardStats, Resize};
use crate::driver::fault::FaultPlan;
use crate::driver::loss::Loss;
use crate::driver::own_io::NotOnDisk;
use crate::driver::threshold::WriteThreshold;
use crate::words::error::{BlockError, Result};
use crate::words::image::Image;
use crate::words::permissions::Access;

impl Node {
    /// The image that those above it see.
    pub fn image(&self) -> Image {
        let driver = &self.driver;
        if let Some(identify) = driver.capabilities().identify {
            return identify.image();
        }
        match driver.children().first() {
            Some(child) => child.node().image(),
            None => Image::new(&driver.info().filename, ""),
        }
    }

    /// See [`crate::driver::capabilities::Activate`]. Most drivers remember nothing.
    ///
    /// # Errors
    /// If the storage does not say.
    pub fn activate(&self, above: Access) -> Result<()> {
        let activate = self.driver.capabilities().activate;
        activate.map_or(Ok(()), |activate| activate.activate(above))
    }

    /// Why `cont` has to be refused, if it has to: a complete sentence that names the remedy.
    pub fn cont_blocker(&self) -> Option<String> {
        let blocker = self.driver.capabilities().cont_blocker?;
        blocker.cont_blocker()
    }

    /// A flush failure that is latched ([`crate::driver::capabilities::FlushLatch`]).
    pub fn latched(&self) -> Option<Loss> {
        self.driver.capabilities().flush_latch?.latched()
    }

    /// A former daemon had latched this failure. False: this driver has no flushes to fail. Called
    /// before the first request.
    pub fn latch(&self, loss: Loss) -> bool {
        let latch = self.driver.capabilities().flush_latch;
        latch.inspect(|latch| latch.latch(loss)).is_some()
    }

    /// Clears a latched flush failure for everybody, unless its number is greater than `upto`. False
    /// if there was none.
    pub fn accept_loss(&self, upto: u32) -> bool {
        let latch = self.driver.capabilities().flush_latch;
        latch.is_some_and(|latch| latch.accept_loss(upto))
    }

    /// It takes the place of `former`, another opening of the same: what was lost there is lost, and what
    /// was counted goes on. Called before the first request.
    pub(crate) fn go_on_from(&self, former: &Self) {
        if let Some(loss) = former.latched() {
            self.latch(loss);
        }
        if let Some(counters) = self.driver.capabilities().discard_counters
            && let Some(before) = former.discard_stats()
        {
            counters.go_on_from(before);
        }
        self.wrote(former.wr_highest_offset());
    }

    /// It has taken the place of `former` for good: what is armed there is armed here from now on.
    pub(crate) fn take_threshold_of(&self, former: &Self) {
        self.write_threshold().go_on_from(former.write_threshold());
    }

    /// The length in bytes that [`Self::resize`] to `length` would give the node. May ask the storage.
    ///
    /// # Errors
    /// As [`Self::resize`].
    pub fn resized_length(&self, length: u64) -> Result<u64> {
        self.resizable()?.resized_length(length)
    }

    /// Changes the length in bytes. Called drained.
    ///
    /// # Errors
    /// If the driver cannot, or the storage refuses.
    pub fn resize(&self, length: u64) -> Result<()> {
        self.resizable()?.resize(length)
    }

    fn resizable(&self) -> Result<&dyn Resize> {
        self.driver.capabilities().resize.ok_or_else(|| {
            BlockError::new(libc::ENOTSUP, "Image format driver does not support resize")
        })
    }

    /// The fault plan, where the driver injects errors.
    pub fn fault_plan(&self) -> Option<&dyn FaultPlan> {
        self.driver.capabilities().fault_plan
    }

    /// The limit of allocated bytes, where the driver has one.
    pub fn allocation_limit(&self) -> Option<&dyn AllocationLimit> {
        self.driver.capabilities().quota
    }

    /// Discard counters, where the driver keeps them.
    pub fn discard_stats(&self) -> Option<DiscardStats> {
        let counters = self.driver.capabilities().discard_counters?;
        Some(counters.discard_stats())
    }

    /// The write threshold, which writes to the node are compared with, or what the driver counts.
    pub fn write_threshold(&self) -> &WriteThreshold {
        let own = self.driver.capabilities().write_threshold;
        own.unwrap_or(&self.threshold)
    }

    /// Whether the driver does I/O of its own.
    pub fn has_own_io(&self) -> bool {
        self.driver.capabilities().own_io.is_some()
    }

    /// Writes back what the driver has not written yet, on an iothread that is attached to it. How that
    /// ends is remembered here ([`Self::not_on_disk`]).
    pub async fn write_back(&self) {
        if let Some(driver) = self.driver.capabilities().own_io {
            self.write_back.run(&self.name, driver).await;
        }
    }

    /// The write-back that is under way, if there is one, is not waited for any more.
    pub(crate) fn give_write_back_up(&self) {
        self.write_back.give_up();
    }

    /// Whether a write-back is under way that somebody has given up.
    pub fn is_write_back_stuck(&self) -> bool {
        self.write_back.is_stuck()
    }

    /// What the driver could not write back.
    pub fn not_on_disk(&self) -> Option<NotOnDisk> {
        let driver = self.driver.capabilities().own_io?;
        self.write_back.not_on_disk(&self.name, driver)
    }

    /// What the driver has not written back, if nobody does so any more.
    pub fn left_unwritten(&self) -> Option<NotOnDisk> {
        let driver = self.driver.capabilities().own_io?;
        self.write_back.left(&self.name, driver)
    }
}
