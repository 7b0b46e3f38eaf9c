//! Objects.

use qapi::QmpError;
use qapi::command::ObjectDel;
use qapi::options::ObjectOptions;
use qapi::types::Empty;

use super::Context;

pub(crate) async fn add(context: &Context, options: ObjectOptions) -> Result<Empty, QmpError> {
    options.check()?;
    context.objects.add(options).await?;
    Ok(Empty {})
}

pub(crate) async fn delete(context: &Context, arguments: ObjectDel) -> Result<Empty, QmpError> {
    context.objects.delete(arguments.id).await?;
    Ok(Empty {})
}
