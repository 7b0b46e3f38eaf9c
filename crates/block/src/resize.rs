//! A node gets another length, and so does everything above it.

use std::sync::Arc;

use crate::backend::Drained;
use crate::driver::beside::beside;
use crate::driver::node::Node;
use crate::export::Export;
use crate::registry::Registry;
use crate::registry::uses::Claimed;
use crate::registry_error::{RegistryError, ResizeError};
use crate::words::permissions::{Access, Permissions};

impl Registry {
    /// Changes the length of a node, drained, and tells the exports on it and above it.
    ///
    /// Nothing that a client sent validly may end as an error for that. So a node does not become
    /// shorter than what is held or waits, on any export that it is below of, nor as long as a client
    /// may hand something back that is not known here.
    ///
    /// # Errors
    /// If there is no such node, if others are in the way, or one of [`ResizeError`].
    pub async fn resize(&self, name: &str, size: u64) -> Result<(), RegistryError> {
        let find = || Ok([self.node(name)?]);
        let Claimed {
            claim,
            found: [node],
            nodes,
        } = self.claim_found(find, &[]).await?;
        let affected = self.affected(&node)?;
        let mut exports = self.exports();
        exports.retain(|export| {
            let root = export.backend().node();
            affected.iter().any(|node| Arc::ptr_eq(node, &root))
        });
        let mut drained = Vec::with_capacity(exports.len());
        for export in &exports {
            drained.push(export.backend().drain().await);
        }
        // As long as it takes this is one more user: others may have the image, if nobody has used it so far.
        let taken = self.begin_resize(&node, &nodes, claim).await?;
        drop(nodes);
        let resized = resize(&node, size, &exports, &drained).await;
        taken.undo().await;
        resized?;
        drop(drained);
        for export in exports {
            export.tell_resized();
        }
        Ok(())
    }

    /// The nodes that get another length with `node`: those below it, which it resizes in its turn, and
    /// all above any of these.
    fn affected(&self, node: &Arc<Node>) -> Result<Vec<Arc<Node>>, ResizeError> {
        let nodes = self.nodes();
        let mut affected = node.subtree();
        let is_in = |all: &[Arc<Node>], node: &Arc<Node>| all.iter().any(|n| Arc::ptr_eq(n, node));
        loop {
            let next = nodes
                .iter()
                .filter(|parent| !is_in(&affected, parent))
                .find_map(|parent| {
                    let children = parent.driver().children();
                    let mut children = children.into_iter();
                    let child = children.find(|child| is_in(&affected, &child.node()))?;
                    Some((parent, child))
                });
            let Some((parent, child)) = next else {
                return Ok(affected);
            };
            let access = parent.driver().child_access(child, Access::NONE);
            if !access.shared.contains(Permissions::RESIZE) {
                return Err(ResizeError::Unshared {
                    node: child.name(),
                    root: Arc::clone(node.name()),
                    parent: Arc::clone(parent.name()),
                    role: child.role(),
                });
            }
            affected.push(Arc::clone(parent));
        }
    }
}

async fn resize(
    node: &Arc<Node>,
    size: u64,
    exports: &[Arc<dyn Export>],
    drained: &[Drained],
) -> Result<(), ResizeError> {
    let asked = Arc::clone(node);
    let length = beside(move || asked.resized_length(size)).await;
    let length = length.unwrap_or_else(|error| Err(error.into()))?;
    for (export, drained) in exports.iter().zip(drained) {
        let before = node.driver().length();
        check_fits(node.name(), length, before, &**export, drained)?;
    }
    let node = Arc::clone(node);
    let resized = beside(move || node.resize(size)).await;
    Ok(resized.unwrap_or_else(|error| Err(error.into()))?)
}

/// Whether what is held or waits, or may yet come, fits into a node of `length` bytes, which has had
/// `before` so far.
pub(crate) fn check_fits(
    node: &str,
    length: u64,
    before: u64,
    export: &dyn Export,
    drained: &Drained,
) -> Result<(), ResizeError> {
    check_held(node, length, export, drained)?;
    match length < before {
        true => check_handed_back(node, length, export),
        false => Ok(()),
    }
}

fn check_held(
    node: &str,
    size: u64,
    export: &dyn Export,
    drained: &Drained,
) -> Result<(), ResizeError> {
    match drained.furthest().filter(|request| request.end() > size) {
        None => Ok(()),
        Some(request) => Err(ResizeError::Held {
            node: node.to_owned(),
            size,
            export: export.id().to_owned(),
            operation: request.op.name(),
            offset: request.offset,
            bytes: request.bytes,
        }),
    }
}

fn check_handed_back(node: &str, size: u64, export: &dyn Export) -> Result<(), ResizeError> {
    match export.may_hand_back() {
        None => Ok(()),
        Some(reason) => Err(ResizeError::HandedBack {
            node: node.to_owned(),
            size,
            export: export.id().to_owned(),
            reason,
        }),
    }
}
