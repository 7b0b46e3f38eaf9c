//! How long it takes to make images: `blockdev-create`, from the command to the end of its job.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::Qmp;

use crate::latency::{Latency, histogram, latency};
use crate::server::{Server, Setup};

/// Name of the section.
pub const CREATION: &str = "create";

/// What is preallocated, and the length of the disk in bytes: of tables alone it is long.
const IMAGES: [(&str, u64); 4] = [
    ("off", 64 << 30),
    ("metadata", 64 << 30),
    ("falloc", 1 << 30),
    ("full", 1 << 30),
];
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes each image `rounds` times, on ours and on the rival in turn, in a file of `directory`.
///
/// # Errors
/// If one of them does not do it.
pub fn measure(
    standfastd: &Path,
    cpu: usize,
    directory: &Path,
    rounds: u32,
) -> Result<Vec<Latency>> {
    let mut all = Vec::new();
    for (preallocation, bytes) in IMAGES {
        let mut times = [histogram()?, histogram()?];
        for _ in 0..rounds {
            for (server, times) in [Server::Standfast, Server::Qemu]
                .into_iter()
                .zip(&mut times)
            {
                let begun = make(standfastd, server, cpu, directory, preallocation, bytes)?;
                times.saturating_record(u64::try_from(begun.as_nanos()).unwrap_or(u64::MAX));
            }
        }
        for (server, times) in [Server::Standfast, Server::Qemu].into_iter().zip(&times) {
            let name = format!(
                "{CREATION} {} GiB, preallocation={preallocation}: {}",
                bytes >> 30,
                server.name()
            );
            all.push(latency(&name, times));
        }
    }
    Ok(all)
}

/// Makes one, and says how long that took.
fn make(
    standfastd: &Path,
    server: Server,
    cpu: usize,
    directory: &Path,
    preallocation: &str,
    bytes: u64,
) -> Result<Duration> {
    let image = tempfile::Builder::new()
        .prefix("standfast-bench-create-")
        .suffix(".qcow2")
        .tempfile_in(directory)?;
    File::create(image.path())?;
    let mut setup = Setup::new(server, "driver=null-co,node-name=disk");
    setup.qmp = true;
    setup.cpu = Some(cpu);
    let running = setup.start(standfastd)?;
    let mut qmp = Qmp::connect(running.qmp())?;
    qmp.set_timeout(PATIENCE);
    let file = json!({ "driver": "file", "node-name": "image", "filename": image.path() });
    qmp.execute("blockdev-add", file)?;
    let options = json!({ "driver": "qcow2", "file": "image", "size": bytes, "preallocation": preallocation });
    let begin = Instant::now();
    qmp.execute(
        "blockdev-create",
        json!({ "job-id": "job", "options": options }),
    )?;
    loop {
        let event = qmp.wait_event("JOB_STATUS_CHANGE", PATIENCE)?;
        if event.data["status"] == "concluded" {
            break;
        }
    }
    let took = begin.elapsed();
    let jobs = qmp.execute("query-jobs", Value::Null)?;
    ensure!(jobs[0].get("error").is_none(), "{jobs}");
    drop(qmp);
    running.finish()?;
    Ok(took)
}
