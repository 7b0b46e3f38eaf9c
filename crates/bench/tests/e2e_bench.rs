//! The benchmark works: every kind of load and section once, briefly. Nothing is asserted about
//! speed. Needs qemu-storage-daemon and fio.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_short_run_measures_every_server_and_writes_the_report() {
    let bench = Path::new(env!("CARGO_BIN_EXE_standfast-bench"));
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("figures.json");
    let output = Command::new(bench)
        .args(["run", "--quick"])
        .args(["null-co.randread.4k.d1", "null-co.randwrite.4k.d32.q4"])
        .args(["tmpfs.write", "qcow2.randread.4k.d32.q4.t2"])
        .args(["error-path", "throttle.500-iops"])
        .arg("--standfastd")
        .arg(bench.with_file_name("standfastd"))
        .args(["--shim", "/nonexistent"])
        .arg("--directory")
        .arg(dir.path())
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let figures = |load: &str, server: &str| {
        let rows = report["loads"].as_array().unwrap();
        let row = rows
            .iter()
            .find(|row| row["load"] == load && row["server"] == server);
        row.unwrap_or_else(|| panic!("{load} on {server}"))["figures"].clone()
    };
    for server in ["standfastd", "qemu-storage-daemon"] {
        for load in [
            "null-co.randread.4k.d1",
            "null-co.randread.4k.d1.wait",
            "null-co.randread.4k.d128",
            "null-co.randwrite.4k.d32.q4",
            "tmpfs.write.128k.d16",
            "qcow2.randread.4k.d32.q4.t2",
        ] {
            let figures = figures(load, server);
            for metric in ["iops", "mb-s", "p50-us", "p99-us", "cpu-us"] {
                let median = figures[metric]["median"].as_f64().unwrap();
                assert!(median > 0.0, "{load} on {server}: {metric}");
            }
        }
    }
    let threads = figures("null-co.randread.4k.d1", "standfastd (threads)");
    assert!(threads["iops"]["median"].as_f64().unwrap() > 0.0);
    let raw = figures("qcow2.randread.4k.d32.q4.t2", "standfastd (raw)");
    assert!(raw["cpu-us"]["median"].as_f64().unwrap() > 0.0);
    assert!(figures("tmpfs.write.128k.d16", "fio (limit)")["iops"]["median"].is_number());
    assert_eq!(report["error-path"].as_array().unwrap().len(), 11);
    let throttled = report["throttle"].as_array().unwrap();
    assert_eq!(throttled.len(), 1);
    for rate in ["ours", "theirs"] {
        assert!(throttled[0][rate].as_f64().unwrap() > 0.0, "{rate}");
    }
    let judged = report["targets"].as_array().unwrap();
    assert!(judged.iter().all(|target| target["verdict"].is_string()));

    let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("tmpfs.write.128k.d16"));
    // The images are gone.
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 2, "figures and page");
}

#[test]
fn an_unknown_load_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_standfast-bench"))
        .args(["run", "no-such-load", "--standfastd", "x", "--shim", "x"])
        .args(["--directory", "/nonexistent"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("no-such-load"), "{stderr}");
}
