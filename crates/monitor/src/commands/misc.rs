//! The session and the daemon.

use qapi::command::{NoArguments, QmpCapabilities};
use qapi::types::{Empty, VersionInfo};
use qapi::{ErrorClass, QmpError};

use crate::context::Context;

/// Negotiation is the session's; this is a second one.
pub(crate) async fn qmp_capabilities(_: &Context, _: QmpCapabilities) -> Result<Empty, QmpError> {
    Err(QmpError {
        class: ErrorClass::CommandNotFound,
        desc: "Capabilities negotiation is already complete, command ignored".to_owned(),
        hint: None,
    })
}

pub(crate) async fn query_version(
    context: &Context,
    _: NoArguments,
) -> Result<VersionInfo, QmpError> {
    Ok(context.version.clone())
}

pub(crate) async fn quit(context: &Context, _: NoArguments) -> Result<Empty, QmpError> {
    context.registry.quit("host-qmp-quit");
    Ok(Empty {})
}
