//! Base64 (RFC 4648), as `ringbuf-read` and `ringbuf-write` have it. Pure.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// With padding.
pub fn encode(data: &[u8]) -> String {
    let mut text = String::with_capacity(data.len().div_ceil(3) * 4);
    for chunk in data.chunks(3) {
        let mut bits = 0;
        for n in 0..3 {
            bits = bits << 8 | u32::from(chunk.get(n).copied().unwrap_or(0));
        }
        for n in 0..4 {
            let place = bits >> (18 - 6 * n) & 63;
            let letter = ALPHABET.get(place as usize).copied().unwrap_or(b'=');
            text.push(if n <= chunk.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

/// Line breaks are skipped, as in QEMU, and what comes after the last whole byte is lost. None: it has
/// other characters.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(text.len() / 4 * 3);
    let mut bits: u32 = 0;
    let mut count: usize = 0;
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' | b'\n' | b'\r' => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 1;
        if count == 4 {
            data.extend_from_slice(&bits.to_be_bytes()[1..]);
            (bits, count) = (0, 0);
        }
    }
    // Two characters have a byte and some more, three have two.
    if count >= 2 && text.contains('=') {
        let bytes = (bits << (24 - 6 * count)).to_be_bytes();
        data.extend_from_slice(&bytes[1..count]);
    }
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (data, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"hello", "aGVsbG8="),
            (b"\xff\xfe\xfd", "//79"),
        ] {
            assert_eq!(encode(data), text);
            assert_eq!(decode(text).as_deref(), Some(data), "{text}");
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
    }

    #[test]
    fn what_is_odd() {
        assert_eq!(decode("!!"), None);
        assert_eq!(decode("aGVs\n").as_deref(), Some(&b"hel"[..]));
        // As QEMU's: without its padding the last group does not count.
        assert_eq!(decode("aGV").as_deref(), Some(&b""[..]));
    }
}
