//! Run control.

use std::time::Duration;

use qapi::QmpError;
use qapi::command::{BlockExportCont, Cont, NoArguments, NodeAcceptLoss};
use qapi::types::{Empty, StatusInfo};

use crate::context::{Context, failed, refused};
use crate::convert;

pub(crate) async fn query_status(
    context: &Context,
    _: NoArguments,
) -> Result<StatusInfo, QmpError> {
    let link = context.registry.link();
    let state = context.registry.control().read(|state| state.state());
    Ok(convert::status(state, link.as_deref()))
}

/// How long the answer of `stop` waits for the state file.
const STOP_SAVED_MAX: Duration = Duration::from_secs(1);

/// Nothing is started from now on, and not by a daemon that follows a crash either: so the answer comes
/// when that is saved, if it can be. Whoever saves tells if it cannot.
pub(crate) async fn stop(context: &Context, _: NoArguments) -> Result<Empty, QmpError> {
    let control = context.registry.control();
    control.stop().await.map_err(refused)?;
    control.save(STOP_SAVED_MAX).await;
    Ok(Empty {})
}

pub(crate) async fn cont(context: &Context, arguments: Cont) -> Result<Empty, QmpError> {
    let force = arguments.x_force.unwrap_or(false);
    let done = context.registry.control().cont(force).await;
    done.map_err(refused)?;
    Ok(Empty {})
}

/// What is held stays held until the reset of the device is seen: the VMM may refuse, or take its
/// time.
pub(crate) async fn system_reset(context: &Context, _: NoArguments) -> Result<Empty, QmpError> {
    let link = context.registry.link().ok_or_else(|| {
        QmpError::generic(
            "There is no link to a VMM that could reset the VM: add one with object-add \
             (vmm-qemu, vmm-cloud-hypervisor, vmm-firecracker, vmm-command), or use the VMM's own \
             monitor",
        )
    })?;
    link.reset().await.map_err(QmpError::generic)?;
    Ok(Empty {})
}

pub(crate) async fn block_export_cont(
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

pub(crate) async fn node_accept_loss(
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
