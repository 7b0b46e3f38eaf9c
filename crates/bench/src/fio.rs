//! fio on the same file: what the storage allows without any server in between.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::client::Figures;
use crate::loads::{Spec, Storage};

/// Runs fio on one CPU; `None` where there is no file, or one in a format, of which fio knows nothing, and for
/// clients that wait for calls, of which it has none.
///
/// # Errors
/// If fio is not there, fails, or prints something unknown.
pub fn run(spec: &Spec, file: &Path, cpu: usize, seconds: f64) -> Result<Option<Figures>> {
    let engine: &[&str] = match spec.storage {
        Storage::Null => return Ok(None),
        storage if storage.is_qcow2() => return Ok(None),
        _ if !spec.poll => return Ok(None),
        // io_uring sends each request on tmpfs to a worker; nothing beats plain calls there.
        Storage::Tmpfs => &["--ioengine=psync"],
        _ => &[
            "--ioengine=io_uring",
            "--direct=1",
            "--fixedbufs=1",
            "--registerfiles=1",
        ],
    };
    let output = Command::new("fio")
        .args(["--name=limit", "--output-format=json", "--time_based"])
        .args(["--norandommap", "--randrepeat=0", "--gtod_reduce=0"])
        .args(engine)
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--rw={}", spec.operation.name()))
        .arg(format!("--bs={}", spec.size))
        .arg(format!("--iodepth={}", spec.depth))
        // At depth n it takes and hands in whole batches, as a ring's user would.
        .arg(format!("--iodepth_batch_complete_max={}", spec.depth))
        .arg(format!("--cpus_allowed={cpu}"))
        .arg(format!(
            "--runtime={}",
            format_args!("{:.0}ms", seconds * 1e3)
        ))
        .stdin(Stdio::null())
        .output()
        .context("cannot run fio")?;
    ensure!(
        output.status.success(),
        "fio failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    // It may say something before the JSON.
    let start = text.find('{').context("fio printed no JSON")?;
    let report: Value = serde_json::from_str(&text[start..]).context("fio's JSON")?;
    figures(&report, spec)
        .context("fio's JSON lacks a figure")
        .map(Some)
}

fn figures(report: &Value, spec: &Spec) -> Option<Figures> {
    let job = report.get("jobs")?.get(0)?;
    let side = job.get(if spec.operation.reads() {
        "read"
    } else {
        "write"
    })?;
    let requests = side.get("total_ios")?.as_u64()?;
    let seconds = side.get("runtime")?.as_f64()? / 1e3;
    let latency = |name: &str| {
        Some(
            side.get("clat_ns")?
                .get("percentile")?
                .get(name)?
                .as_f64()?
                / 1e3,
        )
    };
    let percent = job.get("usr_cpu")?.as_f64()? + job.get("sys_cpu")?.as_f64()?;
    let count = crate::client::float(requests.max(1));
    Some(Figures {
        requests,
        errors: job.get("error")?.as_u64()?,
        seconds,
        iops: side.get("iops")?.as_f64()?,
        mb_s: side.get("bw_bytes")?.as_f64()? / 1e6,
        p50_us: latency("50.000000")?,
        p99_us: latency("99.000000")?,
        max_us: side.get("clat_ns")?.get("max")?.as_f64()? / 1e3,
        kicks_per_io: 0.0,
        sleeps_per_io: 0.0,
        cpu_us_per_io: Some(percent / 100.0 * seconds * 1e6 / count),
        switches_per_io: Some(job.get("ctx")?.as_f64()? / count),
        others_cpus: 0.0,
    })
}
