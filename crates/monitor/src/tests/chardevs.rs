//! Character devices: a ring buffer `r`, and a device `c` that is none.

use std::collections::VecDeque;
use std::sync::Mutex;

use block::BoxFuture;
use qapi::QmpError;
use qapi::options::{ChardevBackend, ChardevOptions};
use qapi::types::{ChardevInfo, ChardevReturn};
use serde_json::json;

use super::daemon::Daemon;
use crate::{ChardevObject, Chardevs};

/// Remembers what is written, and takes whatever it is told.
#[derive(Debug, Default)]
pub struct FakeChardevs(Mutex<VecDeque<u8>>);

impl Chardevs for FakeChardevs {
    fn add(&self, options: ChardevOptions) -> BoxFuture<'_, Result<ChardevReturn, QmpError>> {
        let pty = Some(options.id);
        Box::pin(async { Ok(ChardevReturn { pty }) })
    }

    fn change(
        &self,
        id: String,
        _: ChardevBackend,
    ) -> BoxFuture<'_, Result<ChardevReturn, QmpError>> {
        Box::pin(async move { Err(QmpError::generic(format!("'{id}' stays"))) })
    }

    fn remove(&self, id: String) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async move { Err(QmpError::generic(format!("'{id}' stays"))) })
    }

    fn query(&self) -> Vec<ChardevInfo> {
        vec![ChardevInfo {
            label: "r".to_owned(),
            filename: "ringbuf".to_owned(),
            frontend_open: false,
        }]
    }

    fn objects(&self) -> Vec<ChardevObject> {
        Vec::new()
    }

    fn ringbuf_write(&self, id: &str, data: &[u8]) -> Result<(), QmpError> {
        check(id)?;
        self.0.lock().unwrap().extend(data);
        Ok(())
    }

    fn ringbuf_read(&self, id: &str, bytes_max: usize) -> Result<Vec<u8>, QmpError> {
        check(id)?;
        let mut ring = self.0.lock().unwrap();
        let bytes = bytes_max.min(ring.len());
        Ok(ring.drain(..bytes).collect())
    }
}

fn check(id: &str) -> Result<(), QmpError> {
    match id {
        "r" => Ok(()),
        _ => Err(QmpError::generic(format!("{id} is not a ringbuf device"))),
    }
}

#[tokio::test]
async fn commands_reach_the_character_devices() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    assert_eq!(
        client.result("query-chardev").await,
        json!([{"label": "r", "filename": "ringbuf", "frontend-open": false}])
    );
    let backends = client.result("query-chardev-backends").await;
    assert!(
        backends
            .as_array()
            .unwrap()
            .contains(&json!({"name": "socket"}))
    );
    let add =
        r#"{"execute":"chardev-add","arguments":{"id":"p","backend":{"type":"null","data":{}}}}"#;
    assert_eq!(client.command(add).await, json!({"return": {"pty": "p"}}));
    let add = r#"{"execute":"chardev-add","arguments":{"id":"p","backend":{"type":"ringbuf","data":{"size":3}}}}"#;
    assert_eq!(
        client.error(add).await,
        "Failed to add chardev 'p': size of ringbuf chardev must be power of two"
    );
    let remove = r#"{"execute":"chardev-remove","arguments":{"id":"x"}}"#;
    assert_eq!(client.error(remove).await, "'x' stays");
    let send_break = r#"{"execute":"chardev-send-break","arguments":{"id":"r"}}"#;
    assert_eq!(client.command(send_break).await, json!({"return": {}}));
    let send_break = r#"{"execute":"chardev-send-break","arguments":{"id":"x"}}"#;
    assert_eq!(client.error(send_break).await, "Chardev 'x' not found");
}

#[tokio::test]
async fn ring_buffers() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    let mut write = async |data: &str, format: &str| {
        let text = format!(
            r#"{{"execute":"ringbuf-write","arguments":{{"device":"r","data":"{data}","format":"{format}"}}}}"#
        );
        client.command(&text).await
    };
    assert_eq!(write("hello", "utf8").await, json!({"return": {}}));
    assert_eq!(write("aGVsbG8=", "base64").await, json!({"return": {}}));
    assert_eq!(write("//79", "base64").await, json!({"return": {}}));
    assert_eq!(
        write("!!", "base64").await["error"]["desc"],
        "Base64 data contains invalid characters"
    );
    let mut read = async |arguments: &str| {
        let text = format!(r#"{{"execute":"ringbuf-read","arguments":{{{arguments}}}}}"#);
        client.command(&text).await
    };
    assert_eq!(read(r#""device":"r","size":3"#).await["return"], "hel");
    assert_eq!(
        read(r#""device":"r","size":4,"format":"base64""#).await["return"],
        "bG9oZQ=="
    );
    // As QEMU's: what is no UTF-8 is shown as such.
    assert_eq!(
        read(r#""device":"r","size":99"#).await["return"],
        "llo\u{fffd}\u{fffd}\u{fffd}"
    );
    for size in [0, -1] {
        let error = read(&format!(r#""device":"r","size":{size}"#)).await;
        assert_eq!(error["error"]["desc"], "size must be greater than zero");
    }
    let error = read(r#""device":"c","size":0"#).await;
    assert_eq!(error["error"]["desc"], "c is not a ringbuf device");
}
