//! HMP: commands that people type, answered with text. Lines end with `\r\n`, as they do over
//! `human-monitor-command` in QEMU; the texts are QEMU's because scripts match them.

mod text;

use qapi::command::{
    BlockResize, Cont, HumanMonitorCommand, NoArguments, ObjectDel, QueryBlockstats,
};
use qapi::options::ObjectOptions;
use qapi::{QmpError, Size};

use crate::commands::{block, graph, object, run as run_control};
use crate::context::Context;

/// What can be typed, and its help.
const COMMANDS: [(&str, &str); 8] = [
    ("block_resize device size", " -- resize a block image"),
    ("cont|c", " -- resume emulation"),
    (
        "info [subcommand]",
        " -- show various information about the system state",
    ),
    (
        "object_add [qom-type=]type,id=str[,prop=value][,...]",
        " -- create QOM object",
    ),
    ("object_del id", " -- destroy QOM object"),
    ("quit|q", " -- quit the emulator"),
    ("stop|s", " -- stop emulation"),
    ("system_reset", " -- reset the system"),
];

const INFO: [(&str, &str); 3] = [
    (
        "info block [-n] [-v] [device]",
        " -- show info of one block device or all block devices \
         (-n: show named nodes; -v: show details)",
    ),
    ("info blockstats ", " -- show block device statistics"),
    (
        "info status ",
        " -- show the current VM status (running|paused)",
    ),
];

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
        ["block_resize"] => missing_of("block_resize", "block device name"),
        ["block_resize", device, size] => match resized(device, size) {
            Some(arguments) => {
                graph::block_resize(context, arguments).await?;
                String::new()
            }
            None => no_size("block_resize"),
        },
        ["block_resize", _] => no_size("block_resize"),
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
        ["info"] | ["help" | "?", "info"] => help(&INFO),
        ["help" | "?"] => help(&COMMANDS),
        ["info", "status"] => {
            text::status(&run_control::query_status(context, NoArguments {}).await?)
        }
        ["info", "blockstats"] => {
            text::blockstats(&block::query_blockstats(context, QueryBlockstats::default()).await?)
        }
        ["info", "block", options @ ..] => info_block(context, options).await?,
        ["info", name @ ("status" | "blockstats"), ..] => extraneous(name, &format!("info {name}")),
        ["stop" | "s", ..] => extraneous("stop|s", "stop"),
        ["cont" | "c", ..] => extraneous("cont|c", "cont"),
        ["quit" | "q", ..] => extraneous("quit|q", "quit"),
        [name @ ("system_reset" | "object_del" | "block_resize"), ..] => extraneous(name, name),
        ["info", name, ..] => format!("unknown command: 'info {name}'\n"),
        [name, ..] => format!("unknown command: '{name}'\n"),
    })
}

fn help(commands: &[(&str, &str)]) -> String {
    commands
        .iter()
        .map(|(usage, text)| format!("{usage}{text}\n"))
        .collect()
}

fn extraneous(name: &str, topic: &str) -> String {
    format!(
        "{name}: extraneous characters at the end of line\n\
         Try \"help {topic}\" for more information\n"
    )
}

fn missing(name: &str) -> String {
    missing_of(name, "string")
}

fn missing_of(name: &str, what: &str) -> String {
    format!("{name}: {what} expected\nTry \"help {name}\" for more information\n")
}

fn no_size(name: &str) -> String {
    format!("invalid size\nTry \"help {name}\" for more information\n")
}

/// A size without a suffix is in MiB, as people type it in QEMU.
fn resized(device: &str, size: &str) -> Option<BlockResize> {
    let parsed = match size.ends_with(|last: char| last.is_ascii_digit() || last == '.') {
        true => Size::parse(&format!("{size}M")),
        false => Size::parse(size),
    };
    Some(BlockResize {
        device: Some(device.to_owned()),
        node_name: None,
        size: i64::try_from(parsed?.0).ok()?,
    })
}

/// The rest of the line, if its first word is `command`.
fn argument<'a>(line: &'a str, command: &str) -> Option<&'a str> {
    let rest = line.trim_start().strip_prefix(command)?;
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then(|| rest.trim())
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
    Ok(text::nodes(&block::nodes(context).await?, device, verbose))
}

/// Splits a line into words; a word in double quotes may contain blanks and escapes.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        match chars.peek() {
            None => return Ok(words),
            Some('"') => {
                chars.next();
                let mut word = String::new();
                loop {
                    match chars.next() {
                        None => return Err("unterminated string\n".to_owned()),
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some('n') => word.push('\n'),
                            Some('r') => word.push('\r'),
                            Some(c @ ('\\' | '\'' | '"')) => word.push(c),
                            Some(c) => return Err(format!("unsupported escape code: '\\{c}'\n")),
                            None => return Err("unterminated string\n".to_owned()),
                        },
                        Some(c) => word.push(c),
                    }
                }
                words.push(word);
            }
            Some(_) => {
                let mut word = String::new();
                while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{argument, resized, words};

    #[test]
    fn a_size_is_in_mebibytes_unless_it_says_otherwise() {
        let size = |text| resized("d", text).map(|resized| resized.size);
        assert_eq!(size("64"), Some(64 << 20));
        assert_eq!(size("1.5"), Some(3 << 19));
        assert_eq!(size("4096B"), Some(4096));
        assert_eq!(size("2G"), Some(2 << 30));
        for wrong in ["", "x", "-1", "1Z", "9000000000000"] {
            assert_eq!(size(wrong), None, "{wrong}");
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

    #[test]
    fn words_and_quotes() {
        let ok = |line| words(line).unwrap();
        assert_eq!(ok("  info \t status "), ["info", "status"]);
        assert_eq!(ok(r#"info block "a \"b\\""#), ["info", "block", r#"a "b\"#]);
        assert!(ok(" ").is_empty());
        assert_eq!(
            words("info block \"d0").unwrap_err(),
            "unterminated string\n"
        );
        assert_eq!(
            words(r#""\x""#).unwrap_err(),
            "unsupported escape code: '\\x'\n"
        );
    }
}
