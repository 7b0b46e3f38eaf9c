//! What is counted, as `query-blockstats` shows it: histograms and intervals of an export on two iothreads, whose
//! client comes and goes, and what of failed and refused requests counts.

mod harness;

use anyhow::{Context, Result, ensure};
use frontend::{Disk, Options, Request, Segment};
use harness::{MIB, PATIENCE, Server, Setup, eventually, iothreads, sparse};
use serde_json::{Value, json};

const SECTORS: u64 = 8 * MIB / 512;

/// An export "vda" with two queues on two iothreads, on blkdebug over a file.
fn server(more: Value) -> Result<Server> {
    let setup = Setup::new()?.iothreads(2);
    let image = setup.path("disk0.img");
    sparse(&image, SECTORS * 512)?;
    let mut options = json!({ "werror": "report", "rerror": "report", "iothread": iothreads(2),
        "num-queues": 2 });
    let both = options.as_object_mut().zip(more.as_object());
    let (options_of, more) = both.context("objects")?;
    options_of.extend(more.clone());
    setup
        .blockdev(&json!({ "driver": "blkdebug", "node-name": "disk0",
            "image": { "driver": "file", "node-name": "file0", "filename": image,
                "discard": "unmap" } }))
        .export("vda", "disk0", options)
        .start()
}

fn disk(server: &Server) -> Result<Disk> {
    let options = Options {
        queues: 2,
        ..Options::default()
    };
    server.disk_with("vda", options)
}

fn set(server: &mut Server, arguments: Value) -> Result<()> {
    let mut arguments = arguments;
    arguments["id"] = json!("vda");
    server
        .qmp
        .execute("block-latency-histogram-set", arguments)?;
    Ok(())
}

/// How many requests there are in each bin.
fn bins(stats: &Value, kind: &str) -> Option<Vec<u64>> {
    let bins = stats[format!("{kind}_latency_histogram")]["bins"].as_array()?;
    Some(bins.iter().filter_map(Value::as_u64).collect())
}

/// Writes, reads, flushes and discards on both queues; returns how many there were of each.
fn work(disk: &mut Disk) -> Result<u64> {
    let data = vec![0x5a; 4096];
    let segment = Segment {
        sector: 1024,
        sectors: 8,
        flags: 0,
    };
    for queue in [0, 1] {
        for request in [
            Request::Write {
                sector: 8,
                data: &data,
            },
            Request::Read {
                sector: 8,
                len: 4096,
            },
            Request::Flush,
            Request::Discard(&[segment]),
        ] {
            ensure!(disk.execute(queue, request, PATIENCE)?.is_ok());
        }
    }
    Ok(2)
}

#[test]
fn latencies_are_those_of_all_requests_there_have_been() -> Result<()> {
    // Windows of more than half an hour: nothing leaves them.
    let mut server = server(json!({ "stats-intervals": [3600, 7200] }))?;
    let mut first = disk(&server)?;
    work(&mut first)?;
    let before = server.stats("vda")?;
    ensure!(
        bins(&before, "rd").is_none(),
        "nobody wants it yet: {before}"
    );
    set(
        &mut server,
        json!({ "boundaries": [1, 3_600_000_000_000_u64] }),
    )?;
    let mut each = work(&mut first)?;
    drop(first);
    eventually("the client is gone", || {
        let exports = server.qmp.execute("query-block-exports", Value::Null)?;
        Ok(exports[0]["x-client"] == false)
    })?;
    let mut second = disk(&server)?;
    each += work(&mut second)?;
    let stats = server.stats("vda")?;
    for kind in ["rd", "wr", "flush"] {
        ensure!(
            bins(&stats, kind) == Some(vec![0, each, 0]),
            "{kind}: {stats}"
        );
    }
    ensure!(bins(&stats, "zone_append") == Some(vec![0; 3]), "{stats}");
    let intervals = stats["timed_stats"].as_array().context("a list")?;
    ensure!(intervals.len() == 2, "{stats}");
    for (interval, length) in intervals.iter().zip([3600, 7200]) {
        ensure!(interval["interval_length"] == length, "{stats}");
        for kind in ["rd", "wr", "flush"] {
            let of = |what: &str| interval[format!("{what}_{kind}_latency_ns")].as_u64();
            let (min, average, max) = (of("min"), of("avg"), of("max"));
            ensure!(
                min > Some(0) && min <= average && average <= max,
                "{kind}: {stats}"
            );
            // The counters know of all that the windows know of.
            let total = stats[format!("{kind}_total_time_ns")].as_u64();
            let operations = stats[format!("{kind}_operations")].as_u64();
            let (total, operations) = total.zip(operations).context("numbers")?;
            ensure!(average == Some(total / operations), "{kind}: {stats}");
        }
        let depth = interval["avg_wr_queue_depth"].as_f64();
        ensure!(depth.is_some_and(|depth| depth > 0.0), "{stats}");
    }
    set(&mut server, json!({ "boundaries-read": [] }))?;
    let stats = server.stats("vda")?;
    ensure!(
        bins(&stats, "rd").is_none() && bins(&stats, "wr").is_some(),
        "{stats}"
    );
    set(&mut server, json!({}))?;
    ensure!(bins(&server.stats("vda")?, "wr").is_none());
    work(&mut second)?;
    drop(second);
    server.finish()
}

#[test]
fn what_has_failed_or_was_refused_counts_as_wanted() -> Result<()> {
    for counts in [true, false] {
        let mut server = server(json!({ "account-failed": counts, "account-invalid": counts,
            "stats-intervals": [3600] }))?;
        set(&mut server, json!({ "boundaries": [1] }))?;
        let mut disk = disk(&server)?;
        let data = vec![1; 512];
        server.inject("disk0", json!({ "iotype": "write", "errno": 28 }))?;
        let failing = Request::Write {
            sector: 4096,
            data: &data,
        };
        ensure!(!disk.execute(0, failing, PATIENCE)?.is_ok());
        let refused = Request::Write {
            sector: SECTORS,
            data: &data,
        };
        ensure!(!disk.execute(1, refused, PATIENCE)?.is_ok());
        let stats = server.stats("vda")?;
        ensure!(stats["account_failed"] == counts && stats["account_invalid"] == counts);
        ensure!(stats["failed_wr_operations"] == 1 && stats["invalid_wr_operations"] == 1);
        ensure!(
            stats["wr_operations"] == 0 && stats["wr_bytes"] == 0,
            "{stats}"
        );
        ensure!((stats["wr_total_time_ns"] != 0) == counts, "{stats}");
        ensure!(stats["idle_time_ns"].is_null() != counts, "{stats}");
        ensure!(bins(&stats, "wr") == Some(vec![0, 1]), "{stats}");
        let interval = &stats["timed_stats"][0];
        ensure!((interval["max_wr_latency_ns"] != 0) == counts, "{stats}");
        server.clear("disk0")?;
        // How far was written: what has failed was not, and the file below knows it, too.
        let succeeds = Request::Write {
            sector: 64,
            data: &data,
        };
        ensure!(disk.execute(0, succeeds, PATIENCE)?.is_ok());
        let all = json!({ "query-nodes": true });
        let nodes = server.qmp.execute("query-blockstats", all)?;
        for (node, name) in [(0, "disk0"), (1, "file0")] {
            let node = &nodes[node];
            ensure!(node["node-name"] == name, "{nodes}");
            ensure!(node["stats"]["wr_highest_offset"] == 65 * 512, "{nodes}");
        }
        ensure!(nodes[1]["driver-specific"]["driver"] == "file", "{nodes}");
        drop(disk);
        server.finish()?;
    }
    Ok(())
}
