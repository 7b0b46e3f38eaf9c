//! Objects.

use std::sync::Arc;

use qapi::QmpError;
use qapi::command::ObjectDel;
use qapi::options::ObjectOptions;
use qapi::types::Empty;

use crate::context::Context;

pub(crate) async fn add(context: &Context, options: ObjectOptions) -> Result<Empty, QmpError> {
    options.check()?;
    let objects = Arc::clone(&context.objects);
    let add = async move { objects.add(options).await };
    context.changes.run("object-add", add).await?;
    Ok(Empty {})
}

pub(crate) async fn delete(context: &Context, arguments: ObjectDel) -> Result<Empty, QmpError> {
    let objects = Arc::clone(&context.objects);
    let delete = async move { objects.delete(arguments.id).await };
    context.changes.run("object-del", delete).await?;
    Ok(Empty {})
}
