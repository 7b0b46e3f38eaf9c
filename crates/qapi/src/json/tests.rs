use super::*;
use proptest::prelude::*;
use serde_json::json;

fn all(chunks: &[&[u8]]) -> Vec<Result<Value, String>> {
    let mut stream = Stream::new();
    let mut out = Vec::new();
    for chunk in chunks {
        stream.feed(chunk, |r| out.push(r.map_err(|e| e.to_string())));
    }
    out.extend(stream.finish().map(|r| r.map_err(|e| e.to_string())));
    out
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn values_end_with_their_bracket_not_with_a_line() {
    let out = all(&[b"{\"a\":\n1}[2]{'b':", b"'x\\'y'", b"} 3 true\n"]);
    let expected = [
        json!({"a":1}),
        json!([2]),
        json!({"b":"x'y"}),
        json!(3),
        json!(true),
    ];
    assert_eq!(out, expected.map(Ok));
}

#[test]
fn error_texts() {
    for (text, desc) in [
        ("", "Expecting a JSON value"),
        ("{} {}", "Expecting at most one JSON value"),
        ("{} x", "Expecting at most one JSON value"),
        ("{} {} {}", "Expecting at most one JSON value"),
        ("x {}", "JSON parse error, invalid keyword 'x'"),
        ("{", "JSON parse error, premature EOI"),
        ("{\"a\":1", "JSON parse error, premature EOI"),
        ("{foo:1}", "JSON parse error, invalid keyword 'foo'"),
        ("{\"a\":tru}", "JSON parse error, invalid keyword 'tru'"),
        ("{1:2}", "JSON parse error, key is not a string in object"),
        ("{\"a\" 1}", "JSON parse error, missing : in object pair"),
        ("{\"a\":}", "JSON parse error, expecting value"),
        ("{\"a\":1,}", "JSON parse error, expecting value"),
        (
            "{\"a\":1 2}",
            "JSON parse error, expected separator in dict",
        ),
        ("[1 2]", "JSON parse error, expected separator in list"),
        ("}", "JSON parse error, expecting value"),
        ("[}", "JSON parse error, expecting value"),
        ("[[1 [}", "JSON parse error, expected separator in list"),
        ("{\"a\":1,\"a\":2}", "JSON parse error, duplicate key"),
        ("{\"a\":01}", "JSON parse error, stray '01'"),
        ("{\"a\":-}", "JSON parse error, stray '-}'"),
        ("{\"a\":1.}", "JSON parse error, stray '1.}'"),
        ("{\"a\":.5}", "JSON parse error, stray '.'"),
        ("{\"a\":1e}", "JSON parse error, stray '1e}'"),
        ("\"abc", "JSON parse error, stray '\"abc'"),
        ("\"a\nb\"", "JSON parse error, stray '\"a\n'"),
        ("@", "JSON parse error, stray '@'"),
        (
            "[\"\\q\"]",
            "JSON parse error, invalid escape sequence in string",
        ),
        (
            "[\"\\u12\"]",
            "JSON parse error, invalid escape sequence in string",
        ),
        (
            "[\"\\ud800\"]",
            "JSON parse error, \\ud800 is not a valid Unicode character",
        ),
        (
            "[\"\\udc00\\u0041\"]",
            "JSON parse error, \\udc00\\u0041 is not a valid Unicode character",
        ),
    ] {
        assert_eq!(error(text), desc, "{text}");
    }
    assert_eq!(
        all(&[b"[\"\xc3\x28\"]"]),
        [Err(
            "JSON parse error, invalid UTF-8 sequence in string".to_owned()
        )]
    );
}

#[test]
fn byte_ff_ends_what_is_unfinished() {
    let out = all(&[b"{\"a\":[1,\"", b"x\xff{\"b\":2}"]);
    assert_eq!(
        out,
        [
            Err("JSON parse error, stray '\"x\u{fffd}'".to_owned()),
            Ok(json!({"b":2}))
        ]
    );
}

#[test]
fn depth_and_size_are_bounded() {
    let fits = "[".repeat(DEPTH_MAX) + &"]".repeat(DEPTH_MAX);
    assert!(parse(&fits).is_ok());
    let deep = "[".repeat(DEPTH_MAX + 1) + &"]".repeat(DEPTH_MAX + 1);
    assert_eq!(error(&deep), "JSON nesting depth limit exceeded");
    let long = format!("\"{}\"", "x".repeat(TEXT_BYTES_MAX));
    assert_eq!(error(&long), "JSON token size limit exceeded");
    let many = format!("[{}0]", "0,".repeat(JSON_TOKENS_MAX / 2 - 2));
    assert!(parse(&many).is_ok());
    let many = format!("[{}0]", "0,".repeat(JSON_TOKENS_MAX / 2));
    assert_eq!(error(&many), "JSON token count limit exceeded");
    // What follows an oversized message is taken again.
    let out = all(&[b"[", &vec![b'1'; 3 * TEXT_BYTES_MAX], b"\n\xff{\"a\":1}"]);
    assert_eq!(
        out.first(),
        Some(&Err("JSON token size limit exceeded".to_owned()))
    );
    assert_eq!(out.last(), Some(&Ok(json!({"a":1}))));
    assert!(out.len() < 5, "{out:?}");
}

#[test]
fn limits_can_be_others() {
    let limits = Limits {
        text_bytes: 10,
        tokens: 4,
    };
    for (text, good) in [
        ("\"12345678\"", true),
        ("\"123456789\"", false),
        ("[[]]", true),
        ("[[[]]]", false),
    ] {
        let mut out = Vec::new();
        Stream::with_limits(limits).feed(text.as_bytes(), |value| out.push(value.is_ok()));
        assert_eq!(out[0], good, "{text}");
    }
}

#[test]
fn numbers_keep_their_kind() {
    assert_eq!(parse("18446744073709551615").unwrap(), json!(u64::MAX));
    assert_eq!(parse("-9223372036854775808").unwrap(), json!(i64::MIN));
    assert!(parse("18446744073709551616").unwrap().is_f64());
    assert!(parse("1e3").unwrap().is_f64());
    assert!(parse("1e999").is_err());
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e15..1e15).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn agrees_with_serde_json(value in value(), cut in any::<prop::sample::Index>()) {
        let text = value.to_string();
        prop_assert_eq!(&parse(&text).unwrap(), &value);
        let (head, tail) = text.as_bytes().split_at(cut.index(text.len()));
        prop_assert_eq!(all(&[head, tail]), vec![Ok(value)]);
    }

    #[test]
    fn takes_any_bytes(chunks in prop::collection::vec(any::<Vec<u8>>(), 0..4)) {
        all(&chunks.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }

    #[test]
    fn takes_any_almost_json(text in "[\\[\\]{}:,\"'\\\\a-f0-9.eE+\\- \n]{0,64}") {
        all(&[text.as_bytes()]);
        // What serde_json takes, we take, but for what we bound or refuse on purpose.
        if serde_json::from_str::<Value>(&text).is_ok() && !text.contains('"') {
            prop_assert!(parse(&text).is_ok(), "{}", text);
        }
    }
}
