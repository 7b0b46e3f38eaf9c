//! Parts that run one after the other, each with a heading and its time, and a summary.

use anyhow::Result;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What became of the parts so far.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    time: Duration,
    failure: Option<String>,
}

impl Report {
    /// Runs one part. A failure is noted and does not keep later parts from running.
    pub fn part(&mut self, name: &str, part: impl FnOnce() -> Result<()>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let failure = part().err().map(|error| format!("{error:#}"));
        let time = start.elapsed();
        match &failure {
            None => println!("=== {name}: ok, {}", seconds(time)),
            Some(failure) => println!("=== {name}: FAILED, {}: {failure}", seconds(time)),
        }
        self.rows.push(Row {
            name: name.to_owned(),
            time,
            failure,
        });
    }

    /// Prints the summary. Success if every part succeeded.
    pub fn finish(self) -> ExitCode {
        println!("\n=== summary\n{}", self.summary());
        if self.rows.iter().all(|row| row.failure.is_none()) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn summary(&self) -> String {
        let width = self
            .rows
            .iter()
            .map(|row| row.name.len())
            .max()
            .unwrap_or(0);
        let mut lines = Vec::new();
        for Row {
            name,
            time,
            failure,
        } in &self.rows
        {
            let time = seconds(*time);
            lines.push(match failure {
                None => format!("{name:width$}  ok      {time:>9}"),
                Some(failure) => format!("{name:width$}  FAILED  {time:>9}  {failure}"),
            });
        }
        let failed = self.rows.iter().filter(|row| row.failure.is_some()).count();
        let time = seconds(self.rows.iter().map(|row| row.time).sum());
        lines.push(match failed {
            0 => format!("all {} passed in {time}", self.rows.len()),
            _ => format!("{failed} of {} FAILED in {time}", self.rows.len()),
        });
        lines.join("\n")
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_failure_is_kept_and_the_rest_runs() {
        let mut report = Report::default();
        let mut ran = false;
        report.part("bad", || Err(anyhow!("cause").context("what")));
        report.part("good", || {
            ran = true;
            Ok(())
        });
        assert!(ran);
        for row in &mut report.rows {
            row.time = Duration::from_millis(1500);
        }
        assert_eq!(
            report.summary(),
            "bad   FAILED      1.5 s  what: cause\n\
             good  ok          1.5 s\n\
             1 of 2 FAILED in 3.0 s"
        );
        assert_eq!(report.finish(), ExitCode::FAILURE);
    }

    #[test]
    fn success_needs_every_part() {
        let mut report = Report::default();
        report.part("one", || Ok(()));
        assert_eq!(report.finish(), ExitCode::SUCCESS);
    }
}
