//! The chain of images that a node shows: what it reads where it has nothing of its own, and what it filters.

use std::iter;
use std::sync::Arc;

use super::{Child, Node};

/// What the child is called that is read where an image has nothing of its own.
pub const BACKING: &str = "backing";

/// What the child is called that has the data of an image whose tables are in another file.
pub const DATA_FILE: &str = "data-file";

impl Node {
    /// The child that is its `role`.
    pub fn child(&self, role: &str) -> Option<Arc<Self>> {
        let mut children = self.driver.children().into_iter();
        children.find(|child| child.role() == role).map(Child::node)
    }

    /// The node that it reads where it has nothing of its own.
    pub fn backing(&self) -> Option<Arc<Self>> {
        self.child(BACKING)
    }

    /// The node that it filters.
    pub fn filtered(&self) -> Option<Arc<Self>> {
        let child = self.driver.children().first().map(|child| child.node());
        child.filter(|_| self.driver.info().filter)
    }

    /// What its filters write below them where their users only read, they write no more.
    pub fn end_copies(self: Arc<Self>) {
        let filters = iter::successors(Some(self), |node| node.filtered());
        for node in filters {
            if let Some(copies) = node.driver.capabilities().copies {
                copies.end();
            }
        }
    }

    /// The node at the bottom of its files: the one with storage of its own.
    pub fn storage(self: &Arc<Self>) -> Arc<Self> {
        let below = |node: &Arc<Self>| node.driver.children().first().map(|child| child.node());
        let files = iter::successors(Some(Arc::clone(self)), below);
        files.last().unwrap_or_else(|| Arc::clone(self))
    }

    /// This node and those that its bytes come from, from the top: backing nodes and filtered ones, not the files
    /// that they are in.
    pub fn chain(self: &Arc<Self>) -> impl Iterator<Item = Arc<Self>> {
        let below = |node: &Arc<Self>| node.backing().or_else(|| node.filtered());
        iter::successors(Some(Arc::clone(self)), below)
    }
}
