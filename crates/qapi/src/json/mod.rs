//! The JSON dialect of QMP.
//!
//! It is JSON with two additions: strings may be in single quotes, and byte 0xFF (never part of
//! UTF-8) is an error that ends whatever was unfinished, so that a client that lost its place can
//! resynchronise. Duplicate members are refused.
//!
//! [`Stream`] takes bytes as they arrive and yields values as they become complete; a value ends
//! with its closing bracket, not with a line. A bare number or keyword ends with the byte after
//! it.

mod error;
mod lexer;
mod parser;

pub use error::JsonError;

use crate::{DEPTH_MAX, JSON_TOKENS_MAX, TEXT_BYTES_MAX, Value};
use lexer::{Lexer, Token};

/// What one JSON value may consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of its text, and of an unfinished one.
    pub text_bytes: usize,
    /// Most tokens; see [`JSON_TOKENS_MAX`].
    pub tokens: usize,
}

impl Default for Limits {
    /// [`TEXT_BYTES_MAX`] and [`JSON_TOKENS_MAX`].
    fn default() -> Self {
        Limits {
            text_bytes: TEXT_BYTES_MAX,
            tokens: JSON_TOKENS_MAX,
        }
    }
}

/// Splits a stream of bytes into JSON values. After an error it goes on with what follows.
#[derive(Debug, Default)]
pub struct Stream {
    limits: Limits,
    lexer: Lexer,
    tokens: Vec<Token>,
    /// Open braces, and open brackets. They are counted, not matched: matching is the parser's.
    braces: usize,
    brackets: usize,
    /// Bytes taken since the last complete value.
    pending_bytes: usize,
}

impl Stream {
    /// A stream at its start.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stream with other limits than the usual ones: for answers, which are longer than commands.
    pub fn with_limits(limits: Limits) -> Self {
        Stream {
            limits,
            ..Self::default()
        }
    }

    /// Takes the next bytes and hands every value or error that they complete to `emit`.
    pub fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(Result<Value, JsonError>)) {
        for &byte in bytes {
            self.pending_bytes += 1;
            if self.pending_bytes > self.limits.text_bytes {
                emit(Err(JsonError("JSON token size limit exceeded".to_owned())));
                self.reset();
                self.lexer.recover();
            }
            // A byte may end one token and be another itself.
            let (first, second) = self.lexer.push(byte);
            for token in [first, second].into_iter().flatten() {
                if let Some(result) = self.token(token) {
                    emit(result);
                }
            }
            if self.tokens.is_empty() && self.lexer.is_idle() {
                self.pending_bytes = 0;
            }
        }
    }

    /// The input ends here: an unfinished value is an error.
    pub fn finish(&mut self) -> Option<Result<Value, JsonError>> {
        if let Some(token) = self.lexer.finish()
            && let Some(result) = self.token(token)
        {
            self.reset();
            return Some(result);
        }
        if self.tokens.is_empty() {
            return None;
        }
        let tokens = std::mem::take(&mut self.tokens);
        self.reset();
        Some(parser::parse(tokens))
    }

    fn reset(&mut self) {
        self.tokens = Vec::new();
        self.braces = 0;
        self.brackets = 0;
        self.pending_bytes = 0;
    }

    /// The counter of a bracket's kind.
    fn open(&mut self, bracket: u8) -> &mut usize {
        match bracket {
            b'{' | b'}' => &mut self.braces,
            _ => &mut self.brackets,
        }
    }

    fn token(&mut self, token: Token) -> Option<Result<Value, JsonError>> {
        let mut excess = false;
        match token {
            Token::Stray(text) => {
                self.reset();
                return Some(Err(JsonError::syntax(format_args!("stray '{text}'"))));
            }
            Token::Open(bracket) => {
                if self.braces + self.brackets == DEPTH_MAX {
                    self.reset();
                    return Some(Err(JsonError(
                        "JSON nesting depth limit exceeded".to_owned(),
                    )));
                }
                *self.open(bracket) += 1;
            }
            // One too many: what we have cannot become a value, whatever follows.
            Token::Close(bracket) => match self.open(bracket).checked_sub(1) {
                Some(left) => *self.open(bracket) = left,
                None => excess = true,
            },
            _ => {}
        }
        if self.tokens.len() == self.limits.tokens {
            self.reset();
            return Some(Err(JsonError("JSON token count limit exceeded".to_owned())));
        }
        self.tokens.push(token);
        if !excess && (self.braces > 0 || self.brackets > 0) {
            return None;
        }
        let tokens = std::mem::take(&mut self.tokens);
        self.reset();
        Some(parser::parse(tokens))
    }
}

/// Parses text that must be exactly one JSON value.
pub fn parse(text: &str) -> Result<Value, JsonError> {
    let mut stream = Stream::new();
    let mut found: Option<Result<Value, JsonError>> = None;
    // Whatever comes after a value, even a mistake, is one too many; the first mistake counts.
    let mut take = |result| {
        found = Some(match found.take() {
            None => result,
            Some(Ok(_)) => Err(JsonError("Expecting at most one JSON value".to_owned())),
            Some(Err(first)) => Err(first),
        });
    };
    stream.feed(text.as_bytes(), &mut take);
    if let Some(last) = stream.finish() {
        take(last);
    }
    found.unwrap_or_else(|| Err(JsonError("Expecting a JSON value".to_owned())))
}

#[cfg(test)]
mod tests;
