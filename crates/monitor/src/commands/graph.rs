//! Nodes and exports come and go.

use std::sync::Arc;

use block::RegistryError;
use qapi::QmpError;
use qapi::command::{
    BlockExportDel, BlockExportRemoveMode, BlockResize, BlockdevDel, BlockdevReopen,
    BlockdevSetIothread, StrOrNull,
};
use qapi::options::{BlockdevOptions, ExportOptions};
use qapi::types::Empty;

use crate::context::{Context, failed};

pub(crate) async fn blockdev_add(
    context: &Context,
    options: BlockdevOptions,
) -> Result<Empty, QmpError> {
    options.check_root()?;
    let graph = Arc::clone(&context.graph);
    let add = async move { graph.add_node(options).await };
    context.changes.run("blockdev-add", add).await?;
    Ok(Empty {})
}

pub(crate) async fn blockdev_del(
    context: &Context,
    arguments: BlockdevDel,
) -> Result<Empty, QmpError> {
    let graph = Arc::clone(&context.graph);
    let delete = async move { graph.delete_node(arguments.node_name).await };
    context.changes.run("blockdev-del", delete).await?;
    Ok(Empty {})
}

pub(crate) async fn blockdev_reopen(
    context: &Context,
    arguments: BlockdevReopen,
) -> Result<Empty, QmpError> {
    let graph = Arc::clone(&context.graph);
    let reopen = async move { graph.reopen_nodes(arguments.options).await };
    context.changes.run("blockdev-reopen", reopen).await?;
    Ok(Empty {})
}

pub(crate) async fn block_export_add(
    context: &Context,
    options: ExportOptions,
) -> Result<Empty, QmpError> {
    // QEMU looks for that before it looks at what is wanted.
    if context.registry.export(&options.base.id).is_ok() {
        return Err(failed(RegistryError::DuplicateExport(options.base.id)));
    }
    options.check()?;
    let graph = Arc::clone(&context.graph);
    let add = async move { graph.add_export(options).await };
    context.changes.run("block-export-add", add).await?;
    Ok(Empty {})
}

pub(crate) async fn block_export_del(
    context: &Context,
    arguments: BlockExportDel,
) -> Result<Empty, QmpError> {
    let graph = Arc::clone(&context.graph);
    let hard = arguments.mode.unwrap_or_default() == BlockExportRemoveMode::Hard;
    let delete = async move { graph.delete_export(arguments.id, hard).await };
    context.changes.run("block-export-del", delete).await?;
    Ok(Empty {})
}

pub(crate) async fn blockdev_set_iothread(
    context: &Context,
    arguments: BlockdevSetIothread,
) -> Result<Empty, QmpError> {
    let graph = Arc::clone(&context.graph);
    let iothread = match arguments.iothread {
        StrOrNull::Str(name) => Some(name),
        StrOrNull::Null => None,
    };
    let force = arguments.force.unwrap_or(false);
    let set = async move {
        graph
            .set_iothread(arguments.node_name, iothread, force)
            .await
    };
    context.changes.run("x-blockdev-set-iothread", set).await?;
    Ok(Empty {})
}

/// The longest node that QEMU has: what 63 bits can say, in whole GiB.
const LENGTH_BYTES_MAX: u64 = i64::MAX.cast_unsigned() >> 30 << 30;

pub(crate) async fn block_resize(
    context: &Context,
    arguments: BlockResize,
) -> Result<Empty, QmpError> {
    let device = arguments.device.as_deref().unwrap_or_default();
    let node_name = arguments.node_name.as_deref().unwrap_or_default();
    let node = match context.registry.export(device) {
        Ok(export) => export.backend().node().clone(),
        Err(_) => context
            .registry
            .node(node_name)
            .map_err(|_| QmpError::cannot_find(device, node_name))?,
    };
    let size = u64::try_from(arguments.size)
        .map_err(|_| QmpError::generic("Parameter 'size' expects a >0 size"))?;
    if size > LENGTH_BYTES_MAX {
        let desc = format!("offset({size}) exceeds maximum({LENGTH_BYTES_MAX})");
        return Err(QmpError::generic(desc));
    }
    if node.read_only() {
        return Err(QmpError::generic("Image is read-only"));
    }
    let registry = Arc::clone(&context.registry);
    let resize = async move { registry.resize(node.name(), size).await.map_err(failed) };
    context.changes.run("block_resize", resize).await?;
    Ok(Empty {})
}
