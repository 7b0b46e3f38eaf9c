//! The list of an image's internal snapshots, as QEMU prints it. Times are UTC.

use std::fmt::Write;

use qapi::types::SnapshotInfo;

use super::size::human_size;

/// Prints the list.
pub(super) fn list(out: &mut String, snapshots: &[SnapshotInfo]) {
    let mut line = |[id, tag, size, date, clock, icount]: [&str; 6]| {
        // Printing to a string cannot fail.
        let _ = writeln!(
            out,
            "{id:<10}{tag:<17}{size:>8}{date:>20}{clock:>13}{icount:>11}"
        );
    };
    line(["ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT"]);
    for one in snapshots {
        let size = human_size(u64::try_from(one.vm_state_size).unwrap_or(0));
        let clock = one.vm_clock_sec;
        let clock = format!(
            "{:02}:{:02}:{:02}.{:03}",
            clock / 3600,
            clock / 60 % 60,
            clock % 60,
            one.vm_clock_nsec / 1_000_000
        );
        let icount = one.icount.map(|count| count.to_string());
        let (date, icount) = (date(one.date_sec), icount.unwrap_or_default());
        line([&one.id, &one.name, &size, &date, &clock, &icount]);
    }
}

/// Seconds since 1970, which is not before that.
fn date(seconds: i64) -> String {
    const DAY: i64 = 86400;
    // Years begin with March here, so that the odd day is the last one; 400 of them have always as many days.
    let days = seconds / DAY + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let is_next = month > 9;
    let month = if is_next { month - 9 } else { month + 3 };
    let year = year + 400 * era + i64::from(is_next);
    let rest = seconds % DAY;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `date -u -d @SECONDS` says.
    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (68_169_599, "1972-02-28 23:59:59"),
            (68_169_600, "1972-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_767_225_599, "2025-12-31 23:59:59"),
            (1_795_864_541, "2026-11-28 11:15:41"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (4_294_967_295, "2106-02-07 06:28:15"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    /// What qemu-img 7.2 prints of the same.
    #[test]
    fn a_list() {
        let one = SnapshotInfo {
            id: "1".to_owned(),
            name: "before the update".to_owned(),
            vm_state_size: 3 << 20,
            date_sec: 1_795_864_541,
            date_nsec: 5,
            vm_clock_sec: 3723,
            vm_clock_nsec: 45_000_000,
            icount: None,
        };
        let mut out = String::new();
        list(&mut out, &[one]);
        let expected = "\
ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT
1         before the update   3 MiB 2026-11-28 11:15:41 01:02:03.045           
";
        assert_eq!(out, expected);
    }
}
