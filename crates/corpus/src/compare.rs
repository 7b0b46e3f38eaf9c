//! What differs between what we and the peer have said, part by part: the first difference does not
//! hide the next.

use crate::process::DOES_NOT_END;
use crate::transcript::Transcript;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A part that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Which: the step, and the way to the member (`block_resize: error.desc`).
    pub part: String,
    /// What we say; nothing where we have no such part.
    pub ours: Option<Value>,
    /// What the peer says.
    pub peer: Option<Value>,
}

/// Members that QEMU has since a later version than the peer.
const NEWER: &[&str] = &["children"];

/// Members by which the elements of a list are known, in this order.
const NAMES: &[&str] = &[
    "name",
    "node-name",
    "id",
    "label",
    "device",
    "fdset-id",
    "type",
];

/// What differs. What only we have and whose name begins with `x-` is an extension and none.
pub fn differences(ours: &Transcript, peer: &Transcript) -> Vec<Difference> {
    let mut found = Vec::new();
    let ours: BTreeMap<&str, &Value> = by_key(ours);
    let peers: BTreeMap<&str, &Value> = by_key(peer);
    for item in peer.items() {
        let part = format!("{}:", item.key);
        match ours.get(item.key.as_str()) {
            Some(value) if item.value.get("schema").is_some() => {
                schemas(&part, value, &item.value, &mut found);
            }
            Some(value) => compare(&part, value, &item.value, &mut found),
            None => add(&part, None, Some(&item.value), &mut found),
        }
    }
    for (key, value) in ours {
        if !peers.contains_key(key) {
            add(&format!("{key}:"), Some(value), None, &mut found);
        }
    }
    found
}

/// What differs from both peers: where these differ from each other, either is right.
pub fn common(from_one: Vec<Difference>, from_other: &[Difference]) -> Vec<Difference> {
    let lies_in = |part: &str, whole: &str| {
        part.strip_prefix(whole).is_some_and(|rest| {
            rest.is_empty() || whole.ends_with(':') || rest.starts_with(['.', '['])
        })
    };
    from_one
        .into_iter()
        .filter(|one| {
            from_other
                .iter()
                .any(|other| lies_in(&one.part, &other.part) || lies_in(&other.part, &one.part))
        })
        .collect()
}

fn by_key(transcript: &Transcript) -> BTreeMap<&str, &Value> {
    let items = transcript.items().iter();
    items.map(|item| (item.key.as_str(), &item.value)).collect()
}

fn add(part: &str, ours: Option<&Value>, peer: Option<&Value>, found: &mut Vec<Difference>) {
    found.push(Difference {
        part: part.to_owned(),
        ours: ours.cloned(),
        peer: peer.cloned(),
    });
}

fn compare(part: &str, ours: &Value, peer: &Value, found: &mut Vec<Difference>) {
    match (ours, peer) {
        (Value::Object(ours), Value::Object(peer)) if !is_other_kind(ours, peer) => {
            members(part, ours, peer, found);
        }
        (Value::Array(ours), Value::Array(peer)) => lists(part, ours, peer, found),
        _ if ours == peer => {}
        // It hangs at its end now and then, which tells nothing.
        (_, Value::String(peer)) if peer == DOES_NOT_END => {}
        // Blanks, and the order of members, are free.
        (Value::String(ours), Value::String(peer)) if is_same_json(ours, peer) => {}
        _ => add(part, Some(ours), Some(peer), found),
    }
}

/// Of what [`crate::schema::flat`] gives, the commands and the variants that we have, too.
fn schemas(part: &str, ours: &Value, peer: &Value, found: &mut Vec<Difference>) {
    let Some(commands) = ours["schema"].as_object() else {
        return add(part, Some(ours), None, found);
    };
    for (command, arguments) in commands {
        let (Some(ours), Some(peer)) = (arguments.as_object(), peer["schema"][command].as_object())
        else {
            continue;
        };
        for (argument, kind) in peer {
            let variant = argument.rfind(']').map(|at| &argument[..=at]);
            let is_ours = |variant: &str| ours.keys().any(|name| name.starts_with(variant));
            if variant.is_none_or(is_ours) && ours.get(argument) != Some(kind) {
                let part = format!("{part} {command}/{argument}");
                add(&part, ours.get(argument), Some(kind), found);
            }
        }
    }
}

