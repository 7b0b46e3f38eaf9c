//! Descriptors that a client passes with a command.

use std::os::fd::OwnedFd;

use qapi::QmpError;
use qapi::command::{AddFd, FdName, NoArguments, RemoveFd};
use qapi::types::{AddfdInfo, Empty, FdsetInfo};

use crate::context::Context;
use crate::descriptors;

fn passed(context: &Context) -> Result<OwnedFd, QmpError> {
    let passed = context.take_passed();
    passed.ok_or_else(|| QmpError::generic("No file descriptor supplied via SCM_RIGHTS"))
}

pub(crate) async fn add_fd(context: &Context, arguments: AddFd) -> Result<AddfdInfo, QmpError> {
    let fd = passed(context)?;
    (context.descriptors).add(fd, arguments.fdset_id, arguments.opaque)
}

pub(crate) async fn remove_fd(context: &Context, arguments: RemoveFd) -> Result<Empty, QmpError> {
    (context.descriptors).remove(arguments.fdset_id, arguments.fd)?;
    Ok(Empty {})
}

pub(crate) async fn query_fdsets(
    context: &Context,
    _: NoArguments,
) -> Result<Vec<FdsetInfo>, QmpError> {
    Ok(context.descriptors.sets())
}

pub(crate) async fn getfd(context: &Context, arguments: FdName) -> Result<Empty, QmpError> {
    let fd = passed(context)?;
    context.descriptors.name(&arguments.fdname, fd)?;
    Ok(Empty {})
}

pub(crate) async fn closefd(context: &Context, arguments: FdName) -> Result<Empty, QmpError> {
    let fd = context.descriptors.take(&arguments.fdname)?;
    descriptors::close([fd]);
    Ok(Empty {})
}
