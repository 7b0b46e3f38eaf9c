//! Run control.

use qapi::QmpError;
use qapi::command::{BlockExportCont, NoArguments, NodeAcceptLoss};
use qapi::types::{Empty, StatusInfo};

use super::{Context, failed, refused};
use crate::convert;

pub(super) async fn query_status(
    context: &Context,
    _: NoArguments,
) -> Result<StatusInfo, QmpError> {
    Ok(convert::status(
        context.registry.control().read(|state| state.state()),
    ))
}

pub(crate) async fn stop(context: &Context, _: NoArguments) -> Result<Empty, QmpError> {
    context.registry.control().stop().await.map_err(refused)?;
    Ok(Empty {})
}

pub(crate) async fn cont(context: &Context, _: NoArguments) -> Result<Empty, QmpError> {
    context
        .registry
        .control()
        .cont(false)
        .await
        .map_err(refused)?;
    Ok(Empty {})
}

pub(super) async fn block_export_cont(
    context: &Context,
    arguments: BlockExportCont,
) -> Result<Empty, QmpError> {
    context
        .registry
        .control()
        .cont_backend(arguments.id)
        .await
        .map_err(refused)?;
    Ok(Empty {})
}

pub(super) async fn node_accept_loss(
    context: &Context,
    arguments: NodeAcceptLoss,
) -> Result<Empty, QmpError> {
    context
        .registry
        .accept_loss(&arguments.node_name)
        .await
        .map_err(failed)?;
    Ok(Empty {})
}
