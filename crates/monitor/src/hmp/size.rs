//! Sizes, as people read them.

/// Three significant digits and a unit, in powers of 1024; the next unit from 1000 on.
pub(super) fn human_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while unit + 1 < units.len() && u128::from(bytes) >= 1000u128 << (10 * unit) {
        unit += 1;
    }
    // Hundredths, tenths or units, as three digits need, rounded to nearest.
    let whole = bytes >> (10 * unit);
    let decimals: u32 = match whole {
        0..=9 => 2,
        10..=99 => 1,
        _ => 0,
    };
    let scale = 10u128.pow(decimals);
    let half = if unit == 0 {
        0
    } else {
        1u128 << (10 * unit - 1)
    };
    let scaled = (u128::from(bytes) * scale + half) >> (10 * unit);
    let (whole, fraction) = (scaled / scale, scaled % scale);
    let mut number = whole.to_string();
    if fraction > 0 {
        let digits = format!("{fraction:0width$}", width = decimals as usize);
        number.push('.');
        number.push_str(digits.trim_end_matches('0'));
    }
    format!("{number} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (12_595, "12.3 KiB"),
            (1 << 20, "1 MiB"),
            (1000 << 20, "0.98 GiB"),
            (10 << 30, "10 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
    }
}
