//! The block graph: nodes by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::driver::node::Node;

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
    last_generated: u64,
}

impl Graph {
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
            self.nodes.insert(Arc::clone(node.name()), node);
        }
        Ok(())
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
