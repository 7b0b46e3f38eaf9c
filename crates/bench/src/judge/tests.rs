//! What is reached, and what is not.

use super::*;
use crate::beside::{ALONE, BESIDE_WHAT_HANGS};
use crate::latency::Latency;
use crate::server::Server;
use crate::statistics::Summary;
use crate::targets::{FIO, Instructions, Row, Verdict};
use crate::throttle::Throttled;

fn findings(load: &str, figures: &[(Metric, f64, f64)]) -> Findings {
    let row = |server: Server, which: usize| Row {
        load: load.to_owned(),
        storage: Storage::Null,
        server: server.name(),
        figures: figures
            .iter()
            .map(|&(metric, ours, theirs)| (metric, Summary::of(&[[ours, theirs][which]]).unwrap()))
            .collect(),
    };
    Findings {
        rows: vec![row(Server::Standfast, 0), row(Server::Qemu, 1)],
        ..Findings::default()
    }
}

#[test]
fn less_and_more_have_their_limits() {
    let load = "disk.randread.4k.d32";
    for (cpu, iops, expected) in [
        (4.0, 100.0, [Verdict::Missed, Verdict::Reached]),
        (3.8, 99.0, [Verdict::Reached, Verdict::Missed]),
        (3.2, 110.0, [Verdict::Goal, Verdict::Goal]),
    ] {
        let found = findings(
            load,
            &[(Metric::CpuUs, cpu, 4.0), (Metric::Iops, iops, 100.0)],
        );
        let verdicts: Vec<_> = judge(&found).iter().map(|t| t.verdict).collect();
        assert_eq!(verdicts, expected);
    }
}

#[test]
fn a_waiting_client_may_lose_a_little_of_one_for_the_other() {
    let load = "tmpfs.randread.4k.d1.wait";
    for (cpu, p50, expected) in [
        (0.9, 1.4, Verdict::Reached),
        (1.5, 0.5, Verdict::Reached),
        (0.5, 1.6, Verdict::Missed),
        (1.0, 1.0, Verdict::Missed),
    ] {
        let found = findings(
            load,
            &[(Metric::CpuUs, cpu, 1.0), (Metric::P50Us, p50, 1.0)],
        );
        assert_eq!(judge(&found)[0].verdict, expected, "{cpu} {p50}");
    }
}

#[test]
fn threads_are_compared_with_threads() {
    let load = "disk.randread.4k.d32";
    let figures = [(Metric::CpuUs, 9.0, 1.0), (Metric::Iops, 110.0, 500.0)];
    let mut found = findings(load, &figures);
    let with = |server: Server, cpu: f64, iops: f64| Row {
        load: load.to_owned(),
        storage: Storage::Disk,
        server: server.name(),
        figures: [(Metric::CpuUs, cpu), (Metric::Iops, iops)]
            .map(|(metric, value)| (metric, Summary::of(&[value]).unwrap()))
            .into(),
    };
    found.rows.push(with(Server::StandfastThreads, 9.0, 110.0));
    found.rows.push(with(Server::QemuThreads, 10.0, 120.0));
    let judged: Vec<_> = (judge(&found).into_iter())
        .filter(|target| target.name.contains("threads"))
        .map(|target| (target.value, target.verdict))
        .collect();
    assert_eq!(judged, [(0.9, Verdict::Reached), (0.92, Verdict::Missed)]);
}

/// Within a tenth of a plain file, and at most 0.7 of the rival's.
#[test]
fn a_format_costs_little_over_a_plain_file() {
    let load = "qcow2.randread.4k.d32";
    for (ours, expected) in [
        (6.5, [Verdict::Goal, Verdict::Goal]),
        (7.0, [Verdict::Goal, Verdict::Reached]),
        (7.2, [Verdict::Reached, Verdict::Reached]),
        (9.1, [Verdict::Missed, Verdict::Missed]),
    ] {
        let mut found = findings(load, &[(Metric::CpuUs, ours, 10.0)]);
        found.rows.push(Row {
            server: Server::StandfastRaw.name(),
            figures: [(Metric::CpuUs, Summary::of(&[6.0]).unwrap())].into(),
            ..found.rows[0].clone()
        });
        let verdicts: Vec<_> = judge(&found).iter().map(|t| t.verdict).collect();
        assert_eq!(verdicts, expected, "{ours}");
    }
}

