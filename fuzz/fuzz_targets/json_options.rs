//! Options in JSON: the command line again, and `blockdev-add` and its like from any client that
//! reaches the monitor's socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qapi::de::{Mode, from_value};
use qapi::options::{BlockdevOptions, ExportOptions, ObjectOptions};
use qapi::{Value, json};
use serde::de::DeserializeOwned;
use standfast_fuzz::{check_error, parse_options};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(value) = json::parse(text) else { return };
    let again = serde_json::to_string(&value).expect("a value can be written");
    assert_eq!(
        json::parse(&again).as_ref(),
        Ok(&value),
        "{text:?} became {again}"
    );
    parse_options(text);
    // In either mode, whatever the value is: a file of options need not hold an object.
    for mode in [Mode::Json, Mode::Keyval] {
        read::<BlockdevOptions>(&value, mode);
        read::<ExportOptions>(&value, mode);
        read::<ObjectOptions>(&value, mode);
    }
});

fn read<T: DeserializeOwned>(value: &Value, mode: Mode) {
    if let Err(error) = from_value::<T>(value, mode) {
        check_error(&error);
    }
}
