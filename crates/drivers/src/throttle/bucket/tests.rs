use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn rate(average: u64, max: u64, max_length: u32) -> Rate {
    Rate {
        average,
        max,
        max_length,
    }
}

fn bps(bps_total: Rate) -> ThrottleLimits {
    ThrottleLimits {
        bps_total,
        ..ThrottleLimits::default()
    }
}

/// Somebody who always wants more: when each of his requests of `bytes` begins, for as long as `length`.
fn greedy(limits: ThrottleLimits, kind: Kind, bytes: u64, length: Duration) -> Vec<Duration> {
    let start = Instant::now();
    let mut budget = Budget::new(limits, start);
    let (mut now, mut begun) = (start, Vec::new());
    loop {
        match budget.wait(kind, now) {
            None => {
                budget.take(kind, bytes);
                begun.push(now - start);
            }
            Some(wait) => now += wait,
        }
        if now - start > length {
            return begun;
        }
    }
}

fn before(begun: &[Duration], end: Duration) -> u64 {
    begun.iter().filter(|at| **at < end).count() as u64
}

#[test]
fn the_average_after_a_tenth_of_a_second_at_once() {
    let begun = greedy(bps(rate(100_000, 0, 1)), Kind::Read, 1000, 10 * SECOND);
    // The bucket is 10,000 large, and takes the one more that fills it beyond.
    assert_eq!(before(&begun, Duration::from_nanos(1)), 11);
    for seconds in [1, 5, 10] {
        let done = before(&begun, seconds * SECOND) * 1000;
        let allowed = 100_000 * u64::from(seconds);
        assert!((allowed..=allowed + 11_000).contains(&done), "{done}");
    }
}

#[test]
fn a_burst_of_a_second_is_done_at_once() {
    let begun = greedy(bps(rate(1000, 50_000, 1)), Kind::Write, 1000, 20 * SECOND);
    assert_eq!(before(&begun, Duration::from_nanos(1)), 51);
    assert_eq!(before(&begun, 20 * SECOND), 51 + 19, "then one a second");
}

#[test]
fn a_longer_burst_has_its_own_rate() {
    let limits = bps(rate(10_000, 50_000, 4));
    let begun = greedy(limits, Kind::Read, 500, 60 * SECOND);
    for seconds in 1..=4 {
        let done = before(&begun, seconds * SECOND) * 500;
        let allowed = 50_000 * u64::from(seconds);
        assert!(
            (allowed..=allowed + 6000).contains(&done),
            "{seconds}: {done}"
        );
    }
    // 200,000 and what leaks meanwhile: 5 s at 50,000; then the average.
    for seconds in [5, 10, 60] {
        let done = before(&begun, seconds * SECOND) * 500;
        let allowed = 200_000 + 10_000 * u64::from(seconds);
        assert!(
            (allowed - 1000..=allowed + 6000).contains(&done),
            "{seconds}: {done}"
        );
    }
}

#[test]
fn a_rest_gives_a_burst_back_and_no_more() {
    let limits = bps(rate(1000, 5000, 1));
    let start = Instant::now();
    let mut budget = Budget::new(limits, start);
    let mut now = start;
    for _ in 0..3 {
        let mut done = 0;
        while budget.wait(Kind::Read, now).is_none() {
            budget.take(Kind::Read, 1000);
            done += 1;
        }
        assert_eq!(done, 6);
        now += 100 * SECOND;
    }
}

#[test]
fn an_operation_counts_as_one_or_by_its_size() {
    let limits = |iops_size| ThrottleLimits {
        iops_write: rate(10, 0, 1),
        iops_size,
        ..ThrottleLimits::default()
    };
    for (iops_size, bytes, wait) in [
        (0, 1 << 30, 0.0),
        (4096, 512, 0.0),
        (4096, 4096, 0.0),
        (4096, 40_960, 0.9),
    ] {
        let start = Instant::now();
        let mut budget = Budget::new(limits(iops_size), start);
        budget.take(Kind::Write, bytes);
        let got = budget.wait(Kind::Write, start).unwrap_or_default();
        assert!((got.as_secs_f64() - wait).abs() < 1e-6, "{got:?} {wait}");
        assert_eq!(budget.wait(Kind::Read, start), None, "reads are free");
    }
}

