//! Exports are told when their nodes have become longer by what was written to them.

use std::sync::Weak;

use super::Registry;
use crate::control::task::Control;
use crate::driver::growth::Growth;

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

    /// A length that was not told yet is that of a node which has grown, or of one above it that goes by
    /// it. What has a length of its own is not asked, as it shows the same one.
    fn tell_growth(&self) {
        self.growth.heard();
        for export in self.exports() {
            export.tell_new_length();
        }
    }
}
