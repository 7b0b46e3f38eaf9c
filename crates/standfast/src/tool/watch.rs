//! `standfast watch` and `standfast history`: the management application, and what its journal tells.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ::watch::config::{Config, JOURNAL, RUNTIME_DIRECTORY, in_words};
use ::watch::history::History;
use ::watch::{Options, ask_status};
use clap::{Args, Subcommand};
use qapi::Value;

use super::failure::Failure;
use super::size;
use super::table::table;

/// Arguments of `standfast watch`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Watch {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/standfast/watch.toml")]
    config: PathBuf,
    /// Say whether the configuration is right, and what would happen to each machine; do nothing
    #[arg(long)]
    check: bool,
    /// Watch, print each decision with its reason, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Look at each machine once, do what is to be done, and end: with exit status 1 if something is left
    #[arg(long)]
    once: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how the running watcher's machines are
    Status {
        /// The watcher's control socket
        #[arg(value_name = "SOCKET")]
        socket: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `standfast history`.
#[derive(Debug, Args)]
pub struct ShowHistory {
    /// The journal of the watcher
    #[arg(value_name = "FILE", default_value = JOURNAL)]
    file: PathBuf,
    /// Print JSON, one incident a line, with all decisions
    #[arg(long)]
    json: bool,
}

/// Runs `standfast watch`. Returns whether all is well.
///
/// # Errors
/// Why it does not watch.
pub fn main(watch: Watch) -> Result<bool, Failure> {
    if let Some(Command::Status { socket, json }) = watch.command {
        let socket = socket.unwrap_or_else(|| Path::new(RUNTIME_DIRECTORY).join("control.sock"));
        return show_status(&socket, json).map(|()| true);
    }
    if watch.check {
        let config = Config::read(&watch.config).map_err(|error| Failure::Watch(error.into()))?;
        return print(&in_words(&config, &::watch::sockets_of(&config))).map(|()| true);
    }
    daemon::logging::init().map_err(Failure::Log)?;
    let result = ::watch::run(&Options {
        config: watch.config,
        dry_run: watch.dry_run,
        once: watch.once,
    });
    daemon::logging::finish();
    result.map_err(Failure::Watch)
}

/// Runs `standfast history`.
///
/// # Errors
/// If there is no journal, or it cannot be printed.
pub fn history(show: &ShowHistory) -> Result<(), Failure> {
    let history = History::read(&show.file).map_err(Failure::Journal)?;
    if let Some(missing) = &history.missing {
        // Beside what is asked for.
        let _ = writeln!(
            io::stderr(),
            "standfast: {}: {missing}",
            show.file.display()
        );
    }
    if show.json {
        let lines = history
            .incidents
            .iter()
            .map(|told| serde_json::to_string(told).unwrap_or_default() + "\n");
        return print(&lines.collect::<String>());
    }
    if history.incidents.is_empty() {
        return print("No incidents.\n");
    }
    let head = [
        "BEGAN",
        "MACHINE",
        "DISK",
        "CAUSE",
        "PAUSED",
        "EXTENDED",
        "END",
        "FIRST ERROR",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(history.incidents.iter().map(|told| {
        let extended = match told.extensions {
            0 => "-".to_owned(),
            1 => size::human(told.extended_bytes),
            more => format!("{} ({more} times)", size::human(told.extended_bytes)),
        };
        let end = match (&told.ending, told.gave_up) {
            (Some(ending), false) => ending.clone(),
            (Some(ending), true) => format!("{ending}, after it was given up"),
            (None, true) => "given up".to_owned(),
            (None, false) => "-".to_owned(),
        };
        let paused = told.seconds_paused.map(|seconds| format!("{seconds:.3} s"));
        [
            told.began.clone(),
            told.machine.clone(),
            told.disk.clone(),
            told.cause.clone(),
            paused.unwrap_or_else(|| "-".to_owned()),
            extended,
            end,
            told.reason.clone(),
        ]
    }));
    print(&table(&rows))
}

fn show_status(socket: &Path, json: bool) -> Result<(), Failure> {
    let status = ask_status(socket).map_err(Failure::Watcher)?;
    match json {
        true => print(&format!("{status:#}\n")),
        false => print(&status_table(&status)),
    }
}

fn status_table(status: &Value) -> String {
    let machines: Vec<_> = status["machines"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    if machines.is_empty() {
        return "No machine is there.\n".to_owned();
    }
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut rows = vec![["MACHINE", "STATE", "DISKS", "WHAT GOES ON"].map(str::to_owned)];
    for machine in machines {
        let incidents = machine["incidents"].as_array().into_iter().flatten();
        let incidents = incidents.map(|incident| {
            let (disk, stage) = (text(&incident["disk"]), text(&incident["stage"]));
            format!("{disk}: {stage}, since {} s", incident["seconds"])
        });
        let what = incidents.chain(machine["why"].as_str().map(str::to_owned));
        let what: Vec<_> = what.collect();
        rows.push([
            text(&machine["machine"]),
            text(&machine["state"]),
            machine["disks"].to_string(),
            what.join("; "),
        ]);
    }
    table(&rows)
}

fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn machines_are_a_table() {
        let status = json!({"machines": [
            {"machine": "db", "state": "io-error", "disks": 2, "incidents": [
                {"disk": "vda", "incident": 3, "stage": "making room", "seconds": 4}]},
            {"machine": "/run/b.qmp", "state": "unreachable", "why": "gone", "disks": 0, "incidents": []},
        ]});
        assert_eq!(
            status_table(&status),
            "\
MACHINE     STATE        DISKS  WHAT GOES ON
db          io-error     2      vda: making room, since 4 s
/run/b.qmp  unreachable  0      gone
"
        );
        assert_eq!(status_table(&json!({})), "No machine is there.\n");
    }
}
