//! `key=value,...` with dotted keys: how options are written on the command line.
//!
//! ```text
//! keyvals = [ keyval { "," keyval } [ "," ] ]
//! keyval  = key "=" value              a comma in a value is doubled
//!         | value                      first only: the implied key's value
//!         | "help" | "?"               asks for help
//! key     = name { "." ( name | index ) }
//! ```
//!
//! Dotted keys build objects, numeric fragments build arrays without gaps. All leaves are
//! strings: what they mean is decided by the type that is made of them ([`crate::de`]).

use crate::{DEPTH_MAX, Object, QmpError, TEXT_BYTES_MAX, Value};

/// Longest fragment of a key, in bytes.
const FRAGMENT_BYTES_MAX: usize = 127;

/// Parses keyval text. `implied_key` is the key of a first item that has no `=`.
pub fn parse(text: &str, implied_key: Option<&str>) -> Result<Object, QmpError> {
    match parse_help(text, implied_key)? {
        (object, false) => Ok(object),
        (_, true) => Err(QmpError::generic("Help is not available for this option")),
    }
}

/// As [`parse`], for options that have help; whether it is asked for.
pub fn parse_help(text: &str, implied_key: Option<&str>) -> Result<(Object, bool), QmpError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(QmpError::generic(format!(
            "Options of {} bytes are too long, at most {TEXT_BYTES_MAX} are accepted",
            text.len()
        )));
    }
    let mut root = Object::new();
    let mut rest = text;
    let mut implied_key = implied_key;
    let mut help = false;
    while !rest.is_empty() {
        let implied_key = implied_key.take();
        if let Some(after) = help_item(rest) {
            help = true;
            rest = after;
        } else {
            rest = item(&mut root, rest, implied_key)?;
        }
    }
    listify(root, &mut String::new()).and_then(|value| match value {
        Value::Object(object) => Ok((object, help)),
        // The first fragment of a key is never an index.
        _ => Err(QmpError::generic("Invalid parameter ''")),
    })
}

/// What follows an item that asks for help.
fn help_item(text: &str) -> Option<&str> {
    let rest = text
        .strip_prefix("help")
        .or_else(|| text.strip_prefix('?'))?;
    if rest.is_empty() {
        return Some(rest);
    }
    rest.strip_prefix(',')
}

/// Parses one item; returns what follows its comma.
fn item<'a>(
    root: &mut Object,
    text: &'a str,
    implied_key: Option<&str>,
) -> Result<&'a str, QmpError> {
    let end = text.find(['=', ',']).unwrap_or(text.len());
    let has_value = text[end..].starts_with('=');
    if let Some(key) = implied_key
        && end > 0
        && !has_value
    {
        let (value, rest) = unescape(text);
        put(root, key, &[key], value)?;
        return Ok(rest);
    }
    let key = &text[..end];
    let fragments = fragments(key)?;
    if !has_value {
        return Err(QmpError::generic(format!(
            "Expected '=' after parameter '{key}'"
        )));
    }
    let (value, rest) = unescape(&text[end + 1..]);
    put(root, key, &fragments, value)?;
    Ok(rest)
}

/// Splits off a value: up to a comma that is not doubled.
fn unescape(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(',') {
        value.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, rest),
        }
    }
    value.push_str(rest);
    (value, "")
}

fn is_name(fragment: &str) -> bool {
    // A downstream prefix (__RFQDN_) ends with an underscore and may contain dots; dots separate
    // fragments here, so only its last part ever shows up.
    let name = fragment.trim_start_matches('_');
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && (name.len() == fragment.len() || fragment.starts_with("__"))
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn index(fragment: &str) -> Option<usize> {
    if fragment.is_empty() || !fragment.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // One that is too large is beyond any list that there can be.
    usize::try_from(fragment.parse::<u32>().unwrap_or(u32::MAX)).ok()
}

fn fragments(key: &str) -> Result<Vec<&str>, QmpError> {
    let mut fragments = Vec::new();
    for (n, fragment) in key.split('.').enumerate() {
        if !is_name(fragment) && (n == 0 || index(fragment).is_none()) {
            return Err(QmpError::generic(format!("Invalid parameter '{key}'")));
        }
        if fragment.len() > FRAGMENT_BYTES_MAX {
            let kind = if fragment.len() == key.len() {
                ""
            } else {
                " fragment"
            };
            return Err(QmpError::generic(format!(
                "Parameter{kind} '{fragment}' is too long"
            )));
        }
        if n >= DEPTH_MAX {
            return Err(QmpError::generic(format!(
                "Parameter '{key}' is nested too deeply, at most {DEPTH_MAX} levels are accepted"
            )));
        }
        fragments.push(fragment);
    }
    Ok(fragments)
}

/// Enters a leaf. The same leaf again replaces it.
fn put(root: &mut Object, key: &str, fragments: &[&str], value: String) -> Result<(), QmpError> {
    let inconsistent = |upto: usize| {
        let bytes: usize = fragments[..=upto].iter().map(|f| f.len() + 1).sum();
        QmpError::generic(format!(
            "Parameters '{}.*' used inconsistently",
            &key[..bytes - 1]
        ))
    };
    let mut object = root;
    let Some((leaf, inner)) = fragments.split_last() else {
        return Ok(());
    };
    for (n, fragment) in inner.iter().enumerate() {
        let next = object
            .entry(normal(fragment))
            .or_insert_with(|| Value::Object(Object::new()));
        match next {
            Value::Object(next) => object = next,
            _ => return Err(inconsistent(n)),
        }
    }
    match object.entry(normal(leaf)).or_insert(Value::Null) {
        Value::Object(_) => Err(inconsistent(inner.len())),
        slot => {
            *slot = Value::String(value);
            Ok(())
        }
    }
}

/// `a.07` and `a.7` are the same element.
fn normal(fragment: &str) -> String {
    match index(fragment) {
        Some(n) => n.to_string(),
        None => fragment.to_owned(),
    }
}

/// Turns objects whose keys are all indices into arrays. `path` ends with a dot, or is empty.
fn listify(object: Object, path: &mut String) -> Result<Value, QmpError> {
    let indices = object.keys().filter(|k| index(k).is_some()).count();
    if indices != 0 && indices != object.len() {
        return Err(QmpError::generic(format!(
            "Parameters '{path}*' used inconsistently"
        )));
    }
    let mut out = Vec::with_capacity(object.len());
    for (key, value) in object {
        let value = match value {
            Value::Object(inner) => {
                let len = path.len();
                path.push_str(&key);
                path.push('.');
                let inner = listify(inner, path)?;
                path.truncate(len);
                inner
            }
            leaf => leaf,
        };
        out.push((key, value));
    }
    if indices == 0 {
        return Ok(Value::Object(out.into_iter().collect()));
    }
    out.sort_by_key(|(key, _)| index(key));
    for (n, (key, _)) in out.iter().enumerate() {
        if index(key) != Some(n) {
            return Err(QmpError::generic(format!("Parameter '{path}{n}' missing")));
        }
    }
    Ok(Value::Array(
        out.into_iter().map(|(_, value)| value).collect(),
    ))
}

#[cfg(test)]
mod tests;
