use super::*;
use proptest::prelude::*;
use serde_json::json;

fn ok(text: &str) -> Value {
    Value::Object(parse(text, Some("driver")).unwrap())
}

fn error(text: &str) -> String {
    parse(text, Some("driver")).unwrap_err().desc
}

#[test]
fn builds_objects_and_arrays() {
    assert_eq!(ok(""), json!({}));
    assert_eq!(ok("null-co"), json!({"driver": "null-co"}));
    assert_eq!(ok("null-co,"), json!({"driver": "null-co"}));
    assert_eq!(
        ok("a,,b,x=,y=c=d,"),
        json!({"driver": "a,b", "x": "", "y": "c=d"})
    );
    assert_eq!(
        ok("x=1,a.b.c=2,a.b.d=,,3,l.1=y,l.0=x,x=4"),
        json!({"x": "4", "a": {"b": {"c": "2", "d": ",3"}}, "l": ["x", "y"]})
    );
    assert_eq!(
        ok("l.0.a=1,l.1.a=2"),
        json!({"l": [{"a": "1"}, {"a": "2"}]})
    );
    assert_eq!(ok("__com.x=1"), json!({"__com": {"x": "1"}}));
}

#[test]
fn help() {
    let help =
        |text| parse_help(text, Some("driver")).map(|(object, help)| (Value::Object(object), help));
    assert_eq!(help("help"), Ok((json!({}), true)));
    assert_eq!(help("?,"), Ok((json!({}), true)));
    assert_eq!(help("a,help"), Ok((json!({"driver": "a"}), true)));
    assert_eq!(
        help("a,?,x=1"),
        Ok((json!({"driver": "a", "x": "1"}), true))
    );
    assert_eq!(help("helper"), Ok((json!({"driver": "helper"}), false)));
    assert_eq!(help("driver=help"), Ok((json!({"driver": "help"}), false)));
    for text in ["help", "a,help", "?"] {
        assert_eq!(error(text), "Help is not available for this option");
    }
    assert_eq!(error("help,a"), "Expected '=' after parameter 'a'");
}

#[test]
fn error_texts() {
    for (text, desc) in [
        ("=x", "Invalid parameter ''"),
        (",", "Invalid parameter ''"),
        ("a.b.9x=3", "Invalid parameter 'a.b.9x'"),
        ("d=x,9=3", "Invalid parameter '9'"),
        ("a..b=3", "Invalid parameter 'a..b'"),
        (".b=3", "Invalid parameter '.b'"),
        ("a b=3", "Invalid parameter 'a b'"),
        ("driver=x,null", "Expected '=' after parameter 'null'"),
        ("x,node-name", "Expected '=' after parameter 'node-name'"),
        ("c.d=on,c=1", "Parameters 'c.*' used inconsistently"),
        ("c=1,c.d=on", "Parameters 'c.*' used inconsistently"),
        ("a.c.d=on,a.c=1", "Parameters 'a.c.*' used inconsistently"),
        ("a.0=1,a.x=1", "Parameters 'a.*' used inconsistently"),
        ("f.1=on", "Parameter 'f.0' missing"),
        ("b.f.0=on,b.f.2=on", "Parameter 'b.f.1' missing"),
    ] {
        assert_eq!(error(text), desc, "{text}");
    }
    let name = "a".repeat(128);
    assert_eq!(
        error(&format!("{name}=x")),
        format!("Parameter '{name}' is too long")
    );
    assert_eq!(
        error(&format!("b.{name}=x")),
        format!("Parameter fragment '{name}' is too long")
    );
    assert!(error(&format!("a{}=x", ".b".repeat(100_000))).contains("nested too deeply"));
    assert!(error(&"a".repeat(TEXT_BYTES_MAX + 1)).contains("too long"));
}

/// The text that builds `value`; empty objects and arrays cannot be expressed.
fn text_of(value: &Value, key: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let dot = if key.is_empty() { "" } else { "." };
                text_of(value, &format!("{key}{dot}{name}"), out);
            }
        }
        Value::Array(array) => {
            for (n, value) in array.iter().enumerate() {
                text_of(value, &format!("{key}.{n}"), out);
            }
        }
        Value::String(text) => out.push(format!("{key}={}", text.replace(',', ",,"))),
        other => panic!("not a keyval value: {other}"),
    }
}

fn object() -> impl Strategy<Value = Value> {
    let name = "[a-zA-Z][a-zA-Z0-9_-]{0,8}";
    let leaf = any::<String>().prop_map(Value::from);
    let value = leaf.prop_recursive(3, 32, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 1..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    });
    prop::collection::btree_map(name, value, 0..4)
        .prop_map(|m| Value::Object(m.into_iter().collect()))
}

proptest! {
    #[test]
    fn round_trip(value in object()) {
        let mut items = Vec::new();
        text_of(&value, "", &mut items);
        prop_assert_eq!(ok(&items.join(",")), value);
    }

    #[test]
    fn total(text in any::<String>()) {
        let _ = parse(&text, Some("driver"));
        let _ = parse(&text, None);
    }

    #[test]
    fn total_on_almost_keyval(text in "[a-c0-2.=,_]{0,48}") {
        let _ = parse(&text, Some("driver"));
    }
}
