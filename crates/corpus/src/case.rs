//! One case, as its file has it. One step a line; a line that begins with a blank goes on with the
//! one before; `#` begins a comment, and the first comment says what the case is about.
//!
//! | line | what it does |
//! |---|---|
//! | `peer qemu` | the peer is QEMU itself (`-machine none`): for what only QEMU has (HMP, `cont`, fdsets) |
//! | `file NAME SIZE` | makes a sparse file; SIZE takes `K`, `M`, `G` |
//! | `loop NAME FILE` | attaches a loop device, whose path is `{NAME}` from here on |
//! | `sh COMMAND` | runs a shell command in the directory; what it prints is compared |
//! | `run ARGS` | runs the program to its end; one that does not end is ended when it is ready |
//! | `start ARGS` | starts a daemon, and waits until it is ready |
//! | `talk ARGS` | starts a daemon with a monitor on its standard input and output, and negotiates |
//! | `stdio` | talks to the daemon last started on its standard input, without negotiating |
//! | `connect PATH` `connect! PATH` | talks to a socket; with `!` without negotiating |
//! | `listen PATH` | the next program has a listening socket as its standard input |
//! | `use N` | goes on with the Nth conversation (from 1) |
//! | `close` | ends the conversation that goes on |
//! | `> TEXT` | sends a line, and waits for the answer, which is compared |
//! | `send TEXT` | sends a line and waits for nothing |
//! | `read` | waits for an answer, which is compared |
//! | `hmp LINE` | sends a line to HMP, by `human-monitor-command` |
//! | `fd FILE r\|rw` | the next message carries a descriptor of this file |
//! | `wait EVENT [MEMBER=VALUE...]` | waits for an event; its data are compared |
//! | `sleep MS` | waits, where nothing tells that something has happened |
//! | `signal NAME` | sends a signal to the daemon last started |
//! | `exit` | waits until the daemon last started has ended |
//!
//! `{dir}` is the directory of the run; a path in `file`, `loop`, `connect`, `listen` and `fd` is
//! relative to it. At the end of a case all daemons are ended, and compared in how they end.

use crate::words;
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a case's file is called behind its name.
const SUFFIX: &str = "case";

/// A command line or a conversation.
#[derive(Debug)]
pub struct Case {
    /// `GROUP/NAME`, from where its file is.
    pub name: String,
    /// What it is about, in a line.
    pub about: String,
    /// Whom it is compared with.
    pub peer: Peer,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// Whom a case is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// `qemu-storage-daemon`.
    Daemon,
    /// QEMU itself, without a machine.
    Qemu,
}

/// One step of a case.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table above tells")]
pub enum Step {
    File {
        name: String,
        bytes: u64,
    },
    Loop {
        name: String,
        file: String,
    },
    Shell(String),
    Run(Vec<String>),
    Start(Vec<String>),
    Talk(Vec<String>),
    Stdio,
    Connect {
        path: String,
        negotiates: bool,
    },
    Listen(String),
    Use(usize),
    Close,
    Ask(String),
    Send(String),
    Read,
    Hmp(String),
    Fd {
        file: String,
        is_writable: bool,
    },
    Wait {
        event: String,
        members: Vec<(String, String)>,
    },
    Sleep(Duration),
    Signal(String),
    Exit,
}

/// All cases in the directories of a directory, sorted by name.
pub fn all(directory: &Path) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for group in entries(directory)? {
        if !group.is_dir() {
            continue;
        }
        for file in entries(&group)? {
            if file.extension().is_some_and(|suffix| suffix == SUFFIX) {
                cases.push(read(&group, &file)?);
            }
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot read {}", directory.display()))
}

fn read(group: &Path, file: &Path) -> Result<Case> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let part = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let name = format!("{}/{}", part(group.file_name()), part(file.file_stem()));
    parse(&name, &text).with_context(|| file.display().to_string())
}

/// A case from the text of its file.
pub fn parse(name: &str, text: &str) -> Result<Case> {
    let mut about = None;
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(comment) = line.strip_prefix('#') {
            about.get_or_insert_with(|| comment.trim().to_owned());
        } else if line.starts_with(' ') {
            let (_, last) = lines
                .last_mut()
                .ok_or_else(|| anyhow!("line {number} goes on with nothing"))?;
            last.push(' ');
            last.push_str(line.trim());
        } else if !line.is_empty() {
            lines.push((number, line.trim_end().to_owned()));
        }
    }
    let mut case = Case {
        name: name.to_owned(),
        about: about.context("the first line is a comment that says what the case is about")?,
        peer: Peer::Daemon,
        steps: Vec::new(),
    };
    for (number, line) in lines {
        if line == "peer qemu" {
            case.peer = Peer::Qemu;
            continue;
        }
        let step = step(&line).with_context(|| format!("line {number}: {line}"))?;
        case.steps.push(step);
    }
    Ok(case)
}

