//! What was found, and what it is to reach.

use serde::Serialize;

use crate::beside::{ALONE, BESIDE_WHAT_HANGS};
use crate::error_path::FAILURE_TO_EVENT;
use crate::hanging::MONITOR_WHILE_ALL_HANG;
use crate::latency::Latency;
use crate::loads::Storage;
use crate::server::Server;
use crate::statistics::{Metric, Summaries};
use crate::throttle::Throttled;

/// Who the limit is.
pub const FIO: &str = "fio (limit)";
/// As good as copying by plain calls, in percent of it.
const COPY_PERCENT: f64 = 90.0;

/// The medians of one load on one server.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The load's name.
    pub load: String,
    /// What the disk lies on.
    #[serde(skip)]
    pub storage: Storage,
    /// The server's name, or `fio`.
    pub server: &'static str,
    /// The figures.
    pub figures: Summaries,
}

/// Instructions per request at one depth.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Instructions {
    /// Requests at a time.
    pub depth: u16,
    /// standfastd with policy `stop`.
    pub stop: f64,
    /// standfastd with policy `report`.
    pub report: f64,
    /// A build of standfastd that has no policy.
    pub bypass: f64,
    /// qemu-storage-daemon.
    pub qemu: f64,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// By load and server.
    pub rows: Vec<Row>,
    /// The error path.
    pub latencies: Vec<Latency>,
    /// How long it takes to make images.
    pub creations: Vec<Latency>,
    /// Limits of throttle groups.
    pub throttled: Vec<Throttled>,
    /// Instructions.
    pub instructions: Vec<Instructions>,
}

/// How good something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Not even the first limit.
    Missed,
    /// The first limit.
    Reached,
    /// The second limit.
    Goal,
}

impl Verdict {
    /// As a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missed => "MISSED",
            Self::Reached => "reached",
            Self::Goal => "goal",
        }
    }
}

/// One thing to be reached.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Target {
    /// What.
    pub name: String,
    /// The load whose figure it is, if it is one of a load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<String>,
    /// Our figure with its unit.
    pub ours: String,
    /// What it is compared with.
    pub theirs: String,
    /// What counts: a ratio, or the figure itself.
    pub value: f64,
    /// To be reached, in words.
    pub reach: String,
    /// The goal, in words; empty if there is none.
    pub goal: String,
    /// Whether it is.
    pub verdict: Verdict,
}

impl Target {
    /// Whether there is more to be had: the goal, or where there is none, the limit.
    pub fn falls_short(&self) -> bool {
        self.verdict == Verdict::Missed || (self.verdict < Verdict::Goal && !self.goal.is_empty())
    }
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Less is.
    Less,
    /// More is.
    More,
}

impl Findings {
    /// The median of a figure, if there is one.
    pub fn median(&self, load: &str, server: Server, metric: Metric) -> Option<f64> {
        let wanted = |row: &&Row| row.load == load && row.server == server.name();
        let row = self.rows.iter().find(wanted)?;
        Some(row.figures.get(&metric)?.median)
    }

    /// Ours, theirs.
    fn pair(&self, load: &str, metric: Metric) -> Option<[f64; 2]> {
        let ours = self.median(load, Server::Standfast, metric)?;
        let theirs = self.median(load, Server::Qemu, metric)?;
        Some([ours, theirs])
    }

    /// How much of its CPU our server uses under a load, in percent.
    pub fn busy_percent(&self, load: &str) -> Option<f64> {
        let figure = |metric| self.median(load, Server::Standfast, metric);
        Some(figure(Metric::CpuUs)? * figure(Metric::Iops)? / 1e4)
    }

    /// Our IOPS and theirs, in percent of those of `limit`.
    pub fn of_limit_percent(&self, load: &str, limit: &str) -> Option<[f64; 2]> {
        let wanted = |row: &&Row| row.load == load && row.server == limit;
        let limit = self.rows.iter().find(wanted)?.figures.get(&Metric::Iops)?;
        Some(
            self.pair(load, Metric::Iops)?
                .map(|iops| 100.0 * iops / limit.median),
        )
    }

    /// Ours to the rival's.
    pub fn ratio(
        &self,
        load: &str,
        metric: Metric,
        better: Better,
        reach: f64,
        goal: Option<f64>,
    ) -> Option<Target> {
        let [ours, theirs] = self.pair(load, metric)?;
        let name = format!("{load}: {}", metric.title());
        let mut target = compared(name, [ours, theirs], better, reach, goal);
        target.load = Some(load.to_owned());
        Some(target)
    }

    /// Our engine *threads* against the rival's.
    pub fn threads(&self, row: &Row, metric: Metric, better: Better) -> Option<Target> {
        let ours = row.figures.get(&metric)?.median;
        let rival = row.storage.threads_rival();
        let theirs = self.median(&row.load, rival, metric)?;
        let name = format!("{}, threads: {}", row.load, metric.title());
        // What is profiled of a load is the other engine.
        Some(compared(name, [ours, theirs], better, 1.0, None))
    }

    /// What hangs on an iothread is not in the way of the disk beside it.
    pub fn beside_what_hangs(&self) -> Option<Target> {
        let p99 = |name| {
            let latency = self.latencies.iter().find(|latency| latency.name == name)?;
            Some(latency.p99_us)
        };
        let (alone, beside) = (p99(ALONE)?, p99(BESIDE_WHAT_HANGS)?);
        let value = rounded(beside / alone);
        Some(Target {
            name: format!("{BESIDE_WHAT_HANGS}: p99 us"),
            load: None,
            ours: crate::statistics::short(beside),
            theirs: format!("{} alone", crate::statistics::short(alone)),
            value,
            reach: "<= 1.5".to_owned(),
            goal: "<= 1.1".to_owned(),
            verdict: verdict(value, Better::Less, 1.5, Some(1.1)),
        })
    }

