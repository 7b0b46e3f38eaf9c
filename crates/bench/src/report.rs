//! What was found, for people and for programs.

use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;

use crate::profile::Profile;
use crate::statistics::{Metric, short};
use crate::targets::{Findings, Target};

/// Where it was measured.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    /// Model.
    pub cpu: String,
    /// How many.
    pub cpus: usize,
    /// The servers'.
    pub server_cpu: usize,
    /// The client's.
    pub client_cpu: usize,
    /// Linux.
    pub kernel: String,
    /// Compiler.
    pub rustc: String,
    /// The rival.
    pub qemu: String,
}

/// A whole run.
#[derive(Debug)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How often everything was measured.
    pub rounds: u16,
    /// How long each time.
    pub seconds: f64,
    /// Measurements that were repeated because somebody else was busy.
    pub repeated: u32,
    /// Measurements that never were undisturbed.
    pub noisy: Vec<String>,
    /// What was to be reached.
    pub targets: Vec<Target>,
    /// What stands in the way where it is not.
    pub profiles: Vec<Profile>,
    /// Everything.
    pub findings: Findings,
}

impl Report {
    /// How it was measured, in a few sentences.
    pub fn method(&self) -> Vec<String> {
        let Machine {
            cpu,
            cpus,
            server_cpu,
            client_cpu,
            kernel,
            rustc,
            qemu,
        } = &self.machine;
        let mut lines = vec![
            format!("{cpu}, {cpus} CPUs, Linux {kernel}; {rustc}; {qemu}"),
            format!(
                "server on CPU {server_cpu}, client on CPU {client_cpu}; medians [lowest..highest] of \
                 {} rounds of {} s, servers in turn",
                self.rounds, self.seconds
            ),
            format!(
                "{} measurements were repeated because others used more than a quarter of a CPU",
                self.repeated
            ),
        ];
        if !self.noisy.is_empty() {
            lines.push(format!(
                "{} STAYED DISTURBED: do not trust these figures",
                self.noisy.len()
            ));
        }
        lines
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.method() {
            _ = writeln!(text, "{line}");
        }
        for line in self.noisy.iter().take(10) {
            _ = writeln!(text, "  disturbed: {line}");
        }
        self.figures(&mut text);
        self.single(&mut text);
        if !self.targets.is_empty() {
            _ = writeln!(
                text,
                "\n{:52} {:>14} {:>14} {:>7}  {:22} {:8} verdict",
                "target", "ours", "theirs", "value", "reach", "goal"
            );
        }
        for target in &self.targets {
            _ = writeln!(
                text,
                "{:52} {:>14} {:>14} {:>7.2}  {:22} {:8} {}",
                target.name,
                target.ours,
                target.theirs,
                target.value,
                target.reach,
                target.goal,
                target.verdict.name()
            );
        }
        for profile in &self.profiles {
            _ = writeln!(text, "\n{}: what stands in the way", profile.load);
            for line in profile.lines() {
                _ = writeln!(text, "  {line}");
            }
        }
        text
    }

    fn figures(&self, text: &mut String) {
        let mut last = "";
        for row in &self.findings.rows {
            if row.load != last {
                _ = write!(text, "\n{:42}", row.load);
                for metric in Metric::ALL {
                    _ = write!(text, " {:>22}", metric.title());
                }
                text.push('\n');
                last = &row.load;
            }
            _ = write!(text, "  {:40}", row.server);
            for metric in Metric::ALL {
                let cell = row.figures.get(&metric).map_or_else(String::new, |s| {
                    format!("{} [{}..{}]", short(s.median), short(s.min), short(s.max))
                });
                _ = write!(text, " {cell:>22}");
            }
            text.push('\n');
        }
    }

    fn single(&self, text: &mut String) {
        if !self.findings.latencies.is_empty() {
            _ = writeln!(
                text,
                "\n{:52} {:>10} {:>10}",
                "error path", "p50 us", "p99 us"
            );
        }
        for latency in &self.findings.latencies {
            _ = writeln!(
                text,
                "{:52} {:>10} {:>10}",
                latency.name,
                short(latency.p50_us),
                short(latency.p99_us)
            );
        }
        if !self.findings.creations.is_empty() {
            _ = writeln!(
                text,
                "\n{:52} {:>10} {:>10}",
                "making images", "p50 ms", "p99 ms"
            );
        }
        for latency in &self.findings.creations {
            _ = writeln!(
                text,
                "{:52} {:>10} {:>10}",
                latency.name,
                short(latency.p50_us / 1e3),
                short(latency.p99_us / 1e3)
            );
        }
        if !self.findings.instructions.is_empty() {
            _ = writeln!(
                text,
                "\n{:52} {:>10} {:>10} {:>10} {:>10}",
                "user instructions per request, null-co 4k randread",
                "stop",
                "report",
                "no policy",
                "qemu"
            );
        }
        for found in &self.findings.instructions {
            _ = writeln!(
                text,
                "{:52} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
                format!("depth {}", found.depth),
                found.stop,
                found.report,
                found.bypass,
                found.qemu
            );
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "repeated": self.repeated,
            "disturbed": self.noisy,
            "loads": self.findings.rows,
            "error-path": self.findings.latencies,
            "creation": self.findings.creations,
            "throttle": self.findings.throttled,
            "instructions": self.findings.instructions,
            "targets": self.targets,
            "profiles": self.profiles,
        })
    }
}
