//! Sizes in bytes, with suffixes on the command line.

use serde::{Deserialize, Serialize};

/// A number of bytes. In keyval options it takes a suffix (`64K`, `1.5G`); in JSON it is a plain
/// integer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Size(
    /// Bytes.
    pub u64,
);

impl Size {
    /// Parses a size: decimal with an optional fraction, or hexadecimal; then optionally one of
    /// B K M G T P E (powers of 1024, any case). A fraction needs a suffix above B. `None` if the
    /// text is anything else or the result exceeds 64 bits.
    pub fn parse(text: &str) -> Option<Size> {
        let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
        let text = text.strip_prefix('+').unwrap_or(text);
        let (number, shift) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            // B and E are hexadecimal digits, so they are never suffixes here.
            Some(hex) => {
                let end = hex
                    .find(|c: char| !c.is_ascii_hexdigit())
                    .unwrap_or(hex.len());
                let number = u64::from_str_radix(&hex[..end], 16).ok()?;
                return number.checked_mul(1 << suffix(&hex[end..])?).map(Size);
            }
            None => {
                let end = text
                    .find(|c: char| !c.is_ascii_digit() && c != '.')
                    .unwrap_or(text.len());
                (&text[..end], suffix(&text[end..])?)
            }
        };
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (number, None),
        };
        if whole.is_empty() && fraction.is_none_or(str::is_empty) {
            return None;
        }
        let whole = if whole.is_empty() {
            0
        } else {
            whole.parse::<u64>().ok()?
        };
        let bytes = whole.checked_mul(1 << shift)?;
        match fraction {
            None => Some(Size(bytes)),
            Some(_) if shift == 0 => None,
            Some(digits) => bytes.checked_add(part(digits, shift)?).map(Size),
        }
    }
}

/// The power of two a suffix stands for.
fn suffix(text: &str) -> Option<u32> {
    match text.as_bytes() {
        [] | [b'b' | b'B'] => Some(0),
        [b'k' | b'K'] => Some(10),
        [b'm' | b'M'] => Some(20),
        [b'g' | b'G'] => Some(30),
        [b't' | b'T'] => Some(40),
        [b'p' | b'P'] => Some(50),
        [b'e' | b'E'] => Some(60),
        _ => None,
    }
}

/// `0.<digits> * 2^shift`, rounded down. Digits beyond the eighteenth are below one byte.
fn part(digits: &str, shift: u32) -> Option<u64> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = &digits[..digits.len().min(18)];
    if digits.is_empty() {
        return Some(0);
    }
    let scale = 10u128.pow(u32::try_from(digits.len()).ok()?);
    u64::try_from((digits.parse::<u128>().ok()? << shift) / scale).ok()
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            (" 7", Some(7)),
            ("+7", Some(7)),
            ("1k", Some(1024)),
            ("1.5K", Some(1536)),
            (".5M", Some(512 << 10)),
            ("2.G", Some(2 << 30)),
            ("0x10", Some(16)),
            ("0x1K", Some(1024)),
            ("0x1E", Some(0x1e)),
            ("1B", Some(1)),
            ("15E", Some(15 << 60)),
            ("18446744073709551615", Some(u64::MAX)),
            ("16E", None),
            ("18446744073709551616", None),
            ("1.5", None),
            ("1.5B", None),
            ("-1", None),
            ("", None),
            (".", None),
            ("K", None),
            ("1Z", None),
            ("1KB", None),
            ("1.2.3K", None),
            ("0x", None),
            ("0x1.5K", None),
            ("1 K", None),
        ] {
            assert_eq!(Size::parse(text), bytes.map(Size), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn total(text in any::<String>()) {
            let _ = Size::parse(&text);
        }

        #[test]
        fn round_trip(bytes in any::<u64>()) {
            prop_assert_eq!(Size::parse(&bytes.to_string()), Some(Size(bytes)));
            prop_assert_eq!(Size::parse(&format!("{bytes:#x}")), Some(Size(bytes)));
        }
    }
}
