//! Options in keyval syntax: whoever writes a command line, or a script that pastes a file name
//! into one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qapi::{Object, Value, keyval};
use standfast_fuzz::{check_error, parse_options};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for implied_key in [None, Some("driver")] {
        match keyval::parse(text, implied_key) {
            Ok(object) => check(&object),
            Err(error) => check_error(&error),
        }
    }
    parse_options(text);
});

/// What was parsed can be written again and then means the same.
fn check(object: &Object) {
    let mut items = Vec::new();
    for (name, value) in object {
        write(name, value, &mut items);
    }
    let text = items.join(",");
    assert_eq!(keyval::parse(&text, None).as_ref(), Ok(object), "{text:?}");
}

fn write(key: &str, value: &Value, items: &mut Vec<String>) {
    match value {
        Value::String(leaf) => items.push(format!("{key}={}", leaf.replace(',', ",,"))),
        Value::Object(object) => {
            assert!(!object.is_empty(), "{key} is an empty object");
            for (name, value) in object {
                write(&format!("{key}.{name}"), value, items);
            }
        }
        Value::Array(array) => {
            assert!(!array.is_empty(), "{key} is an empty array");
            for (n, value) in array.iter().enumerate() {
                write(&format!("{key}.{n}"), value, items);
            }
        }
        other => panic!("{key} is {other}, which keyval cannot express"),
    }
}
