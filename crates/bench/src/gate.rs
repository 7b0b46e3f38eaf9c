//! `standfast-bench gate`: the data path must not get slower unnoticed.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::instructions::{Counter, Subject, rustc_version, valgrind_version};
use crate::server::Server;

/// By how much a figure may differ from its baseline, in percent.
const TOLERANCE_PERCENT: f64 = 2.0;
/// The same with another compiler than the baseline's: other code, other counts.
const TOLERANCE_OTHER_PERCENT: f64 = 15.0;
/// What policy `stop` may cost over `report` while nothing fails, in percent.
const POLICY_PERCENT_MAX: f64 = 1.0;
/// How often a pair of figures is counted before it is taken for worse than it may be. One request at a time
/// costs more or less by how daemon and client are scheduled, by 2 or 3 % where a machine is overloaded;
/// code that has become slower is so each time.
const ATTEMPTS: usize = 3;
/// Requests at a time.
const DEPTHS: [u16; 2] = [32, 1];

/// Arguments of `standfast-bench gate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// standfastd, a release build
    #[arg(long)]
    standfastd: PathBuf,
    /// The preloaded library of standfast-valgrind-shim
    #[arg(long)]
    shim: PathBuf,
    /// File with the expected figures
    #[arg(long)]
    baseline: PathBuf,
    /// Where callgrind's files go
    #[arg(long)]
    directory: PathBuf,
    /// Write the figures to the baseline instead of comparing them
    #[arg(long)]
    update: bool,
}

/// The expected figures, and what they were counted with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Baseline {
    rustc: String,
    valgrind: String,
    /// User instructions per request.
    instructions: BTreeMap<String, f64>,
}