fn step(line: &str) -> Result<Step> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let words = || words::split(rest);
    let two = || {
        let mut words = words()?.into_iter();
        match (words.next(), words.next(), words.next()) {
            (Some(first), Some(second), None) => Ok((first, second)),
            _ => bail!("'{verb}' has two words"),
        }
    };
    let text = || {
        if rest.is_empty() {
            bail!("'{verb}' lacks its text");
        }
        Ok(rest.to_owned())
    };
    Ok(match verb {
        "file" => {
            let (name, size) = two()?;
            let bytes = bytes(&size)?;
            Step::File { name, bytes }
        }
        "loop" => {
            let (name, file) = two()?;
            Step::Loop { name, file }
        }
        "sh" => Step::Shell(text()?),
        "run" => Step::Run(words()?),
        "start" => Step::Start(words()?),
        "talk" => Step::Talk(words()?),
        "stdio" => Step::Stdio,
        "connect" | "connect!" => Step::Connect {
            path: text()?,
            negotiates: verb == "connect",
        },
        "listen" => Step::Listen(text()?),
        "use" => Step::Use(rest.parse().context("a number")?),
        ">" => Step::Ask(text()?),
        "send" => Step::Send(rest.to_owned()),
        "close" => Step::Close,
        "read" => Step::Read,
        "hmp" => Step::Hmp(rest.to_owned()),
        "fd" => {
            let (file, mode) = two()?;
            let is_writable = match mode.as_str() {
                "r" => false,
                "rw" => true,
                _ => bail!("'{mode}' is neither r nor rw"),
            };
            Step::Fd { file, is_writable }
        }
        "wait" => {
            let mut words = words()?.into_iter();
            let event = words.next().context("which event?")?;
            let member = |word: String| {
                let (name, value) = word.split_once('=').context("MEMBER=VALUE")?;
                Ok((name.to_owned(), value.to_owned()))
            };
            let members = words.map(member).collect::<Result<_>>()?;
            Step::Wait { event, members }
        }
        "sleep" => Step::Sleep(Duration::from_millis(rest.parse()?)),
        "signal" => Step::Signal(text()?),
        "exit" => Step::Exit,
        _ => bail!("no step is called '{verb}'"),
    })
}

fn bytes(size: &str) -> Result<u64> {
    let (digits, unit) = match size.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => size.split_at(at),
        None => (size, ""),
    };
    let unit = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => bail!("'{size}' is no size"),
    };
    Ok(digits.parse::<u64>()? * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read_line_by_line() {
        let text = "\
# what it is about
# and more of it
file disk.raw 64K
talk --blockdev file,node-name=d
    --object 'iothread,id=i 1'

> {\"execute\": \"quit\"}
wait SHUTDOWN guest=false
exit
";
        let case = parse("group/name", text).unwrap();
        assert_eq!(case.about, "what it is about");
        assert_eq!(case.peer, Peer::Daemon);
        let words = [
            "--blockdev",
            "file,node-name=d",
            "--object",
            "iothread,id=i 1",
        ];
        assert_eq!(
            case.steps,
            [
                Step::File {
                    name: "disk.raw".into(),
                    bytes: 65536
                },
                Step::Talk(words.map(String::from).to_vec()),
                Step::Ask("{\"execute\": \"quit\"}".into()),
                Step::Wait {
                    event: "SHUTDOWN".into(),
                    members: vec![("guest".into(), "false".into())]
                },
                Step::Exit,
            ]
        );
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, expected) in [
            ("run x", "the first line is a comment"),
            ("# a\nrum x", "line 2: rum x: no step is called 'rum'"),
            ("# a\nfile x", "'file' has two words"),
            ("# a\nfile x 1X", "'1X' is no size"),
            ("# a\nfd x w", "'w' is neither"),
            ("# a\n x", "line 2 goes on with nothing"),
        ] {
            let error = format!("{:#}", parse("g/n", text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
