//! `standfast-bench client`: one load against one device.

use crate::load::{Load, Loaded, Outcome, Pattern};
use crate::{process, size};
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// What the requests do, with fio's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Operation {
    /// Random reads
    Randread,
    /// Random writes
    Randwrite,
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
}

impl Operation {
    /// fio's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// Reads, or else writes.
    pub fn reads(self) -> bool {
        matches!(self, Self::Randread | Self::Read)
    }
}

/// Arguments of `standfast-bench client`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device's socket
    #[arg(long)]
    socket: PathBuf,
    /// What the requests do
    #[arg(long, value_enum, default_value = "randread")]
    op: Operation,
    /// Bytes per request
    #[arg(long, default_value = "4k", value_parser = size::parse_request)]
    bs: u32,
    /// Requests outstanding on each queue
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Queues, all driven by one thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,
    /// Look at the rings all the time and suppress calls
    #[arg(long, conflicts_with = "wait")]
    poll: bool,
    /// Sleep until the device calls (the default)
    #[arg(long)]
    wait: bool,
    /// Put all descriptors into the queue itself; Linux uses indirect ones
    #[arg(long)]
    direct_descriptors: bool,
    /// How long to measure
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How long to run before that
    #[arg(long, default_value_t = 0.2)]
    warm_up: f64,
    /// So many requests in lockstep instead: DEPTH at once, one kick, wait for all of them
    #[arg(long)]
    requests: Option<u64>,
    /// In lockstep: microseconds between batches, in which the device falls asleep
    #[arg(long, default_value_t = 0, requires = "requests")]
    pause_us: u64,
    /// Run on this CPU only
    #[arg(long)]
    cpu: Option<usize>,
    /// The device's process, whose CPU time and context switches are counted
    #[arg(long)]
    pid: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The figures of one load.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Figures {
    /// Completed requests.
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Time.
    pub seconds: f64,
    /// Requests per second.
    pub iops: f64,
    /// 10^6 bytes per second.
    pub mb_s: f64,
    /// Median latency; 0 if it was not measured.
    pub p50_us: f64,
    /// Latency that one request in a hundred exceeds.
    pub p99_us: f64,
    /// Longest latency.
    pub max_us: f64,
    /// Kicks per request.
    pub kicks_per_io: f64,
    /// Sleeps of the client per request.
    pub sleeps_per_io: f64,
    /// CPU time of the device per request, if its process is known.
    pub cpu_us_per_io: Option<f64>,
    /// Context switches of the device per request.
    pub switches_per_io: Option<f64>,
    /// How many CPUs somebody else has kept busy.
    pub others_cpus: f64,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    if let Some(cpu) = args.cpu {
        process::pin(cpu)?;
    }
    let (time, warm_up) = match [args.seconds, args.warm_up].map(Duration::try_from_secs_f64) {
        [Ok(time), Ok(warm_up)] if !time.is_zero() => (time, warm_up),
        _ => bail!("--seconds must be above 0, --warm-up not below"),
    };
    let load = args.load();
    let mut loaded = Loaded::connect(&args.socket, load)?;
    let outcome = match args.requests {
        None => loaded.run(warm_up, time, args.pid)?,
        Some(requests) => {
            let pause = Duration::from_micros(args.pause_us);
            loaded.run_lockstep(requests, pause, args.pid)?
        }
    };
    let figures = Figures::of(&outcome, load.pattern, args.pid.is_some());
    if args.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        figures.print();
    }
    if figures.errors > 0 {
        bail!("{} of {} requests failed", figures.errors, figures.requests);
    }
    Ok(())
}

impl Args {
    fn load(&self) -> Load {
        Load {
            pattern: Pattern {
                read: self.op.reads(),
                random: matches!(self.op, Operation::Randread | Operation::Randwrite),
                bytes: self.bs,
            },
            depth: self.depth,
            queues: self.queues,
            poll: self.poll,
            indirect: !self.direct_descriptors,
        }
    }
}

/// A count as a number to reckon with; exact up to 2^53.
#[expect(
    clippy::cast_precision_loss,
    reason = "figures have three digits, counts far fewer than 53 bits"
)]
pub fn float(count: u64) -> f64 {
    count as f64
}

impl Figures {
    fn of(outcome: &Outcome, pattern: Pattern, device: bool) -> Self {
        let seconds = outcome.elapsed.as_secs_f64();
        let count = float(outcome.requests.max(1));
        let iops = float(outcome.requests) / seconds;
        let latency = |quantile| float(outcome.latencies.value_at_quantile(quantile)) / 1e3;
        let usage = outcome.usage;
        Self {
            requests: outcome.requests,
            errors: outcome.errors,
            seconds,
            iops,
            mb_s: iops * f64::from(pattern.bytes) / 1e6,
            p50_us: latency(0.5),
            p99_us: latency(0.99),
            max_us: float(outcome.latencies.max()) / 1e3,
            kicks_per_io: float(outcome.kicks) / count,
            sleeps_per_io: float(outcome.sleeps) / count,
            cpu_us_per_io: device.then(|| float(usage.cpu_ns) / 1e3 / count),
            switches_per_io: device.then(|| float(usage.context_switches) / count),
            others_cpus: float(usage.others_ns) / 1e9 / seconds,
        }
    }

    fn print(&self) {
        println!(
            "{} requests in {:.3} s: {:.0} IOPS, {:.1} MB/s; latency p50 {:.2} us, p99 {:.2} us, \
             max {:.0} us",
            self.requests,
            self.seconds,
            self.iops,
            self.mb_s,
            self.p50_us,
            self.p99_us,
            self.max_us
        );
        if let (Some(cpu), Some(switches)) = (self.cpu_us_per_io, self.switches_per_io) {
            println!("device: {cpu:.3} us CPU and {switches:.4} context switches per request");
        }
        println!(
            "per request: {:.4} kicks, {:.4} sleeps of the client; others kept {:.2} CPUs busy",
            self.kicks_per_io, self.sleeps_per_io, self.others_cpus
        );
    }
}
