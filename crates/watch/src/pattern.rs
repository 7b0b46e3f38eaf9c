//! Patterns of names: `*` is anything but `/`, `?` one character but `/`, `[a-z]` and `[!a-z]` one of them
//! or none of them.

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// From its text. Every text is one: a `[` without its end is a `[`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether it has anything but plain text.
    #[must_use]
    pub fn is_plain(text: &str) -> bool {
        !text.contains(['*', '?', '['])
    }

    /// Whether the whole of `name` is one that is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        let name: Vec<char> = name.chars().collect();
        // Where the last star was, and how much of the name it has taken: going back there alone is enough.
        let (mut at, mut in_name, mut star) = (0, 0, None);
        loop {
            if pattern.get(at) == Some(&'*') {
                at += 1;
                star = Some((at, in_name));
                continue;
            }
            let next = name
                .get(in_name)
                .and_then(|char| one(&pattern[at..], *char));
            if let Some(used) = next {
                at += used;
                in_name += 1;
                continue;
            }
            if at == pattern.len() && in_name == name.len() {
                return true;
            }
            // The star takes one character more.
            match star {
                Some((after, taken)) if name.get(taken).is_some_and(|char| *char != '/') => {
                    (at, in_name) = (after, taken + 1);
                    star = Some((after, taken + 1));
                }
                _ => return false,
            }
        }
    }
}

/// How much of the pattern stands for `char`, if its beginning does.
fn one(pattern: &[char], char: char) -> Option<usize> {
    match pattern.first()? {
        '?' => (char != '/').then_some(1),
        '[' => match class(pattern) {
            Some((inside, used)) => (char != '/' && is_in(inside, char)).then_some(used),
            None => (char == '[').then_some(1),
        },
        plain => (*plain == char).then_some(1),
    }
}

/// What is between the brackets, and how long all of it is.
fn class(pattern: &[char]) -> Option<(&[char], usize)> {
    let negated = usize::from(pattern.get(1) == Some(&'!'));
    // A bracket that comes first is one of the characters.
    let from = 2 + negated;
    let end = pattern.iter().skip(from).position(|char| *char == ']')? + from;
    Some((&pattern[1..end], end + 1))
}

fn is_in(inside: &[char], char: char) -> bool {
    let (inside, negated) = match inside {
        ['!', rest @ ..] if !rest.is_empty() => (rest, true),
        all => (all, false),
    };
    let (mut at, mut found) = (0, false);
    while at < inside.len() {
        if let [from, '-', to, ..] = inside[at..] {
            found |= (from..=to).contains(&char);
            at += 3;
        } else {
            found |= inside[at] == char;
            at += 1;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table() {
        for (pattern, yes, no) in [
            ("vda", &["vda"][..], &["vdb", "vd", "vdaa", ""][..]),
            ("*", &["", "vda"], &["a/b"]),
            (
                "/run/*/qmp.sock",
                &["/run/a/qmp.sock", "/run//qmp.sock"],
                &["/run/a/b/qmp.sock"],
            ),
            ("*.qmp", &[".qmp", "a.qmp", "a.qmp.qmp"], &["a.qmp2"]),
            ("a*b*c", &["abc", "aXbXc", "abbc", "abcbc"], &["ab", "abcd"]),
            ("vd?", &["vda", "vdé"], &["vd", "vd/"]),
            ("vd[a-c]", &["vda", "vdc"], &["vdd", "vd-"]),
            ("vd[!a-c]", &["vdd", "vd!"], &["vda", "vd/"]),
            ("[]x]", &["]", "x"], &["[]x]"]),
            ("[-a]", &["-", "a"], &["b"]),
            ("[ab", &["[ab"], &["a"]),
            ("", &[""], &["a"]),
        ] {
            for name in yes {
                assert!(Pattern::new(pattern).matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!Pattern::new(pattern).matches(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = Pattern::new(&"*a".repeat(2000));
        assert!(!pattern.matches(&"a".repeat(1999)));
        assert!(pattern.matches(&"a".repeat(4000)));
        assert!(!pattern.matches(&"b".repeat(4000)));
    }

    proptest! {
        #[test]
        fn never_fails_and_plain_text_is_itself(pattern in ".{0,20}", name in ".{0,20}") {
            let _ = Pattern::new(&pattern).matches(&name);
            if Pattern::is_plain(&pattern) {
                prop_assert_eq!(Pattern::new(&pattern).matches(&name), pattern == name);
                prop_assert!(Pattern::new(&pattern).matches(&pattern));
            }
        }
    }
}
