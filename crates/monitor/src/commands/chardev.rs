//! Character devices.

use std::sync::Arc;

use qapi::QmpError;
use qapi::command::{ChardevId, DataFormat, NoArguments, RingbufRead, RingbufWrite};
use qapi::options::{CHARDEV_BACKENDS, ChardevOptions};
use qapi::types::{ChardevBackendInfo, ChardevInfo, ChardevReturn, Empty};

use crate::base64;
use crate::context::Context;

pub(crate) async fn query(context: &Context, _: NoArguments) -> Result<Vec<ChardevInfo>, QmpError> {
    Ok(context.chardevs.query())
}

pub(crate) async fn backends(
    _: &Context,
    _: NoArguments,
) -> Result<Vec<ChardevBackendInfo>, QmpError> {
    let backends = CHARDEV_BACKENDS.map(|name| ChardevBackendInfo {
        name: name.to_owned(),
    });
    Ok(backends.to_vec())
}

fn check(options: &ChardevOptions) -> Result<(), QmpError> {
    let checked = options.backend.check();
    checked.map_err(|error| {
        QmpError::generic(format!(
            "Failed to add chardev '{}': {}",
            options.id, error.desc
        ))
    })
}

pub(crate) async fn add(
    context: &Context,
    options: ChardevOptions,
) -> Result<ChardevReturn, QmpError> {
    check(&options)?;
    let chardevs = Arc::clone(&context.chardevs);
    let add = async move { chardevs.add(options).await };
    context.changes.run("chardev-add", add).await
}

pub(crate) async fn change(
    context: &Context,
    options: ChardevOptions,
) -> Result<ChardevReturn, QmpError> {
    check(&options)?;
    let chardevs = Arc::clone(&context.chardevs);
    let change = async move { chardevs.change(options.id, options.backend).await };
    context.changes.run("chardev-change", change).await
}

pub(crate) async fn remove(context: &Context, arguments: ChardevId) -> Result<Empty, QmpError> {
    let chardevs = Arc::clone(&context.chardevs);
    let remove = async move { chardevs.remove(arguments.id).await };
    context.changes.run("chardev-remove", remove).await?;
    Ok(Empty {})
}

/// None of the kinds that there are has a line on which there could be a break.
pub(crate) async fn send_break(context: &Context, arguments: ChardevId) -> Result<Empty, QmpError> {
    let mut all = context.chardevs.query().into_iter();
    if all.any(|info| info.label == arguments.id) {
        return Ok(Empty {});
    }
    Err(QmpError::generic(format!(
        "Chardev '{}' not found",
        arguments.id
    )))
}

pub(crate) async fn ringbuf_write(
    context: &Context,
    arguments: RingbufWrite,
) -> Result<Empty, QmpError> {
    let data = match arguments.format.unwrap_or_default() {
        DataFormat::Utf8 => arguments.data.into_bytes(),
        DataFormat::Base64 => base64::decode(&arguments.data)
            .ok_or_else(|| QmpError::generic("Base64 data contains invalid characters"))?,
    };
    (context.chardevs).ringbuf_write(&arguments.device, &data)?;
    Ok(Empty {})
}

pub(crate) async fn ringbuf_read(
    context: &Context,
    arguments: RingbufRead,
) -> Result<String, QmpError> {
    let size = usize::try_from(arguments.size).ok();
    let size = size.filter(|size| *size > 0);
    // QEMU looks for the device first.
    let data = (context.chardevs).ringbuf_read(&arguments.device, size.unwrap_or(0))?;
    if size.is_none() {
        return Err(QmpError::generic("size must be greater than zero"));
    }
    Ok(match arguments.format.unwrap_or_default() {
        DataFormat::Utf8 => String::from_utf8_lossy(&data).into_owned(),
        DataFormat::Base64 => base64::encode(&data),
    })
}
