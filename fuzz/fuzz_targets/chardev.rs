//! Character devices: their options, as the command line has them and in JSON, and what is written to a
//! `ringbuf` as base64.
#![no_main]

use libfuzzer_sys::fuzz_target;
use monitor::base64;
use qapi::de::{Mode, from_value};
use qapi::options::ChardevOptions;
use qapi::{Value, id, json};
use standfast_fuzz::check_error;

fuzz_target!(|bytes: &[u8]| {
    let text = base64::encode(bytes);
    assert_eq!(base64::decode(&text).as_deref(), Some(bytes), "{text}");
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(data) = base64::decode(text) {
        assert!(data.len() <= text.len() / 4 * 3 + 2, "{text:?}");
        let again = base64::encode(&data);
        assert_eq!(
            base64::decode(&again),
            Some(data),
            "{text:?} became {again}"
        );
    }
    match ChardevOptions::parse(text) {
        Ok((options, warnings)) => {
            assert!(warnings.iter().all(|warning| !warning.is_empty()));
            check(&options);
        }
        Err(error) => check_error(&error),
    }
    if let Ok(value) = json::parse(text) {
        read(&value);
    }
});

/// In either mode, whatever the value is: a file of options need not hold an object.
fn read(value: &Value) {
    for mode in [Mode::Json, Mode::Keyval] {
        match from_value::<ChardevOptions>(value, mode) {
            Ok(options) => check(&options),
            Err(error) => check_error(&error),
        }
    }
}

/// What was accepted is the same in JSON, and as good.
fn check(options: &ChardevOptions) {
    let value = serde_json::json!({ "id": options.id, "backend": options.backend });
    let again = from_value::<ChardevOptions>(&value, Mode::Json);
    assert_eq!(again.as_ref(), Ok(options), "{value}");
    if let Err(error) = id::check_id(&options.id) {
        check_error(&error);
    }
    if let Err(error) = options.backend.check() {
        check_error(&error);
    }
    let _ = options.backend.common();
}
