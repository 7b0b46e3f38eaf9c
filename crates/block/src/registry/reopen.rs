//! Nodes are opened anew, and the new openings take their places and their names.

use std::sync::Arc;

use super::Registry;
use super::grants::Plan;
use super::replace::{Move, Replacement};
use super::taken::Taken;
use super::uses::Claimed;
use crate::driver::beside::beside;
use crate::driver::node::{Child, Node};
use crate::driver::users::{EdgeId, User};
use crate::registry_error::RegistryError;

impl Registry {
    /// Each of `to`, what is below first, was opened as the node of its name is to be from now on: all that
    /// uses that uses the new one instead, and it goes, with what was opened as a part of it and nobody else
    /// uses. What is in flight ends before; what is held, parked or new goes to the new one. What was lost is
    /// still lost. What nodes are defined as has been looked at before they were opened: when nobody else can change it
    /// any more, `is_current` says whether it is still so.
    ///
    /// # Errors
    /// If there is no such node; if its driver cannot do that; if others are in the way, or another
    /// process; if what is held would not fit any more; [`RegistryError::ChangedMeanwhile`]. Nothing has changed then.
    pub async fn prepare_reopen(
        &self,
        to: Vec<Arc<Node>>,
        is_current: impl Fn() -> bool,
    ) -> Result<Replacement, RegistryError> {
        let find = || {
            let graph = self.graph();
            let find = |to: &Arc<Node>| {
                let none = |_| RegistryError::NoNode(to.name().to_string());
                graph.get(to.name()).map_err(none)
            };
            to.iter().map(find).collect::<Result<Vec<_>, _>>()
        };
        let Claimed {
            claim,
            found: from,
            mut nodes,
        } = self.claim_found(find, &to).await?;
        if !is_current() || !self.is_on_what_there_is(&to) {
            return Err(RegistryError::ChangedMeanwhile);
        }
        let mut all = from.iter().chain(&to);
        if let Some(node) = all.find(|node| !can_reopen(node)) {
            return Err(RegistryError::NotReopened {
                node: node.name().to_string(),
                driver: node.driver().name(),
            });
        }
        let moves = moves(&from, to, &nodes);
        // They go: what they have is nobody's concern. Two of one name would be taken for each other.
        nodes.retain(|node| !from.iter().any(|from| Arc::ptr_eq(node, from)));
        let mut plan = Plan::of(&nodes);
        for Move { to, moved, .. } in &moves {
            for known in moved {
                plan.set(to, known.clone());
            }
        }
        let mut grant = plan.grant()?;
        for Move { from, to, .. } in &moves {
            grant.go_on_from(to, from);
        }
        let (exports, drained) = self.drain_above(&from).await;
        // From the top: what is above may have something to write yet.
        let former = from.clone();
        let handed_over = beside(move || former.iter().rev().for_each(|node| hand_over(node)));
        handed_over.await.map_err(|_| RegistryError::ShuttingDown)?;
        if let Some(left) = from.iter().find_map(|node| node.left_unwritten()) {
            return Err(RegistryError::Unwritten(left.to_string()));
        }
        // Now: until nothing is in flight they may become longer, and until all is handed over the new ones would read
        // what is not up to date.
        let taken = Taken::take(grant, claim).await?;
        nodes.extend(from);
        let replacement = Replacement {
            moves,
            nodes,
            exports,
            drained,
            taken,
            new: Vec::new(),
            bases: Vec::new(),
        };
        replacement.check_lengths()?;
        Ok(replacement)
    }

    /// Whether what is below `opened` is in the graph, or comes with it: somebody else may have taken a place there.
    pub(super) fn is_on_what_there_is(&self, opened: &[Arc<Node>]) -> bool {
        let graph = self.graph();
        let mut below = opened.iter().flat_map(|node| node.driver().children());
        below.all(|child| {
            let node = child.node();
            let is_it = |known: &Arc<Node>| Arc::ptr_eq(known, &node);
            opened.iter().any(is_it) || graph.get(node.name()).is_ok_and(|known| is_it(&known))
        })
    }
}

/// The users of each node that goes use the new one: those among `nodes`, and exports. A node that goes uses nothing any
/// more, and one that somebody else has opened meanwhile, to reopen it, nothing yet.
fn moves(from: &[Arc<Node>], to: Vec<Arc<Node>>, nodes: &[Arc<Node>]) -> Vec<Move> {
    let edges = |nodes: &[Arc<Node>]| -> Vec<EdgeId> {
        let children = nodes.iter().flat_map(|node| node.driver().children());
        children.map(Child::edge).collect()
    };
    let (go, there) = (edges(from), edges(nodes));
    let pairs = from.iter().zip(to);
    let one = |(from, to): (&Arc<Node>, Arc<Node>)| {
        let mut moved = from.users();
        moved.retain(|known| match &known.user {
            User::Node(_) => there.contains(&known.edge) && !go.contains(&known.edge),
            User::Export(_) | User::Unnamed => true,
        });
        Move {
            from: Arc::clone(from),
            to,
            moved,
        }
    };
    pairs.map(one).collect()
}

fn hand_over(node: &Node) {
    if let Some(reopen) = node.driver().capabilities().reopen
        && let Err(error) = reopen.hand_over()
    {
        let file = node.driver().info().filename;
        tracing::warn!(
            "node '{}' is opened anew, and what was written to '{file}' before may not be durable: {error}",
            node.name()
        );
    }
}

fn can_reopen(node: &Node) -> bool {
    node.driver().capabilities().reopen.is_some()
}
