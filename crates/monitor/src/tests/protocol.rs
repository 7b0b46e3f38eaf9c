//! Negotiation, framing, order, slow and hostile clients.

use std::sync::Arc;
use std::time::Duration;

use block::event::{Event, EventKind};
use block::{CorruptionReport, HoldScope, Node};
use qapi::Value;
use qapi::wire::Layout;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::daemon::{Barrier, Client, Daemon, Fake, soon};
use crate::{OUTPUT_BYTES_MAX, requests};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

#[tokio::test]
async fn negotiation() {
    let daemon = Daemon::new().await;
    let mut client = daemon.connect().await;
    for command in ["query-status", "nosuch"] {
        assert_eq!(
            client
                .command(&format!(r#"{{"execute":"{command}","id":1}}"#))
                .await,
            json!({"id": 1, "error": {
                "class": "CommandNotFound",
                "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
            }})
        );
    }
    assert_eq!(
        client.error(r#"{"execut":"x"}"#).await,
        "QMP input member 'execut' is unexpected"
    );
    for (arguments, desc) in [
        (
            r#"{"enable":["nosuch"]}"#,
            "Parameter 'null' does not accept value 'nosuch'",
        ),
        (
            r#"{"enable":1}"#,
            "Invalid parameter type for 'enable', expected: array",
        ),
        (r#"{"x":1}"#, "Parameter 'x' is unexpected"),
    ] {
        let text = format!(r#"{{"execute":"qmp_capabilities","arguments":{arguments}}}"#);
        assert_eq!(client.error(&text).await, desc);
    }
    let negotiate = r#"{"execute":"qmp_capabilities","arguments":{"enable":[]},"id":{"a":[1]}}"#;
    assert_eq!(
        client.command(negotiate).await,
        json!({"return": {}, "id": {"a": [1]}})
    );
    assert_eq!(
        client.command(r#"{"execute":"qmp_capabilities"}"#).await,
        json!({"error": {
            "class": "CommandNotFound",
            "desc": "Capabilities negotiation is already complete, command ignored",
        }})
    );
    assert_eq!(
        client.command(r#"{"execute":"nosuch","id":null}"#).await,
        json!({"id": null, "error": {
            "class": "CommandNotFound", "desc": "The command nosuch has not been found",
        }})
    );
}

/// None can be executed out of band, and it is no error to have asked for that.
#[tokio::test]
async fn out_of_band() {
    let daemon = Daemon::new().await;
    let mut client = daemon.connect().await;
    let unexpected = "QMP input member 'exec-oob' is unexpected";
    let enable = r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob","oob"]}}"#;
    assert_eq!(client.error(r#"{"exec-oob":"stop"}"#).await, unexpected);
    assert_eq!(client.command(enable).await, json!({"return": {}}));
    for (text, desc) in [
        (
            r#"{"exec-oob":"stop"}"#,
            "The command stop does not support OOB",
        ),
        (
            r#"{"exec-oob":1}"#,
            "QMP input member 'exec-oob' must be a string",
        ),
        (
            r#"{"execute":"stop","exec-oob":"stop"}"#,
            "QMP input member 'execute' clashes with 'exec-oob'",
        ),
    ] {
        assert_eq!(client.error(text).await, desc);
    }
    let unknown = client.command(r#"{"exec-oob":"nosuch","id":1}"#).await;
    let expected = json!({"id": 1, "error": {
        "class": "CommandNotFound", "desc": "The command nosuch has not been found",
    }});
    assert_eq!(unknown, expected);
    assert_eq!(client.result("query-status").await["running"], true);
    let mut other = daemon.client().await;
    for text in [
        r#"{"exec-oob":"stop"}"#,
        r#"{"exec-oob":1}"#,
        r#"{"execute":"stop","exec-oob":"stop"}"#,
    ] {
        assert_eq!(other.error(text).await, unexpected);
    }
}

#[tokio::test]
async fn input_may_be_split_and_merged() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    client.send("{'execute':\n'query-status', 'id'").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    client
        .send(":1}{\"execute\":\"query-version\",\"id\":2} {\"id\":3,\"exec")
        .await;
    client.send("ute\":\"stop\"}").await;
    assert_eq!(client.receive().await["id"], 1);
    assert_eq!(client.receive().await["id"], 2);
    assert_eq!(client.receive().await["event"], "STOP");
    assert_eq!(client.receive().await, json!({"return": {}, "id": 3}));
}

#[tokio::test]
async fn what_is_no_request_is_answered_and_skipped() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    for (text, desc) in [
        ("[]", "QMP input must be a JSON object"),
        (
            "{\"execute\":1}",
            "QMP input member 'execute' must be a string",
        ),
        (
            "{\"execute\":\"stop\",\"arguments\":[]}",
            "QMP input member 'arguments' must be an object",
        ),
        (
            "{\"execute\":\"stop\",\"arguments\":{\"x\":1}}",
            "Parameter 'x' is unexpected",
        ),
        ("{\"execute\":}", "JSON parse error, expecting value"),
    ] {
        assert_eq!(client.error(text).await, desc);
    }
    // An unfinished message is given up with 0xFF.
    client
        .send(b"{\"execute\":\"sto\xff{\"execute\":\"query-commands\",\"id\":1}")
        .await;
    assert_eq!(client.receive().await["error"]["class"], "GenericError");
    assert_eq!(client.receive().await["id"], 1);
    // An oversized one is given up by us.
    client
        .send(format!(
            "{{\"execute\":\"{}",
            "x".repeat(qapi::TEXT_BYTES_MAX)
        ))
        .await;
    assert_eq!(
        client.receive().await["error"]["desc"],
        "JSON token size limit exceeded"
    );
    client
        .send("\n{\"execute\":\"query-version\",\"id\":2}")
        .await;
    assert_eq!(client.receive().await["id"], 2);
}

#[tokio::test]
async fn events_reach_who_has_negotiated_in_order() {
    let mut daemon = Daemon::new().await;
    daemon.node("n", Fake::new("file"));
    daemon.export("e", "n", HoldScope::Vm).await;
    let mut early = daemon.connect().await;
    let mut one = daemon.client().await;
    let mut two = daemon.client().await;
    daemon.fail("e", ENOSPC).await;
    daemon.fail("e", EIO).await;
    let first = one.receive().await;
    assert_eq!(
        first["data"],
        json!({
            "qom-path": "e", "device": "e", "node-name": "n", "operation": "write",
            "action": "stop", "nospace": true, "reason": "No space left on device",
            "x-request": "write", "x-offset": 8192, "x-length": 512, "x-errno": 28,
            "x-cause": "nospace", "x-error-node": "below", "x-incident": 1,
        })
    );
    assert_eq!(one.events(2).await, ["STOP", "BLOCK_IO_ERROR"]);
    assert_eq!(
        two.events(3).await,
        ["BLOCK_IO_ERROR", "STOP", "BLOCK_IO_ERROR"]
    );
    // Whoever saw the event sees the status; the first error stays.
    let status = one.result("query-status").await;
    assert_eq!(
        status,
        json!({"running": false, "status": "io-error", "singlestep": false})
    );
    assert_eq!(one.result("query-block").await[0]["io-status"], "nospace");
    // The other session hears of what this one does.
    one.send(r#"{"execute":"cont"}"#).await;
    assert_eq!(one.events(1).await, ["RESUME"]);
    assert_eq!(one.receive().await, json!({"return": {}}));
    assert_eq!(two.events(1).await, ["RESUME"]);
    assert_eq!(one.result("query-block").await[0]["io-status"], "ok");
    // Nothing waits for the one that had not negotiated.
    early.send(r#"{"execute":"qmp_capabilities"}"#).await;
    assert_eq!(early.receive().await, json!({"return": {}}));
    daemon.registry.close_exports().await;
    let deleted = early.receive().await;
    assert_eq!(deleted["event"], "BLOCK_EXPORT_DELETED");
    assert_eq!(deleted["data"], json!({"id": "e"}));
}

/// What a driver has found before anybody asked is told when its node is there; and what the export is called whose
/// node it is.
#[tokio::test]
async fn an_image_that_turns_out_to_be_corrupt_is_told() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    let (above, node) = (Fake::new("qcow2").node("n"), Fake::new("qcow2").node("m"));
    let report = |node: &Arc<Node>, offset, fatal| {
        let found = CorruptionReport {
            msg: "entry 7".to_owned(),
            offset,
            bytes: offset.map(|_| 512),
            fatal,
        };
        let corruption = node.driver().capabilities().corruption;
        corruption.unwrap().report(found)
    };
    assert!(report(&node, None, false));
    daemon.registry.add_node(&above).await.unwrap();
    daemon.registry.add_node(&node).await.unwrap();
    let early = client.receive().await;
    assert_eq!(early["event"], "BLOCK_IMAGE_CORRUPTED");
    assert_eq!(
        early["data"],
        json!({ "device": "", "node-name": "m", "msg": "entry 7", "fatal": false })
    );
    daemon.export("e", "m", HoldScope::Vm).await;
    assert!(report(&node, Some(4096), true));
    assert!(!report(&node, Some(4096), true));
    assert_eq!(
        client.receive().await["data"],
        json!({ "device": "e", "node-name": "m", "msg": "entry 7", "offset": 4096, "size": 512, "fatal": true })
    );
    assert_eq!(client.result("query-status").await["status"], "running");
}

/// Events pile up for a client that does not read until the bound, then it is disconnected; the
/// other clients lose nothing, and run control is never kept waiting.
#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let daemon = Daemon::new().await;
    daemon.node("n", Fake::new("file"));
    // A long name makes for few, long events.
    let id = "e".repeat(8000);
    daemon.export(&id, "n", HoldScope::Vm).await;
    let mut stuck = daemon.client().await;
    const BATCH: usize = 100;
    let mut reader = daemon.client().await;
    let mut bytes = 0;
    let mut total = 0;
    // More than the queue and the socket's buffers hold.
    while bytes < OUTPUT_BYTES_MAX + (4 << 20) {
        daemon.report(&id, EIO, BATCH).await;
        for _ in 0..BATCH {
            bytes += reader.line().await.unwrap().len();
        }
        total += BATCH;
    }
    // Ended, although it has not read a byte of it.
    let mut left = 0;
    while stuck.line().await.is_some() {
        left += 1;
    }
    assert!(
        left < total / 2,
        "{left} of {total} events were still delivered"
    );
    assert_eq!(reader.result("query-status").await["status"], "running");
}

/// A client that sends and does not read is not served without end: its commands wait, and so do
/// the bytes of its input, in the socket.
#[tokio::test]
async fn replies_wait_for_the_reader() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    let request = b"{\"execute\":\"query-commands\"}".repeat(1000);
    let sent = tokio::time::timeout(Duration::from_millis(500), async {
        for sent in 0.. {
            if client.stream.write_all(&request).await.is_err() || sent == 100 {
                return;
            }
        }
    });
    assert!(sent.await.is_err(), "input is taken without limit");
    // It is served on as soon as it reads.
    for _ in 0..2000 {
        assert!(client.line().await.unwrap().starts_with(b"{\"return\": ["));
    }
}

#[tokio::test]
async fn a_slow_command_delays_only_its_session() {
    let daemon = Daemon::new().await;
    let barrier = Arc::new(Barrier::default());
    daemon.node("n", Fake::new("file").slow_resize(&barrier));
    let mut slow = daemon.client().await;
    let mut other = daemon.client().await;
    slow.send(r#"{"execute":"block_resize","arguments":{"node-name":"n","size":8192}}"#)
        .await;
    slow.send(r#"{"execute":"query-status","id":1}"#).await;
    assert_eq!(other.result("query-status").await["running"], true);
    let unanswered = tokio::time::timeout(Duration::from_millis(50), slow.next()).await;
    assert!(unanswered.is_err());
    barrier.open();
    assert_eq!(slow.receive().await, json!({"return": {}}));
    assert_eq!(slow.receive().await["id"], 1);
}

/// The client goes while its command is under way: the command ends all the same.
#[tokio::test]
async fn a_command_outlives_its_client() {
    let daemon = Daemon::new().await;
    let barrier = Arc::new(Barrier::default());
    daemon.node("n", Fake::new("file").slow_resize(&barrier));
    let mut client = daemon.client().await;
    client
        .send(r#"{"execute":"block_resize","arguments":{"node-name":"n","size":8192}}"#)
        .await;
    let mut other = daemon.client().await;
    drop(client);
    assert_eq!(other.result("query-status").await["running"], true);
    barrier.open();
    let resized = async {
        while daemon.registry.node("n").unwrap().driver().length() != 8192 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(resized).await;
}

/// fstat(2) of an image hung, and `query-block` with it: the one member that needs the storage is left
/// out, or what was last known.
#[tokio::test]
async fn queries_do_not_wait_for_storage() {
    let daemon = Daemon::new().await;
    let (never, later) = (Arc::new(Barrier::default()), Arc::new(Barrier::default()));
    daemon.node("a", Fake::new("file").hanging(&never));
    daemon.node("b", Fake::new("file"));
    daemon.node("c", Fake::new("file").hanging(&later));
    let mut client = daemon.client().await;
    let sizes = |nodes: &Value| {
        // The newest is the first.
        let nodes = nodes.as_array().unwrap().iter().rev();
        let sizes = nodes.map(|node| node["image"]["actual-size"].as_u64());
        sizes.collect::<Vec<_>>()
    };
    // What answers may be too late for the first query as well: that is a matter of the machine.
    let answered = async {
        loop {
            let nodes = client.result("query-named-block-nodes").await;
            let [first, second, third] = sizes(&nodes)[..] else {
                unreachable!("there are three");
            };
            assert_eq!((first, third), (None, None));
            if second == Some(4096) {
                return;
            }
        }
    };
    soon(answered).await;
    assert!(
        client
            .hmp("info block -n -v a")
            .await
            .contains("disk size: unavailable")
    );
    later.open();
    let known = async {
        while sizes(&client.result("query-named-block-nodes").await)[2] != Some(4096) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(known).await;
    never.open();
}

/// Once nothing has been heard for the time that a query waits, nobody waits any more: many queries take
/// no time to speak of, and no further thread.
#[tokio::test]
async fn what_is_overdue_is_not_waited_for() {
    const QUERIES: u32 = 300;
    let daemon = Daemon::new().await;
    let never = Arc::new(Barrier::default());
    daemon.node("a", Fake::new("file").hanging(&never));
    let mut client = daemon.client().await;
    let begin = std::time::Instant::now();
    for _ in 0..QUERIES {
        let nodes = client.result("query-named-block-nodes").await;
        assert!(nodes[0]["image"]["actual-size"].is_null(), "{nodes:?}");
    }
    let waited = Duration::from_millis(100) * QUERIES;
    assert!(begin.elapsed() < waited * 2 / 3, "{:?}", begin.elapsed());
    never.open();
}

/// 64 clients that had given up on a command locked everybody out.
#[tokio::test]
async fn a_client_that_has_left_leaves_its_place() {
    let daemon = Daemon::new().await;
    let barrier = Arc::new(Barrier::default());
    daemon.node("n", Fake::new("file").slow_resize(&barrier));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let monitor = daemon.monitor.clone();
    tokio::spawn(async move { monitor.serve(listener, Layout::Compact).await });
    for _ in 0..2 * crate::SESSIONS_MAX {
        let mut client = Client {
            stream: BufReader::new(UnixStream::connect(&path).await.unwrap()),
        };
        client.receive().await;
        client.command(r#"{"execute":"qmp_capabilities"}"#).await;
        client
            .send(r#"{"execute":"block_resize","arguments":{"node-name":"n","size":8192}}"#)
            .await;
    }
    barrier.open();
}

#[tokio::test]
async fn quit_is_answered_and_close_sends_what_is_left() {
    let mut daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    assert_eq!(client.result("quit").await, json!({}));
    assert_eq!(soon(daemon.quit.recv()).await, Some("host-qmp-quit"));
    let kind = EventKind::Shutdown {
        reason: "host-qmp-quit",
    };
    daemon
        .control()
        .emit(Event {
            at: std::time::SystemTime::now(),
            kind,
        })
        .await;
    daemon.monitor.close();
    let shutdown = client.receive().await;
    assert_eq!(shutdown["event"], "SHUTDOWN");
    assert_eq!(
        shutdown["data"],
        json!({"guest": false, "reason": "host-qmp-quit"})
    );
    assert_eq!(client.next().await, None);
    // Nobody comes in any more.
    assert_eq!(daemon.connect_unread().next().await, None);
}

/// Half a connection: what was asked before the end is answered.
#[tokio::test]
async fn answers_follow_a_shutdown_of_the_input() {
    let daemon = Daemon::new().await;
    let mut client = daemon.connect().await;
    client
        .send("{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-version\"}")
        .await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.receive().await, json!({"return": {}}));
    assert_eq!(client.receive().await["return"]["qemu"]["major"], 7);
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn many_clients_on_one_listener() {
    let daemon = Daemon::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let monitor = daemon.monitor.clone();
    let layout = Layout::Pretty;
    let serving = tokio::spawn(async move { monitor.serve(listener, layout).await });
    let mut clients = Vec::new();
    for _ in 0..crate::SESSIONS_MAX {
        let mut stream = soon(UnixStream::connect(&path)).await.unwrap();
        let mut greeting = [0; 8];
        soon(stream.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(&greeting, b"{\n    \"Q");
        clients.push(stream);
    }
    // One too many waits until another goes.
    let mut late = soon(UnixStream::connect(&path)).await.unwrap();
    let mut byte = [0];
    let unserved = tokio::time::timeout(Duration::from_millis(50), late.read(&mut byte)).await;
    assert!(unserved.is_err());
    clients.pop();
    assert_eq!(soon(late.read(&mut byte)).await.unwrap(), 1);
    daemon.monitor.close();
    soon(serving).await.unwrap().unwrap();
}

#[test]
fn framing_takes_anything() {
    let good = b"{\"execute\":\"a\"}";
    for hostile in [
        &b"\0\xff\xfe{{{]]]"[..],
        b"\"\"\"'''\\\\\\",
        b"{\"execute\":\"\\ud800\"}",
        b"-+.eE0123",
        b"}}}}",
        &[0x80; 64],
    ] {
        let mut bytes = hostile.to_vec();
        bytes.push(0xff);
        bytes.extend_from_slice(good);
        let all = requests(&bytes);
        assert_eq!(
            all.last().unwrap().as_ref().unwrap().execute,
            "a",
            "{hostile:?}"
        );
    }
    assert!(requests(&b"[".repeat(3 << 19)).iter().all(Result::is_err));
}
