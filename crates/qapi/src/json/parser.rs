//! Tokens to values. The stream has bounded their number and their depth.

use super::error::JsonError;
use super::lexer::Token;
use crate::{Object, Value};
use serde_json::Number;
use std::iter::Peekable;
use std::vec::IntoIter;

/// Parses the tokens of one value.
pub(super) fn parse(tokens: Vec<Token>) -> Result<Value, JsonError> {
    Parser {
        tokens: tokens.into_iter().peekable(),
    }
    .value()
}

struct Parser {
    tokens: Peekable<IntoIter<Token>>,
}

impl Parser {
    fn next(&mut self) -> Result<Token, JsonError> {
        self.tokens
            .next()
            .ok_or_else(|| JsonError::syntax("premature EOI"))
    }

    fn next_if(&mut self, wanted: &Token) -> Result<bool, JsonError> {
        if self.tokens.peek().is_none() {
            return Err(JsonError::syntax("premature EOI"));
        }
        Ok(self.tokens.next_if_eq(wanted).is_some())
    }

    fn value(&mut self) -> Result<Value, JsonError> {
        Ok(match self.next()? {
            Token::Open(b'{') => self.object()?,
            Token::Open(_) => self.array()?,
            Token::String(raw) => Value::String(string(&raw)?),
            Token::Integer(text) => integer(&text)?,
            Token::Float(text) => float(&text)?,
            Token::Keyword(word) => match word.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                _ => return Err(JsonError::syntax(format_args!("invalid keyword '{word}'"))),
            },
            Token::Close(_) | Token::Punctuation(_) | Token::Stray(_) => {
                return Err(JsonError::syntax("expecting value"));
            }
        })
    }

    fn object(&mut self) -> Result<Value, JsonError> {
        let mut object = Object::new();
        if self.next_if(&Token::Close(b'}'))? {
            return Ok(Value::Object(object));
        }
        loop {
            let Value::String(key) = self.value()? else {
                return Err(JsonError::syntax("key is not a string in object"));
            };
            if !self.next_if(&Token::Punctuation(b':'))? {
                return Err(JsonError::syntax("missing : in object pair"));
            }
            let value = self.value()?;
            if object.contains_key(&key) {
                return Err(JsonError::syntax("duplicate key"));
            }
            object.insert(key, value);
            if self.next_if(&Token::Close(b'}'))? {
                return Ok(Value::Object(object));
            }
            if !self.next_if(&Token::Punctuation(b','))? {
                return Err(JsonError::syntax("expected separator in dict"));
            }
        }
    }

    fn array(&mut self) -> Result<Value, JsonError> {
        let mut array = Vec::new();
        if self.next_if(&Token::Close(b']'))? {
            return Ok(Value::Array(array));
        }
        loop {
            array.push(self.value()?);
            if self.next_if(&Token::Close(b']'))? {
                return Ok(Value::Array(array));
            }
            if !self.next_if(&Token::Punctuation(b','))? {
                return Err(JsonError::syntax("expected separator in list"));
            }
        }
    }
}

fn integer(text: &str) -> Result<Value, JsonError> {
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    match text.parse::<u64>() {
        Ok(number) => Ok(number.into()),
        Err(_) => float(text),
    }
}

fn float(text: &str) -> Result<Value, JsonError> {
    let number = text.parse::<f64>().ok().and_then(Number::from_f64);
    number
        .map(Value::Number)
        .ok_or_else(|| JsonError::syntax(format_args!("number '{text}' is out of range")))
}

fn string(raw: &[u8]) -> Result<String, JsonError> {
    let raw = std::str::from_utf8(raw)
        .map_err(|_| JsonError::syntax("invalid UTF-8 sequence in string"))?;
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let mut chars = rest[at + 1..].chars();
        match chars.next() {
            Some(c @ ('"' | '\'' | '\\' | '/')) => out.push(c),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('u') => {
                let (c, after) = unicode(chars.as_str())?;
                out.push(c);
                rest = after;
                continue;
            }
            _ => return Err(JsonError::syntax("invalid escape sequence in string")),
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    Ok(out)
}

/// Decodes what follows `\u`; two surrogates make one character.
fn unicode(text: &str) -> Result<(char, &str), JsonError> {
    let invalid =
        |text: String| JsonError::syntax(format_args!("{text} is not a valid Unicode character"));
    let (first, rest) = hex4(text)?;
    if let Some(c) = char::from_u32(first) {
        return Ok((c, rest));
    }
    let Some(rest) = rest.strip_prefix("\\u") else {
        return Err(invalid(format!("\\u{first:04x}")));
    };
    let (second, rest) = hex4(rest)?;
    let both = [first, second].map(|unit| u16::try_from(unit).unwrap_or_default());
    match char::decode_utf16(both).next() {
        Some(Ok(c)) => Ok((c, rest)),
        _ => Err(invalid(format!("\\u{first:04x}\\u{second:04x}"))),
    }
}

fn hex4(text: &str) -> Result<(u32, &str), JsonError> {
    text.split_at_checked(4)
        .filter(|(digits, _)| digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|(digits, rest)| Some((u32::from_str_radix(digits, 16).ok()?, rest)))
        .ok_or_else(|| JsonError::syntax("invalid escape sequence in string"))
}
