//! Sizes, for people.

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A number of bytes with a unit that keeps it short: `512 B`, `40 MiB`, `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    let Some(unit) = (0..UNITS.len())
        .rev()
        .find(|&n| bytes >> (10 * (n + 1)) != 0)
    else {
        return format!("{bytes} B");
    };
    let shift = 10 * (unit + 1);
    let whole = bytes >> shift;
    // Tenths, cut off: never more than there is.
    let tenth = ((bytes >> (shift - 10)) & 1023) * 10 / 1024;
    match tenth {
        0 => format!("{whole} {}", UNITS[unit]),
        _ => format!("{whole}.{tenth} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn table() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (40 << 20, "40 MiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
