//! Nodes, backends, exports.

use qapi::QmpError;
use qapi::command::{NoArguments, QueryBlockstats, QueryHeld, QueryNamedBlockNodes};
use qapi::types::{BlockDeviceInfo, BlockExportInfo, BlockInfo, BlockStats, HeldRequestInfo};

use crate::context::{Context, failed};
use crate::convert::{self, BackendNodes};

/// The backends of all exports, as one moment of run control.
pub(crate) async fn backends(context: &Context) -> Result<Vec<BlockInfo>, QmpError> {
    let exports = context.registry.exports();
    let roots: Vec<_> = exports
        .iter()
        .map(|export| export.backend().node())
        .collect();
    let sizes = context.storage.allocated_of(&roots).await;
    let asked = roots.iter().zip(sizes);
    let nodes: Vec<_> = asked
        .map(|(root, size)| BackendNodes::new(root, size))
        .collect();
    Ok(context.registry.control().read(|state| {
        let backends = exports.iter().zip(nodes);
        backends
            .map(|(export, nodes)| convert::backend(&**export, nodes, state))
            .collect()
    }))
}

/// All nodes.
pub(crate) async fn nodes(context: &Context) -> Result<Vec<BlockDeviceInfo>, QmpError> {
    let nodes = context.registry.nodes();
    let sizes = context.storage.allocated_of(&nodes).await;
    let asked = nodes.iter().zip(sizes);
    Ok(asked
        .map(|(node, size)| convert::node(node, size))
        .collect())
}

pub(crate) async fn query_block(
    context: &Context,
    _: NoArguments,
) -> Result<Vec<BlockInfo>, QmpError> {
    backends(context).await
}

pub(crate) async fn query_named_block_nodes(
    context: &Context,
    // No node has a backing file, so that `flat` changes nothing.
    _: QueryNamedBlockNodes,
) -> Result<Vec<BlockDeviceInfo>, QmpError> {
    nodes(context).await
}

pub(crate) async fn query_blockstats(
    context: &Context,
    arguments: QueryBlockstats,
) -> Result<Vec<BlockStats>, QmpError> {
    Ok(if arguments.query_nodes.unwrap_or(false) {
        context
            .registry
            .nodes()
            .iter()
            .map(convert::node_stats)
            .collect()
    } else {
        context
            .registry
            .exports()
            .iter()
            .map(|e| convert::backend_stats(&**e))
            .collect()
    })
}

pub(crate) async fn query_block_exports(
    context: &Context,
    _: NoArguments,
) -> Result<Vec<BlockExportInfo>, QmpError> {
    // The newest first, as in QEMU.
    let exports = context.registry.exports();
    let exports = exports.iter().rev();
    Ok(exports
        .map(|export| convert::export(&**export, context.registry.is_ending(export)))
        .collect())
}

pub(crate) async fn query_held(
    context: &Context,
    arguments: QueryHeld,
) -> Result<Vec<HeldRequestInfo>, QmpError> {
    let exports = match arguments.id {
        Some(id) => vec![context.registry.export(&id).map_err(failed)?],
        None => context.registry.exports(),
    };
    Ok(context.registry.control().read(|state| {
        let mut held = Vec::new();
        for export in &exports {
            if let Some(backend) = state.backend(export.backend().id()) {
                held.extend(
                    backend
                        .held()
                        .map(|record| convert::held(export.id(), record)),
                );
            }
        }
        held
    }))
}
