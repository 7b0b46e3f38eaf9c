//! A node is opened anew, and the new opening takes its place and its name.

use std::sync::Arc;

use super::Registry;
use super::grants::Plan;
use super::replace::Replacement;
use super::taken::Taken;
use super::uses::Claimed;
use crate::driver::beside::beside;
use crate::driver::node::Node;
use crate::registry_error::RegistryError;

impl Registry {
    /// `to` was opened as the node of its name is to be from now on: all that uses that uses `to` instead,
    /// and it goes. What is in flight ends before; what is held, parked or new goes to `to`. What was lost
    /// is still lost.
    ///
    /// # Errors
    /// If there is no such node; if its driver cannot do that; if others are in the way, or another
    /// process; if what is held would not fit any more. Nothing has changed then.
    pub async fn prepare_reopen(&self, to: Arc<Node>) -> Result<Replacement, RegistryError> {
        let find = || {
            let name = to.name();
            let none = |_| RegistryError::NoNode(name.to_string());
            Ok([self.graph().get(name).map_err(none)?])
        };
        let Claimed {
            claim,
            found: [from],
            mut nodes,
        } = self.claim_found(find, Some(&to)).await?;
        if !can_reopen(&from) || !can_reopen(&to) {
            return Err(RegistryError::NotReopened {
                node: from.name().to_string(),
                driver: from.driver().name(),
            });
        }
        let moved = from.users();
        // It goes: what it has is nobody's concern. Two of one name would be taken for each other.
        nodes.retain(|node| !Arc::ptr_eq(node, &from));
        let mut plan = Plan::of(&nodes);
        for known in &moved {
            plan.set(&to, known.clone());
        }
        let mut grant = plan.grant()?;
        grant.go_on_from(&to, &from);
        let (exports, drained) = self.drain_above(&from).await;
        // Now: until nothing is in flight it may become longer.
        let taken = Taken::take(grant, claim).await?;
        let former = Arc::clone(&from);
        let handed_over = beside(move || {
            if let Some(reopen) = former.driver().capabilities().reopen
                && let Err(error) = reopen.hand_over()
            {
                let file = former.driver().info().filename;
                tracing::warn!(
                    "node '{}' is opened anew, and what was written to '{file}' before may not be durable: {error}",
                    former.name()
                );
            }
        });
        handed_over.await.map_err(|_| RegistryError::ShuttingDown)?;
        if let Some(left) = from.left_unwritten() {
            return Err(RegistryError::Unwritten(left.to_string()));
        }
        nodes.push(Arc::clone(&from));
        let replacement = Replacement {
            from,
            to,
            nodes,
            moved,
            exports,
            drained,
            taken,
            is_reopened: true,
        };
        replacement.check_length()?;
        Ok(replacement)
    }
}

fn can_reopen(node: &Node) -> bool {
    node.driver().capabilities().reopen.is_some()
}