#[test]
fn what_hangs_beside_may_cost_a_little() {
    let of = |name: &str, p99_us| Latency {
        name: name.to_owned(),
        p50_us: 1.0,
        p99_us,
        count: 1,
    };
    for (beside, expected) in [
        (11.0, Verdict::Goal),
        (15.0, Verdict::Reached),
        (16.0, Verdict::Missed),
    ] {
        let found = Findings {
            latencies: vec![of(ALONE, 10.0), of(BESIDE_WHAT_HANGS, beside)],
            ..Findings::default()
        };
        assert_eq!(judge(&found)[0].verdict, expected, "{beside}");
    }
}

#[test]
fn what_falls_short_is_looked_at() {
    let load = "disk.randread.4k.d32";
    let of = |iops| {
        let found = findings(
            load,
            &[(Metric::CpuUs, 5.0, 10.0), (Metric::Iops, iops, 1e4)],
        );
        let short = judge(&found)
            .iter()
            .map(Target::falls_short)
            .collect::<Vec<_>>();
        (short, found)
    };
    assert_eq!(of(1.1e4).0, [false, false]);
    assert_eq!(of(1.05e4).0, [false, true]);
    let (short, found) = of(0.9e4);
    assert_eq!(short, [false, true]);
    assert!((found.busy_percent(load).unwrap() - 4.5).abs() < 1e-9);
    let of_limit = found.of_limit_percent(load, Server::Qemu.name());
    assert_eq!(of_limit, Some([90.0, 100.0]));
    assert_eq!(found.of_limit_percent(load, "nobody"), None);
}

#[test]
fn copying_is_compared_with_plain_calls_too() {
    let load = "tmpfs.read.128k.d16";
    for (ours, limit, expected) in [
        (900.0, 1000.0, Verdict::Missed),
        (1100.0, 1300.0, Verdict::Reached),
        (1100.0, 1200.0, Verdict::Goal),
    ] {
        let figures = [(Metric::MbS, ours, 1000.0), (Metric::Iops, ours, 1000.0)];
        let mut found = findings(load, &figures);
        found.rows.push(Row {
            server: FIO,
            figures: [(Metric::Iops, Summary::of(&[limit]).unwrap())].into(),
            ..found.rows[0].clone()
        });
        assert_eq!(judge(&found)[0].verdict, expected, "{ours} {limit}");
    }
}

#[test]
fn a_limit_is_missed_on_both_sides() {
    for (ours, expected) in [
        (470.0, Verdict::Missed),
        (480.0, Verdict::Reached),
        (504.0, Verdict::Goal),
        (530.0, Verdict::Missed),
    ] {
        let found = Findings {
            throttled: vec![Throttled {
                name: "throttle".to_owned(),
                allowed: 500.0,
                ours,
                theirs: 500.0,
            }],
            ..Findings::default()
        };
        assert_eq!(judge(&found)[0].verdict, expected, "{ours}");
    }
}

#[test]
fn what_was_not_measured_is_not_judged() {
    assert!(judge(&Findings::default()).is_empty());
}

#[test]
fn policy_is_judged_in_percent() {
    let found = |stop| Instructions {
        depth: 32,
        stop,
        report: 1000.0,
        bypass: 990.0,
        qemu: 2000.0,
    };
    for (stop, expected) in [
        (1000.0, Verdict::Goal),
        (1009.0, Verdict::Reached),
        (1011.0, Verdict::Missed),
    ] {
        let found = found(stop);
        let target = policy_cost(&found, "report", found.report);
        assert_eq!(target.verdict, expected);
    }
}