/// Whether both are file names that are JSON (`json:{...}`), and the same.
fn is_same_json(ours: &str, peer: &str) -> bool {
    let json = |text: &str| serde_json::from_str::<Value>(text.strip_prefix("json:")?).ok();
    json(ours).is_some_and(|ours| json(peer) == Some(ours))
}

/// An error where the other has succeeded has no members worth a comparison.
fn is_other_kind(ours: &Map<String, Value>, peer: &Map<String, Value>) -> bool {
    ["return", "error"]
        .iter()
        .any(|kind| ours.contains_key(*kind) != peer.contains_key(*kind))
}

fn members(
    part: &str,
    ours: &Map<String, Value>,
    peer: &Map<String, Value>,
    found: &mut Vec<Difference>,
) {
    for (name, value) in peer {
        let part = below(part, name);
        match ours.get(name) {
            Some(ours) => compare(&part, ours, value, found),
            None => add(&part, None, Some(value), found),
        }
    }
    for (name, value) in ours {
        let is_ours = name.starts_with("x-") || NEWER.contains(&name.as_str());
        if !peer.contains_key(name) && !is_ours {
            add(&below(part, name), Some(value), None, found);
        }
    }
}

fn below(part: &str, name: &str) -> String {
    if part.ends_with(':') {
        format!("{part} {name}")
    } else {
        format!("{part}.{name}")
    }
}

fn lists(part: &str, ours: &[Value], peer: &[Value], found: &mut Vec<Difference>) {
    let (Some(ours), Some(peer)) = (named(ours), named(peer)) else {
        if ours.len() == peer.len() {
            for (index, (ours, peer)) in ours.iter().zip(peer).enumerate() {
                compare(&format!("{part}[{index}]"), ours, peer, found);
            }
        } else {
            add(part, Some(&ours.into()), Some(&peer.into()), found);
        }
        return;
    };
    for (name, value) in &peer {
        let part = format!("{part}[{name}]");
        match ours.iter().find(|(other, _)| other == name) {
            Some((_, ours)) => compare(&part, ours, value, found),
            None => add(&part, None, Some(value), found),
        }
    }
    for (name, value) in &ours {
        if !peer.iter().any(|(other, _)| other == name) && !name.starts_with("x-") {
            add(&format!("{part}[{name}]"), Some(value), None, found);
        }
    }
    let order = |list: &[(String, &Value)], other: &[(String, &Value)]| -> Vec<Value> {
        let both = list.iter().map(|(name, _)| name);
        let both = both.filter(|name| other.iter().any(|(n, _)| n == *name));
        both.map(|name| name.as_str().into()).collect()
    };
    let (our_order, peer_order) = (order(&ours, &peer), order(&peer, &ours));
    // The order in which commands and types were registered tells nobody anything.
    if our_order != peer_order && peer_order.len() <= ORDER_MATTERS {
        let part = format!("{part}(order)");
        add(
            &part,
            Some(&our_order.into()),
            Some(&peer_order.into()),
            found,
        );
    }
}

/// Longer lists are tables of what there is, and not what somebody has made in some order.
const ORDER_MATTERS: usize = 12;

/// The elements with their names, if all have one and no two the same.
fn named(list: &[Value]) -> Option<Vec<(String, &Value)>> {
    let named: Vec<(String, &Value)> = list
        .iter()
        .map(|element| Some((name(element)?, element)))
        .collect::<Option<_>>()?;
    let mut names: Vec<&String> = named.iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    (names.len() == named.len()).then_some(named)
}

