use super::*;
use crate::event::{
    BlockErrorAction, BlockExportQueueBroken, BlockIoError, IoOperationType, Shutdown,
    ShutdownCause,
};
use crate::types::{RunState, StatusInfo, VersionTriple};
use crate::{ErrorClass, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn line(message: &impl Serialize) -> String {
    String::from_utf8(to_line(message, Layout::Compact)).unwrap()
}

#[test]
fn request_error_texts() {
    for (text, desc) in [
        ("[]", "QMP input must be a JSON object"),
        ("null", "QMP input must be a JSON object"),
        ("{}", "QMP input lacks member 'execute'"),
        (
            r#"{"execut":"x"}"#,
            "QMP input member 'execut' is unexpected",
        ),
        (
            r#"{"execute":1}"#,
            "QMP input member 'execute' must be a string",
        ),
        (
            r#"{"execute":"x","arguments":1}"#,
            "QMP input member 'arguments' must be an object",
        ),
        (
            r#"{"exec-oob":1}"#,
            "QMP input member 'exec-oob' must be a string",
        ),
        (
            r#"{"exec-oob":"x","execute":"x"}"#,
            "QMP input member 'execute' clashes with 'exec-oob'",
        ),
        (
            r#"{"exec-oob":"x","x":1}"#,
            "QMP input member 'x' is unexpected",
        ),
    ] {
        let bad = *Request::parse(json::parse(text).unwrap()).unwrap_err();
        assert_eq!(
            bad,
            BadRequest {
                error: QmpError::generic(desc),
                is_oob: text.contains("exec-oob"),
                id: None
            },
            "{text}"
        );
    }
    let bad = Request::parse(json::parse(r#"{"x":1,"id":null}"#).unwrap()).unwrap_err();
    assert_eq!(bad.id, Some(Value::Null));
    let good = r#"{"id":[1],"arguments":{"a":2},"execute":"x"}"#;
    let good = Request::parse(json::parse(good).unwrap()).unwrap();
    assert_eq!(good.execute, "x");
    assert_eq!(good.arguments["a"], 2);
    assert_eq!(good.id, Some(Value::from(vec![1])));
}

#[test]
fn greeting_and_responses() {
    let version = VersionInfo {
        qemu: VersionTriple {
            micro: 0,
            minor: 2,
            major: 7,
        },
        package: "standfast".to_owned(),
    };
    assert_eq!(
        line(&Greeting::new(version)),
        "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}, \
         \"package\": \"standfast\"}, \"capabilities\": [\"oob\"]}}\r\n"
    );
    let status = StatusInfo {
        running: false,
        status: RunState::IoError,
        singlestep: false,
        x_vmm: None,
    };
    let status = serde_json::to_value(status).unwrap();
    assert_eq!(
        line(&Response::new(Ok(status), Some(Value::from(1)))),
        "{\"return\": {\"running\": false, \"status\": \"io-error\", \"singlestep\": false}, \
         \"id\": 1}\r\n"
    );
    assert_eq!(
        line(&Response::new(Err(QmpError::command_not_found("x")), None)),
        "{\"error\": {\"class\": \"CommandNotFound\", \
         \"desc\": \"The command x has not been found\"}}\r\n"
    );
    let answer: Response =
        serde_json::from_str(r#"{"error":{"class":"GenericError","desc":"d"},"id":null}"#).unwrap();
    assert_eq!(
        answer,
        Response::new(Err(QmpError::generic("d")), Some(Value::Null))
    );
    let pretty = to_line(
        &Response::new(Ok(Value::from(vec![1])), None),
        Layout::Pretty,
    );
    assert_eq!(pretty, b"{\n    \"return\": [\n        1\n    ]\n}\r\n");
    assert_eq!(
        serde_json::to_value(ErrorClass::KVMMissingCap).unwrap(),
        "KVMMissingCap"
    );
}

#[test]
fn events() {
    let at = Timestamp::from(UNIX_EPOCH + Duration::from_micros(5_000_007));
    let stop = EventMessage {
        timestamp: at,
        event: Event::Stop,
    };
    assert_eq!(
        line(&stop),
        "{\"timestamp\": {\"seconds\": 5, \"microseconds\": 7}, \"event\": \"STOP\"}\r\n"
    );
    let error = EventMessage {
        timestamp: at,
        event: Event::BlockIoError(BlockIoError {
            qom_path: "e".to_owned(),
            device: "e".to_owned(),
            node_name: Some("n".to_owned()),
            operation: IoOperationType::Write,
            action: BlockErrorAction::Stop,
            nospace: Some(true),
            reason: "No space left on device".to_owned(),
            x_request: None,
            x_offset: Some(512),
            x_length: None,
            x_errno: Some(28),
            x_cause: None,
            x_error_node: None,
            x_incident: Some(1),
        }),
    };
    assert_eq!(
        line(&error),
        "{\"timestamp\": {\"seconds\": 5, \"microseconds\": 7}, \"event\": \"BLOCK_IO_ERROR\", \
         \"data\": {\"qom-path\": \"e\", \"device\": \"e\", \"node-name\": \"n\", \
         \"operation\": \"write\", \"action\": \"stop\", \"nospace\": true, \
         \"reason\": \"No space left on device\", \"x-offset\": 512, \"x-errno\": 28, \
         \"x-incident\": 1}}\r\n"
    );
    let shutdown = Event::Shutdown(Shutdown {
        guest: false,
        reason: ShutdownCause::HostQmpQuit,
    });
    let broken = Event::BlockExportQueueBroken(BlockExportQueueBroken {
        id: "e".to_owned(),
        queue: 3,
        reason: "why".to_owned(),
    });
    for event in [Event::Resume, shutdown, error.event, broken] {
        let message = EventMessage {
            timestamp: at,
            event,
        };
        let text = line(&message);
        assert!(
            Event::NAMES
                .iter()
                .any(|n| text.contains(&format!("\"event\": \"{n}\"")))
        );
        assert_eq!(
            serde_json::from_str::<EventMessage>(&text).unwrap(),
            message
        );
    }
    let before = Timestamp::from(SystemTime::UNIX_EPOCH - Duration::from_secs(1));
    assert_eq!(
        before,
        Timestamp {
            seconds: -1,
            microseconds: -1
        }
    );
}
