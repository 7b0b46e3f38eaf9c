//! Hooks that run once at the end of a round.

/// Something to do once per batch instead of once per request: publish the used index, signal the
/// guest.
pub trait Deferred {
    /// Runs at the end of the round, before new operations are handed to the kernel.
    fn run(&self);
}
