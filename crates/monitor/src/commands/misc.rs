//! The session, the daemon, and HMP.

use qapi::command::{HumanMonitorCommand, NoArguments, QmpCapabilities};
use qapi::types::{CommandInfo, Empty, VersionInfo};
use qapi::{ErrorClass, QmpError};

use super::{COMMANDS, Context};
use crate::hmp;

/// Negotiation is the session's; this is a second one.
pub(super) async fn qmp_capabilities(_: &Context, _: QmpCapabilities) -> Result<Empty, QmpError> {
    Err(QmpError {
        class: ErrorClass::CommandNotFound,
        desc: "Capabilities negotiation is already complete, command ignored".to_owned(),
    })
}

pub(super) async fn query_version(
    context: &Context,
    _: NoArguments,
) -> Result<VersionInfo, QmpError> {
    Ok(context.version.clone())
}

pub(super) async fn query_commands(
    _: &Context,
    _: NoArguments,
) -> Result<Vec<CommandInfo>, QmpError> {
    Ok(COMMANDS
        .iter()
        .map(|command| CommandInfo {
            name: command.name.to_owned(),
        })
        .collect())
}

pub(super) async fn human_monitor_command(
    context: &Context,
    arguments: HumanMonitorCommand,
) -> Result<String, QmpError> {
    Ok(hmp::execute(context, &arguments.command_line).await)
}

pub(super) async fn quit(context: &Context, _: NoArguments) -> Result<Empty, QmpError> {
    context.registry.quit("host-qmp-quit");
    Ok(Empty {})
}
