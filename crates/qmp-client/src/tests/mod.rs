//! Against servers made of a buffer.

mod client;
mod connection;
mod dial;
mod wire;

use std::time::Duration;

use qapi::Value;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use crate::{Connection, Incoming, Wire};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// With members that nobody here knows.
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7},
    "package": "Debian", "x": 1}, "capabilities": ["oob"], "y": {}}}"#;

/// The other side of a client.
struct Server(DuplexStream);

impl Server {
    async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next line of the client.
    async fn hear(&mut self) -> Value {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(self.0.read_u8().await.unwrap());
        }
        serde_json::from_slice(&line).unwrap()
    }
}

/// A buffer that takes so much in each direction.
fn pair(bytes: usize) -> (Wire<DuplexStream>, Server) {
    let (ours, theirs) = duplex(bytes);
    (Wire::new(ours), Server(theirs))
}

/// After the greeting and negotiation; the first command has the id 2.
async fn opened(bytes: usize) -> (Connection<DuplexStream>, Server) {
    let (wire, mut server) = pair(bytes);
    let greets = async {
        server.say(GREETING).await;
        let command = server.hear().await;
        assert_eq!(command, json!({"execute": "qmp_capabilities", "id": 1}));
        server.say("{\"return\": {}, \"id\": 1}\r\n").await;
    };
    let (connection, ()) = tokio::join!(Connection::open(wire, LONG), greets);
    (connection.unwrap(), server)
}

/// What came, in short.
fn short(incoming: Incoming) -> String {
    match incoming {
        Incoming::Event(event) => event.name().to_owned(),
        Incoming::Answer(answer) => match answer.result {
            Ok(value) => format!("{} {}: {value}", answer.command, answer.id),
            Err(error) => format!("{} {}! {}", answer.command, answer.id, error),
        },
    }
}
