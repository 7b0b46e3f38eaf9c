//! The graph as monitors change it: nodes and exports come and go, but how they are made is not known here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block::BoxFuture;
use qapi::QmpError;
use qapi::command::{BlockdevCreateVariant, TransactionActionVariant};
use qapi::options::{BlockdevOptions, ExportOptions};

/// Everything that makes and unmakes nodes and exports. Options have been checked by themselves. The errors
/// are those of the commands, and nothing has changed where there is one.
pub trait Graph: Send + Sync + fmt::Debug {
    /// `blockdev-add`.
    ///
    /// # Errors
    /// If a name is taken, a child does not exist, or the storage cannot be opened.
    fn add_node(&self, options: BlockdevOptions) -> BoxFuture<'_, Result<(), QmpError>>;

    /// `blockdev-del`.
    ///
    /// # Errors
    /// If there is no such node, or something uses it.
    fn delete_node(&self, name: String) -> BoxFuture<'_, Result<(), QmpError>>;

    /// `blockdev-reopen`: all of them or none.
    ///
    /// # Errors
    /// If there is no such node, an option cannot be changed, or something is in the way.
    fn reopen_nodes(&self, options: Vec<BlockdevOptions>) -> BoxFuture<'_, Result<(), QmpError>>;

    /// `block-export-add`.
    ///
    /// # Errors
    /// If the id is taken, there is no such node, or another user of it is in the way.
    fn add_export(&self, options: ExportOptions) -> BoxFuture<'_, Result<(), QmpError>>;

    /// `block-export-del`; `hard`: even if it has a client.
    ///
    /// # Errors
    /// If there is no such export, or it has a client.
    fn delete_export(&self, id: String, hard: bool) -> BoxFuture<'_, Result<(), QmpError>>;

    /// `blockdev-create`: as long as the storage takes. `cancelled` becomes true when nobody wants it any more.
    ///
    /// # Errors
    /// If it cannot be made, or somebody uses what is there.
    fn create_image(
        &self,
        options: BlockdevCreateVariant,
        cancelled: Arc<AtomicBool>,
    ) -> BoxFuture<'_, Result<(), QmpError>>;

    /// `transaction`: all of them or none. It ends within the time in which a monitor answers.
    ///
    /// # Errors
    /// If an action cannot be done.
    fn transact(
        &self,
        actions: Vec<TransactionActionVariant>,
    ) -> BoxFuture<'_, Result<(), QmpError>>;

    /// `x-blockdev-set-iothread`; none: the daemon's own.
    ///
    /// # Errors
    /// If there is no such node or iothread, or an export uses the node.
    fn set_iothread(
        &self,
        node: String,
        iothread: Option<String>,
        force: bool,
    ) -> BoxFuture<'_, Result<(), QmpError>>;
}
