//! How what others have written is shown on a terminal, which obeys control characters: names in images, and what errors
//! say of them. Pure.

/// A name, with escapes (`\u{1b}`) for control characters.
pub fn name(text: &str) -> String {
    escaped(text, |_| false)
}

/// An error: its lines stay, and there is no number of the system's behind its words, as in messages of the daemon.
pub fn error(text: &str) -> String {
    let mut all = escaped(text, |letter| letter == '\n');
    while let Some(begin) = all.find(NUMBER) {
        let rest = all.get(begin + NUMBER.len()..).unwrap_or_default();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if rest.as_bytes().get(digits) != Some(&b')') {
            break;
        }
        all.replace_range(begin..=begin + NUMBER.len() + digits, "");
    }
    all
}

/// What stands before the number.
const NUMBER: &str = " (os error ";

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut all = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() && !stays(letter) {
            true => all.extend(letter.escape_default()),
            false => all.push(letter),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{error, name};

    /// A foreign image could clear the screen of whoever looked at it, or write what was never found.
    #[test]
    fn no_terminal_obeys_a_name() {
        assert_eq!(name("base.\u{e9}\\x"), "base.\u{e9}\\x");
        assert_eq!(name("a\u{1b}[2J\nb\u{9b}"), r"a\u{1b}[2J\nb\u{9b}");
        assert_eq!(error("a\r\nb"), "a\\r\nb");
    }

    #[test]
    fn errors_have_no_numbers() {
        for (text, shown) in [
            (
                "x: No such file or directory (os error 2)",
                "x: No such file or directory",
            ),
            ("y (os error 13): z (os error 5)", "y: z"),
            ("z (os error", "z (os error"),
            ("z (os error x)", "z (os error x)"),
            ("z (os error 1", "z (os error 1"),
        ] {
            assert_eq!(error(text), shown);
        }
    }
}
