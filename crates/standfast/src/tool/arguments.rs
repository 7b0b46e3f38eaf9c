//! The arguments of `standfast qmp`: JSON, or `key=value` as on the daemon's command line.

use qapi::{Object, QmpError, Size, Value, json, keyval};

/// Reads them. Several words are as one with commas between.
///
/// A value of `key=value` is what JSON would take it for (`64`, `true`, `"64"`, `[1,,2]`); a number
/// with a suffix is a size in bytes (`64M`); all else is a string.
///
/// # Errors
/// If it is neither JSON nor keyval.
pub fn parse(words: &[String]) -> Result<Object, QmpError> {
    if words.first().is_some_and(|word| word.starts_with('{')) {
        let text = words.join(" ");
        return match json::parse(&text) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(QmpError::generic("arguments must be a JSON object")),
            Err(error) => Err(QmpError::generic(error.to_string())),
        };
    }
    let mut object = keyval::parse(&words.join(","), None)?;
    object.values_mut().for_each(type_leaves);
    Ok(object)
}

fn type_leaves(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(typed) = typed(text) {
                *value = typed;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(type_leaves),
        Value::Object(members) => members.values_mut().for_each(type_leaves),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn typed(text: &str) -> Option<Value> {
    if let Ok(value) = serde_json::from_str(text) {
        return Some(value);
    }
    let size = text
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| Size::parse(text))??;
    Some(size.0.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(words: &[&str]) -> Value {
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        parse(&words).map_or_else(|error| json!(error.desc), Value::Object)
    }

    #[test]
    fn key_value_is_typed() {
        assert_eq!(parsed(&[]), json!({}));
        assert_eq!(
            parsed(&["node-name=disk0,limit=64M", "flat=true", "a.0=x", "s=\"5\""]),
            json!({"node-name": "disk0", "limit": 67_108_864, "flat": true, "a": ["x"], "s": "5"})
        );
        assert_eq!(parsed(&["n=12", "m=on"]), json!({"n": 12, "m": "on"}));
    }

    #[test]
    fn json_is_taken_as_it_is() {
        assert_eq!(
            parsed(&["{\"limit\":", "\"64M\"}"]),
            json!({"limit": "64M"})
        );
    }

    #[test]
    fn mistakes_are_explained() {
        assert_eq!(
            parsed(&["disk0"]),
            json!("Expected '=' after parameter 'disk0'")
        );
        assert!(parsed(&["{"]).is_string());
    }
}