#[test]
fn each_direction_has_its_limits_and_the_total_is_of_both() {
    let start = Instant::now();
    let own = ThrottleLimits {
        bps_read: rate(10, 0, 1),
        iops_write: rate(10, 0, 1),
        ..ThrottleLimits::default()
    };
    let mut budget = Budget::new(own, start);
    assert!(budget.is_limited(Kind::Read) && budget.is_limited(Kind::Write));
    budget.take(Kind::Read, 1000);
    assert_eq!(budget.wait(Kind::Write, start), None);
    let wait = budget.wait(Kind::Read, start).expect("it waits");
    assert!((99.0..100.0).contains(&wait.as_secs_f64()));
    let mut budget = Budget::new(bps(rate(10, 0, 1)), start);
    budget.take(Kind::Read, 1000);
    assert!(budget.wait(Kind::Write, start).is_some());
    let read = ThrottleLimits {
        bps_read: rate(1, 0, 1),
        ..ThrottleLimits::default()
    };
    assert!(!Budget::new(read, start).is_limited(Kind::Write));
    assert!(!Budget::new(ThrottleLimits::default(), start).is_limited(Kind::Read));
}

#[test]
fn what_is_given_back_was_not_done() {
    let start = Instant::now();
    let limits = bps(rate(100, 1000, 20));
    let mut budget = Budget::new(limits, start);
    budget.take(Kind::Write, 100_000);
    assert!(budget.wait(Kind::Write, start).is_some());
    budget.give_back(Kind::Write, 100_000);
    assert_eq!(budget.wait(Kind::Write, start), None);
    // Not more than nothing was done.
    budget.give_back(Kind::Write, 100_000);
    budget.take(Kind::Write, 100_000);
    assert!(budget.wait(Kind::Write, start).is_some());
}

#[test]
fn a_clock_that_stands_still_or_goes_back_gives_nothing() {
    let start = Instant::now();
    let mut budget = Budget::new(bps(rate(10, 0, 1)), start + SECOND);
    budget.take(Kind::Read, 100);
    let wait = budget.wait(Kind::Read, start + SECOND);
    assert_eq!(budget.wait(Kind::Read, start), wait);
    assert_eq!(budget.wait(Kind::Read, start + SECOND), wait);
}

proptest! {
    /// Whatever the sizes and pauses: never more than the average and a bucket allow, never faster than the
    /// rate of bursts; and who waits as long as he is told to may go.
    #[test]
    fn never_more_than_allowed(
        average in 1u64..1_000_000,
        more in 0u64..10_000_000,
        max_length in 1u32..20,
        bursts: bool,
        requests in prop::collection::vec((1u64..2_000_000, 0u64..3_000_000), 1..80),
    ) {
        let rate = match bursts {
            false => rate(average, 0, 1),
            true => rate(average, average + more, max_length),
        };
        let limits = bps(rate);
        prop_assert!(limits.check().is_ok());
        let start = Instant::now();
        let mut now = start;
        let mut budget = Budget::new(limits, start);
        let (mut done, mut last) = (0.0, 0.0);
        for (bytes, pause) in requests {
            now += Duration::from_micros(pause);
            if let Some(wait) = budget.wait(Kind::Read, now) {
                now += wait;
                let left = budget.wait(Kind::Read, now).unwrap_or_default();
                prop_assert!(left < Duration::from_micros(1), "{left:?} too early");
                now += left;
            }
            let seconds = (now - start).as_secs_f64();
            let size = match rate.max {
                0 => as_float(average) * AT_ONCE,
                max => as_float(max) * f64::from(max_length),
            };
            let allowed = size + as_float(average) * seconds;
            prop_assert!(done - allowed <= 1e-6 * allowed.max(1.0), "{done} of {allowed}");
            if rate.max_length > 1 {
                let allowed = as_float(rate.max) * (AT_ONCE + seconds);
                prop_assert!(done - allowed <= 1e-6 * allowed.max(1.0), "{done} of {allowed}");
            }
            budget.take(Kind::Read, bytes);
            done += as_float(bytes);
            last = as_float(bytes);
        }
        prop_assert!(last > 0.0);
    }

    /// Who always wants more gets all that there is.
    #[test]
    fn never_less_than_allowed(average in 1000u64..100_000, bytes in 50u64..5000) {
        let length = 4 * SECOND;
        let begun = greedy(bps(rate(average, 0, 1)), Kind::Write, bytes, length);
        let done = as_float(before(&begun, length) * bytes);
        prop_assert!(done >= as_float(average) * 4.0, "{done} of {average}");
    }
}
