//! HMP: commands that people type, answered with text. Lines end with `\r\n`, as they do over
//! `human-monitor-command` in QEMU; the texts are QEMU's because scripts match them.

mod help;
mod text;
mod words;

use qapi::command::{
    BlockResize, Cont, HumanMonitorCommand, NoArguments, ObjectDel, QueryBlockstats,
};
use qapi::options::ObjectOptions;
use qapi::{QmpError, Size};

use crate::commands::{block, graph, misc, object, run as run_control, stats};
use crate::context::Context;

use self::words::words;

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
        Err(e) => format!("Error: {}\n", e.desc),
    };
    printed.replace('\n', "\r\n")
}

async fn run(context: &Context, line: &str) -> Result<String, QmpError> {
    // Its argument is the rest of the line, as it stands.
    if let Some(options) = argument(line, "object_add") {
        return match options {
            "" => Ok(missing("object_add")),
            _ => {
                object::add(context, ObjectOptions::parse(options)?).await?;
                Ok(String::new())
            }
        };
    }
    let words = match words(line) {
        Ok(words) => words,
        Err(text) => return Ok(text),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words.as_slice() {
        [] => String::new(),
        ["stop" | "s"] => {
            run_control::stop(context, NoArguments {}).await?;
            String::new()
        }
        ["cont" | "c"] => {
            run_control::cont(context, Cont::default()).await?;
            String::new()
        }
        ["system_reset"] => {
            run_control::system_reset(context, NoArguments {}).await?;
            String::new()
        }
        ["object_del"] => missing("object_del"),
        ["object_del", id] => {
            let id = (*id).to_owned();
            object::delete(context, ObjectDel { id }).await?;
            String::new()
        }
        ["quit" | "q"] => {
            context.registry.quit("host-qmp-quit");
            String::new()
        }
        ["block_resize", arguments @ ..] => block_resize(context, arguments).await?,
        ["info"] => help::info(),
        ["help" | "?", topic @ ..] => help::of(topic),
        ["info", "version"] => text::version(&misc::query_version(context, NoArguments {}).await?),
        ["info", "status"] => {
            text::status(&run_control::query_status(context, NoArguments {}).await?)
        }
        ["info", "blockstats"] => {
            text::blockstats(&stats::query_blockstats(context, QueryBlockstats::default()).await?)
        }
        ["info", "block", options @ ..] => info_block(context, options).await?,
        ["info", name @ ("status" | "blockstats" | "version"), ..] => {
            extraneous(name, &format!("info {name}"))
        }
        [name, ..] => match help::name(name) {
            Some(names) => extraneous(names, name),
            None => format!("unknown command: '{}'\n", help::unknown(&words)),
        },
    })
}

fn extraneous(name: &str, topic: &str) -> String {
    format!(
        "{name}: extraneous characters at the end of line\n\
         Try \"help {topic}\" for more information\n"
    )
}

fn missing(name: &str) -> String {
    format!("{name}: string expected\nTry \"help {name}\" for more information\n")
}

/// The rest of the line, if its first word is `command`.
fn argument<'a>(line: &'a str, command: &str) -> Option<&'a str> {
    let rest = line.trim_start().strip_prefix(command)?;
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then(|| rest.trim())
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

async fn block_resize(context: &Context, arguments: &[&str]) -> Result<String, QmpError> {
    let more = "Try \"help block_resize\" for more information\n";
    let [device, rest @ ..] = arguments else {
        return Ok(format!("block_resize: block device name expected\n{more}"));
    };
    let size = rest.first().and_then(|text| size_of(text));
    let size = size.and_then(|(size, behind)| Some((i64::try_from(size).ok()?, behind)));
    let Some((size, behind)) = size else {
        return Ok(format!("invalid size\n{more}"));
    };
    if rest.len() > 1 || !behind.is_empty() {
        return Ok(extraneous("block_resize", "block_resize"));
    }
    let resize = BlockResize {
        device: Some((*device).to_owned()),
        node_name: None,
        size,
    };
    graph::block_resize(context, resize).await?;
    Ok(String::new())
}

async fn info_block(context: &Context, options: &[&str]) -> Result<String, QmpError> {
    let (mut nodes, mut verbose) = (false, false);
    let mut rest = options;
    while let [option, after @ ..] = rest
        && let Some(letters) = option.strip_prefix('-')
    {
        for letter in letters.chars() {
            match letter {
                'n' => nodes = true,
                'v' => verbose = true,
                _ => {
                    return Ok(format!(
                        "block: unsupported option -{letter}\n\
                         Try \"help info block\" for more information\n"
                    ));
                }
            }
        }
        rest = after;
    }
    let device = match rest {
        [] => None,
        [device] => Some(*device),
        _ => return Ok(extraneous("block", "info block")),
    };
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

#[cfg(test)]
mod tests {
    use super::{argument, size_of};

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

    #[test]
    fn an_argument_is_the_rest_of_the_line() {
        let of = |line| argument(line, "object_add");
        assert_eq!(of(" object_add  a,b=\"c d\" "), Some("a,b=\"c d\""));
        assert_eq!(of("object_add"), Some(""));
        assert_eq!(of("object_addx a"), None);
        assert_eq!(of("info object_add"), None);
    }
}
