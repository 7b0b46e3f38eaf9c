//! `--config`: a file that people, and programs, write in TOML or JSON.
#![no_main]

use daemon::config;
use libfuzzer_sys::fuzz_target;
use qapi::{Value, json};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let items = match config::parse(text) {
        Ok(items) => items,
        Err(error) => {
            assert!(!error.is_empty(), "{text:?}");
            return;
        }
    };
    // What JSON says does not depend on how it is laid out.
    if let Ok(Value::Object(object)) = json::parse(text) {
        let again = serde_json::to_string(&object).expect("a value can be written");
        let again = config::parse(&again).expect("it was accepted");
        assert_eq!(format!("{items:?}"), format!("{again:?}"), "{text:?}");
    }
});
