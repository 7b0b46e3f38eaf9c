//! Where the time of a server goes, where a goal is missed: by perf's clock, which needs no counters of
//! the CPU and works in virtual machines.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::process::{Command, Stdio};

/// Samples a second.
const FREQUENCY: &str = "4000";
/// Functions below this share are not shown, in percent.
const SHARE_MIN: f64 = 1.0;
/// Functions shown at most.
const COUNT_MAX: usize = 12;

/// The profile of one load on our server.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Profile {
    /// The load's name.
    pub load: String,
    /// How much of its CPU the server uses, in percent.
    pub busy_percent: f64,
    /// Our IOPS and the rival's, in percent of fio's without any server; none if fio did not run.
    pub of_limit_percent: Option<[f64; 2]>,
    /// The functions in which the server spends its time, kernel included.
    pub functions: Vec<Function>,
    /// Why there are no functions.
    pub missing: Option<String>,
}

/// A function and its share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Function {
    /// Of the server's time, in percent, without what it calls.
    pub share: f64,
    /// Its name, and whose it is.
    pub name: String,
}

impl Profile {
    /// What it says, in a few lines.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "the server uses {:.0} % of its CPU, for the rest of the time it waits for storage or the client",
            self.busy_percent
        )];
        if let Some([ours, theirs]) = self.of_limit_percent {
            lines.push(format!(
                "of what fio gets without any server: standfastd {ours:.0} %, qemu-storage-daemon {theirs:.0} %"
            ));
        }
        for Function { share, name } in &self.functions {
            lines.push(format!("{share:5.1} %  {name}"));
        }
        lines.extend(self.missing.clone());
        lines
    }
}

/// Samples a process for some time.
///
/// # Errors
/// If perf is not there, may not do it, or prints something unknown.
pub fn sample(pid: u32, seconds: f64) -> Result<Vec<Function>> {
    let file = tempfile::NamedTempFile::with_prefix("standfast-bench-perf-")?;
    let record = Command::new("perf")
        .args([
            "record",
            "--quiet",
            "--event=cpu-clock",
            "--freq",
            FREQUENCY,
        ])
        .args(["--pid", &pid.to_string()])
        .arg("--output")
        .arg(file.path())
        .args(["--", "sleep", &seconds.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot run perf")?;
    ensure!(
        record.status.success(),
        "perf record failed: {}",
        String::from_utf8_lossy(&record.stderr).trim()
    );
    let report = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "--quiet"])
        .args(["--fields=overhead,dso,symbol", "--field-separator=;"])
        .arg("--input")
        .arg(file.path())
        .stdin(Stdio::null())
        .output()
        .context("cannot run perf")?;
    ensure!(
        report.status.success(),
        "perf report failed: {}",
        String::from_utf8_lossy(&report.stderr).trim()
    );
    let functions = parse(&String::from_utf8_lossy(&report.stdout));
    ensure!(!functions.is_empty(), "perf has seen nothing");
    Ok(functions)
}

/// `40.89%;[kernel.kallsyms];[k] iowrite16`, most first.
fn parse(text: &str) -> Vec<Function> {
    let function = |line: &str| {
        let mut fields = line.splitn(3, ';').map(str::trim);
        let share = fields.next()?.trim_end_matches('%').parse().ok()?;
        let owner = fields.next()?;
        let symbol = fields.next()?;
        let symbol = symbol.split_once("] ").map_or(symbol, |(_, name)| name);
        let owner = owner.trim_matches(['[', ']']).trim_end_matches(".kallsyms");
        Some(Function {
            share,
            name: format!("{} ({owner})", symbol.trim()),
        })
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(function)
        .filter(|function| function.share >= SHARE_MIN)
        .take(COUNT_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_and_their_owners() {
        let text = "# Total Lost Samples: 0\n\n40.89%;[kernel.kallsyms];[k] iowrite16           \n \
                    3.50%;standfastd        ;[.] <a::B as c::D>::submit\n 0.99%;x;[.] y\nnonsense\n";
        let function = |share, name: &str| Function {
            share,
            name: name.to_owned(),
        };
        assert_eq!(
            parse(text),
            [
                function(40.89, "iowrite16 (kernel)"),
                function(3.5, "<a::B as c::D>::submit (standfastd)"),
            ]
        );
    }
}
