//! Where images are made: the graph, and what it takes to define a node in it.

use block::Registry;

use crate::definitions::Definitions;
use crate::nodes::Means;
use crate::opening::Names;

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The graph.
    pub registry: &'a Registry,
    /// What nodes refer to beside other nodes.
    pub means: Means<'a>,
    /// Names of what is being made.
    pub names: &'a Names,
    /// How each node was defined.
    pub definitions: &'a Definitions,
}
