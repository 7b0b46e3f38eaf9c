//! Who uses a node, by what name, and with which permissions.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::words::permissions::Access;

/// One that uses a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A node above it, by its name.
    Node(Arc<str>),
    /// An export, by its id.
    Export(Arc<str>),
    /// Somebody who does one thing with it, and has no name.
    Unnamed,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node '{name}'"),
            Self::Export(id) => write!(f, "block export '{id}'"),
            Self::Unnamed => f.write_str("an unnamed block device"),
        }
    }
}

/// Names an edge of the graph: it stays the same when another node takes the place below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdgeId(u64);

impl EdgeId {
    pub(crate) fn fresh() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// One use of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The edge that it is.
    pub edge: EdgeId,
    /// Whose.
    pub user: User,
    /// What the node is to it: `root`, `file`, `image`...
    pub role: &'static str,
    /// With which permissions.
    pub access: Access,
}

/// All uses of a node, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Users(Mutex<Vec<Use>>);

impl Users {
    pub(super) fn list(&self) -> Vec<Use> {
        self.0.lock().clone()
    }

    pub(super) fn add(&self, new: Use) {
        self.0.lock().push(new);
    }

    pub(super) fn remove(&self, edge: EdgeId) -> Option<Use> {
        let mut users = self.0.lock();
        let at = users.iter().position(|known| known.edge == edge)?;
        Some(users.remove(at))
    }

    pub(super) fn set_access(&self, edge: EdgeId, access: Access) {
        let mut users = self.0.lock();
        if let Some(known) = users.iter_mut().find(|known| known.edge == edge) {
            known.access = access;
        }
    }

    pub(super) fn access(&self, edge: EdgeId) -> Option<Access> {
        let users = self.0.lock();
        let known = users.iter().find(|known| known.edge == edge)?;
        Some(known.access)
    }
}
