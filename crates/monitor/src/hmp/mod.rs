//! HMP: commands that people type, answered with text. Lines end with `\r\n`, as they do over
//! `human-monitor-command` in QEMU; the texts are QEMU's because scripts match them.

mod help;
mod line;
mod size;
mod snapshots;
mod text;

use qapi::command::{
    BlockResize, BlockdevSnapshotSync, Cont, HumanMonitorCommand, NewImageMode, NoArguments,
    ObjectDel, QueryBlockstats,
};
use qapi::options::ObjectOptions;
use qapi::{QmpError, Size};

use crate::commands::{
    block, chardev, graph, job, misc, object, run as run_control, stats, transaction,
};
use crate::context::Context;

use self::line::{Line, Malformed};

/// HMP over QMP.
pub(crate) async fn human_monitor_command(
    context: &Context,
    arguments: HumanMonitorCommand,
) -> Result<String, QmpError> {
    Ok(execute(context, &arguments.command_line).await)
}

/// Executes a line and returns what it prints.
async fn execute(context: &Context, line: &str) -> String {
    let printed = match run(context, line).await {
        Ok(text) => text,
        Err(e) => format!("Error: {}\n", e.whole()),
    };
    printed.replace('\n', "\r\n")
}

async fn run(context: &Context, text: &str) -> Result<String, QmpError> {
    let mut line = Line::new(text);
    let typed = line.name();
    match typed {
        "" => return Ok(String::new()),
        "info" => return info(context, line).await,
        "help" | "?" => return Ok(line.words().map_or_else(none, |topic| help::of(&topic))),
        _ => {}
    }
    let Some(names) = help::name(typed) else {
        return Ok(unknown(&line));
    };
    match names {
        // Its argument is the rest of the line, as it stands.
        "object_add" => match line.rest() {
            "" => return Ok(expected(names, "string", typed)),
            options => {
                object::add(context, ObjectOptions::parse(options)?).await?;
            }
        },
        "object_del" => {
            let Ok(Some(id)) = line.word() else {
                return Ok(expected(names, "string", typed));
            };
            if !line.is_at_end() {
                return Ok(extraneous(names, typed));
            }
            object::delete(context, ObjectDel { id }).await?;
        }
        "block_resize" => return block_resize(context, line).await,
        "snapshot_blkdev" => return snapshot_blkdev(context, line).await,
        _ if !line.is_at_end() => return Ok(extraneous(names, typed)),
        "stop|s" => {
            run_control::stop(context, NoArguments {}).await?;
        }
        "cont|c" => {
            run_control::cont(context, Cont::default()).await?;
        }
        "system_reset" => {
            run_control::system_reset(context, NoArguments {}).await?;
        }
        "quit|q" => context.registry.quit("host-qmp-quit"),
        _ => return Ok(unknown(&line)),
    }
    Ok(String::new())
}

async fn info(context: &Context, mut line: Line<'_>) -> Result<String, QmpError> {
    let name = line.name();
    if name == "block" {
        return info_block(context, line).await;
    }
    if help::is_info(name) && !line.is_at_end() {
        return Ok(extraneous(name, &format!("info {name}")));
    }
    Ok(match name {
        "" => help::info(),
        "block-jobs" => text::block_jobs(&job::query_block_jobs(context, NoArguments {}).await?),
        "blockstats" => {
            text::blockstats(&stats::query_blockstats(context, QueryBlockstats::default()).await?)
        }
        "chardev" => text::chardevs(&chardev::query(context, NoArguments {}).await?),
        "iothreads" => text::iothreads(&object::query_iothreads(context, NoArguments {}).await?),
        "status" => text::status(&run_control::query_status(context, NoArguments {}).await?),
        "version" => text::version(&misc::query_version(context, NoArguments {}).await?),
        _ => unknown(&line),
    })
}

async fn info_block(context: &Context, mut line: Line<'_>) -> Result<String, QmpError> {
    let flags = line.flag('n', "v");
    let flags = flags.and_then(|nodes| Ok((nodes, line.flag('v', "")?)));
    let (nodes, verbose) = match flags {
        Ok(flags) => flags,
        Err(letter) => {
            return Ok(format!(
                "block: unsupported option -{letter}\n\
                 Try \"help info block\" for more information\n"
            ));
        }
    };
    let device = match line.word() {
        Ok(device) => device,
        Err(Malformed) => return Ok(expected("block", "block device name", "info block")),
    };
    let device = device.as_deref();
    if !line.is_at_end() {
        return Ok(extraneous("block", "info block"));
    }
    if !nodes {
        let backends = text::backends(&block::backends(context).await?, device, verbose);
        // A name that is no device may be one of a node.
        if device.is_none() || !backends.is_empty() {
            return Ok(backends);
        }
    }
    Ok(text::nodes(
        &block::nodes(context, false).await?,
        device,
        verbose,
    ))
}

