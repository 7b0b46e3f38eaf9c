//! What `query-qmp-schema` says is what is parsed.

use std::collections::{BTreeMap, BTreeSet};

use qapi::Value;
use serde_json::json;

use super::daemon::{Client, Daemon};

/// Entities by their names.
type Schema = BTreeMap<String, Value>;

async fn schema(client: &mut Client) -> Schema {
    let infos = client.result("query-qmp-schema").await;
    let infos = infos.as_array().unwrap();
    let named = |info: &Value| (info["name"].as_str().unwrap().to_owned(), info.clone());
    let schema: Schema = infos.iter().map(named).collect();
    assert_eq!(schema.len(), infos.len(), "a name is there twice");
    schema
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The types that an entity refers to.
fn references(info: &Value) -> Vec<&str> {
    let own = ["arg-type", "ret-type", "element-type"];
    let own = own.iter().filter_map(|key| info[key].as_str());
    let members = list(&info["members"]).filter_map(|member| member["type"].as_str());
    let variants = list(&info["variants"]).map(|variant| text(&variant["type"]));
    own.chain(members).chain(variants).collect()
}

#[tokio::test]
async fn it_is_whole() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    let schema = schema(&mut client).await;
    for (name, info) in &schema {
        for reference in references(info) {
            assert!(
                schema.contains_key(reference),
                "{name}: {reference} is not defined"
            );
        }
        let object = |name: &str| assert_eq!(schema[name]["meta-type"], "object");
        match text(&info["meta-type"]) {
            "command" | "event" => object(text(&info["arg-type"])),
            "object" => {
                assert!(info["members"].is_array());
                list(&info["variants"]).for_each(|variant| object(text(&variant["type"])));
                // The variants are those of the discriminator.
                if let Some(tag) = info["tag"].as_str() {
                    let mut members = list(&info["members"]);
                    let tag = members.find(|member| member["name"] == tag).unwrap();
                    let values: Vec<_> = list(&schema[text(&tag["type"])]["values"]).collect();
                    let cases: Vec<_> = list(&info["variants"]).map(|it| &it["case"]).collect();
                    assert_eq!(values, cases, "{name}");
                }
            }
            "alternate" => assert!(list(&info["members"]).count() > 1, "{name}"),
            "enum" => assert!(list(&info["members"]).count() > 0, "{name}"),
            "array" => assert_eq!(*name, format!("[{}]", text(&info["element-type"]))),
            "builtin" => assert!(info["json-type"].is_string()),
            other => panic!("{name}: {other}"),
        }
    }
    let commands = schema
        .values()
        .filter(|info| info["meta-type"] == "command");
    let commands: BTreeSet<_> = commands.map(|info| text(&info["name"])).collect();
    let known = client.result("query-commands").await;
    let known: BTreeSet<_> = list(&known).map(|command| text(&command["name"])).collect();
    assert_eq!(commands, known);
}

/// The members of an object, those of one case included.
fn members<'a>(schema: &'a Schema, object: &'a Value, case: Option<&Value>) -> Vec<&'a str> {
    let names = |object: &'a Value| list(&object["members"]).map(|it| text(&it["name"]));
    let variant = case.map(|case| &schema[text(&case["type"])]);
    names(object)
        .chain(variant.into_iter().flat_map(names))
        .collect()
}

/// What the schema says is never unexpected, and what it does not say always is.
#[tokio::test]
async fn arguments_are_those_of_the_schema() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    let schema = schema(&mut client).await;
    let commands = schema
        .values()
        .filter(|info| info["meta-type"] == "command");
    for command in commands {
        let name = text(&command["name"]);
        let object = &schema[text(&command["arg-type"])];
        let cases: Vec<_> = list(&object["variants"]).map(Some).collect();
        let cases = if cases.is_empty() { vec![None] } else { cases };
        for case in cases {
            let members = members(&schema, object, case);
            for member in members.iter().copied().chain(["x-nosuch"]) {
                // Null is no value of anything, and something that is missing comes first: so nothing is done.
                let mut arguments = json!({ member: null });
                if let Some(case) = case
                    && object["tag"] != member
                {
                    arguments[text(&object["tag"])] = case["case"].clone();
                }
                let request = json!({ "execute": name, "arguments": arguments });
                let answer = client.command(&request.to_string()).await;
                let desc = text(&answer["error"]["desc"]);
                let unexpected = format!("Parameter '{member}' is unexpected");
                let is_known = members.contains(&member);
                assert!(!is_known || desc != unexpected, "{name} {member}: {desc}");
                let is_refused = desc == unexpected || desc.ends_with(" is missing");
                assert!(is_known || is_refused, "{name} {member}: {desc}");
            }
        }
    }
}
