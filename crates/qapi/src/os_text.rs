//! File names as text. Linux has bytes there, JSON and our options have Unicode.
//!
//! A byte that is no part of valid UTF-8 becomes a character of a private use area, U+10FF80 for 0x80
//! to U+10FFFF for 0xff, and back again where a file is named. So a name survives the way through
//! options, answers of the monitor and options again, whatever its bytes are. A name that has these
//! very characters has each of their bytes replaced, so that no two names are the same text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The character that stands for byte `b` is this plus `b`.
const BASE: u32 = 0x10_ff00;

fn of_byte(byte: u8) -> char {
    // All of U+10FF00 to U+10FFFF are characters.
    char::from_u32(BASE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn to_byte(c: char) -> Option<u8> {
    let byte = u8::try_from(u32::from(c).checked_sub(BASE)?).ok()?;
    (byte >= 0x80).then_some(byte)
}

/// The text for a name.
pub fn from_os(name: &OsStr) -> String {
    if let Some(text) = name.to_str()
        && !text.chars().any(|c| to_byte(c).is_some())
    {
        return text.to_owned();
    }
    let mut text = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match to_byte(c) {
                None => text.push(c),
                Some(_) => {
                    let mut bytes = [0; 4];
                    text.extend(c.encode_utf8(&mut bytes).bytes().map(of_byte));
                }
            }
        }
        text.extend(chunk.invalid().iter().copied().map(of_byte));
    }
    text
}

/// The name that a text stands for.
pub fn to_os(text: &str) -> OsString {
    let mut name = Vec::with_capacity(text.len());
    for c in text.chars() {
        match to_byte(c) {
            Some(byte) => name.push(byte),
            None => {
                let mut bytes = [0; 4];
                name.extend_from_slice(c.encode_utf8(&mut bytes).as_bytes());
            }
        }
    }
    OsString::from_vec(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_text_stays_as_it_is() {
        for text in ["", "/srv/vm/disk.img", "/srv/Grüße", "\u{10ff00}\u{10ff7f}"] {
            assert_eq!(from_os(OsStr::new(text)), text);
            assert_eq!(to_os(text), text);
        }
    }

    #[test]
    fn what_is_none_has_a_text_of_its_own() {
        let name = OsStr::from_bytes(b"x\xff.img");
        assert_eq!(from_os(name), "x\u{10ffff}.img");
        let other = OsStr::new("x\u{10ffff}.img");
        assert_eq!(
            from_os(other),
            "x\u{10fff4}\u{10ff8f}\u{10ffbf}\u{10ffbf}.img"
        );
        assert_eq!(to_os(&from_os(other)), other);
    }

    proptest! {
        #[test]
        fn every_name_survives(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "[a\u{10ff80}-\u{10ffff}]{0,8}".prop_map(String::into_bytes),
            ]
        ) {
            let name = OsString::from_vec(bytes);
            prop_assert_eq!(to_os(&from_os(&name)), name);
        }
    }
}
