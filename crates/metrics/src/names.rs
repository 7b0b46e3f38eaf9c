//! Names, as Prometheus wants them.

/// The base units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nothing that has a unit: a number of things.
    None,
    /// Seconds; parts of them as fractions.
    Seconds,
    /// Bytes.
    Bytes,
    /// A part of a whole, 0 to 1.
    Ratio,
}

impl Unit {
    /// Its name, which is a part of a metric's.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Seconds => Some("seconds"),
            Self::Bytes => Some("bytes"),
            Self::Ratio => Some("ratio"),
        }
    }
}

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not lower-case letters, digits and underscores, or not with a letter first.
    #[error("metric '{0}': use lower-case letters, digits and single underscores, a letter first")]
    Characters(String),
    /// The registry puts it there.
    #[error("metric '{0}': leave out '{1}', which is added")]
    Added(String, &'static str),
    /// Values have base units.
    #[error("metric '{0}': '{1}' is no base unit; use seconds, bytes or ratio")]
    Unit(String, &'static str),
    /// There is one of that name.
    #[error("metric '{0}' is registered already")]
    Taken(String),
    /// The help is one line, which ends without a full stop, because one is added.
    #[error("metric '{0}': the help must be one line without full stop at its end")]
    Help(String),
}

/// Units that are not base units.
const NO_UNITS: [&str; 12] = [
    "ms",
    "us",
    "ns",
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "minutes",
    "hours",
    "kib",
    "mib",
    "kilobytes",
    "percent",
];

/// What the formats add to the name of a metric.
const ADDED: [&str; 9] = [
    "total", "created", "bucket", "count", "sum", "info", "seconds", "bytes", "ratio",
];

/// Checks what a metric is called, without what is added.
pub(crate) fn check(name: &str, help: &str) -> Result<(), NameError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.starts_with(|first: char| first.is_ascii_lowercase())
        || !name.bytes().all(plain)
        || name.contains("__")
        || name.ends_with('_')
    {
        return Err(NameError::Characters(name.to_owned()));
    }
    let mut words = name.split('_');
    if words.next() == Some("standfast") {
        return Err(NameError::Added(name.to_owned(), "standfast_"));
    }
    let last = name.rsplit('_').next().unwrap_or_default();
    if let Some(added) = ADDED.into_iter().find(|added| *added == last) {
        return Err(NameError::Added(name.to_owned(), added));
    }
    if let Some(unit) = NO_UNITS
        .into_iter()
        .find(|unit| name.split('_').any(|word| word == *unit))
    {
        return Err(NameError::Unit(name.to_owned(), unit));
    }
    // prometheus-client writes it as it is, and nothing in it may end the line.
    if help.is_empty() || help.ends_with('.') || help.contains(['\n', '\r', '\\']) {
        return Err(NameError::Help(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conventions() {
        for good in [
            "requests",
            "request_duration",
            "held_requests",
            "io_errors2",
        ] {
            assert_eq!(check(good, "Help"), Ok(()), "{good}");
        }
        for bad in [
            "",
            "Requests",
            "2requests",
            "_requests",
            "requests_",
            "a__b",
            "a-b",
            "a\nb",
        ] {
            assert_eq!(
                check(bad, "Help"),
                Err(NameError::Characters(bad.to_owned()))
            );
        }
        assert!(matches!(
            check("standfast_x", "Help"),
            Err(NameError::Added(..))
        ));
        assert!(matches!(
            check("requests_total", "Help"),
            Err(NameError::Added(_, "total"))
        ));
        assert!(matches!(
            check("duration_ms", "Help"),
            Err(NameError::Unit(_, "ms"))
        ));
        for help in ["", "Help.", "two\nlines", "back\\slash"] {
            assert_eq!(check("x", help), Err(NameError::Help("x".to_owned())));
        }
    }
}