fn name(element: &Value) -> Option<String> {
    if let Value::String(name) = element {
        return Some(name.clone());
    }
    let name = |member: &&str| element.get(member)?.as_str();
    NAMES
        .iter()
        .find_map(name)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parts(ours: Value, peer: Value) -> Vec<String> {
        let transcript = |value| {
            let mut transcript = Transcript::default();
            transcript.push("q", value);
            transcript
        };
        differences(&transcript(ours), &transcript(peer))
            .into_iter()
            .map(|difference| difference.part)
            .collect()
    }

    #[test]
    fn each_member_differs_on_its_own() {
        let ours = json!({"return": {"a": 1, "b": {"c": true}, "x-mine": 0, "extra": 1}});
        let peer = json!({"return": {"a": 2, "b": {"c": false}, "d": null}});
        assert_eq!(
            parts(ours, peer),
            [
                "q: return.a",
                "q: return.b.c",
                "q: return.d",
                "q: return.extra"
            ]
        );
        let ours = json!({"return": {"a": "json:{\"a\":1,\"b\":2}", "b": "json:{\"a\":1}"}});
        let peer = json!({"return": {"a": "json:{\"b\": 2, \"a\": 1}", "b": "json:{\"a\": 2}"}});
        assert_eq!(parts(ours, peer), ["q: return.b"]);
        let same = json!({"return": [1, {"a": "b"}]});
        assert_eq!(parts(same.clone(), same), [""; 0]);
    }

    #[test]
    fn an_error_is_no_answer() {
        let ours = json!({"return": {}});
        let peer = json!({"error": {"class": "GenericError", "desc": "no"}});
        assert_eq!(parts(ours, peer.clone()), ["q:"]);
        let ours = json!({"error": {"class": "GenericError", "desc": "No"}});
        assert_eq!(parts(ours, peer), ["q: error.desc"]);
    }

    #[test]
    fn elements_are_known_by_their_names() {
        let ours = json!({"return": [{"name": "b", "v": 1}, {"name": "a"}, {"name": "x-o"}]});
        let peer = json!({"return": [{"name": "a"}, {"name": "b", "v": 2}, {"name": "c"}]});
        assert_eq!(
            parts(ours, peer),
            ["q: return[b].v", "q: return[c]", "q: return(order)"]
        );
        assert_eq!(
            parts(json!({"return": [1, 2]}), json!({"return": [1, 3]})),
            ["q: return[1]"]
        );
        assert_eq!(
            parts(json!({"return": [1]}), json!({"return": [1, 3]})),
            ["q: return"]
        );
    }

    #[test]
    fn schemas_are_compared_by_what_we_have() {
        let ours =
            json!({"schema": {"add": {"a": "int", "[f].b": "string", "mine": "int"}, "own": {}}});
        let peer = json!({"schema": {
            "add": {"a": "int?", "[f].b": "string", "[f].c": "int", "[g].d": "int"}, "other": {},
        }});
        assert_eq!(parts(ours, peer), ["q: add/a", "q: add/[f].c"]);
    }

    #[test]
    fn what_equals_one_peer_is_right() {
        let at = |part: &str| Difference {
            part: part.to_owned(),
            ours: None,
            peer: None,
        };
        let left = |one: &[&str], other: &[&str]| -> Vec<String> {
            let one = one.iter().map(|part| at(part)).collect();
            let other: Vec<_> = other.iter().map(|part| at(part)).collect();
            common(one, &other).into_iter().map(|d| d.part).collect()
        };
        assert_eq!(left(&["a: b", "a: c"], &["a: c"]), ["a: c"]);
        assert_eq!(left(&["a: b.c"], &["a: b"]), ["a: b.c"]);
        assert_eq!(left(&["a: b"], &["a:"]), ["a: b"]);
        assert_eq!(left(&["a:"], &["a: b"]), ["a:"]);
        assert_eq!(left(&["a: bc"], &["a: b"]), [""; 0]);
    }
}
