//! What came of playing a case to one program.

use serde_json::Value;
use std::collections::BTreeMap;

/// What came of each step, in order.
#[derive(Debug, Default)]
pub struct Transcript {
    items: Vec<Item>,
    seen: BTreeMap<String, u32>,
}

/// What came of one step.
#[derive(Debug, PartialEq)]
pub struct Item {
    /// Which step: the command's name, or the kind of the step; `#2` where that is not the first.
    pub key: String,
    /// What was answered, normalised.
    pub value: Value,
}

impl Transcript {
    /// Adds what came of a step.
    pub fn push(&mut self, name: &str, value: Value) {
        let count = self.seen.entry(name.to_owned()).or_default();
        *count += 1;
        let key = match count {
            1 => name.to_owned(),
            n => format!("{name}#{n}"),
        };
        self.items.push(Item { key, value });
    }

    /// All of it, in order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_numbered_from_the_second_on() {
        let mut transcript = Transcript::default();
        for name in ["a", "b", "a"] {
            transcript.push(name, Value::Null);
        }
        let keys: Vec<_> = transcript.items().iter().map(|i| i.key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "a#2"]);
    }
}
