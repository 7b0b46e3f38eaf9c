//! What nodes have lost: told to those that come, accepted by whoever may.

use super::Registry;
use super::uses::Claimed;
use crate::driver::loss::Loss;
use crate::driver::node::Node;
use crate::persist::saved::SavedLoss;
use crate::registry_error::RegistryError;

impl Registry {
    /// A node is in the graph, and nothing uses it yet: it is told what it had lost when a former
    /// daemon ended. A driver that has no flushes to fail does not take it.
    pub fn recall_loss(&self, node: &Node) {
        self.losses.lock().retain(|loss| {
            let own = *loss.node == **node.name();
            if own {
                let SavedLoss { number, errno, .. } = *loss;
                node.latch(Loss { number, errno });
            }
            !own || node.latched().is_none()
        });
    }

    /// What nodes had lost that do not exist, or cannot know it. The next daemon is told again.
    pub fn unclaimed_losses(&self) -> Vec<SavedLoss> {
        self.losses.lock().clone()
    }

    /// Completes the flushes that are held because of a latched failure of `name` with an error,
    /// and clears the latch.
    ///
    /// # Errors
    /// If there is no such node, or no latched failure.
    pub async fn accept_loss(&self, name: &str) -> Result<(), RegistryError> {
        // Not while another node takes its place: half of it would be accepted.
        let find = || Ok([self.node(name)?]);
        let Claimed {
            claim: _claim,
            found: [node],
            ..
        } = self.claim_found(find, &[]).await?;
        let ids: Vec<_> = self
            .backends_above(&node)
            .iter()
            .map(|backend| backend.id())
            .collect();
        let name = name.to_owned();
        self.control
            .call(move |state, wiring| {
                if node.cont_blocker().is_none() {
                    return Err(RegistryError::NoLoss(name));
                }
                // First the flushes: a release that follows the cleared latch must not find them,
                // or they would be retried and succeed although the data is lost.
                for id in ids {
                    state.fail_held_flushes(id, wiring);
                }
                node.accept_loss(u32::MAX);
                state.touch();
                Ok(())
            })
            .await
            .unwrap_or(Err(RegistryError::ShuttingDown))
    }
}
