use super::*;

#[test]
fn sums_over_parts_and_classes() {
    let accounting = Accounting::default();
    assert_eq!(
        accounting.read().idle,
        None,
        "idle time is absent before the first access"
    );
    let (a, b) = (accounting.register(), accounting.register());
    let round = Round::default();
    a.done(Operation::Write, 4096);
    let start = Instant::now();
    round.begin(start);
    round.add(Operation::Write);
    round.add(Operation::Write);
    assert_eq!(a.invalid(Operation::Read), Counts::Access);
    let end = start + Duration::from_nanos(250);
    a.settle(&round, end);
    assert!(round.is_empty());
    a.settle(&round, end);
    let unmap = Operation::WriteZeroes { unmap: true };
    b.done(unmap, 512);
    b.took(unmap, start, start + Duration::from_nanos(500));
    assert_eq!(b.failed(Operation::Discard), Counts::All);
    a.held();
    a.unheld(Duration::from_nanos(70));
    let sum = accounting.read();
    assert_eq!(
        (sum.wr.bytes, sum.wr.operations, sum.wr.total_time_ns),
        (4608, 2, 1000),
        "write-zeroes count as writes"
    );
    assert_eq!((sum.unmap.failed, sum.unmap.operations), (1, 0));
    assert_eq!((sum.rd.invalid, sum.rd.operations), (1, 0));
    assert_eq!((sum.holds, sum.hold_time_ns), (1, 70));
    assert!(sum.idle.is_some());
}

#[test]
fn what_has_ended_stays_counted_once() {
    let accounting = Accounting::default();
    let start = Instant::now();
    let (a, b) = (accounting.register(), accounting.register());
    a.done(Operation::Read, 512);
    a.held();
    let late = start + Duration::from_secs(3600);
    a.accessed(late);
    b.done(Operation::Read, 1024);
    b.accessed(start);
    for live in [1, 1, 0] {
        let before = accounting.read();
        // Twice: the second time nothing is left to count.
        accounting.retire(if live == 1 { &a } else { &b });
        assert_eq!(accounting.live(), live);
        let after = accounting.read();
        assert_eq!((before.rd, before.holds), (after.rd, after.holds));
        assert_eq!((after.rd.bytes, after.rd.operations), (1536, 2));
        assert_eq!(after.idle, Some(Duration::ZERO), "the last access of all");
    }
    accounting.register().attempt();
    assert_eq!((accounting.read().attempts, accounting.live()), (1, 1));
}

#[test]
fn counting_goes_on_where_a_former_daemon_was() {
    let before = BackendStats {
        attempts: 7,
        holds: u64::MAX,
        idle: Some(Duration::ZERO),
        ..BackendStats::default()
    };
    let accounting = Accounting::starting_from(before);
    assert_eq!(accounting.read().idle, None);
    let local = accounting.register();
    local.attempt();
    local.held();
    let sum = accounting.read();
    assert_eq!((sum.attempts, sum.holds), (8, u64::MAX));
}

fn bins(accounting: &Accounting, kind: HistogramKind) -> Option<Vec<u64>> {
    let histogram = accounting.accounted().histograms[kind as usize].take();
    histogram.map(|histogram| histogram.bins().to_vec())
}

#[test]
fn histograms_are_of_all_parts_that_there_have_been() {
    let accounting = Accounting::default();
    let a = accounting.register();
    let start = Instant::now();
    let after = |ns| start + Duration::from_nanos(ns);
    // Nobody wants it yet.
    a.took(Operation::Read, start, after(5));
    assert_eq!(bins(&accounting, HistogramKind::Read), None);
    let boundaries = Boundaries::new(&[10, 20]);
    let kinds = [HistogramKind::Read, HistogramKind::Write];
    accounting.set_histograms(&kinds.map(|kind| (kind, boundaries.clone())));
    let b = accounting.register();
    for stats in [&a, &b] {
        stats.took(Operation::Read, start, after(10));
        stats.took(Operation::Discard, start, after(10));
        let round = Round::default();
        round.begin(start);
        round.add(Operation::Write);
        round.add(Operation::Write);
        stats.settle(&round, after(30));
    }
    accounting.retire(&a);
    assert_eq!(bins(&accounting, HistogramKind::Read), Some(vec![0, 2, 0]));
    assert_eq!(bins(&accounting, HistogramKind::Write), Some(vec![0, 0, 4]));
    assert_eq!(bins(&accounting, HistogramKind::Flush), None);
    // Set again, they begin anew, what has ended included.
    accounting.set_histograms(&[(HistogramKind::Read, boundaries)]);
    assert_eq!(bins(&accounting, HistogramKind::Read), Some(vec![0, 0, 0]));
    accounting.set_histograms(&kinds.map(|kind| (kind, None)));
    assert!(!b.observes());
    assert_eq!(bins(&accounting, HistogramKind::Write), None);
}

#[test]
fn what_counts_of_failures_is_told() {
    for failed in [true, false] {
        let accounting = Accounting::default();
        accounting.configure(AccountingOptions {
            failed,
            invalid: false,
            intervals: [60].into(),
        });
        accounting.set_histograms(&[(HistogramKind::Read, Boundaries::new(&[10]))]);
        let local = accounting.register();
        let start = Instant::now();
        let now = start + Duration::from_nanos(40);
        assert_eq!(local.invalid(Operation::Read), Counts::Nothing);
        match local.failed(Operation::Read) {
            Counts::All => local.took(Operation::Read, start, now),
            Counts::Histogram => local.took_unaccounted(Operation::Read, start, now),
            other => panic!("{other:?}"),
        }
        let sum = accounting.read();
        assert_eq!((sum.rd.failed, sum.rd.invalid), (1, 1));
        assert_eq!(sum.rd.total_time_ns, if failed { 40 } else { 0 });
        assert_eq!(sum.idle.is_some(), failed);
        assert_eq!(bins(&accounting, HistogramKind::Read), Some(vec![0, 1]));
        let accounted = accounting.accounted();
        let interval = &accounted.intervals[0];
        assert_eq!((interval.seconds, interval.wr.max_ns), (60, 0));
        assert_eq!(interval.rd.max_ns, if failed { 40 } else { 0 });
        // What has ended is still of the interval.
        accounting.retire(&local);
        let rd = accounting.accounted().intervals[0].rd;
        assert_eq!(rd.average_ns, interval.rd.average_ns);
    }
}
