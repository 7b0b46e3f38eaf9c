//! Exports are told when their nodes have become longer by what was written to them, and observers when more
//! was written to a node than somebody wants to know of.

use std::sync::Weak;

use super::Registry;
use crate::control::task::Control;
use crate::driver::growth::Growth;
use crate::registry_error::RegistryError;
use crate::words::event::EventKind;

impl Registry {
    /// Brings the word of nodes that have become longer from the iothreads to the control plane.
    pub(super) fn growth(registry: &Weak<Self>, control: &Control) -> Growth {
        let (registry, control) = (Weak::clone(registry), control.clone());
        Growth::new(move || {
            let registry = Weak::clone(&registry);
            control.later(move || {
                if let Some(registry) = registry.upgrade() {
                    registry.tell_growth();
                }
            });
        })
    }

    /// `block-set-write-threshold`: the first write beyond byte `threshold` of a node is an event, and then no
    /// other one; 0: none is.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn set_write_threshold(&self, name: &str, threshold: u64) -> Result<(), RegistryError> {
        let node = self.node(name)?;
        let (control, node_name) = (self.control.clone(), name.to_owned());
        node.write_threshold().arm(threshold, move |exceeded| {
            control.announce(EventKind::BlockWriteThreshold {
                node_name,
                amount: exceeded.amount,
                threshold: exceeded.threshold,
            });
        });
        Ok(())
    }

    /// A length that was not told yet is that of a node which has grown, or of one above it that goes by
    /// it. What has a length of its own is not asked, as it shows the same one.
    fn tell_growth(&self) {
        self.growth.heard();
        for export in self.exports() {
            export.tell_new_length();
        }
    }
}
