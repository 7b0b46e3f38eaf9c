//! A line, taken apart from left to right, as QEMU does it.

/// A word that has no end, or an escape that there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What has been read of a line, and what has not.
#[derive(Debug)]
pub(super) struct Line<'a> {
    whole: &'a str,
    rest: &'a str,
}

impl<'a> Line<'a> {
    pub(super) fn new(whole: &'a str) -> Self {
        Self { whole, rest: whole }
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// The next word as it stands: commands have no quotes. Empty at the end.
    pub(super) fn name(&mut self) -> &'a str {
        self.skip_blanks();
        let end = self.rest.find(char::is_whitespace);
        let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        name
    }

    /// What has been read so far, with the blanks before it.
    pub(super) fn said(&self) -> &'a str {
        &self.whole[..self.whole.len() - self.rest.len()]
    }

    /// All that has not been read, as it stands.
    pub(super) fn rest(&mut self) -> &'a str {
        std::mem::take(&mut self.rest).trim()
    }

    /// Whether there is nothing more.
    pub(super) fn is_at_end(&mut self) -> bool {
        self.skip_blanks();
        self.rest.is_empty()
    }

    /// Whether the flag `-letter` is next, which is read then. Of other flags only the `later` ones may be
    /// there. The error: which one there is not.
    pub(super) fn flag(&mut self, letter: char, later: &str) -> Result<bool, String> {
        self.skip_blanks();
        let Some(behind) = self.rest.strip_prefix('-') else {
            return Ok(false);
        };
        let said = behind.chars().next();
        if said == Some(letter) {
            self.rest = &behind[letter.len_utf8()..];
            return Ok(true);
        }
        match said {
            Some(said) if later.contains(said) => Ok(false),
            said => Err(said.map(String::from).unwrap_or_default()),
        }
    }

    /// The next word, if there is one; in double quotes it may contain blanks and escapes.
    pub(super) fn word(&mut self) -> Result<Option<String>, Malformed> {
        self.skip_blanks();
        let Some(quoted) = self.rest.strip_prefix('"') else {
            let name = self.name();
            return Ok((!name.is_empty()).then(|| name.to_owned()));
        };
        let mut word = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next().ok_or(Malformed)? {
                '"' => break,
                '\\' => word.push(match chars.next() {
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some(c @ ('\\' | '\'' | '"')) => c,
                    _ => return Err(Malformed),
                }),
                c => word.push(c),
            }
        }
        self.rest = chars.as_str();
        Ok(Some(word))
    }

    /// All words that follow.
    pub(super) fn words(&mut self) -> Result<Vec<String>, Malformed> {
        std::iter::from_fn(|| self.word().transpose()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, Malformed};

    #[test]
    fn words_and_quotes() {
        let words = |line| Line::new(line).words();
        let ok = |line| words(line).unwrap();
        assert_eq!(ok("  info \t status "), ["info", "status"]);
        assert_eq!(ok(r#"info block "a \"b\\""#), ["info", "block", r#"a "b\"#]);
        assert_eq!(ok(r#"a"b c"#), [r#"a"b"#, "c"], "a quote begins a word");
        assert!(ok(" ").is_empty());
        for line in ["info block \"d0", r#""\x""#, "\"a\\"] {
            assert_eq!(words(line), Err(Malformed), "{line}");
        }
    }

    #[test]
    fn names_have_no_quotes() {
        let mut line = Line::new(" info  \"a b\" ");
        assert_eq!((line.name(), line.name()), ("info", "\"a"));
        assert_eq!(line.said(), " info  \"a");
        assert_eq!(line.rest(), "b\"");
        assert_eq!((line.name(), line.is_at_end()), ("", true));
    }

    /// The order of flags is fixed, and each is a word of its own.
    #[test]
    fn flags() {
        for (line, first, second, rest) in [
            ("", Ok(false), Ok(false), ""),
            ("-n -v a", Ok(true), Ok(true), "a"),
            ("-v a", Ok(false), Ok(true), "a"),
            ("-v -n", Ok(false), Ok(true), "-n"),
            ("-nv a", Ok(true), Ok(false), "v a"),
            ("-n -n", Ok(true), Err("n".to_owned()), "-n"),
            ("-x", Err("x".to_owned()), Err("x".to_owned()), "-x"),
            ("-", Err(String::new()), Err(String::new()), "-"),
            ("a -n", Ok(false), Ok(false), "a -n"),
        ] {
            let mut parsed = Line::new(line);
            assert_eq!(parsed.flag('n', "v"), first, "{line}");
            assert_eq!(parsed.flag('v', ""), second, "{line}");
            assert_eq!(parsed.rest(), rest, "{line}");
        }
    }
}
