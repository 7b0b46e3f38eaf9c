//! `standfast-bench run`: everything, round by round, and the report.

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::CpuSet;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::client::Figures;
use crate::creation::CREATION;
use crate::images::{Images, Places};
use crate::instructions::{Counter, Subject, rustc_version};
use crate::judge::judge;
use crate::loads::{self, Spec, Storage};
use crate::profile::{self, Profile};
use crate::report::{Machine, Report};
use crate::server::{Running, Server};
use crate::statistics::{Metric, summarise};
use crate::targets::{FIO, Findings, Instructions, Row, Target};
use crate::{creation, error_path, fio, html, process, throttle};

/// A round in which somebody else used more CPUs than this is repeated.
const OTHERS_CPUS_MAX: f64 = 0.25;
/// How often, at most.
const ATTEMPTS: usize = 3;
/// The section about failures and the monitor, to be named beside loads.
const ERROR_PATH: &str = "error-path";
/// The section about instructions per request, likewise.
const INSTRUCTIONS: &str = "instructions";
/// What a load runs before it is sampled.
const SETTLE_SECONDS: f64 = 0.3;

/// Arguments of `standfast-bench run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only loads and sections whose name contains one of these
    words: Vec<String>,
    /// Show the names of loads and sections
    #[arg(long)]
    list: bool,
    /// standfastd, a release build
    #[arg(long)]
    standfastd: PathBuf,
    /// standfastd built without any policy; instructions are compared with its
    #[arg(long)]
    bypass: Option<PathBuf>,
    /// The preloaded library of standfast-valgrind-shim
    #[arg(long)]
    shim: PathBuf,
    /// Where the report and callgrind's files go
    #[arg(long)]
    directory: PathBuf,
    /// Where the files on disk and on tmpfs are made
    #[arg(long, num_args = 2)]
    directories: Vec<PathBuf>,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// How often everything is measured
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
    /// One short round
    #[arg(long)]
    quick: bool,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
struct Extent {
    rounds: u16,
    seconds: f64,
    warm_up: f64,
    disk_bytes: u64,
    tmpfs_bytes: u64,
    failures: u32,
    /// How long a limit is looked at, once what is allowed in the beginning has been used.
    throttled_seconds: f64,
}

/// What all measurements share.
#[derive(Debug)]
struct Bench<'a> {
    args: &'a Args,
    extent: Extent,
    /// The servers', the client's.
    cpus: [usize; 2],
    images: Images,
    repeated: u32,
    noisy: Vec<String>,
}

/// A process that has no business here any more when this is dropped.
#[derive(Debug)]
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    if args.list {
        let names = loads::all().into_iter().map(|spec| spec.name());
        let settings = throttle::chosen(&[]).into_iter();
        let settings = settings.map(|setting| setting.name.to_owned());
        for name in
            (names.chain(settings)).chain([ERROR_PATH.into(), CREATION.into(), INSTRUCTIONS.into()])
        {
            println!("{name}");
        }
        return Ok(());
    }
    let specs = loads::chosen(&args.words);
    let section = |name: &str| {
        args.words.is_empty() || args.words.iter().any(|word| name.contains(word.as_str()))
    };
    let (errors, instructions) = (section(ERROR_PATH), section(INSTRUCTIONS));
    let creates = section(CREATION) || args.words.iter().any(|word| word.contains("qcow2"));
    let settings = throttle::chosen(&args.words);
    ensure!(
        !specs.is_empty() || !settings.is_empty() || errors || creates || instructions,
        "no load's name contains {:?}; --list shows them",
        args.words
    );
    fs::create_dir_all(&args.directory)
        .with_context(|| format!("cannot make {}", args.directory.display()))?;
    let extent = Extent::of(args);
    let mut bench = Bench {
        args,
        extent,
        cpus: two_cpus(&process::allowed_cpus()?)?,
        images: Images::new(places(args, &extent)),
        repeated: 0,
        noisy: Vec::new(),
    };
    let mut findings = Findings {
        rows: bench.loads(&specs)?,
        ..Findings::default()
    };
    let time = Duration::from_secs_f64(bench.extent.throttled_seconds);
    findings.throttled = throttle::measure(&args.standfastd, bench.cpus, &settings, time)?;
    if errors {
        println!("error path");
        let failures = bench.extent.failures;
        findings.latencies = error_path::measure(&args.standfastd, bench.cpus, failures)?;
    }
    if creates {
        println!("making images");
        let (directory, rounds) = (places(args, &bench.extent).disk.0, bench.extent.rounds);
        findings.creations =
            creation::measure(&args.standfastd, bench.cpus[0], &directory, rounds.into())?;
    }
    if instructions {
        println!("instructions");
        findings.instructions = bench.instructions()?;
    }
    let targets = judge(&findings);
    let profiles = bench.profiles(&specs, &targets, &findings)?;
    let report = Report {
        machine: machine(bench.cpus)?,
        rounds: bench.extent.rounds,
        seconds: bench.extent.seconds,
        repeated: bench.repeated,
        noisy: std::mem::take(&mut bench.noisy),
        targets,
        profiles,
        findings,
    };
    drop(bench);
    print!("\n{}", report.text());
    let page = args.directory.join("report.html");
    fs::write(&page, html::page(&report)).with_context(|| page.display().to_string())?;
    println!("\n{}", page.display());
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report.json())? + "\n";
        fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

