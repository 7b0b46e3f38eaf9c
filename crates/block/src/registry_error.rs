//! Why nodes, exports and the link to the VMM stay as they are.

use std::sync::Arc;

use crate::driver::capabilities::LockError;
use crate::driver::graph::GraphError;
use crate::driver::sharing::SharingError;
use crate::words::error::BlockError;

/// Why an operation on a node or an export is refused; nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such node, or a name that is taken.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// An export id that is taken.
    #[error("Block export id '{0}' is already in use")]
    DuplicateExport(String),
    /// No such export.
    #[error("Export '{0}' is not found")]
    NoExport(String),
    /// An export that has a client.
    #[error("export '{0}' still in use")]
    ExportInUse(String),
    /// An export that is ending already.
    #[error("export '{0}' is already shutting down")]
    ExportEnding(String),
    /// There is no node to be removed.
    #[error("Failed to find node with node-name='{0}'")]
    NoNode(String),
    /// A node is the root of an export.
    #[error("Node {0} is in use")]
    NodeExported(String),
    /// A node was defined as a part of another one.
    #[error("Node {0} is not owned by the monitor")]
    NotOwned(String),
    /// It is the backing node of another one.
    #[error("Node '{node}' is busy: node is used as backing hd of '{of}'")]
    IsBacking {
        /// The node.
        node: String,
        /// The one that it is the backing node of.
        of: String,
    },
    /// Other nodes are above it.
    #[error("Block device {0} is in use")]
    NodeUsed(String),
    /// Users of a node do not get along.
    #[error(transparent)]
    Sharing(#[from] SharingError),
    /// Another process has the image, or cannot be asked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What was lost would be forgotten.
    #[error("Cannot replace a node that has lost data. {0}")]
    Lost(String),
    /// What is held does not fit into another node.
    #[error("Cannot replace node '{from}' by node '{to}': {why}")]
    DoesNotFit {
        /// The node that is there.
        from: String,
        /// The one that was to take its place.
        to: String,
        /// Why its length is not enough.
        why: Box<ResizeError>,
    },
    /// What is held does not fit into what was found where a node was opened anew.
    #[error("Cannot reopen node '{node}': {why}")]
    DoesNotFitAnew {
        /// The node.
        node: String,
        /// Why its length is not enough.
        why: Box<ResizeError>,
    },
    /// A driver that cannot open anything anew.
    #[error("Block format '{driver}' used by node '{node}' does not support reopening files")]
    NotReopened {
        /// The node.
        node: String,
        /// Its driver.
        driver: &'static str,
    },
    /// What is not on disk yet would be forgotten.
    #[error("Cannot reopen a node before all of it is on disk. {0}")]
    Unwritten(String),
    /// An overlay that somebody reads.
    #[error("The overlay is already in use")]
    OverlayUsed,
    /// What comes to be below an overlay has lost something.
    #[error("Cannot take a snapshot of what has lost data. {0}")]
    LostBelow(String),
    /// What was acknowledged is not on disk yet.
    #[error("Cannot take a snapshot before all of it is on disk. {0}")]
    NotWritten(String),
    /// What was acknowledged does not become durable.
    #[error("Cannot take a snapshot before all of it is on disk: {0}")]
    NotDurable(BlockError),
    /// Somebody else was faster.
    #[error("Somebody else has changed the nodes meanwhile: look what there is, and try again")]
    ChangedMeanwhile,
    /// The name of what comes to be below an overlay leads to something else by now.
    #[error(
        "Cannot take a snapshot of node '{node}': its file name leads to another image by now, '{image}'"
    )]
    AnotherImage {
        /// The node.
        node: String,
        /// Where it leads.
        image: String,
    },
    /// The storage does not say what has to be known.
    #[error(transparent)]
    Storage(#[from] BlockError),
    /// The length cannot be changed.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// There is a link already.
    #[error(
        "Object '{id}' cannot be added: the daemon has a link to a VMM already, object '{existing}'; \
         one daemon serves one VM"
    )]
    SecondLink {
        /// The new one.
        id: String,
        /// The one there is.
        existing: String,
    },
    /// The VM is paused by its link, and nobody else would resume it.
    #[error(
        "object '{0}' is in use, can not be deleted: it has paused the VM, which nobody would \
         resume; use 'cont' first"
    )]
    LinkInUse(String),
    /// There is no latched failure to accept.
    #[error("Node '{0}' has no failed flush: there is no loss to accept")]
    NoLoss(String),
    /// The daemon ends.
    #[error("The daemon is shutting down")]
    ShuttingDown,
}

impl RegistryError {
    /// Whether another process has a lock, and may yet let go: one that has just died has, until its last
    /// request has ended.
    pub const fn is_locked(&self) -> bool {
        matches!(self, Self::Lock(error) if error.is_locked())
    }
}

/// Why a node keeps its length.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// A held request would not fit any more.
    #[error(
        "Cannot resize node '{node}' to {size} bytes: export '{export}' holds a {operation} of \
         {bytes} bytes at offset {offset}, which ends beyond that; let it go on ('cont') or reset \
         the device first"
    )]
    Held {
        /// The node.
        node: String,
        /// The size it would have, in bytes.
        size: u64,
        /// The export whose request it is.
        export: String,
        /// What the request does.
        operation: &'static str,
        /// Its first byte.
        offset: u64,
        /// Its length in bytes.
        bytes: u64,
    },
    /// A client may hand requests back that nobody here has seen, and they might not fit any more.
    #[error(
        "Cannot resize node '{node}' to {size} bytes, which is less than it has: {reason} on export \
         '{export}', which may end beyond that; resize when they have been completed, or while no \
         daemon serves the node"
    )]
    HandedBack {
        /// The node.
        node: String,
        /// The size it would have, in bytes.
        size: u64,
        /// The export.
        export: String,
        /// What may come.
        reason: String,
    },
    /// A node above counts on the length.
    #[error(
        "Permission conflict on node '{node}': permissions 'resize' are both required by an unnamed \
         block device (uses node '{root}' as 'root' child) and unshared by node '{parent}' (uses \
         node '{node}' as '{role}' child). Resize node '{parent}' instead."
    )]
    Unshared {
        /// The node that would change.
        node: Arc<str>,
        /// The node that was to be resized.
        root: Arc<str>,
        /// The node that does not go along.
        parent: Arc<str>,
        /// What the child is to it.
        role: &'static str,
    },
    /// The driver refused.
    #[error("{0}")]
    Driver(#[from] BlockError),
}
