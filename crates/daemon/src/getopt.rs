//! Taking a command line apart, as getopt_long(3) does with an option string that begins with `-`: what
//! is no option is handed out in its place. No I/O.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use qapi::os_text;

/// An option that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name without the dashes.
    pub name: String,
    /// Its letter, if it has one.
    pub letter: Option<char>,
    /// Whether it has an argument.
    pub has_argument: bool,
    /// Whether qemu-storage-daemon has it. What it abbreviates is what it means here, too: an option of
    /// ours is abbreviated only where none of these begins like that.
    pub is_qemus: bool,
}

/// What stands on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// An option.
    Option {
        /// Its full name.
        name: String,
        /// Its argument.
        argument: Option<OsString>,
        /// How it was written, for messages: as one word or as two.
        written: OsString,
    },
    /// What is no option.
    Other(OsString),
}

/// Takes `args` apart, up to the first mistake. What follows `--` is not looked at.
pub fn scan(
    known: &[Known],
    args: impl IntoIterator<Item = OsString>,
) -> impl Iterator<Item = Result<Word, String>> {
    Scan {
        known,
        args: args.into_iter(),
        letters: Vec::new(),
        ended: false,
    }
}

struct Scan<'a, I> {
    known: &'a [Known],
    args: I,
    /// What follows in a word of letters.
    letters: Vec<u8>,
    ended: bool,
}

impl<I: Iterator<Item = OsString>> Iterator for Scan<'_, I> {
    type Item = Result<Word, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let word = if self.letters.is_empty() {
            let arg = self.args.next()?;
            match arg.as_bytes() {
                b"--" => return None,
                [b'-', b'-', long @ ..] => self.long(OsStr::from_bytes(long), &arg),
                [b'-', letters @ ..] if !letters.is_empty() => {
                    self.letters = letters.to_vec();
                    self.letter()
                }
                _ => Ok(Word::Other(arg)),
            }
        } else {
            self.letter()
        };
        self.ended = word.is_err();
        Some(word)
    }
}

impl<I: Iterator<Item = OsString>> Scan<'_, I> {
    fn long(&mut self, text: &OsStr, word: &OsStr) -> Result<Word, String> {
        let bytes = text.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b'=');
        let (name, value) = match at {
            Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
            None => (bytes, None),
        };
        let shown = os_text::from_os(text);
        let option = look_up(self.known, name, &shown)?;
        let name = &option.name;
        let mut written = word.to_owned();
        let argument = match (option.has_argument, value) {
            (false, Some(_)) => {
                return Err(format!("option '--{name}' doesn't allow an argument"));
            }
            (false, None) => None,
            (true, Some(value)) => Some(OsString::from_vec(value.to_vec())),
            // The next word is the argument, whatever it begins with.
            (true, None) => {
                let next = self.args.next();
                let next = next.ok_or_else(|| format!("option '--{name}' requires an argument"))?;
                written.push(" ");
                written.push(&next);
                Some(next)
            }
        };
        Ok(Word::Option {
            name: name.clone(),
            argument,
            written,
        })
    }

    fn letter(&mut self) -> Result<Word, String> {
        let byte = self.letters.remove(0);
        let letter = char::from(byte);
        let known = self.known.iter().find(|k| k.letter == Some(letter));
        let known = known.ok_or_else(|| format!("invalid option -- '{letter}'"))?;
        let argument = match known.has_argument {
            false => None,
            true if self.letters.is_empty() => {
                let next = self.args.next();
                Some(next.ok_or_else(|| format!("option requires an argument -- '{letter}'"))?)
            }
            true => Some(OsString::from_vec(std::mem::take(&mut self.letters))),
        };
        let mut written = OsString::from(format!("-{letter}"));
        if let Some(argument) = &argument {
            written.push(" ");
            written.push(argument);
        }
        Ok(Word::Option {
            name: known.name.clone(),
            argument,
            written,
        })
    }
}

/// The option that `name` is, or abbreviates; `shown` is how it was written.
fn look_up<'a>(all: &'a [Known], name: &[u8], shown: &str) -> Result<&'a Known, String> {
    let exact = |known: &&Known| known.name.as_bytes() == name;
    if let Some(known) = all.iter().find(exact) {
        return Ok(known);
    }
    for is_qemus in [true, false] {
        let begins =
            |known: &&Known| known.is_qemus == is_qemus && known.name.as_bytes().starts_with(name);
        let found: Vec<_> = all.iter().filter(begins).collect();
        match *found {
            [] => {}
            [known] => return Ok(known),
            _ => {
                let names: Vec<_> = found.iter().map(|k| format!("'--{}'", k.name)).collect();
                return Err(format!(
                    "option '--{shown}' is ambiguous; possibilities: {}",
                    names.join(" ")
                ));
            }
        }
    }
    Err(format!("unrecognized option '--{shown}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Known> {
        let one = |name: &str, letter, has_argument, is_qemus| Known {
            name: name.to_owned(),
            letter,
            has_argument,
            is_qemus,
        };
        vec![
            one("chardev", None, true, true),
            one("export", None, true, true),
            one("help", Some('h'), false, true),
            one("trace", Some('T'), true, true),
            one("extra", None, false, true),
            one("config", None, true, false),
            one("compat", None, true, false),
        ]
    }

    fn words(args: &[&str]) -> Result<Vec<(String, Option<String>)>, String> {
        let args = args.iter().map(OsString::from);
        scan(&known(), args)
            .map(|word| {
                Ok(match word? {
                    Word::Option { name, argument, .. } => {
                        (name, argument.map(|a| a.into_string().unwrap()))
                    }
                    Word::Other(word) => (format!("={}", word.into_string().unwrap()), None),
                })
            })
            .collect()
    }

    #[test]
    fn what_is_taken() {
        let pair = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let bare = |name: &str| (name.to_owned(), None);
        for (args, expected) in [
            (
                &["--chardev=a=b", "--chardev", "--x"][..],
                vec![pair("chardev", "a=b"), pair("chardev", "--x")],
            ),
            (
                &["--ch", "a", "--exp=", "w", "-"],
                vec![
                    pair("chardev", "a"),
                    pair("export", ""),
                    bare("=w"),
                    bare("=-"),
                ],
            ),
            (
                &["-hT", "x", "-Ty", ""],
                vec![
                    bare("help"),
                    pair("trace", "x"),
                    pair("trace", "y"),
                    bare("="),
                ],
            ),
            // As there, although '--config' begins like that.
            (
                &["--c", "a", "--conf", "f"],
                vec![pair("chardev", "a"), pair("config", "f")],
            ),
            (&["--h", "--", "--frob"], vec![bare("help")]),
        ] {
            assert_eq!(words(args), Ok(expected), "{args:?}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (args, text) in [
            (&["--frob=1"][..], "unrecognized option '--frob=1'"),
            (
                &["--ex=1"],
                "option '--ex=1' is ambiguous; possibilities: '--export' '--extra'",
            ),
            (
                &["--co"],
                "option '--co' is ambiguous; possibilities: '--config' '--compat'",
            ),
            (&["--help=1"], "option '--help' doesn't allow an argument"),
            (&["--chard"], "option '--chardev' requires an argument"),
            (&["-x"], "invalid option -- 'x'"),
            (&["-T"], "option requires an argument -- 'T'"),
        ] {
            assert_eq!(words(args), Err(text.to_owned()), "{args:?}");
        }
    }
}
