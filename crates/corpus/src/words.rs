//! A line as words, as a shell would take it: blanks separate, quotes keep together.

use anyhow::{Result, bail};

/// The words of a line. `'...'` is taken as it is; in `"..."` a backslash takes the next character.
pub fn split(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                quoted(c, &mut rest, word)?;
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(quote: char, rest: &mut std::str::Chars<'_>, word: &mut String) -> Result<()> {
    loop {
        match rest.next() {
            None => bail!("a quote is not closed"),
            Some(c) if c == quote => return Ok(()),
            Some('\\') if quote == '"' => word.extend(rest.next()),
            Some(c) => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_a_shell() {
        assert_eq!(split("a  b\tc").unwrap(), ["a", "b", "c"]);
        assert_eq!(
            split(r#"--blockdev '{"driver": "x"}' "" "a\"b" c'd 'e"#).unwrap(),
            ["--blockdev", r#"{"driver": "x"}"#, "", "a\"b", "cd e"]
        );
        assert_eq!(split("").unwrap(), [""; 0]);
        split("a 'b").unwrap_err();
    }
}
