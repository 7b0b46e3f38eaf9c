//! Objects.

use std::sync::Arc;

use qapi::command::{
    NoArguments, ObjectDel, QomGet, QomList, QomListProperties, QomListTypes, QomSet,
};
use qapi::options::ObjectOptions;
use qapi::types::{Empty, IothreadInfo, ObjectPropertyInfo, ObjectTypeInfo};
use qapi::{QmpError, Value, qom};

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

pub(crate) async fn query_iothreads(
    context: &Context,
    _: NoArguments,
) -> Result<Vec<IothreadInfo>, QmpError> {
    Ok(context.objects.iothreads())
}

pub(crate) async fn qom_list(
    context: &Context,
    arguments: QomList,
) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
    let chardevs = context.chardevs.objects();
    context.objects.list(&chardevs, &arguments.path)
}

pub(crate) async fn qom_get(context: &Context, arguments: QomGet) -> Result<Value, QmpError> {
    let QomGet { path, property } = arguments;
    let chardevs = context.chardevs.objects();
    context.objects.get(&chardevs, &path, &property)
}

pub(crate) async fn qom_set(context: &Context, arguments: QomSet) -> Result<Empty, QmpError> {
    let QomSet {
        path,
        property,
        value,
    } = arguments;
    let chardevs = context.chardevs.objects();
    context.objects.set(&chardevs, &path, &property, value)?;
    Ok(Empty {})
}

pub(crate) async fn qom_list_types(
    _: &Context,
    arguments: QomListTypes,
) -> Result<Vec<ObjectTypeInfo>, QmpError> {
    let with_abstract = arguments.r#abstract.unwrap_or(false);
    Ok(qom::list_types(
        arguments.implements.as_deref(),
        with_abstract,
    ))
}

pub(crate) async fn qom_list_properties(
    _: &Context,
    arguments: QomListProperties,
) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
    qom::list_properties(&arguments.typename)
}