impl Extent {
    fn of(args: &Args) -> Self {
        let full = Self {
            rounds: args.rounds.unwrap_or(5),
            seconds: 1.0,
            warm_up: 0.15,
            disk_bytes: 4 << 30,
            tmpfs_bytes: 1 << 30,
            failures: 500,
            throttled_seconds: 10.0,
        };
        if !args.quick {
            return full;
        }
        Self {
            rounds: args.rounds.unwrap_or(1),
            seconds: 0.4,
            warm_up: 0.1,
            disk_bytes: 1 << 30,
            failures: 100,
            throttled_seconds: 0.5,
            ..full
        }
    }
}

impl Bench<'_> {
    /// All loads, round after round, each on every server in turn.
    fn loads(&mut self, specs: &[Spec]) -> Result<Vec<Row>> {
        for spec in specs {
            for &server in spec.servers() {
                self.images.make(spec.storage, server)?;
            }
        }
        let mut found: BTreeMap<(usize, usize), Vec<Figures>> = BTreeMap::new();
        for round in 0..usize::from(self.extent.rounds) {
            for (number, spec) in specs.iter().enumerate() {
                println!(
                    "round {} of {}: {}",
                    round + 1,
                    self.extent.rounds,
                    spec.name()
                );
                let servers = spec.servers();
                // fio counts as the last of them. Who comes first changes from round to round.
                let count = servers.len() + 1;
                for turn in 0..count {
                    let which = (turn + round) % count;
                    let figures = match servers.get(which) {
                        Some(&server) => Some(self.quiet(spec, server)?),
                        None => self.limit(spec)?,
                    };
                    found.entry((number, which)).or_default().extend(figures);
                }
            }
        }
        let rows = found.into_iter().filter(|(_, figures)| !figures.is_empty());
        Ok(rows
            .map(|((number, which), figures)| {
                let spec = &specs[number];
                let server = spec.servers().get(which);
                let mut summaries = summarise(&figures);
                if server.is_none() && spec.storage == Storage::Tmpfs && spec.depth > 1 {
                    // psync does one at a time, whatever the depth: its latencies are another thing.
                    summaries.remove(&Metric::P50Us);
                    summaries.remove(&Metric::P99Us);
                }
                Row {
                    load: spec.name(),
                    storage: spec.storage,
                    server: server.map_or(FIO, |server| server.name()),
                    figures: summaries,
                }
            })
            .collect())
    }

    /// Measures until nobody else is in the way, or it has been tried often enough.
    fn quiet(&mut self, spec: &Spec, server: Server) -> Result<Figures> {
        let mut best: Option<Figures> = None;
        for attempt in 0..ATTEMPTS {
            let figures = self
                .measure(spec, server)
                .with_context(|| format!("{} on {}", spec.name(), server.name()))?;
            self.repeated += u32::from(attempt > 0);
            let others = figures.others_cpus;
            if best.as_ref().is_none_or(|best| others < best.others_cpus) {
                best = Some(figures);
            }
            if others <= OTHERS_CPUS_MAX {
                break;
            }
        }
        let best = best.context("at least one attempt is made")?;
        if best.others_cpus > OTHERS_CPUS_MAX {
            self.noisy.push(format!(
                "{} on {}: others used {:.2} CPUs",
                spec.name(),
                server.name(),
                best.others_cpus
            ));
        }
        Ok(best)
    }

    fn measure(&self, spec: &Spec, server: Server) -> Result<Figures> {
        let running = self.start(spec, server)?;
        let output = self.client(spec, &running, self.extent.seconds)?.output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        running.finish()?;
        serde_json::from_slice(&output.stdout).context("figures of the client")
    }

    fn start(&self, spec: &Spec, server: Server) -> Result<Running> {
        self.images.renew(spec.storage, server)?;
        let mut setup = spec.setup(server, self.images.path(spec.storage, server));
        setup.cpu = Some(self.cpus[0]);
        setup.start(&self.args.standfastd)
    }

    /// A process of its own: it sits on its CPU from its first moment, and its memory is fresh.
    fn client(&self, spec: &Spec, running: &Running, seconds: f64) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["client", "--json"])
            .arg("--socket")
            .arg(running.socket())
            .args(["--op", spec.operation.name(), "--bs", spec.size])
            .args(["--depth", &spec.depth.to_string()])
            .args(["--queues", &spec.queues.to_string()])
            .arg(if spec.poll { "--poll" } else { "--wait" })
            .args(["--cpu", &self.cpus[1].to_string()])
            .args(["--pid", &running.pid().to_string()])
            .args(["--seconds", &seconds.to_string()])
            .args(["--warm-up", &self.extent.warm_up.to_string()])
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Of the loads that fall short of what is aimed at: what our server does all the time.
    fn profiles(
        &self,
        specs: &[Spec],
        targets: &[Target],
        findings: &Findings,
    ) -> Result<Vec<Profile>> {
        let short = |spec: &&Spec| {
            let name = spec.name();
            (targets.iter()).any(|t| t.falls_short() && t.load.as_ref() == Some(&name))
        };
        let mut profiles = Vec::new();
        for spec in specs.iter().filter(short) {
            let name = spec.name();
            println!("profile: {name}");
            let running = self.start(spec, Server::Standfast)?;
            let seconds = self.extent.seconds + SETTLE_SECONDS;
            let client = (self.client(spec, &running, 2.0 * seconds)?)
                .stdout(Stdio::null())
                .spawn()?;
            let client = Killed(client);
            std::thread::sleep(Duration::from_secs_f64(SETTLE_SECONDS));
            // No reason to give up figures that are there.
            let functions = profile::sample(running.pid(), self.extent.seconds);
            drop(client);
            running.finish()?;
            let missing = functions.as_ref().err().map(|why| format!("{why:#}"));
            profiles.push(Profile {
                busy_percent: findings.busy_percent(&name).unwrap_or(0.0),
                of_limit_percent: findings.of_limit_percent(&name, FIO),
                load: name,
                functions: functions.unwrap_or_default(),
                missing,
            });
        }
        Ok(profiles)
    }

    fn limit(&self, spec: &Spec) -> Result<Option<Figures>> {
        let file = self.images.path(spec.storage, Server::Standfast);
        fio::run(spec, file, self.cpus[0], self.extent.seconds)
    }

    fn instructions(&self) -> Result<Vec<Instructions>> {
        let counter = Counter {
            standfastd: self.args.standfastd.clone(),
            shim: self.args.shim.clone(),
            directory: self.args.directory.clone(),
        };
        let bypass = self.args.bypass.clone();
        let bypass = Counter {
            standfastd: bypass.context("instructions need --bypass")?,
            shim: self.args.shim.clone(),
            directory: self.args.directory.join("bypass"),
        };
        let count = |depth| {
            Ok(Instructions {
                depth,
                stop: counter.count(Subject::Null, Server::Standfast, depth)?,
                report: counter.count(Subject::Null, Server::StandfastReport, depth)?,
                bypass: bypass.count(Subject::Null, Server::StandfastReport, depth)?,
                qemu: counter.count(Subject::Null, Server::Qemu, depth)?,
            })
        };
        [32, 1].into_iter().map(count).collect()
    }
}

