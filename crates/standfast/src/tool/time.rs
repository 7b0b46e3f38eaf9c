//! Points in time and spans, for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use qapi::types::Timestamp;

/// UTC with milliseconds, as RFC 3339 has it; `-` if the time is not known.
pub fn utc(at: &Timestamp) -> String {
    let nanoseconds = i32::try_from(at.microseconds.saturating_mul(1000));
    let time = match nanoseconds {
        Ok(nanoseconds @ 0..) => jiff::Timestamp::new(at.seconds, nanoseconds).ok(),
        _ => None,
    };
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"))
}

/// How long ago that was: `12 s`, `3 min 20 s`, `2 h 5 min`, `4 d 2 h`.
pub fn ago(at: &Timestamp) -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = u64::try_from(at.seconds).map(Duration::from_secs);
    let span = match (since_epoch, at) {
        (Ok(now), Ok(at)) => now.saturating_sub(at),
        _ => Duration::ZERO,
    };
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> String {
        utc(&Timestamp {
            seconds,
            microseconds: 42_999,
        })
    }

    #[test]
    fn utc_knows_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (-1, "1969-12-31T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_164_799, "2024-02-28T23:59:59"),
            (1_709_164_800, "2024-02-29T00:00:00"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (1_795_384_279, "2026-11-22T21:51:19"),
        ] {
            assert_eq!(at(seconds), format!("{text}.042Z"), "{seconds}");
        }
    }

    #[test]
    fn unknown_time() {
        assert_eq!(
            utc(&Timestamp {
                seconds: -1,
                microseconds: -1
            }),
            "-"
        );
    }

    #[test]
    fn spans_are_short() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let ago_of = |seconds: u64| {
            let then = now.as_secs() - seconds;
            let text = ago(&Timestamp {
                seconds: i64::try_from(then).unwrap(),
                microseconds: 0,
            });
            text.split(' ')
                .skip(1)
                .step_by(2)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(ago_of(2), "s");
        assert_eq!(ago_of(125), "min s");
        assert_eq!(ago_of(7300), "h min");
        assert_eq!(ago_of(200_000), "d h");
        // A clock that was set back does not make it wrap around.
        assert_eq!(
            ago(&Timestamp {
                seconds: i64::MAX,
                microseconds: 0
            }),
            "0 s"
        );
    }
}
