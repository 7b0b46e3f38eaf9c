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

/// The same with three significant digits, rounded, as qemu-img has it: `1.21 MiB`, `64 KiB`, `0 B`.
pub fn significant(bytes: u64) -> String {
    // From 1000 on the next unit is nearer.
    let mut unit = 0;
    while unit < UNITS.len() && bytes / 1000 >= 1 << (10 * unit) {
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let (name, shift) = (UNITS[unit - 1], 10 * unit);
    // In hundredths, tenths or units: so many that there are three digits.
    let scaled = |factor: u128| {
        let (value, half) = (u128::from(bytes) * factor, 1u128 << (shift - 1));
        let rounded = (value + half) >> shift;
        // What is exactly in the middle goes to the even one, as printf does it.
        let middle = value & ((1 << shift) - 1) == half;
        rounded - u128::from(middle && rounded % 2 == 1)
    };
    let (digits, decimals) = match (scaled(1000), scaled(100), scaled(10)) {
        (thousandths, ..) if thousandths < 1000 => (thousandths, 3),
        (_, hundredths, _) if hundredths < 1000 => (hundredths, 2),
        (_, _, tenths) if tenths < 1000 => (tenths, 1),
        _ => (scaled(1), 0),
    };
    let whole = digits / 10u128.pow(decimals);
    let rest = digits % 10u128.pow(decimals);
    let width = usize::try_from(decimals).unwrap_or(0);
    let text = format!("{whole}.{rest:0width$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let text = if decimals == 0 {
        whole.to_string()
    } else {
        text.to_owned()
    };
    format!("{text} {name}")
}

#[cfg(test)]
mod tests {
    use super::{human, significant};

    #[test]
    fn three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (64 << 10, "64 KiB"),
            (1_273_856, "1.21 MiB"),
            (700 << 20, "700 MiB"),
            (1 << 40, "1 TiB"),
            (100 << 30, "100 GiB"),
            (1000 << 30, "0.977 TiB"),
            (1 << 53, "8 PiB"),
        ] {
            assert_eq!(significant(bytes), text);
        }
    }

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
