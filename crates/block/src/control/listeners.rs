//! Who listens to run control: observers, which are told what has happened, and the link to the VMM, which
//! is told what to do.
//!
//! One daemon serves one VM, so there is at most one link. Run control says by [`VmOrder`] what
//! becomes of the VM and waits for nothing; what came of it is asked by [`VmLink::status`]. How a
//! VMM is paused is the business of the implementations.

use std::fmt;

use crate::driver::future::BoxFuture;
use crate::words::event::Event;
use crate::words::vm::{LinkStatus, VmOrder};

/// Receives every event, in order. Called by the run control task, which must not wait: the
/// implementation queues and returns, and asks run control nothing meanwhile.
pub trait Observer: Send + Sync {
    /// One event. False: this observer is gone and is not called again.
    fn event(&self, event: &Event) -> bool;
}

/// A link to the VMM.
pub trait VmLink: Send + Sync + fmt::Debug {
    /// The object's id.
    fn id(&self) -> &str;

    /// The type of the object: `vmm-qemu`.
    fn type_name(&self) -> &'static str;

    /// Takes an order of run control. Called by the run control task: it must not wait and must ask
    /// run control nothing meanwhile.
    fn order(&self, order: VmOrder);

    /// What is known now, with all orders so far. Called by run control, too: it must not wait and
    /// must ask run control nothing meanwhile.
    fn status(&self) -> LinkStatus;

    /// Resets the VM, as a reset button does.
    ///
    /// # Errors
    /// Why it was not done: the link is down, the VMM refused, or it has no such thing.
    fn reset(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Ends the link; the VM stays as it is.
    fn close(&self) -> BoxFuture<'_, ()>;
}