async fn block_resize(context: &Context, mut line: Line<'_>) -> Result<String, QmpError> {
    let name = "block_resize";
    let Ok(Some(device)) = line.word() else {
        return Ok(expected(name, "block device name", name));
    };
    let size = size_of(line.name());
    let size = size.and_then(|(size, behind)| Some((i64::try_from(size).ok()?, behind)));
    let Some((size, behind)) = size else {
        return Ok(format!("invalid size\n{}", more(name)));
    };
    if !behind.is_empty() || !line.is_at_end() {
        return Ok(extraneous(name, name));
    }
    let resize = BlockResize {
        device: Some(device),
        node_name: None,
        size,
    };
    graph::block_resize(context, resize).await?;
    Ok(String::new())
}

async fn snapshot_blkdev(context: &Context, mut line: Line<'_>) -> Result<String, QmpError> {
    let name = "snapshot_blkdev";
    let reuse = match line.flag('n', "") {
        Ok(reuse) => reuse,
        Err(letter) => {
            return Ok(format!(
                "{name}: unsupported option -{letter}\n{}",
                more(name)
            ));
        }
    };
    let Ok(Some(device)) = line.word() else {
        return Ok(expected(name, "block device name", name));
    };
    let (Ok(file), Ok(format)) = (line.word(), line.word()) else {
        return Ok(expected(name, "string", name));
    };
    if !line.is_at_end() {
        return Ok(extraneous(name, name));
    }
    let snapshot_file =
        file.ok_or_else(|| QmpError::generic("Parameter 'snapshot-file' is missing"))?;
    let snapshot = BlockdevSnapshotSync {
        device: Some(device),
        node_name: None,
        snapshot_file,
        snapshot_node_name: None,
        format,
        mode: Some(match reuse {
            true => NewImageMode::Existing,
            false => NewImageMode::AbsolutePaths,
        }),
    };
    transaction::blockdev_snapshot_sync(context, snapshot).await?;
    Ok(String::new())
}

/// As in QEMU, which tells the user on its standard error alone.
fn none(_: Malformed) -> String {
    String::new()
}

fn unknown(line: &Line<'_>) -> String {
    format!("unknown command: '{}'\n", line.said())
}

fn more(topic: &str) -> String {
    format!("Try \"help {topic}\" for more information\n")
}

fn extraneous(name: &str, topic: &str) -> String {
    format!(
        "{name}: extraneous characters at the end of line\n{}",
        more(topic)
    )
}

fn expected(name: &str, what: &str, topic: &str) -> String {
    format!("{name}: {what} expected\n{}", more(topic))
}

/// The size that `text` begins with, in MiB where it has no unit, and what comes behind it.
fn size_of(text: &str) -> Option<(u64, &str)> {
    let hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    let digits = if hexadecimal { 2 } else { 0 };
    let is_digit = |c: char| match hexadecimal {
        true => c.is_ascii_hexdigit(),
        false => c.is_ascii_digit() || c == '.',
    };
    let end = text.get(digits..)?.find(|c| !is_digit(c));
    let (number, behind) = text.split_at(end.map_or(text.len(), |end| digits + end));
    let (unit, rest) = match behind.strip_prefix(|c| "bBkKmMgGtTpPeE".contains(c)) {
        Some(rest) => (&behind[..1], rest),
        None => ("M", behind),
    };
    Some((Size::parse(&format!("{number}{unit}"))?.0, rest))
}

#[cfg(test)]
mod tests {
    use super::size_of;

    #[test]
    fn sizes_are_in_mebibytes() {
        for (text, size) in [
            ("1", Some((1 << 20, ""))),
            ("1.5", Some((3 << 19, ""))),
            ("0x10", Some((16 << 20, ""))),
            ("2048k", Some((2 << 20, ""))),
            ("512b", Some((512, ""))),
            ("1x", Some((1 << 20, "x"))),
            ("1kx", Some((1 << 10, "x"))),
            ("x", None),
            ("-1", None),
            ("", None),
            ("\u{e9}", None),
            ("16777216T", None),
        ] {
            assert_eq!(size_of(text), size, "{text}");
        }
    }
}
