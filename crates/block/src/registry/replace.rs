//! Another node takes the place of one, under all that use it.

use std::sync::Arc;

use super::Registry;
use super::grants::Plan;
use super::taken::Taken;
use super::uses::Claimed;
use crate::backend::Drained;
use crate::driver::beside::beside;
use crate::driver::closing::Closing;
use crate::driver::graph::{Graph, GraphError};
use crate::driver::node::Node;
use crate::driver::users::{Use, User};
use crate::export::Export;
use crate::registry_error::RegistryError;
use crate::resize::check_fits;

/// Nodes that are about to take the place of others, under all that uses those. They could, and the
/// exports above are drained; but nothing has changed until [`Registry::commit`], and nothing does if this is
/// dropped.
#[derive(Debug)]
#[must_use]
pub struct Replacement {
    /// What is below comes first.
    pub(super) moves: Vec<Move>,
    /// All that hangs together with them.
    pub(super) nodes: Vec<Arc<Node>>,
    pub(super) exports: Vec<Arc<dyn Export>>,
    pub(super) drained: Vec<Drained>,
    pub(super) taken: Taken,
    /// Those of them that come into the graph.
    pub(super) new: Vec<Arc<Node>>,
    /// Nothing is written to what these show any more.
    pub(super) bases: Vec<Arc<Node>>,
}

/// One node, and what takes its place.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) from: Arc<Node>,
    pub(super) to: Arc<Node>,
    /// The users of `from` that move.
    pub(super) moved: Vec<Use>,
}

impl Move {
    /// Whether `to` is another opening of `from`, which it replaces in the graph as well.
    fn is_reopened(&self) -> bool {
        self.from.name() == self.to.name() && !Arc::ptr_eq(&self.from, &self.to)
    }
}

