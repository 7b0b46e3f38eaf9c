//! `transaction`, and commands that are one of one action.

use std::sync::Arc;

use qapi::QmpError;
use qapi::command::{
    BlockdevSnapshot, BlockdevSnapshotSync, BlockdevSnapshotSyncWrapper, BlockdevSnapshotWrapper,
    CompletionMode, Transaction, TransactionActionVariant,
};
use qapi::types::Empty;

use crate::context::Context;

/// All of `actions`, or none. It has a limit of its own, below that of a change: whoever asks learns what became of it.
async fn run(
    context: &Context,
    what: &str,
    actions: Vec<TransactionActionVariant>,
) -> Result<Empty, QmpError> {
    if actions.is_empty() {
        return Ok(Empty {});
    }
    let graph = Arc::clone(&context.graph);
    let transact = async move { graph.transact(actions).await };
    context.changes.run(what, transact).await?;
    Ok(Empty {})
}

pub(crate) async fn transaction(
    context: &Context,
    arguments: Transaction,
) -> Result<Empty, QmpError> {
    let properties = arguments.properties.unwrap_or_default();
    let is_grouped = properties.completion_mode == Some(CompletionMode::Grouped);
    let actions = arguments.actions.into_iter().map(|action| action.variant);
    let actions: Vec<_> = actions.collect();
    // None of them is a job.
    let is_single =
        |action: &&TransactionActionVariant| !matches!(action, TransactionActionVariant::Abort(_));
    if let Some(single) = actions.first().filter(is_single).filter(|_| is_grouped) {
        return Err(QmpError::generic(format!(
            "Action '{}' does not support Transaction property completion-mode = grouped",
            single.kind().name()
        )));
    }
    run(context, "transaction", actions).await
}

pub(crate) async fn blockdev_snapshot(
    context: &Context,
    arguments: BlockdevSnapshot,
) -> Result<Empty, QmpError> {
    let action = BlockdevSnapshotWrapper { data: arguments };
    let actions = vec![TransactionActionVariant::BlockdevSnapshot(action)];
    run(context, "blockdev-snapshot", actions).await
}

pub(crate) async fn blockdev_snapshot_sync(
    context: &Context,
    arguments: BlockdevSnapshotSync,
) -> Result<Empty, QmpError> {
    let action = BlockdevSnapshotSyncWrapper { data: arguments };
    let actions = vec![TransactionActionVariant::BlockdevSnapshotSync(action)];
    run(context, "blockdev-snapshot-sync", actions).await
}
