//! Drivers that fail on purpose.

use std::sync::Arc;

use block::Node;
use block::fault::{FaultEvent, FaultId, FaultPlan, InjectError, IoType};
use qapi::QmpError;
use qapi::command::{BlkdebugClear, BlkdebugInject, BlkdebugInjected, QuotaSet};
use qapi::types::Empty;

use crate::context::{Context, blocking, failed};

/// Linux' errnos end here.
const ERRNO_MAX: i64 = 4095;

fn node(context: &Context, name: &str) -> Result<Arc<Node>, QmpError> {
    context.registry.node(name).map_err(failed)
}

pub(crate) async fn quota_set(context: &Context, arguments: QuotaSet) -> Result<Empty, QmpError> {
    let node = node(context, &arguments.node_name)?;
    if node.allocation_limit().is_none() {
        return Err(not_a(&node, "quota"));
    }
    // Negative numbers wrap around on their way here.
    if i64::try_from(arguments.limit).is_err() {
        return Err(QmpError::generic("Parameter 'limit' expects uint64"));
    }
    let set = blocking(move || {
        let limit = node.allocation_limit();
        let limit = limit.ok_or_else(|| not_a(&node, "quota"))?;
        limit.set_quota(arguments.limit).map_err(|e| {
            QmpError::generic(format!("Cannot set the quota of '{}': {e}", node.name()))
        })
    });
    let set = async move { set.await? };
    context.changes.run("x-quota-set", set).await?;
    Ok(Empty {})
}

pub(crate) async fn blkdebug_inject(
    context: &Context,
    arguments: BlkdebugInject,
) -> Result<BlkdebugInjected, QmpError> {
    let node = node(context, &arguments.node_name)?;
    let plan = fault_plan(&node)?;
    let id = plan.add(rule(&arguments)?);
    Ok(BlkdebugInjected { id: id.0 })
}

pub(crate) async fn blkdebug_clear(
    context: &Context,
    arguments: BlkdebugClear,
) -> Result<Empty, QmpError> {
    let node = node(context, &arguments.node_name)?;
    let plan = fault_plan(&node)?;
    match arguments.id {
        None => plan.clear_all(),
        Some(id) if plan.clear(FaultId(id)) => {}
        Some(id) => {
            return Err(QmpError::generic(format!(
                "Node '{}' has no rule {id}: it has ended or was never made",
                node.name()
            )));
        }
    }
    Ok(Empty {})
}

fn fault_plan(node: &Node) -> Result<&dyn FaultPlan, QmpError> {
    let plan = node.fault_plan();
    plan.ok_or_else(|| not_a(node, "blkdebug"))
}

fn not_a(node: &Node, driver: &str) -> QmpError {
    QmpError::generic(format!(
        "Node '{}' has driver '{}': name a node with driver '{driver}'",
        node.name(),
        node.driver().name()
    ))
}

fn rule(arguments: &BlkdebugInject) -> Result<InjectError, QmpError> {
    let unknown = |name, value| {
        QmpError::generic(format!(
            "Parameter '{name}' does not accept value '{value}'"
        ))
    };
    let event = arguments.event.unwrap_or_default().name();
    let iotype = match arguments.iotype.map(|iotype| iotype.name()) {
        Some(name) => Some(IoType::from_name(name).ok_or_else(|| unknown("iotype", name))?),
        None => None,
    };
    let default = InjectError::default();
    let errno = match arguments.errno {
        None => default.errno,
        Some(errno @ 0..=ERRNO_MAX) => i32::try_from(errno).unwrap_or(default.errno),
        Some(_) => {
            return Err(QmpError::generic(format!(
                "Parameter 'errno' expects 0 to {ERRNO_MAX}"
            )));
        }
    };
    let sector =
        match arguments.sector {
            None | Some(-1) => None,
            Some(sector) => Some(u64::try_from(sector).map_err(|_| {
                QmpError::generic("Parameter 'sector' expects a sector number or -1")
            })?),
        };
    let state = u32::try_from(arguments.state.unwrap_or(0))
        .map_err(|_| QmpError::generic(format!("Parameter 'state' expects 0 to {}", u32::MAX)))?;
    Ok(InjectError {
        event: FaultEvent::from_name(event).ok_or_else(|| unknown("event", event))?,
        iotype,
        errno,
        sector,
        once: arguments.once.unwrap_or(default.once),
        immediately: arguments.immediately.unwrap_or(default.immediately),
        state,
        every_nth: arguments.every_nth.unwrap_or(default.every_nth),
        limit: arguments.limit,
    })
}
