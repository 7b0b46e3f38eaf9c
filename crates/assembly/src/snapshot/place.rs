//! Where snapshots are taken: the graph, and what it takes to define nodes in it.

use std::sync::Arc;

use block::Registry;

use crate::definitions::Definitions;
use crate::nodes::Means;
use crate::opening::Names;

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The graph.
    pub registry: &'a Arc<Registry>,
    /// What nodes refer to beside other nodes.
    pub means: Means<'a>,
    /// Names of what is being made.
    pub names: &'a Names,
    /// How each node was defined.
    pub definitions: &'a Definitions,
}

impl Place<'_> {
    /// The file of a node, for people.
    pub fn file_of(&self, node: &str) -> String {
        let found = self.registry.node(node);
        found.map_or_else(|_| String::new(), |node| node.driver().info().filename)
    }
}
