//! `query-qmp-schema` in a form that can be compared: each command with its arguments by their names,
//! whatever the types are called and however they are arranged.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How deep arguments are looked into.
const DEPTH_MAX: usize = 5;

/// Each argument of each command, as `COMMAND/ARGUMENT`, with its type; `[VALUE]` in the way of an
/// argument means that it is there where the discriminator has that value.
pub fn flat(schema: &[Value]) -> Value {
    let by_name: BTreeMap<&str, &Value> = schema
        .iter()
        .filter_map(|entity| Some((entity["name"].as_str()?, entity)))
        .collect();
    let mut commands = Map::new();
    for (name, entity) in &by_name {
        if entity["meta-type"] == "command" {
            let mut arguments = Map::new();
            if let Some(arg) = entity["arg-type"].as_str() {
                object(&by_name, arg, "", &mut Vec::new(), &mut arguments);
            }
            if entity["allow-oob"] == true {
                arguments.insert("allow-oob".to_owned(), true.into());
            }
            commands.insert((*name).to_owned(), arguments.into());
        }
    }
    serde_json::json!({"schema": commands})
}

/// Adds the members of an object type.
fn object<'a>(
    types: &BTreeMap<&'a str, &'a Value>,
    name: &'a str,
    way: &str,
    above: &mut Vec<&'a str>,
    found: &mut Map<String, Value>,
) {
    let Some(entity) = types.get(name) else {
        return;
    };
    // Enumerations have members, too: those that we do not have are seen where they are used.
    let has_arguments = entity["meta-type"] == "object";
    if !has_arguments || above.contains(&name) || above.len() >= DEPTH_MAX {
        return;
    }
    above.push(name);
    for member in list(entity, "members") {
        let Some(member_name) = member["name"].as_str() else {
            continue;
        };
        let way = format!("{way}{member_name}");
        let kind = kind(types, &member["type"]);
        let optional = if member.get("default").is_some() {
            "?"
        } else {
            ""
        };
        found.insert(way.clone(), format!("{kind}{optional}").into());
        if let Some(inner) = member["type"].as_str() {
            object(types, inner, &format!("{way}."), above, found);
        }
    }
    for variant in list(entity, "variants") {
        if let (Some(case), Some(inner)) = (variant["case"].as_str(), variant["type"].as_str()) {
            object(types, inner, &format!("{way}[{case}]."), above, found);
        }
    }
    above.pop();
}

fn list<'a>(entity: &'a Value, name: &str) -> &'a [Value] {
    entity[name].as_array().map_or(&[], Vec::as_slice)
}

/// What a value of a type looks like in JSON.
fn kind(types: &BTreeMap<&str, &Value>, name: &Value) -> String {
    let Some(entity) = name.as_str().and_then(|name| types.get(name)) else {
        return "?".to_owned();
    };
    let text = |member: &str| entity[member].as_str().unwrap_or("?").to_owned();
    match text("meta-type").as_str() {
        "builtin" => text("json-type"),
        "enum" => "string".to_owned(),
        "array" => format!("[{}]", kind(types, &entity["element-type"])),
        "alternate" => {
            let members = list(entity, "members").iter();
            let mut kinds: Vec<String> = members.map(|m| kind(types, &m["type"])).collect();
            kinds.sort();
            kinds.join("|")
        }
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_are_known_by_their_way() {
        let schema = json!([
            {"name": "add", "meta-type": "command", "arg-type": "1", "ret-type": "2"},
            {"name": "1", "meta-type": "object", "tag": "driver",
             "members": [{"name": "driver", "type": "3"}, {"name": "size", "type": "int", "default": null},
                         {"name": "list", "type": "[int]"}],
             "variants": [{"case": "file", "type": "4"}]},
            {"name": "3", "meta-type": "enum", "values": ["file"], "members": [{"name": "file"}]},
            {"name": "4", "meta-type": "object", "members": [{"name": "child", "type": "1"}]},
            {"name": "int", "meta-type": "builtin", "json-type": "int"},
            {"name": "[int]", "meta-type": "array", "element-type": "int"},
        ]);
        let flat = flat(schema.as_array().unwrap());
        assert_eq!(
            flat["schema"]["add"],
            json!({
                "driver": "string", "size": "int?", "list": "[int]", "[file].child": "object",
            })
        );
    }
}
