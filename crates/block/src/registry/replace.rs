//! Another node takes the place of one, under all that use it.

use std::sync::Arc;

use super::Registry;
use super::grants::Plan;
use crate::backend::Drained;
use crate::driver::beside::beside;
use crate::driver::node::Node;
use crate::driver::users::{EdgeId, Use, User};
use crate::export::Export;
use crate::registry_error::RegistryError;
use crate::resize::check_fits;
use crate::words::permissions::{Access, Permissions};

impl Registry {
    /// All that uses `from` uses `to` from now on, but for what is below `to` itself: so a filter comes
    /// in above the node that it filters, and goes again. What is in flight ends at `from`; what is
    /// held, parked or new goes to `to`. Both stay in the graph.
    ///
    /// # Errors
    /// If there is no such node; if others are in the way; if what is held would not fit into `to`, or
    /// `from` has lost something that nobody has accepted. Nothing has changed then.
    pub async fn replace_node(&self, from: &str, to: &str) -> Result<(), RegistryError> {
        let (claim, nodes) = self.claim(&[&self.node(from)?, &self.node(to)?]).await;
        let (from, to) = (self.node(from)?, self.node(to)?);
        let below = to.subtree();
        let mut moved = from.users();
        moved.retain(|known| !is_one_of(&below, known));
        if moved.is_empty() || Arc::ptr_eq(&from, &to) {
            return Ok(());
        }
        let mut plan = Plan::of(&nodes);
        for known in &moved {
            plan.replace(known.edge, &from, &to);
        }
        let grant = plan.grant()?;
        let (before, after) = (from.driver().length(), to.driver().length());
        if before != after {
            check_resize(&nodes, &from)?;
        }
        let mut exports = self.exports();
        exports.retain(|export| {
            let nodes = export.backend().node().subtree();
            nodes.iter().any(|node| Arc::ptr_eq(node, &from))
        });
        let mut drained = Vec::with_capacity(exports.len());
        for export in &exports {
            drained.push(export.backend().drain().await);
        }
        // What was in flight may have been a flush.
        check_lost(&from, &below)?;
        for (export, drained) in exports.iter().zip(&drained) {
            check_fits(to.name(), after, before, &**export, drained).map_err(|why| {
                RegistryError::DoesNotFit {
                    from: from.name().to_string(),
                    to: to.name().to_string(),
                    why: Box::new(why),
                }
            })?;
        }
        let grant = self.take(grant).await?;
        put(&nodes, &exports, &drained, &moved, &to).await;
        let above = above(&nodes, &to);
        let again = above.clone();
        let activated = beside(move || above.iter().try_for_each(|node| node.activate())).await;
        if let Err(error) = activated.unwrap_or_else(|error| Err(error.into())) {
            put(&nodes, &exports, &drained, &moved, &from).await;
            // Some have looked at the other one already.
            let _ = beside(move || again.iter().for_each(look_again)).await;
            self.settle(&nodes).await;
            return Err(error.into());
        }
        // Whoever takes the former one out next is the last one who has it.
        for export in &exports {
            export.backend().graph_changed().await;
        }
        // If there is no thread for it, the end of the node does it.
        let _ = beside(move || grant.settle()).await;
        drop(drained);
        drop(claim);
        for export in exports {
            export.resized();
        }
        Ok(())
    }
}

fn look_again(node: &Arc<Node>) {
    if let Err(error) = node.activate() {
        tracing::warn!("node '{}': {error}", node.name());
    }
}

fn is_one_of(nodes: &[Arc<Node>], known: &Use) -> bool {
    match &known.user {
        User::Node(name) => nodes.iter().any(|node| node.name() == name),
        User::Export(_) | User::Unnamed => false,
    }
}

/// Whoever is above would have another length.
fn check_resize(nodes: &[Arc<Node>], node: &Arc<Node>) -> Result<(), RegistryError> {
    let mut plan = Plan::of(nodes);
    plan.set(
        node,
        Use {
            edge: EdgeId::fresh(),
            user: User::Unnamed,
            role: "root",
            access: Access {
                held: Permissions::RESIZE,
                shared: Permissions::ALL,
            },
        },
    );
    plan.grant()?;
    Ok(())
}

/// What was lost below `from`, or is not on disk yet, would be forgotten with it.
fn check_lost(from: &Arc<Node>, stay: &[Arc<Node>]) -> Result<(), RegistryError> {
    let goes = |node: &&Arc<Node>| !stay.iter().any(|other| Arc::ptr_eq(other, node));
    let nodes = from.subtree();
    let blocker = nodes.iter().filter(goes).find_map(|node| {
        let left = || node.left_unwritten().map(|left| left.to_string());
        node.cont_blocker().or_else(left)
    });
    blocker.map_or(Ok(()), |blocker| Err(RegistryError::Lost(blocker)))
}

/// `moved` use `node` from now on.
async fn put(
    nodes: &[Arc<Node>],
    exports: &[Arc<dyn Export>],
    drained: &[Drained],
    moved: &[Use],
    node: &Arc<Node>,
) {
    for known in moved {
        for parent in nodes {
            let children = parent.driver().children();
            if let Some(child) = children
                .into_iter()
                .find(|child| child.edge() == known.edge)
            {
                child.set_node(Arc::clone(node));
            }
        }
        for (export, drained) in exports.iter().zip(drained) {
            if export.backend().root().edge() == known.edge {
                export.backend().set_node(Arc::clone(node), drained).await;
            }
        }
    }
}

/// The nodes above `node`, the lowest first.
fn above(nodes: &[Arc<Node>], node: &Arc<Node>) -> Vec<Arc<Node>> {
    let mut above = vec![Arc::clone(node)];
    let is_in = |all: &[Arc<Node>], node: &Arc<Node>| all.iter().any(|n| Arc::ptr_eq(n, node));
    while let Some(next) = nodes.iter().find(|parent| {
        let mut children = parent.driver().children().into_iter();
        !is_in(&above, parent) && children.any(|child| is_in(&above, &child.node()))
    }) {
        above.push(Arc::clone(next));
    }
    above.remove(0);
    above
}
