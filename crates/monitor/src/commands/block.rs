//! Nodes, backends, exports.

use block::Node;
use qapi::QmpError;
use qapi::command::{BlockSetWriteThreshold, NoArguments, QueryHeld, QueryNamedBlockNodes};
use qapi::types::{BlockDeviceInfo, BlockExportInfo, BlockInfo, Empty, HeldRequestInfo};

use crate::context::{Context, failed};
use crate::convert::{self, BackendNodes};

/// The backends of all exports, as one moment of run control.
pub(crate) async fn backends(context: &Context) -> Result<Vec<BlockInfo>, QmpError> {
    let exports = context.registry.exports();
    let roots: Vec<_> = exports
        .iter()
        .map(|export| export.backend().node())
        .collect();
    let asked = roots.iter().flat_map(Node::chain).collect();
    let sizes = context.storage.sizes(asked).await;
    let nodes: Vec<_> = roots
        .iter()
        .map(|root| BackendNodes::new(root, &sizes))
        .collect();
    Ok(context.registry.control().read(|state| {
        let backends = exports.iter().zip(nodes);
        backends
            .map(|(export, nodes)| convert::backend(&**export, nodes, state))
            .collect()
    }))
}

/// All nodes, the newest first, as in QEMU; `flat`: without those that they filter.
pub(crate) async fn nodes(context: &Context, flat: bool) -> Result<Vec<BlockDeviceInfo>, QmpError> {
    let nodes = context.registry.nodes();
    let sizes = context.storage.sizes(nodes.clone()).await;
    let nodes = nodes.iter().rev();
    Ok(nodes
        .map(|node| convert::node(node, &sizes, flat))
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
    arguments: QueryNamedBlockNodes,
) -> Result<Vec<BlockDeviceInfo>, QmpError> {
    nodes(context, arguments.flat.unwrap_or(false)).await
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

pub(crate) async fn set_write_threshold(
    context: &Context,
    arguments: BlockSetWriteThreshold,
) -> Result<Empty, QmpError> {
    let BlockSetWriteThreshold {
        node_name,
        write_threshold,
    } = arguments;
    let set = (context.registry).set_write_threshold(&node_name, write_threshold);
    set.map_err(|_| QmpError::generic(format!("Device '{node_name}' not found")))?;
    Ok(Empty {})
}
