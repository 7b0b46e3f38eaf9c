//! Nodes come and go.

use std::sync::Arc;

use super::Registry;
use super::grants::Plan;
use super::taken::Taken;
use super::uses::settle;
use crate::driver::closing::Closing;
use crate::driver::node::Node;
use crate::driver::node::chain::BACKING;
use crate::driver::users::{Use, User};
use crate::registry_error::RegistryError;

impl Registry {
    /// Takes `root` in, and what was opened with it below. What these had lost when a former daemon ended
    /// they are told.
    ///
    /// # Errors
    /// If a name is taken, or they would be in the way of others or others in theirs; nothing is added
    /// then.
    pub async fn add_node(&self, root: &Arc<Node>) -> Result<(), RegistryError> {
        let (claim, nodes) = self.claim(&[root]).await;
        let taken = Taken::take(Plan::of(&nodes).grant()?, claim).await?;
        self.graph().add(root)?;
        let _applied = taken.apply();
        for node in root.subtree() {
            self.recall_loss(&node);
            self.hear_corruption(&node);
        }
        Ok(())
    }

    /// Takes a node out, with what was opened with it and nobody else uses, and closes it: wait for it as
    /// long as you like.
    ///
    /// # Errors
    /// If there is none of this name, or something uses it; if it was opened with another one.
    pub async fn remove_node(&self, name: &str) -> Result<Closing, RegistryError> {
        let none = |_| RegistryError::NoNode(name.to_owned());
        let node = self.graph().get(name).map_err(none)?;
        let (claim, mut nodes) = self.claim(&[&node]).await;
        let node = self.graph().get(name).map_err(none)?;
        let users = node.users();
        if (users.iter()).any(|known| !matches!(known.user, User::Node(_))) {
            return Err(RegistryError::NodeExported(name.to_owned()));
        }
        // The newest, as with QEMU.
        let is_backing = |known: &&Use| known.role == BACKING;
        if let Some(Use {
            user: User::Node(of),
            ..
        }) = users.iter().rev().find(is_backing)
        {
            return Err(RegistryError::IsBacking {
                node: name.to_owned(),
                of: of.to_string(),
            });
        }
        if !self.graph().is_owned(name) {
            return Err(RegistryError::NotOwned(name.to_owned()));
        }
        if !users.is_empty() {
            return Err(RegistryError::NodeUsed(name.to_owned()));
        }
        let removed = self.graph().remove(&node);
        nodes.retain(|node| !removed.iter().any(|gone| Arc::ptr_eq(gone, node)));
        drop(node);
        let closing = Closing::of(removed);
        settle(&nodes, claim).await;
        Ok(closing)
    }
}
