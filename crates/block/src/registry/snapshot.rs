//! Overlays come in above nodes that are in use: what was acknowledged until then is below, all that comes after it is
//! above, and so is what is held or parked.
//!
//! The nodes below are opened anew, to be read only, where their drivers can; overlays are opened anew with what is
//! below them. All of it is one [`Replacement`], however many disks it concerns: done at one instant, or not at all.

use std::sync::Arc;

use super::Registry;
use super::grants::Plan;
use super::replace::{Move, Replacement};
use super::taken::Taken;
use super::uses::Claimed;
use crate::driver::beside::beside;
use crate::driver::node::chain::BACKING;
use crate::driver::node::{Child, Node};
use crate::driver::users::{EdgeId, Use, User};
use crate::registry_error::RegistryError;
use crate::words::error::Result;
use crate::words::permissions::Permissions;

/// A node, and the overlay that is to be used in its place; by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlaid {
    /// What comes to be below.
    pub base: String,
    /// What is used instead.
    pub overlay: String,
}

/// The nodes of a snapshot, as they were opened for it: an overlay with its base as backing node.
#[derive(Debug, Default)]
pub struct Openings {
    /// Each takes the place of the node of its name.
    pub anew: Vec<Arc<Node>>,
    /// These come in.
    pub new: Vec<Arc<Node>>,
}

