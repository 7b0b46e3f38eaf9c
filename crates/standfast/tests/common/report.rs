//! What a run of the watcher has cost, as a table.

use std::time::Duration;

use serde_json::Value;

/// The figures of a run, by the records of its journal.
#[derive(Debug)]
pub struct Report {
    what: String,
    /// How many extensions have succeeded, in order: whether each was early.
    pub early: Vec<bool>,
    /// From the event to the start of the extension, in seconds; of the early ones.
    to_start: Vec<f64>,
    running: Vec<f64>,
    verify: Vec<f64>,
    total: Vec<f64>,
    /// Incidents: the machine was paused.
    pub pauses: usize,
    /// How many of them after the second extension.
    pub late_pauses: usize,
    paused: f64,
    extended: u64,
    rate: f64,
}

impl Report {
    /// Of `what`, in which so many bytes were written within that time.
    pub fn new(what: &str, records: &[Value], bytes: u64, took: Duration) -> Self {
        let mut report = Self {
            what: what.to_owned(),
            early: Vec::new(),
            to_start: Vec::new(),
            running: Vec::new(),
            verify: Vec::new(),
            total: Vec::new(),
            pauses: 0,
            late_pauses: 0,
            paused: 0.0,
            extended: 0,
            rate: bytes as f64 / took.as_secs_f64() / f64::from(1 << 20),
        };
        for record in records {
            let seconds = |name: &str| record[name].as_f64().unwrap();
            match record["event"].as_str() {
                Some("incident-began") => {
                    report.pauses += 1;
                    report.late_pauses += usize::from(report.early.len() >= 2);
                }
                Some("incident-ended") => report.paused += seconds("seconds_paused"),
                Some("extension") if record["result"] == "grown" => {
                    let early = record["early"] == true;
                    report.early.push(early);
                    report.extended += record["grown"].as_u64().unwrap();
                    if !early {
                        continue;
                    }
                    let (start, running, total) = (
                        seconds("seconds_to_start"),
                        seconds("seconds_running"),
                        seconds("seconds"),
                    );
                    report.to_start.push(start);
                    report.running.push(running);
                    report.verify.push(total - start - running);
                    report.total.push(total);
                }
                _ => {}
            }
        }
        report
    }

    /// Prints it.
    pub fn print(&self) {
        let early = self.early.iter().filter(|early| **early).count();
        println!(
            "{}: {} extensions ({early} early), {} MiB in all, {:.0} MiB/s written, {} pauses \
             ({} after the second extension), {:.3} s paused",
            self.what,
            self.early.len(),
            self.extended >> 20,
            self.rate,
            self.pauses,
            self.late_pauses,
            self.paused
        );
        if early == 0 {
            return;
        }
        println!(
            "  {:<26} {:>9} {:>9} {:>9} {:>9}",
            "milliseconds", "min", "avg", "p99", "max"
        );
        let own = self.total.iter().zip(&self.running);
        let own: Vec<_> = own.map(|(total, running)| total - running).collect();
        for (name, values) in [
            ("event to start", &self.to_start),
            ("extension itself", &self.running),
            ("verification", &self.verify),
            ("total", &self.total),
            ("total less the extension", &own),
        ] {
            let [min, avg, p99, max] = summary(values).map(|seconds| seconds * 1000.0);
            println!("  {name:<26} {min:>9.2} {avg:>9.2} {p99:>9.2} {max:>9.2}");
        }
    }
}

fn summary(values: &[f64]) -> [f64; 4] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * 99).div_ceil(100).max(1) - 1;
    let sum: f64 = sorted.iter().sum();
    [
        sorted[0],
        sum / sorted.len() as f64,
        sorted[at],
        *sorted.last().unwrap(),
    ]
}
