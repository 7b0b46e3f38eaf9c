//! The block graph: nodes by name.

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

/// All named nodes.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
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
        let subtree = node.subtree();
        for node in &subtree {
            match self.nodes.get(node.name()) {
                Some(known) if !Arc::ptr_eq(known, node) => {
                    return Err(GraphError::Duplicate(node.name().to_string()));
                }
                _ => {}
            }
        }
        for node in subtree {
            node.tell_growth(&self.growth);
            self.nodes.insert(Arc::clone(node.name()), node);
        }
        self.owned.insert(Arc::clone(node.name()));
        Ok(())
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

    /// The `removed` use nothing any more; what came in as a part of them and nobody else uses goes with
    /// them.
    fn remove_below(&mut self, removed: &mut Vec<Arc<Node>>) {
        let mut next = 0;
        while next < removed.len() {
            let node = Arc::clone(&removed[next]);
            for child in node.driver().children() {
                Child::end(child);
                let below = child.node();
                let known = self.nodes.get(below.name());
                if known.is_some_and(|known| Arc::ptr_eq(known, &below))
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

    /// Of each pair the second has the place of the first, and its name. Returns what is here no more: the
    /// first ones, and what came in as a part of them and nobody uses any more. None: one of the first ones is
    /// not here, and nothing has changed.
    pub fn replace<'a>(
        &mut self,
        pairs: impl Iterator<Item = (&'a Arc<Node>, &'a Arc<Node>)> + Clone,
    ) -> Option<Vec<Arc<Node>>> {
        let mut each = pairs.clone();
        let is_here = |(from, to): (&Arc<Node>, &Arc<Node>)| {
            let known = self.nodes.get(from.name());
            known.is_some_and(|known| Arc::ptr_eq(known, from)) && from.name() == to.name()
        };
        if !each.all(is_here) {
            return None;
        }
        let mut gone = Vec::new();
        for (from, to) in pairs {
            to.tell_growth(&self.growth);
            self.nodes.insert(Arc::clone(to.name()), Arc::clone(to));
            gone.push(Arc::clone(from));
        }
        self.remove_below(&mut gone);
        Some(gone)
    }

    /// Takes all nodes out.
    pub fn clear(&mut self) -> Vec<Arc<Node>> {
        self.owned.clear();
        std::mem::take(&mut self.nodes).into_values().collect()
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
            .cloned()
            .ok_or_else(|| GraphError::NotFound(name.to_owned()))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// A name for a node that was defined inline without one (`#block` and a number, as in QEMU:
    /// no name that a user gives can collide with it).
    pub fn generate_name(&mut self) -> String {
        self.last_generated += 1;
        format!("#block{:03}", self.last_generated)
    }
}
