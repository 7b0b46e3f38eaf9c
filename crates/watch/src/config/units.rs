//! Sizes and times.

use std::fmt;
use std::time::Duration;

use qapi::Size;
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// Bytes: a number, or text as QEMU has it (`64M`, `1.5G`; powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// A span of time: text with a unit, `500ms`, `30s`, `5min`, `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl Visitor<'_> for Sizes {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size in bytes, such as \"64M\" or \"1.5G\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
                let size = Size::parse(text).map(|size| Bytes(size.0));
                size.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Bytes, E> {
                let size = u64::try_from(number).map(Bytes);
                size.map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Bytes, E> {
                Ok(Bytes(number))
            }
        }
        deserializer.deserialize_any(Sizes)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Spans;
        impl Visitor<'_> for Spans {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with its unit, such as \"500ms\", \"30s\", \"5min\" or \"2h\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Span, E> {
                let span = parse_span(text).map(Span);
                span.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Spans)
    }
}

/// The units, in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// A year, in milliseconds; more is a mistake.
const SPAN_MAX: u64 = 366 * 86_400_000;

fn parse_span(text: &str) -> Option<Duration> {
    let end = text.find(|char: char| !char.is_ascii_digit())?;
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let milliseconds = number.parse::<u64>().ok()?.checked_mul(*factor)?;
    (milliseconds <= SPAN_MAX).then(|| Duration::from_millis(milliseconds))
}

/// A number of bytes that is exact if it can be, for people.
pub fn human(bytes: u64) -> String {
    const NAMES: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(unit) = (0..NAMES.len())
        .rev()
        .find(|unit| bytes >> (10 * (unit + 1)) != 0)
    else {
        return format!("{bytes} B");
    };
    let shift = 10 * (unit + 1);
    let (whole, tenths) = (bytes >> shift, ((bytes >> (shift - 10)) & 1023) * 10 / 1024);
    match tenths {
        0 => format!("{whole} {}", NAMES[unit]),
        _ => format!("{whole}.{tenths} {}", NAMES[unit]),
    }
}

/// A span of time, for people.
pub fn span(span: Duration) -> String {
    let milliseconds = span.as_millis();
    let exact = |(name, factor): &(&str, u64)| {
        let factor = u128::from(*factor);
        (milliseconds != 0 && milliseconds.is_multiple_of(factor))
            .then(|| format!("{} {name}", milliseconds / factor))
    };
    let found = UNITS.iter().rev().find_map(exact);
    found.unwrap_or_else(|| "0 s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("0s", 0),
            ("30s", 30_000),
            ("5min", 300_000),
            ("5 min", 300_000),
            ("2h", 7_200_000),
            ("366d", SPAN_MAX),
        ] {
            assert_eq!(
                parse_span(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "30",
            "30 ",
            "-1s",
            "1.5s",
            "30sec",
            "367d",
            "99999999999999999999s",
        ] {
            assert_eq!(parse_span(text), None, "{text}");
        }
    }

    #[test]
    fn words_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (2 << 30, "2 GiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
        for (milliseconds, text) in [
            (0, "0 s"),
            (500, "500 ms"),
            (90_000, "90 s"),
            (120_000, "2 min"),
        ] {
            assert_eq!(span(Duration::from_millis(milliseconds)), text);
        }
    }
}
