//! Why nothing may start: all that a gate can be frozen by, and how each of it ends.

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Freeze {
    /// Epoch of the latest freeze or release that counted.
    epoch: u64,
    /// The run state is not `running`.
    by_run_control: bool,
    /// Something is held here.
    by_failure: bool,
    /// The same backend holds something on another iothread.
    by_sibling: bool,
    pub(super) draining: u32,
    /// A request needs memory that the client is moving.
    memory_moves: bool,
    /// The part has ended: for ever.
    ended: bool,
}

impl Freeze {
    /// Frozen until run control says how things are.
    pub(super) fn until_told() -> Self {
        Self {
            epoch: 0,
            by_run_control: true,
            by_failure: false,
            by_sibling: false,
            draining: 0,
            memory_moves: false,
            ended: false,
        }
    }

    #[inline]
    pub(super) fn is_frozen(&self) -> bool {
        self.by_run_control
            || self.by_failure
            || self.by_sibling
            || self.draining > 0
            || self.memory_moves
            || self.ended
    }

    /// Run control froze all backends. False, here and below: an older epoch, ignored.
    pub(super) fn freeze(&mut self, epoch: u64) -> bool {
        let counts = self.enter(epoch);
        self.by_run_control |= counts;
        counts
    }

    /// Run control froze this backend.
    pub(super) fn freeze_backend(&mut self, epoch: u64) -> bool {
        let counts = self.enter(epoch);
        self.by_sibling |= counts;
        counts
    }

    /// Run control knows of nothing that is held in any part of this backend.
    pub(super) fn thaw_backend(&mut self, epoch: u64) -> bool {
        let counts = self.enter(epoch);
        self.by_sibling &= !counts;
        counts
    }

    /// Run control released all backends.
    pub(super) fn release(&mut self, epoch: u64) -> bool {
        let counts = self.release_backend(epoch);
        self.by_run_control &= !counts;
        counts
    }

    /// Run control released this backend: what is held elsewhere does not freeze it any more.
    pub(super) fn release_backend(&mut self, epoch: u64) -> bool {
        let counts = self.enter(epoch);
        self.by_sibling &= !counts;
        counts
    }

    /// Something is held from now on.
    pub(super) fn by_failure(&mut self) {
        self.by_failure = true;
    }

    /// Nothing is held here any more.
    pub(super) fn nothing_held(&mut self) {
        self.by_failure = false;
    }

    /// The device begins a new life: nothing is held anywhere.
    pub(super) fn reset(&mut self) {
        self.by_failure = false;
        self.by_sibling = false;
    }

    /// The part has ended.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// May be nested.
    pub(super) fn drain_begin(&mut self) {
        self.draining += 1;
    }

    /// Ends one [`Self::drain_begin`].
    pub(super) fn drain_end(&mut self) {
        debug_assert!(self.draining > 0);
        self.draining = self.draining.saturating_sub(1);
    }

    /// The client is changing its memory.
    pub(super) fn memory_moves(&mut self) {
        self.memory_moves = true;
    }

    /// The client's memory is as it is going to be.
    pub(super) fn memory_settled(&mut self) {
        self.memory_moves = false;
    }

    fn enter(&mut self, epoch: u64) -> bool {
        let counts = epoch > self.epoch;
        if counts {
            self.epoch = epoch;
        }
        counts
    }
}
