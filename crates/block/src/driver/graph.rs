//! The block graph: nodes by name, in the order in which they came.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use crate::driver::growth::Growth;
use crate::driver::node::{Child, Node};

/// Why a node cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// The name is taken.
    #[error("Duplicate nodes with node-name='{0}'")]
    Duplicate(String),
    /// No such node.
    #[error("Cannot find device='' nor node-name='{0}'")]
    NotFound(String),
}

/// A node, and the number by which it came: what takes its place has it from then on.
#[derive(Debug)]
struct Known {
    number: u64,
    node: Arc<Node>,
}

/// All named nodes.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: BTreeMap<Arc<str>, Known>,
    last_number: u64,
    /// Those that were asked for by themselves, and not as a part of another one.
    owned: BTreeSet<Arc<str>>,
    last_generated: u64,
    growth: Weak<Growth>,
}

impl Graph {
    /// An empty one, whose nodes say to `growth` when what is written to them makes them longer.
    pub fn telling(growth: &Arc<Growth>) -> Self {
        Self {
            growth: Arc::downgrade(growth),
            ..Self::default()
        }
    }

    /// Takes a node in, and those below it that are not in yet.
    ///
    /// # Errors
    /// If a different node has one of the names; nothing is added then.
    pub fn add(&mut self, node: &Arc<Node>) -> Result<(), GraphError> {
        for node in &node.subtree() {
            match self.nodes.get(node.name()) {
                Some(known) if !Arc::ptr_eq(&known.node, node) => {
                    return Err(GraphError::Duplicate(node.name().to_string()));
                }
                _ => {}
            }
        }
        for node in as_opened(node) {
            if self.nodes.contains_key(node.name()) {
                continue;
            }
            self.take_in(node);
        }
        self.owned.insert(Arc::clone(node.name()));
        Ok(())
    }

    /// The latest that has come.
    fn take_in(&mut self, node: Arc<Node>) {
        node.tell_growth(&self.growth);
        self.last_number += 1;
        let number = self.last_number;
        self.nodes
            .insert(Arc::clone(node.name()), Known { number, node });
    }

    /// Whether a node was asked for by itself, and not as a part of another one.
    pub fn is_owned(&self, name: &str) -> bool {
        self.owned.contains(name)
    }

    /// Takes a node out that nobody uses, and what came in as a part of it and nobody else uses. Returns
    /// all of it; it uses nothing any more.
    pub fn remove(&mut self, node: &Arc<Node>) -> Vec<Arc<Node>> {
        self.nodes.remove(node.name());
        self.owned.remove(node.name());
        let mut removed = vec![Arc::clone(node)];
        self.remove_below(&mut removed);
        removed
    }

    /// As [`Self::remove`], of a node that came in as a part of another one and is used by nobody any more;
    /// nothing, if it is none such.
    pub fn remove_orphan(&mut self, node: &Arc<Node>) -> Vec<Arc<Node>> {
        let known = self.nodes.get(node.name());
        let is_orphan = known.is_some_and(|known| Arc::ptr_eq(&known.node, node))
            && !self.owned.contains(node.name())
            && node.users().is_empty();
        match is_orphan {
            true => self.remove(node),
            false => Vec::new(),
        }
    }

    /// The `removed` use nothing any more; what came in as a part of them and nobody else uses goes with
    /// them.
    fn remove_below(&mut self, removed: &mut Vec<Arc<Node>>) {
        let mut next = 0;
        while next < removed.len() {
            let node = Arc::clone(&removed[next]);
            let offset = node.driver().info().child_offset;
            for child in node.driver().children() {
                Child::end(child);
                let below = child.node();
                if let Some(offset) = offset {
                    below.wrote_through(&node, offset);
                }
                let known = self.nodes.get(below.name());
                if known.is_some_and(|known| Arc::ptr_eq(&known.node, &below))
                    && !self.owned.contains(below.name())
                    && below.users().is_empty()
                {
                    self.nodes.remove(below.name());
                    removed.push(below);
                }
            }
            next += 1;
        }
    }

    /// Of each pair the second has the place of the first, and its name; `more` come in beside, as parts of
    /// what uses them. Returns what is here no more: the first ones, and what came in as a part of them and
    /// nobody uses any more.
    ///
    /// # Errors
    /// One of the first ones is not here, or the name of one of `more` is taken; nothing has changed then.
    pub fn replace<'a>(
        &mut self,
        pairs: impl Iterator<Item = (&'a Arc<Node>, &'a Arc<Node>)> + Clone,
        more: &[Arc<Node>],
    ) -> Result<Vec<Arc<Node>>, GraphError> {
        for (from, to) in pairs.clone() {
            let known = self.nodes.get(from.name());
            if !known.is_some_and(|known| Arc::ptr_eq(&known.node, from))
                || from.name() != to.name()
            {
                return Err(GraphError::NotFound(from.name().to_string()));
            }
        }
        if let Some(taken) = more.iter().find(|node| self.contains(node.name())) {
            return Err(GraphError::Duplicate(taken.name().to_string()));
        }
        let mut gone = Vec::new();
        for (from, to) in pairs {
            to.tell_growth(&self.growth);
            if let Some(known) = self.nodes.get_mut(to.name()) {
                known.node = Arc::clone(to);
            }
            gone.push(Arc::clone(from));
        }
        for node in more {
            self.take_in(Arc::clone(node));
        }
        self.remove_below(&mut gone);
        Ok(gone)
    }

    /// Takes all nodes out.
    pub fn clear(&mut self) -> Vec<Arc<Node>> {
        self.owned.clear();
        let nodes = std::mem::take(&mut self.nodes).into_values();
        nodes.map(|known| known.node).collect()
    }

    /// Whether the name is taken.
    pub fn contains(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
    }

    /// A node.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn get(&self, name: &str) -> Result<Arc<Node>, GraphError> {
        self.nodes
            .get(name)
            .map(|known| Arc::clone(&known.node))
            .ok_or_else(|| GraphError::NotFound(name.to_owned()))
    }

    /// All nodes, in the order in which they came.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        let mut nodes: Vec<_> = self.nodes.values().collect();
        nodes.sort_unstable_by_key(|known| known.number);
        nodes.into_iter().map(|known| &known.node)
    }

    /// A name for a node that was defined inline without one (`#block` and a number, as in QEMU:
    /// no name that a user gives can collide with it).
    pub fn generate_name(&mut self) -> String {
        self.last_generated += 1;
        format!("{GENERATED}{:03}", self.last_generated)
    }

    /// Whether a name is one of these, which nobody has given.
    pub fn is_generated(name: &str) -> bool {
        name.starts_with(GENERATED)
    }
}

/// What generated names begin with.
const GENERATED: &str = "#block";

/// `node` and all below it, each once, in the order in which QEMU opens them: a child that is a `file` before its
/// parent, all others after it.
fn as_opened(node: &Arc<Node>) -> Vec<Arc<Node>> {
    fn visit(node: &Arc<Node>, found: &mut Vec<Arc<Node>>) {
        if found.iter().any(|known| Arc::ptr_eq(known, node)) {
            return;
        }
        let children = node.driver().children();
        let (files, others): (Vec<_>, Vec<_>) =
            (children.into_iter()).partition(|child| child.role() == "file");
        for child in files {
            visit(&child.node(), found);
        }
        found.push(Arc::clone(node));
        for child in others {
            visit(&child.node(), found);
        }
    }
    let mut found = Vec::new();
    visit(node, &mut found);
    found
}

#[cfg(test)]
mod tests;