/// Whether an overlay can come in above `base`. `opened`: what was opened for that.
///
/// # Errors
/// It is the backing node of another one: that would see what is not its own.
pub fn check_base(base: &Node, opened: &[Arc<Node>]) -> std::result::Result<(), RegistryError> {
    let own = opened.iter().flat_map(|node| node.driver().children());
    let own: Vec<_> = own.map(Child::edge).collect();
    let users = base.users();
    let is_backing = |known: &&Use| known.role == BACKING && !own.contains(&known.edge);
    // The newest, as with QEMU.
    let above = users.iter().rev().find(is_backing);
    match above.map(|known| &known.user) {
        Some(User::Node(of)) => Err(RegistryError::IsBacking {
            node: base.name().to_string(),
            of: of.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Whether `overlay` can come in above another node.
///
/// # Errors
/// Somebody relies on what it shows.
pub fn check_overlay(overlay: &Node) -> std::result::Result<(), RegistryError> {
    match overlay.access().held.contains(Permissions::CONSISTENT_READ) {
        true => Err(RegistryError::OverlayUsed),
        false => Ok(()),
    }
}

impl Registry {
    /// All that uses the base of one of `overlaid` uses its overlay from now on. What is in flight ends before, and
    /// what was acknowledged is durable in the base then. What nodes are defined as has been looked at before they were
    /// opened: when nobody else can change it any more, `is_current` says whether it is still so.
    ///
    /// # Errors
    /// If there is no such node; if one is in use where it must not be; if others are in the way, or another
    /// process; if what was acknowledged does not become durable, or is lost; if what is held would not fit. Nothing
    /// has changed then.
    pub async fn prepare_snapshot(
        &self,
        openings: Openings,
        overlaid: &[Overlaid],
        is_current: impl Fn() -> bool,
    ) -> std::result::Result<Replacement, RegistryError> {
        let Openings { anew, new } = openings;
        let find = || self.find_all(&anew, &new, overlaid);
        let opened: Vec<_> = anew.iter().chain(&new).map(Arc::clone).collect();
        let Claimed {
            claim,
            found,
            mut nodes,
        } = self.claim_found(find, &opened).await?;
        let (former, bases) = found.split_at(anew.len());
        let is_overlay = |node: &Node| overlaid.iter().any(|one| **node.name() == *one.overlay);
        bases
            .iter()
            .try_for_each(|base| check_base(base, &opened))?;
        if !is_current() || !self.is_on_what_there_is(&opened) {
            return Err(RegistryError::ChangedMeanwhile);
        }
        for (former, anew) in former.iter().zip(&anew) {
            if is_overlay(former) {
                check_overlay(former)?;
            }
            check_same(former, anew)?;
        }
        let moves = moves(former, &anew, bases, &opened, overlaid);
        nodes.retain(|node| !former.iter().any(|former| Arc::ptr_eq(node, former)));
        let mut plan = Plan::of(&nodes);
        for Move { from, to, moved } in &moves {
            for known in moved {
                plan.replace(known.edge, from, to);
                plan.set(to, known.clone());
            }
        }
        let mut grant = plan.grant()?;
        for (former, anew) in former.iter().zip(&anew) {
            grant.go_on_from(anew, former);
        }
        let (exports, drained) = self.drain_above(&found).await;
        let lost = bases.iter().flat_map(Node::subtree);
        if let Some(blocker) = lost.into_iter().find_map(|node| node.cont_blocker()) {
            return Err(RegistryError::LostBelow(blocker));
        }
        let written = to_be_written(&nodes, bases, former);
        let handed_over = beside(move || written.iter().try_for_each(hand_over));
        let handed_over = handed_over.await.map_err(|_| RegistryError::ShuttingDown)?;
        handed_over.map_err(RegistryError::NotDurable)?;
        if let Some(left) = found.iter().find_map(|node| node.left_unwritten()) {
            return Err(RegistryError::NotWritten(left.to_string()));
        }
        let taken = Taken::take(grant, claim).await?;
        nodes.extend(former.iter().map(Arc::clone));
        let replacement = Replacement {
            moves,
            nodes,
            exports,
            drained,
            taken,
            new,
            bases: bases.to_vec(),
        };
        replacement.check_lengths()?;
        Ok(replacement)
    }

    /// Whose places are taken, and then the bases that are there.
    fn find_all(
        &self,
        anew: &[Arc<Node>],
        new: &[Arc<Node>],
        overlaid: &[Overlaid],
    ) -> std::result::Result<Vec<Arc<Node>>, RegistryError> {
        let graph = self.graph();
        let is_new = |name: &str| new.iter().any(|node| **node.name() == *name);
        let bases = overlaid.iter().map(|one| &*one.base);
        let names = anew.iter().map(|node| &**node.name());
        let names = names.chain(bases.filter(|base| !is_new(base)));
        let find = |name: &str| {
            let none = |_| RegistryError::NoNode(name.to_owned());
            graph.get(name).map_err(none)
        };
        names.map(find).collect()
    }
}

/// The users of each base use the uppermost overlay above it; those of all else that was opened anew the new opening.
/// A node that goes uses nothing any more, and one that comes what it was opened with.
fn moves(
    former: &[Arc<Node>],
    anew: &[Arc<Node>],
    bases: &[Arc<Node>],
    opened: &[Arc<Node>],
    overlaid: &[Overlaid],
) -> Vec<Move> {
    let all = former.iter().chain(opened);
    let stay: Vec<EdgeId> = all
        .flat_map(|node| node.driver().children())
        .map(Child::edge)
        .collect();
    let users = |node: &Arc<Node>| -> Vec<Use> {
        let mut users = node.users();
        users.retain(|known| !stay.contains(&known.edge));
        users
    };
    let is_base = |node: &Arc<Node>| bases.iter().any(|base| Arc::ptr_eq(base, node));
    let reopened = former.iter().zip(anew).map(|(from, to)| Move {
        from: Arc::clone(from),
        to: Arc::clone(to),
        moved: match is_base(from) {
            true => Vec::new(),
            false => users(from),
        },
    });
    let overlay = |base: &Arc<Node>| {
        let above = uppermost(base.name(), overlaid);
        let mut opened = opened.iter();
        let to = opened.find(|node| **node.name() == *above)?;
        Some(Move {
            from: Arc::clone(base),
            to: Arc::clone(to),
            moved: users(base),
        })
    };
    reopened.chain(bases.iter().filter_map(overlay)).collect()
}

/// The overlay that is uppermost above `base`: one may get another itself.
pub fn uppermost<'a>(base: &'a str, overlaid: &'a [Overlaid]) -> &'a str {
    let above = |name: &&str| {
        let mut all = overlaid.iter();
        all.find(|one| one.base == **name).map(|one| &*one.overlay)
    };
    let all = std::iter::successors(Some(base), above);
    // None of them is above itself.
    all.take(overlaid.len() + 1).last().unwrap_or(base)
}

/// What has the acknowledged of `bases` in memory, or on its way to the disk, from the top: what is above them, too,
/// as it writes there.
fn to_be_written(nodes: &[Arc<Node>], bases: &[Arc<Node>], former: &[Arc<Node>]) -> Vec<Arc<Node>> {
    let is_above = |node: &Arc<Node>| {
        let below = node.subtree();
        bases
            .iter()
            .any(|base| below.iter().any(|node| Arc::ptr_eq(node, base)))
    };
    let mut all: Vec<Arc<Node>> = nodes
        .iter()
        .filter(|node| is_above(node))
        .cloned()
        .collect();
    all.extend(bases.iter().flat_map(Node::subtree));
    all.extend(former.iter().map(Arc::clone));
    // What is above another one has more below it.
    all.sort_by_key(|node| (usize::MAX - node.subtree().len(), Arc::as_ptr(node).addr()));
    all.dedup_by(|one, other| Arc::ptr_eq(one, other));
    all.retain(|node| !node.read_only());
    all
}

fn hand_over(node: &Arc<Node>) -> Result<()> {
    let reopen = node.driver().capabilities().reopen;
    reopen.map_or(Ok(()), |reopen| reopen.hand_over())
}

/// The name of a base may lead to something else by now, and the overlay would be above that.
fn check_same(former: &Node, anew: &Node) -> std::result::Result<(), RegistryError> {
    let (was, is) = (former.image(), anew.image());
    match was.object() == is.object() {
        true => Ok(()),
        false => Err(RegistryError::AnotherImage {
            node: former.name().to_string(),
            image: is.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_may_get_one_itself() {
        let one = |base: &str, overlay: &str| Overlaid {
            base: base.to_owned(),
            overlay: overlay.to_owned(),
        };
        let all = [one("a", "b"), one("x", "y"), one("b", "c")];
        assert_eq!(uppermost("a", &all), "c");
        assert_eq!(uppermost("b", &all), "c");
        assert_eq!(uppermost("x", &all), "y");
        assert_eq!(uppermost("z", &all), "z");
    }
}
