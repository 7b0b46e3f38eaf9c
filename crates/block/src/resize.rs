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
        check_fits(node.name(), node, length, before, &**export, drained)?;
    }
    let node = Arc::clone(node);
    let resized = beside(move || node.resize(size)).await;
    Ok(resized.unwrap_or_else(|error| Err(error.into()))?)
}

/// Whether what is held or waits, or may yet come, fits if `node` is `length` bytes long, which has had
/// `before` so far. `name` is what it is called, or what takes its place.
pub(crate) fn check_fits(
    name: &str,
    node: &Arc<Node>,
    length: u64,
    before: u64,
    export: &dyn Export,
    drained: &Drained,
) -> Result<(), ResizeError> {
    check_held(name, node, length, export, drained)?;
    match length < before {
        true => check_handed_back(name, length, export),
        false => Ok(()),
    }
}

/// How long `node` has to be for byte `end` of `root` to be inside, as long as they have something in common
/// below; the export may be on a node that begins elsewhere than this one.
fn length_needed(node: &Arc<Node>, root: &Arc<Node>, end: u64) -> u64 {
    let below = with_offsets(node);
    let common = with_offsets(root).into_iter().find_map(|(known, of_root)| {
        let same = |(other, _): &&(Arc<Node>, u64)| Arc::ptr_eq(other, &known);
        let (_, of_node) = below.iter().find(same)?;
        Some((of_root, *of_node))
    });
    let (of_root, of_node) = common.unwrap_or((0, 0));
    end.saturating_add(of_root).saturating_sub(of_node)
}

/// `top` and all nodes below it, and where its byte 0 is there; one that does not say so begins where its
/// child does.
fn with_offsets(top: &Arc<Node>) -> Vec<(Arc<Node>, u64)> {
    let mut found = vec![(Arc::clone(top), 0_u64)];
    let mut next = 0;
    while let Some((node, offset)) = found.get(next).cloned() {
        let driver = node.driver();
        let offset = offset.saturating_add(driver.info().child_offset.unwrap_or(0));
        for child in driver.children() {
            let child = child.node();
            if !found.iter().any(|(known, _)| Arc::ptr_eq(known, &child)) {
                found.push((child, offset));
            }
        }
        next += 1;
    }
    found
}

fn check_held(
    name: &str,
    node: &Arc<Node>,
    size: u64,
    export: &dyn Export,
    drained: &Drained,
) -> Result<(), ResizeError> {
    let Some(request) = drained.furthest() else {
        return Ok(());
    };
    let root = export.backend().node();
    match length_needed(node, &root, request.end()) <= size {
        true => Ok(()),
        false => Err(ResizeError::Held {
            node: name.to_owned(),
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
