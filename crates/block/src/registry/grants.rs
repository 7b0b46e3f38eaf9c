//! From what users of nodes want to what they have: checked for all nodes that it concerns, then for the
//! locks that other processes see, and only then granted. Until somebody uses a node others may change what
//! is stored: when that begins, what is remembered of it is looked at again.

use std::sync::Arc;

use crate::driver::capabilities::LockError;
use crate::driver::node::Node;
use crate::driver::sharing::{Shared, SharingError, share};
use crate::driver::users::{EdgeId, Use, User};
use crate::registry_error::RegistryError;
use crate::words::permissions::{Access, Permissions};

/// Nodes as they are to be used.
#[derive(Debug)]
pub struct Plan {
    nodes: Vec<Arc<Node>>,
    shared: Vec<Shared>,
}

impl Plan {
    /// As they are used now: all that hangs together.
    pub fn of(nodes: &[Arc<Node>]) -> Self {
        let shared = nodes.iter().map(|node| Shared {
            name: Arc::clone(node.name()),
            read_only: node.read_only(),
            users: node.users(),
        });
        Self {
            shared: shared.collect(),
            nodes: nodes.to_vec(),
        }
    }

    fn users(&mut self, node: &Arc<Node>) -> Option<&mut Vec<Use>> {
        let at = self
            .nodes
            .iter()
            .position(|known| Arc::ptr_eq(known, node))?;
        Some(&mut self.shared[at].users)
    }

    /// One more user of `node`, or another access of one.
    pub fn set(&mut self, node: &Arc<Node>, wanted: Use) {
        if let Some(users) = self.users(node) {
            users.retain(|known| known.edge != wanted.edge);
            users.push(wanted);
        }
    }

    /// Somebody who resizes `node` uses it, too.
    pub fn resize(&mut self, node: &Arc<Node>) {
        let resizes = Use {
            edge: EdgeId::fresh(),
            user: User::Unnamed,
            role: "root",
            access: Access {
                held: Permissions::RESIZE,
                shared: Permissions::ALL,
            },
        };
        self.set(node, resizes);
    }

    /// The user `edge` of `from` is to be one of `to`.
    pub fn replace(&mut self, edge: EdgeId, from: &Arc<Node>, to: &Arc<Node>) {
        let Some(users) = self.users(from) else {
            return;
        };
        let Some(at) = users.iter().position(|known| known.edge == edge) else {
            return;
        };
        let moved = users.remove(at);
        self.set(to, moved);
    }

    /// What each gets.
    ///
    /// # Errors
    /// If somebody is in somebody's way.
    pub fn grant(&self) -> Result<Grant, SharingError> {
        let rule = |parent: usize, edge: EdgeId, above: Access| {
            let driver = self.nodes[parent].driver();
            let children = driver.children();
            let child = children.into_iter().find(|child| child.edge() == edge);
            child.map_or(Access::NONE, |child| driver.child_access(child, above))
        };
        let granted = share(&self.shared, rule)?;
        let step = |&at: &usize| Step {
            node: Arc::clone(&self.nodes[at]),
            former: None,
            before: self.nodes[at].access(),
            after: granted.nodes[at],
            users: (self.shared[at].users.iter())
                .map(|known| known.edge)
                .zip(granted.users[at].iter().copied())
                .collect(),
        };
        Ok(Grant(granted.order.iter().rev().map(step).collect()))
    }
}

/// What becomes of each node, the lowest first.
#[derive(Debug)]
pub struct Grant(Vec<Step>);

#[derive(Debug)]
struct Step {
    node: Arc<Node>,
    /// Another opening of it, which is in use.
    former: Option<Arc<Node>>,
    before: Access,
    after: Access,
    users: Vec<(EdgeId, Access)>,
}

impl Grant {
    /// `node` takes the place of `former`, another opening of it, which is in use until then: one is not in
    /// the way of the other.
    pub fn go_on_from(&mut self, node: &Arc<Node>, former: &Arc<Node>) {
        for step in &mut self.0 {
            if Arc::ptr_eq(&step.node, node) {
                step.former = Some(Arc::clone(former));
            }
        }
    }

    /// Takes the locks that are needed in addition. Nodes that come into use look at what they remember of
    /// those below them. May block.
    ///
    /// # Errors
    /// Somebody outside is in the way, or what is stored cannot be looked at; all is as before then.
    pub fn take(&self) -> Result<(), RegistryError> {
        for (number, step) in self.0.iter().enumerate() {
            if let Err(error) = step.take() {
                let tried = &self.0[..=number];
                let at_rest = self.at_rest();
                let is_tried = |step: &&Step| tried.iter().any(|one| std::ptr::eq(one, *step));
                at_rest.filter(is_tried).for_each(Step::undo);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives back what [`Self::take`] has taken. May block.
    pub fn undo(&self) {
        self.at_rest().for_each(Step::undo);
    }

    /// Everybody has it.
    pub fn apply(&self) {
        for step in &self.0 {
            for (edge, access) in &step.users {
                step.node.set_access(*edge, *access);
            }
        }
    }

    /// Gives back the locks that nobody needs any more. May block.
    pub fn settle(&self) {
        self.at_rest().for_each(|step| step.settle(step.after));
    }

    /// Without what is still written: a write-back that nobody waits for any more is above it, or one that has failed, and will
    /// be tried again: nobody else may write there until then.
    fn at_rest(&self) -> impl Iterator<Item = &Step> {
        let stuck =
            |step: &&Step| step.node.is_write_back_stuck() || step.node.not_on_disk().is_some();
        let stuck = self.0.iter().filter(stuck);
        let written: Vec<_> = stuck.flat_map(|step| step.node.subtree()).collect();
        let is_written =
            move |step: &Step| written.iter().any(|node| Arc::ptr_eq(node, &step.node));
        self.0.iter().filter(move |step| !is_written(step))
    }
}

impl Step {
    fn take(&self) -> Result<(), RegistryError> {
        if self.before == self.after {
            return Ok(());
        }
        self.lock()?;
        if self.before.held.is_empty() && !self.after.held.is_empty() {
            let activated = self.node.activate(self.after);
            activated.map_err(|error| error.at_least(self.node.name()))?;
        }
        Ok(())
    }

    fn lock(&self) -> Result<(), LockError> {
        let Some(locks) = self.node.driver().capabilities().image_locks else {
            return Ok(());
        };
        let former = self.former.as_deref();
        let has = former.and_then(|former| former.driver().capabilities().image_locks);
        match has {
            // Whoever asks meets the locks of the former one: that one takes what is missing, and asks. Not if
            // it locks by other rules: it may have asked for less.
            Some(has)
                if has.image() == locks.image()
                    && has.needs(self.after) == locks.needs(self.after) =>
            {
                has.lock(self.after)?;
                locks.lock_beside(self.after)
            }
            _ => locks.lock(self.after),
        }
    }

    fn undo(&self) {
        self.settle(self.before);
        if let Some(former) = &self.former {
            give_back(former);
        }
    }

    /// Even if its users have no less than before: one that has left does not count among those.
    fn settle(&self, access: Access) {
        if let Some(locks) = self.node.driver().capabilities().image_locks {
            locks.settle(access);
        }
    }
}

/// What the users of a node do not need.
fn give_back(node: &Node) {
    if let Some(locks) = node.driver().capabilities().image_locks {
        locks.settle(node.access());
    }
}

#[cfg(test)]
mod tests;