/// Where images are made.
fn places(args: &Args, extent: &Extent) -> Places {
    let given = |index: usize| args.directories.get(index).cloned();
    Places {
        disk: (
            given(0).unwrap_or_else(|| args.directory.clone()),
            extent.disk_bytes,
        ),
        memory: (
            given(1).unwrap_or_else(|| "/dev/shm".into()),
            extent.tmpfs_bytes,
        ),
    }
}

fn two_cpus(allowed: &CpuSet) -> Result<[usize; 2]> {
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    match (cpus.next(), cpus.next()) {
        (Some(server), Some(client)) => Ok([server, client]),
        _ => bail!("two CPUs are needed, one for the server and one for the client"),
    }
}

fn machine(cpus: [usize; 2]) -> Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let qemu = Command::new("qemu-storage-daemon")
        .arg("--version")
        .output()
        .context("cannot run qemu-storage-daemon")?;
    let qemu = String::from_utf8_lossy(&qemu.stdout);
    Ok(Machine {
        cpu: model.to_owned(),
        cpus: std::thread::available_parallelism()?.get(),
        server_cpu: cpus[0],
        client_cpu: cpus[1],
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        rustc: rustc_version()?,
        qemu: qemu.lines().next().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cpus_are_found_or_asked_for() {
        let mut set = CpuSet::new();
        set.set(3);
        two_cpus(&set).unwrap_err();
        set.set(7);
        assert_eq!(two_cpus(&set).unwrap(), [3, 7]);
    }
}