/// What the comparison of a figure comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    Worse,
    Better,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let counter = Counter {
        standfastd: args.standfastd.clone(),
        shim: args.shim.clone(),
        directory: args.directory.clone(),
    };
    let mut found = Baseline {
        rustc: rustc_version()?,
        valgrind: valgrind_version()?,
        instructions: BTreeMap::new(),
    };
    let expected = match args.update {
        true => found.clone(),
        false => args.expected()?,
    };
    let tolerance_percent = tolerance(&expected, &found);
    let (mut costs, mut formats) = (Vec::new(), Vec::new());
    let is_fine = |name: &str, figure| {
        let baseline = expected.instructions.get(name);
        baseline
            .is_none_or(|&baseline| verdict(figure, baseline, tolerance_percent) != Verdict::Worse)
    };
    for depth in DEPTHS {
        let [report, stop] = ["report", "stop"].map(|policy| name(Subject::Null, depth, policy));
        let null = |server| counter.count(Subject::Null, server, depth);
        let figures = again(depth, || {
            let figures = [null(Server::StandfastReport)?, null(Server::Standfast)?];
            let fits = percent(figures[1], figures[0]) <= POLICY_PERCENT_MAX
                && is_fine(&report, figures[0])
                && is_fine(&stop, figures[1]);
            Ok((figures, fits))
        })?;
        costs.push((depth, percent(figures[1], figures[0])));
        found.instructions.insert(report, tenths(figures[0]));
        found.instructions.insert(stop, tenths(figures[1]));
    }
    for depth in DEPTHS {
        let counts = [Subject::File, Subject::Qcow2].map(|subject| {
            let name = name(subject, depth, "stop");
            let [figure] = again(depth, || {
                let figure = counter.count(subject, Server::Standfast, depth)?;
                Ok(([figure], is_fine(&name, figure)))
            })?;
            found.instructions.insert(name, tenths(figure));
            Ok::<_, anyhow::Error>(figure)
        });
        let [file, qcow2] = counts;
        formats.push((depth, percent(qcow2?, file?)));
    }
    for (depth, cost) in &costs {
        println!("policy stop costs {cost:+.2} % over report at depth {depth} (limit 1 %)");
    }
    for (depth, cost) in &formats {
        println!("qcow2 costs {cost:+.1} % over a plain file at depth {depth}");
    }
    let mut failures: Vec<String> = costs
        .iter()
        .filter(|(_, cost)| *cost > POLICY_PERCENT_MAX)
        .map(|(depth, cost)| format!("policy stop costs {cost:.2} % at depth {depth}"))
        .collect();
    if args.update {
        let text = serde_json::to_string_pretty(&found)? + "\n";
        fs::write(&args.baseline, text).with_context(|| args.baseline.display().to_string())?;
        print!("{}", table(&found, &found));
        println!("{} is updated: commit it", args.baseline.display());
    } else {
        failures.extend(args.compare(&expected, &found));
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

impl Args {
    fn expected(&self) -> Result<Baseline> {
        let text = fs::read_to_string(&self.baseline)
            .with_context(|| self.baseline.display().to_string())?;
        serde_json::from_str(&text)
            .with_context(|| format!("cannot understand {}", self.baseline.display()))
    }

    /// What is worse than it was.
    fn compare(&self, expected: &Baseline, found: &Baseline) -> Vec<String> {
        print!("{}", table(expected, found));
        let tolerance = tolerance(expected, found);
        if tolerance > TOLERANCE_PERCENT {
            println!(
                "the baseline is of '{}', '{}'; this is '{}', '{}': {tolerance} % are tolerated",
                expected.rustc, expected.valgrind, found.rustc, found.valgrind
            );
        }
        let mut failures = Vec::new();
        for (name, &figure) in &found.instructions {
            let Some(&baseline) = expected.instructions.get(name) else {
                failures.push(format!("no baseline for '{name}'"));
                continue;
            };
            match verdict(figure, baseline, tolerance) {
                Verdict::Fine => {}
                Verdict::Worse => failures.push(format!(
                    "{name}: {figure} instructions per request, {:+.1} %",
                    percent(figure, baseline)
                )),
                Verdict::Better => println!("{name} has become better: lower the baseline"),
            }
        }
        if !failures.is_empty() {
            println!(
                "where they go: callgrind_annotate {}/callgrind.*",
                self.directory.display()
            );
        }
        println!("to make this the baseline, if it is meant: cargo xtask bench --update-baseline");
        failures
    }
}

/// Counts until the figures fit, or it has been tried often enough.
fn again<const N: usize>(
    depth: u16,
    mut count: impl FnMut() -> Result<([f64; N], bool)>,
) -> Result<[f64; N]> {
    let mut attempt = 1;
    loop {
        let (figures, fits) = count()?;
        if fits || attempt == ATTEMPTS {
            return Ok(figures);
        }
        println!("depth {depth}: {figures:.1?}: counted again");
        attempt += 1;
    }
}

fn name(subject: Subject, depth: u16, policy: &str) -> String {
    format!("{} 4k randread depth {depth:>2} {policy}", subject.name())
}

fn tenths(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

fn percent(figure: f64, baseline: f64) -> f64 {
    (figure / baseline - 1.0) * 100.0
}

fn tolerance(expected: &Baseline, found: &Baseline) -> f64 {
    if (&expected.rustc, &expected.valgrind) == (&found.rustc, &found.valgrind) {
        TOLERANCE_PERCENT
    } else {
        TOLERANCE_OTHER_PERCENT
    }
}

fn verdict(figure: f64, baseline: f64, tolerance_percent: f64) -> Verdict {
    let difference = percent(figure, baseline);
    if difference > tolerance_percent {
        Verdict::Worse
    } else if difference < -tolerance_percent {
        Verdict::Better
    } else {
        Verdict::Fine
    }
}

fn table(expected: &Baseline, found: &Baseline) -> String {
    let mut text = format!(
        "{:40} {:>10} {:>10} {:>8}\n",
        "user instructions per request", "baseline", "now", ""
    );
    for (name, &figure) in &found.instructions {
        let line = match expected.instructions.get(name) {
            Some(&baseline) => format!(
                "{name:40} {baseline:>10.1} {figure:>10.1} {:>+7.2}%\n",
                percent(figure, baseline)
            ),
            None => format!("{name:40} {:>10} {figure:>10.1}\n", "-"),
        };
        text += &line;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(rustc: &str) -> Baseline {
        Baseline {
            rustc: rustc.to_owned(),
            valgrind: "valgrind-3.19.0".to_owned(),
            instructions: BTreeMap::new(),
        }
    }

    #[test]
    fn two_percent_either_way() {
        for (figure, expected) in [
            (1000.0, Verdict::Fine),
            (1019.0, Verdict::Fine),
            (1021.0, Verdict::Worse),
            (981.0, Verdict::Fine),
            (979.0, Verdict::Better),
        ] {
            assert_eq!(verdict(figure, 1000.0, TOLERANCE_PERCENT), expected);
        }
    }

    #[test]
    fn another_compiler_is_given_more_room() {
        let (old, new) = (baseline("rustc 1.95.0"), baseline("rustc 1.96.0"));
        assert!(tolerance(&old, &old) < tolerance(&old, &new));
    }

    #[test]
    fn the_baseline_in_the_repository_is_complete() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json");
        let text = fs::read_to_string(file).unwrap();
        let baseline: Baseline = serde_json::from_str(&text).unwrap();
        for depth in DEPTHS {
            for (subject, policy) in [
                (Subject::Null, "report"),
                (Subject::Null, "stop"),
                (Subject::File, "stop"),
                (Subject::Qcow2, "stop"),
            ] {
                assert!(baseline.instructions[&name(subject, depth, policy)] > 100.0);
            }
        }
    }
}
