//! What is wrong with a configuration.

use std::path::{Path, PathBuf};

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", path.as_ref().map(|path| format!("{}: ", path.display())).unwrap_or_default())]
pub struct ConfigError {
    path: Option<PathBuf>,
    why: String,
}

impl ConfigError {
    /// With the reason.
    pub(super) fn new(why: String) -> Self {
        Self { path: None, why }
    }

    /// In that file.
    pub(super) fn of(self, path: &Path) -> Self {
        Self {
            path: Some(path.to_owned()),
            ..self
        }
    }

    /// What the parser of TOML says, with the nearest name that there is.
    pub(super) fn toml(error: &toml::de::Error) -> Self {
        let mut why = error.to_string().trim_end().to_owned();
        if let Some(name) = nearest(error.message()) {
            why.push_str(&format!("\ndid you mean '{name}'?"));
        }
        Self::new(why)
    }
}

/// Of the names that serde lists behind one that it does not know, the one that is most like it.
fn nearest(message: &str) -> Option<&str> {
    let rest = message
        .strip_prefix("unknown field `")
        .or_else(|| message.strip_prefix("unknown variant `"))?;
    let mut words = rest.split('`').step_by(2);
    let unknown = words.next()?;
    let known = rest.split('`').skip(2).step_by(2);
    let ranked = known.map(|known| (distance(unknown, known), known));
    // More than half of it wrong is another word.
    let (far, name) = ranked.min_by_key(|(distance, _)| *distance)?;
    (far * 2 <= unknown.chars().count().max(name.len())).then_some(name)
}

/// How many characters have to be added, removed or replaced.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, char) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, with) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(char != *with);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (one, other, expected) in [
            ("", "", 0),
            ("step", "step", 0),
            ("stp", "step", 1),
            ("setp", "step", 2),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }

    #[test]
    fn only_what_is_alike_is_meant() {
        let message =
            |word: &str| format!("unknown field `{word}`, expected one of `step`, `strategy`");
        assert_eq!(nearest(&message("stepp")), Some("step"));
        assert_eq!(nearest(&message("stratgey")), Some("strategy"));
        assert_eq!(nearest(&message("xxxxxx")), None);
        assert_eq!(nearest("unknown field `a`, there are no fields"), None);
        assert_eq!(nearest("something else"), None);
    }
}