    /// No worse than the rival; the goal is what plain calls copy without any server, about.
    pub fn copying(&self, load: &str) -> Option<Target> {
        let mut target = self.ratio(load, Metric::MbS, Better::More, 1.0, None)?;
        if let Some([ours, _]) = self.of_limit_percent(load, FIO) {
            target.goal = format!(">= {COPY_PERCENT} % of fio");
            let there = target.verdict == Verdict::Reached && ours >= COPY_PERCENT;
            target.verdict = if there { Verdict::Goal } else { target.verdict };
        }
        Some(target)
    }

    /// CPU or p50 better, neither worse than one and a half.
    pub fn waiting(&self, load: &str) -> Option<Target> {
        let ratio = |metric| {
            self.pair(load, metric)
                .map(|[ours, theirs]| (ours, theirs, rounded(ours / theirs)))
        };
        let (cpu, p50) = (ratio(Metric::CpuUs)?, ratio(Metric::P50Us)?);
        let (best, worst) = (cpu.2.min(p50.2), cpu.2.max(p50.2));
        let short = crate::statistics::short;
        Some(Target {
            name: format!("{load}: CPU us/IO, p50 us"),
            load: Some(load.to_owned()),
            ours: format!("{}, {}", short(cpu.0), short(p50.0)),
            theirs: format!("{}, {}", short(cpu.1), short(p50.1)),
            value: worst,
            reach: "one < 1, both <= 1.5".to_owned(),
            goal: String::new(),
            verdict: if best < 1.0 && worst <= 1.5 {
                Verdict::Reached
            } else {
                Verdict::Missed
            },
        })
    }

    /// A failing request is told at once.
    pub fn failure_to_event(&self) -> Option<Target> {
        let latency = self.latencies.iter().find(|l| l.name == FAILURE_TO_EVENT)?;
        let value = rounded(latency.p50_us);
        Some(Target {
            name: format!("{FAILURE_TO_EVENT}: p50 us"),
            load: None,
            ours: crate::statistics::short(value),
            theirs: "-".to_owned(),
            value,
            reach: "<= 300".to_owned(),
            goal: "<= 100".to_owned(),
            verdict: verdict(value, Better::Less, 300.0, Some(100.0)),
        })
    }

    /// The monitor answers whatever hangs.
    pub fn monitor_while_all_hang(&self) -> Option<Target> {
        let mut latencies = self.latencies.iter();
        let latency = latencies.find(|latency| latency.name == MONITOR_WHILE_ALL_HANG)?;
        let value = rounded(latency.p99_us);
        Some(Target {
            name: format!("{MONITOR_WHILE_ALL_HANG}: p99 us"),
            load: None,
            ours: crate::statistics::short(value),
            theirs: "-".to_owned(),
            value,
            reach: "<= 10000".to_owned(),
            goal: "<= 1000".to_owned(),
            verdict: verdict(value, Better::Less, 10_000.0, Some(1000.0)),
        })
    }
}

/// A ratio, ours to theirs.
pub fn compared(
    name: String,
    [ours, theirs]: [f64; 2],
    better: Better,
    reach: f64,
    goal: Option<f64>,
) -> Target {
    let value = rounded(ours / theirs);
    let sign = match better {
        Better::Less => "<=",
        Better::More => ">=",
    };
    Target {
        name,
        load: None,
        ours: crate::statistics::short(ours),
        theirs: crate::statistics::short(theirs),
        value,
        reach: format!("{sign} {reach}"),
        goal: goal.map_or_else(String::new, |goal| format!("{sign} {goal}")),
        verdict: verdict(value, better, reach, goal),
    }
}

/// Whether it is our engine *threads*.
pub fn is_threads(row: &Row) -> bool {
    row.server == Server::StandfastThreads.name()
}

/// How well a limit is kept.
pub fn kept_limit(found: &Throttled) -> Target {
    let [ours, theirs] = [found.ours, found.theirs].map(|rate| found.deviation(rate));
    let value = rounded(ours.abs());
    Target {
        name: format!("{}: off the limit, %", found.name),
        load: None,
        ours: format!("{ours:+.2}"),
        theirs: format!("{theirs:+.2}"),
        value,
        reach: "<= 5".to_owned(),
        goal: "<= 1".to_owned(),
        verdict: verdict(value, Better::Less, 5.0, Some(1.0)),
    }
}

/// What policy `stop` costs while nothing fails, in percent of the instructions of `other`.
pub fn policy_cost(found: &Instructions, other: &str, instructions: f64) -> Target {
    let value = rounded((found.stop / instructions - 1.0) * 100.0);
    Target {
        name: format!(
            "policy stop against {other}, depth {}: instructions, %",
            found.depth
        ),
        load: None,
        ours: format!("{:.1}", found.stop),
        theirs: format!("{instructions:.1}"),
        value,
        reach: "<= 1".to_owned(),
        goal: "<= 0".to_owned(),
        verdict: verdict(value, Better::Less, 1.0, Some(0.0)),
    }
}

/// To two digits, as it is shown: what is shown as 1 is no worse than 1.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn verdict(value: f64, better: Better, reach: f64, goal: Option<f64>) -> Verdict {
    let within = |limit: f64| match better {
        Better::Less => value <= limit,
        Better::More => value >= limit,
    };
    if !within(reach) {
        Verdict::Missed
    } else if goal.is_some_and(within) {
        Verdict::Goal
    } else {
        Verdict::Reached
    }
}
