//! A line, as words.

/// Splits a line into words; a word in double quotes may contain blanks and escapes.
pub(super) fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        match chars.peek() {
            None => return Ok(words),
            Some('"') => {
                chars.next();
                let mut word = String::new();
                loop {
                    match chars.next() {
                        None => return Err("unterminated string\n".to_owned()),
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some('n') => word.push('\n'),
                            Some('r') => word.push('\r'),
                            Some(c @ ('\\' | '\'' | '"')) => word.push(c),
                            Some(c) => return Err(format!("unsupported escape code: '\\{c}'\n")),
                            None => return Err("unterminated string\n".to_owned()),
                        },
                        Some(c) => word.push(c),
                    }
                }
                words.push(word);
            }
            Some(_) => {
                let mut word = String::new();
                while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_and_quotes() {
        let ok = |line| words(line).unwrap();
        assert_eq!(ok("  info \t status "), ["info", "status"]);
        assert_eq!(ok(r#"info block "a \"b\\""#), ["info", "block", r#"a "b\"#]);
        assert!(ok(" ").is_empty());
        assert_eq!(
            words("info block \"d0").unwrap_err(),
            "unterminated string\n"
        );
        assert_eq!(
            words(r#""\x""#).unwrap_err(),
            "unsupported escape code: '\\x'\n"
        );
    }
}