impl Registry {
    /// All that uses `from` uses `to` from now on, but for what is below `to` itself: so a filter comes
    /// in above the node that it filters, and goes again. What is in flight ends at `from`; what is
    /// held, parked or new goes to `to`. Both stay in the graph.
    ///
    /// # Errors
    /// If there is no such node; if others are in the way; if what is held would not fit into `to`, or
    /// `from` has lost something that nobody has accepted. Nothing has changed then.
    pub async fn prepare_replace(
        &self,
        from: &str,
        to: &str,
    ) -> Result<Replacement, RegistryError> {
        let find = || Ok([self.node(from)?, self.node(to)?]);
        let Claimed {
            claim,
            found: [from, to],
            nodes,
        } = self.claim_found(find, &[]).await?;
        let below = to.subtree();
        let mut moved = from.users();
        moved.retain(|known| !Arc::ptr_eq(&from, &to) && !is_one_of(&below, known));
        let mut plan = Plan::of(&nodes);
        for known in &moved {
            plan.replace(known.edge, &from, &to);
        }
        let grant = plan.grant()?;
        let (exports, drained) = match moved.is_empty() {
            true => Default::default(),
            false => self.drain_above(std::slice::from_ref(&from)).await,
        };
        // Now: what comes into use counts what is there, and nobody writes meanwhile.
        let taken = Taken::take(grant, claim).await?;
        // What was in flight may have been a flush.
        if !moved.is_empty() {
            check_lost(&from, &below)?;
        }
        let replacement = Replacement {
            moves: vec![Move { from, to, moved }],
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

    /// The exports whose requests reach one of `nodes`: nothing of them starts any more, or is in flight.
    pub(super) async fn drain_above(
        &self,
        nodes: &[Arc<Node>],
    ) -> (Vec<Arc<dyn Export>>, Vec<Drained>) {
        let mut exports = self.exports();
        exports.retain(|export| nodes.iter().any(|node| reaches(&**export, node)));
        let mut drained = Vec::with_capacity(exports.len());
        for export in &exports {
            drained.push(export.backend().drain().await);
        }
        (exports, drained)
    }

    /// As [`Self::commit_and`], if nobody has to know.
    ///
    /// # Errors
    /// As there.
    pub async fn commit(&self, replacement: Replacement) -> Result<Closing, RegistryError> {
        self.commit_and(replacement, |_| ()).await
    }

    /// Does it, and calls `done` while nobody else can change these nodes yet. What is left to be done after that, such as giving locks back, may take as long as the
    /// storage likes; wait for it as long as you like. **This future must not be dropped** before it has
    /// ended: a half of what used the former node would use the other one.
    ///
    /// # Errors
    /// If a node above cannot find out what it has to know of the new one; if the daemon ends. Nothing has
    /// changed then.
    pub async fn commit_and(
        &self,
        replacement: Replacement,
        done: impl FnOnce(&Graph) + Send,
    ) -> Result<Closing, RegistryError> {
        let Replacement {
            moves,
            nodes,
            exports,
            drained,
            taken,
            new,
            bases,
        } = replacement;
        let applied = taken.apply();
        for one in &moves {
            if one.is_reopened() {
                one.to.go_on_from(&one.from);
            }
            put(&nodes, &exports, &drained, &one.moved, &one.to).await;
        }
        let above = above(&nodes, &moves);
        let again = above.clone();
        let activated = beside(move || {
            above
                .iter()
                .try_for_each(|node| node.activate(node.access()))
        })
        .await;
        let activated = activated.unwrap_or_else(|error| Err(error.into()));
        let mut outcome = activated.map_err(RegistryError::from);
        let mut left = Vec::new();
        let reopened = moves.iter().filter(|one| one.is_reopened());
        if outcome.is_ok() {
            let pairs = reopened.clone().map(|one| (&one.from, &one.to));
            let replaced = self.graph().replace(pairs, &new);
            match replaced {
                Ok(gone) => {
                    // Not before: one that fails leaves it where it is, and whoever has armed the former node
                    // meanwhile has armed this one.
                    for Move { from, to, .. } in reopened {
                        to.take_threshold_of(from);
                        self.hear_corruption(to);
                    }
                    for node in &new {
                        self.recall_loss(node);
                        self.hear_corruption(node);
                    }
                    left = gone;
                }
                Err(GraphError::NotFound(_)) => outcome = Err(RegistryError::ShuttingDown),
                Err(error) => outcome = Err(error.into()),
            }
        }
        if let Err(error) = outcome {
            for Move { from, moved, .. } in &moves {
                put(&nodes, &exports, &drained, moved, from).await;
            }
            // Some have looked at the other one already.
            let _ = beside(move || again.iter().for_each(look_again)).await;
            if let Ok(grant) = Plan::of(&nodes).grant() {
                grant.apply();
            }
            drop(drained);
            applied.undo().await;
            return Err(error);
        }
        done(&self.graph());
        for node in bases {
            node.end_copies();
        }
        // Whoever takes the former ones out next is the last one who has them.
        for export in &exports {
            export.backend().graph_changed().await;
        }
        self.tell_images(&exports).await;
        drop((drained, nodes));
        for export in exports {
            export.tell_resized();
        }
        let closing = Closing::of(left);
        Ok(match moves.first() {
            Some(first) => closing.and(&first.to, applied.settled()),
            None => closing,
        })
    }
}

impl Replacement {
    /// Whether all that is above can have the lengths of the new nodes. Called drained, with their locks.
    pub(super) fn check_lengths(&self) -> Result<(), RegistryError> {
        let mut moves = self.moves.iter();
        moves.try_for_each(|one| self.check_length(one))
    }

    fn check_length(&self, one: &Move) -> Result<(), RegistryError> {
        let Move { from, to, moved } = one;
        let (before, after) = (from.driver().length(), to.driver().length());
        if before == after || moved.is_empty() {
            return Ok(());
        }
        check_resize(&self.nodes, from)?;
        for (export, drained) in self.exports.iter().zip(&self.drained) {
            if !reaches(&**export, from) {
                continue;
            }
            check_fits(to.name(), from, after, before, &**export, drained).map_err(|why| {
                let why = Box::new(why);
                match one.is_reopened() {
                    true => RegistryError::DoesNotFitAnew {
                        node: to.name().to_string(),
                        why,
                    },
                    false => RegistryError::DoesNotFit {
                        from: from.name().to_string(),
                        to: to.name().to_string(),
                        why,
                    },
                }
            })?;
        }
        Ok(())
    }
}

/// Whether requests of `export` reach `node`.
fn reaches(export: &dyn Export, node: &Arc<Node>) -> bool {
    let nodes = export.backend().node().subtree();
    nodes.iter().any(|below| Arc::ptr_eq(below, node))
}

fn look_again(node: &Arc<Node>) {
    if let Err(error) = node.activate(node.access()) {
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
    plan.resize(node);
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

/// The nodes above those that have taken a place, the lowest first.
fn above(nodes: &[Arc<Node>], moves: &[Move]) -> Vec<Arc<Node>> {
    let mut above: Vec<_> = moves.iter().map(|one| Arc::clone(&one.to)).collect();
    let is_in = |all: &[Arc<Node>], node: &Arc<Node>| all.iter().any(|n| Arc::ptr_eq(n, node));
    while let Some(next) = nodes.iter().find(|parent| {
        let mut children = parent.driver().children().into_iter();
        !is_in(&above, parent) && children.any(|child| is_in(&above, &child.node()))
    }) {
        above.push(Arc::clone(next));
    }
    above.split_off(moves.len())
}
