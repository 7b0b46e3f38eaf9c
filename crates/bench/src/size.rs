//! Sizes as they are typed: `512`, `4k`, `1M`.

/// Bytes of a size with an optional suffix `k`, `M` or `G`, powers of 1024.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("'{text}' is not a size: a number, then k, M, G or nothing"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is more than 64 bits hold"))
}

/// Bytes of one request.
///
/// # Errors
/// If it is not a size, or not one a request can have.
pub fn parse_request(text: &str) -> Result<u32, String> {
    match u32::try_from(parse(text)?) {
        Ok(bytes) if bytes % 512 == 0 && (512..=1 << 20).contains(&bytes) => Ok(bytes),
        _ => Err(format!("'{text}' is not a multiple of 512 up to 1M")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        for (text, bytes) in [("512", 512), ("4k", 4096), ("1M", 1 << 20), ("3G", 3 << 30)] {
            assert_eq!(parse(text), Ok(bytes));
        }
        for text in ["", "k", "4 k", "-1", "1T", "99999999999G"] {
            parse(text).unwrap_err();
        }
    }

    #[test]
    fn requests_are_whole_sectors() {
        assert_eq!(parse_request("128k"), Ok(131_072));
        for text in ["0", "100", "2M"] {
            parse_request(text).unwrap_err();
        }
    }
}
