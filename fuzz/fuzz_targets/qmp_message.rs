//! What a QMP server sends to our client: the other end of the link to a VMM, or of a watched machine, may be
//! anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qapi::json::Stream;
use qapi::wire::{Layout, Response, to_line};
use qapi::{Value, json};
use qmp_client::{ANSWER_LIMITS, Message};

fuzz_target!(|bytes: &[u8]| {
    let mut stream = Stream::with_limits(ANSWER_LIMITS);
    stream.feed(bytes, |value| {
        if let Ok(value) = value {
            check(value);
        }
    });
});

fn check(value: Value) {
    match Message::parse(value.clone()) {
        Ok(Message::Event(event)) => {
            assert_eq!(value["event"], event.name());
            let data = value.get("data").and_then(Value::as_object);
            assert_eq!(event.data(), data);
            let _ = event.timestamp();
            assert_eq!(event.into_message(), value);
        }
        Ok(Message::Greeting(greeting)) => {
            let again = serde_json::to_value(&greeting).expect("it has string keys");
            assert_eq!(
                Message::parse(again).as_ref(),
                Ok(&Message::Greeting(greeting))
            );
        }
        Ok(Message::Response(response)) => check_response(response),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Written as a server writes it, it is the same answer.
fn check_response(response: Response) {
    let line = to_line(&response, Layout::Compact);
    let text = std::str::from_utf8(&line).expect("JSON is UTF-8");
    let value = json::parse(text).expect("it is JSON");
    assert_eq!(
        Message::parse(value).as_ref(),
        Ok(&Message::Response(response)),
        "{text}"
    );
}
