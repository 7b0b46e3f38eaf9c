//! Bytes to tokens, one byte at a time.

/// One token. String and number contents are still raw: the parser decodes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// `{` or `[`.
    Open(u8),
    /// `}` or `]`.
    Close(u8),
    /// `:` or `,`.
    Punctuation(u8),
    /// Digits with an optional sign.
    Integer(String),
    /// A number with fraction or exponent.
    Float(String),
    /// A run of lower case letters: `true`, `null`, or a mistake.
    Keyword(String),
    /// What stood between the quotes, escapes not yet resolved, UTF-8 not yet checked.
    String(Vec<u8>),
    /// Bytes that cannot be part of any token.
    Stray(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// After a stray byte: skip to a bracket, separator, control character or 0xFF.
    Recovery,
    Keyword,
    String {
        quote: u8,
        escape: bool,
    },
    /// After the sign: a digit must follow.
    Minus,
    /// After a leading zero: no digit may follow.
    Zero,
    Digits,
    /// After the point: a digit must follow.
    Point,
    Fraction,
    /// After `e`: a sign or digit must follow.
    Exponent,
    ExponentSign,
    ExponentDigits,
}

#[derive(Debug, Default)]
pub(super) struct Lexer {
    state: State,
    text: Vec<u8>,
}

impl Lexer {
    /// True between tokens.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Start | State::Recovery)
    }

    /// Drops an unfinished token and skips to the next plausible start.
    pub(super) fn recover(&mut self) {
        self.text = Vec::new();
        self.state = State::Recovery;
    }

    /// Takes a byte; returns the tokens it ends, in order.
    pub(super) fn push(&mut self, byte: u8) -> (Option<Token>, Option<Token>) {
        use State::{
            Digits, Exponent, ExponentDigits, ExponentSign, Fraction, Keyword, Minus, Point,
            Recovery, Start, String, Zero,
        };
        match (self.state, byte) {
            (Start, _) => (self.start(byte), None),
            (Recovery, 0..=0x1f | b'{' | b'}' | b'[' | b']' | b':' | b',' | 0xfe | 0xff) => {
                (self.start(byte), None)
            }
            (Recovery, _) => (None, None),

            (
                String {
                    quote,
                    escape: false,
                },
                _,
            ) if byte == quote => {
                self.state = Start;
                (Some(Token::String(std::mem::take(&mut self.text))), None)
            }
            (String { .. }, 0..=0x1f | 0xfe | 0xff) => (Some(self.stray(byte)), None),
            (String { quote, escape }, _) => {
                self.text.push(byte);
                self.state = String {
                    quote,
                    escape: !escape && byte == b'\\',
                };
                (None, None)
            }

            (Keyword, b'a'..=b'z') => self.stay(byte, Keyword),

            (Minus, b'0') => self.stay(byte, Zero),
            (Minus, b'1'..=b'9') | (Digits, b'0'..=b'9') => self.stay(byte, Digits),
            (Zero | Digits, b'.') => self.stay(byte, Point),
            (Zero | Digits | Fraction, b'e' | b'E') => self.stay(byte, Exponent),
            (Point | Fraction, b'0'..=b'9') => self.stay(byte, Fraction),
            (Exponent, b'+' | b'-') => self.stay(byte, ExponentSign),
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => {
                self.stay(byte, ExponentDigits)
            }
            (Zero, b'0'..=b'9') | (Minus | Point | Exponent | ExponentSign, _) => {
                (Some(self.stray(byte)), None)
            }

            // A complete keyword or number, and a byte that starts something else.
            (Keyword | Zero | Digits | Fraction | ExponentDigits, _) => {
                let token = self.finish();
                (token, self.start(byte))
            }
        }
    }

    /// The input ends: the token that ends with it.
    pub(super) fn finish(&mut self) -> Option<Token> {
        let state = std::mem::take(&mut self.state);
        let bytes = std::mem::take(&mut self.text);
        let text = || String::from_utf8_lossy(&bytes).into_owned();
        match state {
            State::Start | State::Recovery => None,
            State::Keyword => Some(Token::Keyword(text())),
            State::Zero | State::Digits => Some(Token::Integer(text())),
            State::Fraction | State::ExponentDigits => Some(Token::Float(text())),
            State::String { quote, .. } => {
                Some(Token::Stray(format!("{}{}", char::from(quote), text())))
            }
            State::Minus | State::Point | State::Exponent | State::ExponentSign => {
                Some(Token::Stray(text()))
            }
        }
    }

    fn stay(&mut self, byte: u8, state: State) -> (Option<Token>, Option<Token>) {
        self.text.push(byte);
        self.state = state;
        (None, None)
    }

    fn start(&mut self, byte: u8) -> Option<Token> {
        self.state = State::Start;
        self.text.clear();
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return None,
            b'{' | b'[' => return Some(Token::Open(byte)),
            b'}' | b']' => return Some(Token::Close(byte)),
            b':' | b',' => return Some(Token::Punctuation(byte)),
            b'"' | b'\'' => {
                self.state = State::String {
                    quote: byte,
                    escape: false,
                }
            }
            b'a'..=b'z' => self.state = State::Keyword,
            b'-' => self.state = State::Minus,
            b'0' => self.state = State::Zero,
            b'1'..=b'9' => self.state = State::Digits,
            _ => return Some(self.stray(byte)),
        }
        if !matches!(self.state, State::String { .. }) {
            self.text.push(byte);
        }
        None
    }

    /// `byte` cannot follow what was taken so far.
    fn stray(&mut self, byte: u8) -> Token {
        let mut bytes = Vec::new();
        if let State::String { quote, .. } = self.state {
            bytes.push(quote);
        }
        bytes.append(&mut self.text);
        bytes.push(byte);
        self.recover();
        // The whole of a long string helps nobody.
        const SHOWN_BYTES_MAX: usize = 256;
        let shown = &bytes[bytes.len().saturating_sub(SHOWN_BYTES_MAX)..];
        Token::Stray(String::from_utf8_lossy(shown).into_owned())
    }
}
