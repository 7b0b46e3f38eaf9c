//! How uses of nodes begin and end.

use std::sync::Arc;

use super::Registry;
use super::claims::Claim;
use super::grants::Plan;
use super::taken::Taken;
use crate::driver::beside::beside;
use crate::driver::closing::Closing;
use crate::driver::node::{Child, Node};
use crate::driver::users::{Use, User};
use crate::registry_error::RegistryError;
use crate::words::permissions::Access;

/// A use that was granted. Nobody else changes anything there as long as this exists, so whoever got it
/// can become known first.
#[derive(Debug)]
pub struct Lease {
    /// The edge.
    pub root: Child,
    /// Kept until whoever uses it is known.
    pub claim: Claim,
}

/// Nodes that nobody else changes.
#[derive(Debug)]
pub(crate) struct Claimed<F> {
    pub(crate) claim: Claim,
    /// Those that were looked for.
    pub(crate) found: F,
    /// All that hangs together with them.
    pub(crate) nodes: Vec<Arc<Node>>,
}

impl Registry {
    /// The export `id`, which is about to be made, uses a node from now on, as its root.
    ///
    /// # Errors
    /// If there is no such node; if another user is in the way, or another process
    /// ([`RegistryError::is_locked`]); nothing has changed then.
    pub async fn begin_use(
        &self,
        id: &str,
        node: &str,
        access: Access,
    ) -> Result<Lease, RegistryError> {
        self.begin_use_by(|node| Child::root(id, node), node, access)
            .await
    }

    /// A job uses a node, as its `role`, until its edge goes and [`Self::end_use`] is told. Whoever has it lets go of
    /// the claim, so that others change what hangs together with the node.
    ///
    /// # Errors
    /// As [`Self::begin_use`].
    pub async fn begin_job(
        &self,
        role: &'static str,
        node: &str,
        access: Access,
    ) -> Result<Lease, RegistryError> {
        self.begin_use_by(|node| Child::new(User::Unnamed, role, node), node, access)
            .await
    }

    async fn begin_use_by(
        &self,
        edge: impl FnOnce(Arc<Node>) -> Child,
        node: &str,
        access: Access,
    ) -> Result<Lease, RegistryError> {
        let find = || Ok([self.node(node)?]);
        let Claimed {
            claim,
            found: [node],
            nodes,
        } = self.claim_found(find, &[]).await?;
        let root = edge(Arc::clone(&node));
        let mut plan = Plan::of(&nodes);
        plan.set(
            &node,
            Use {
                edge: root.edge(),
                user: root.user().clone(),
                role: root.role(),
                access,
            },
        );
        let claim = Taken::take(plan.grant()?, claim).await?.apply().claim;
        Ok(Lease { root, claim })
    }

    /// A user of `node` has gone: what nobody needs any more is given back. A node that came in as a part of
    /// another one, which is gone, goes with its last user.
    pub async fn end_use(&self, node: &Arc<Node>) {
        // Another one may have its place by now, and the locks of its users.
        let find = || Ok([self.node(node.name()).unwrap_or_else(|_| Arc::clone(node))]);
        let more = std::slice::from_ref(node);
        let claimed = self.claim_found(find, more).await;
        if let Ok(Claimed {
            claim,
            found: [now],
            mut nodes,
        }) = claimed
        {
            let removed = self.graph().remove_orphan(&now);
            nodes.retain(|node| !removed.iter().any(|gone| Arc::ptr_eq(gone, node)));
            drop(now);
            // They are closed when the last one lets go of them.
            drop(Closing::of(removed));
            settle(&nodes, claim).await;
        }
    }

    /// Somebody is about to resize `node`, of the `nodes` that were claimed: one more user, until what is
    /// returned goes.
    pub(crate) async fn begin_resize(
        &self,
        node: &Arc<Node>,
        nodes: &[Arc<Node>],
        claim: Claim,
    ) -> Result<Taken, RegistryError> {
        let mut plan = Plan::of(nodes);
        plan.resize(node);
        Taken::take(plan.grant()?, claim).await
    }

    /// Claims all that hangs together with the nodes that `find` finds, and with `more`: those that it still
    /// finds then. While it waits, a name may come to mean another node.
    ///
    /// # Errors
    /// Those of `find`.
    pub(crate) async fn claim_found<F: AsRef<[Arc<Node>]>>(
        &self,
        find: impl Fn() -> Result<F, RegistryError>,
        more: &[Arc<Node>],
    ) -> Result<Claimed<F>, RegistryError> {
        loop {
            let found = find()?;
            let all: Vec<_> = found.as_ref().iter().chain(more).collect();
            let (claim, nodes) = self.claim(&all).await;
            let again = find()?;
            let same = |(one, other): (&Arc<Node>, &Arc<Node>)| Arc::ptr_eq(one, other);
            if found.as_ref().iter().zip(again.as_ref()).all(same) {
                return Ok(Claimed {
                    claim,
                    found,
                    nodes,
                });
            }
        }
    }

    /// Claims all that hangs together with `nodes`, and says what that is.
    pub(crate) async fn claim(&self, nodes: &[&Arc<Node>]) -> (Claim, Vec<Arc<Node>>) {
        let part = || {
            let part = self.part(nodes);
            part.iter().map(|node| Arc::clone(node.name())).collect()
        };
        let claim = self.claims.claim(part).await;
        (claim, self.part(nodes))
    }

    /// `nodes` and whatever is above and below them.
    fn part(&self, nodes: &[&Arc<Node>]) -> Vec<Arc<Node>> {
        let graph = self.graph();
        let mut part: Vec<Arc<Node>> = Vec::new();
        let mut next: Vec<Arc<Node>> = nodes.iter().map(|&node| Arc::clone(node)).collect();
        while let Some(node) = next.pop() {
            if part.iter().any(|known| Arc::ptr_eq(known, &node)) {
                continue;
            }
            let children = node.driver().children();
            next.extend(children.into_iter().map(Child::node));
            next.extend(node.users().iter().filter_map(|known| match &known.user {
                User::Node(name) => graph.get(name).ok(),
                User::Export(_) | User::Unnamed => None,
            }));
            part.push(node);
        }
        part
    }
}

/// Gives back what nobody needs.
pub(super) async fn settle(nodes: &[Arc<Node>], claim: Claim) {
    match Plan::of(nodes).grant() {
        Ok(grant) => {
            grant.apply();
            // Whoever waits may give up: nobody else takes any of these locks before. If there is no thread
            // for it, the end of the node does it.
            let _ = beside(move || {
                grant.settle();
                drop(claim);
            })
            .await;
        }
        // Who leaves is in nobody's way.
        Err(error) => tracing::error!("uses of nodes do not fit any more: {error}"),
    }
}
