//! What the commands do and return.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::HoldScope;
use serde_json::{Value, json};

use super::daemon::{Daemon, Fake};

const ENOSPC: i32 = 28;

/// One export `e` on `n`, one on a read-only node, one more node.
async fn daemon() -> Daemon {
    let daemon = Daemon::new().await;
    daemon.node("n", Fake::new("file").warning("it is buffered"));
    daemon.node("ro", Fake::new("null-co").read_only());
    daemon.node("q", Fake::new("quota"));
    daemon.node("d", Fake::new("blkdebug"));
    daemon.export("e", "n", HoldScope::Vm).await;
    daemon.export("f", "ro", HoldScope::Device).await;
    daemon
}

fn members(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn query_commands_lists_the_table() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    let commands = client.result("query-commands").await;
    let mut names: Vec<&str> = commands
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    for name in [
        "qmp_capabilities",
        "stop",
        "cont",
        "query-block",
        "x-quota-set",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[tokio::test]
async fn query_block() {
    let mut daemon = daemon().await;
    let mut client = daemon.client().await;
    let list = client.result("query-block").await;
    assert_eq!(
        members(&list[0]),
        [
            "device",
            "inserted",
            "io-status",
            "locked",
            "qdev",
            "removable",
            "type",
            "x-held",
            "x-hold-scope",
            "x-incidents",
            "x-rerror",
            "x-warnings",
            "x-werror",
        ]
    );
    assert_eq!(list[0]["device"], "e");
    assert_eq!(list[0]["qdev"], "e");
    assert_eq!(list[0]["io-status"], "ok");
    assert_eq!(list[0]["x-warnings"], json!(["it is buffered"]));
    assert_eq!(list[0]["x-werror"], "enospc");
    assert_eq!(list[1]["inserted"]["ro"], true);
    assert_eq!(list[1]["x-hold-scope"], "device");
    assert_eq!(
        list[0]["inserted"],
        json!({
            "file": "/file.img", "node-name": "n", "ro": false, "drv": "file",
            "backing_file_depth": 0, "children": [], "active": true, "encrypted": false,
            "detect_zeroes": "off",
            "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
            "cache": {"writeback": true, "direct": false, "no-flush": false},
            "write_threshold": 0,
            "image": {
                "filename": "/file.img", "format": "file", "virtual-size": 1 << 20,
                "actual-size": 4096,
            },
        })
    );
    // Its guest has no write cache.
    let id = daemon.backend("e");
    let set = move |state: &mut block::run_control::RunControl, _: &mut _| {
        state.set_write_cache(id, block::WriteCache::WriteThrough);
    };
    daemon.control().call(set).await;
    let list = client.result("query-block").await;
    assert_eq!(list[0]["inserted"]["cache"]["writeback"], false);
    assert_eq!(list[1]["inserted"]["cache"]["writeback"], true);
    let text = client.hmp("info block e").await;
    assert!(
        text.contains("Cache mode:       writethrough\r\n"),
        "{text}"
    );
    daemon.fail("e", ENOSPC).await;
    client.events(2).await;
    let held = &client.result("query-block").await[0];
    assert_eq!(held["io-status"], "nospace");
    assert_eq!(
        (&held["x-held"], &held["x-incident"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(held["x-first-error"]["errno"], ENOSPC);
    assert_eq!(held["x-first-error"]["operation"], "write");

    let held = client.result("x-query-held").await;
    assert_eq!((&held[0]["id"], &held[0]["head"]), (&json!("e"), &json!(7)));
    assert_eq!(
        (&held[0]["offset"], &held[0]["length"]),
        (&json!(8192), &json!(512))
    );
    let of_f = client
        .command(r#"{"execute":"x-query-held","arguments":{"id":"f"}}"#)
        .await;
    assert_eq!(of_f, json!({"return": []}));
    assert_eq!(
        client
            .error(r#"{"execute":"x-query-held","arguments":{"id":"g"}}"#)
            .await,
        "Export 'g' is not found"
    );
}

#[tokio::test]
async fn nodes_exports_and_counters() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    let nodes = client.result("query-named-block-nodes").await;
    let names: Vec<_> = nodes
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["node-name"])
        .collect();
    assert_eq!(names, ["d", "q", "ro", "n"], "the newest first");
    assert_eq!(nodes[1]["x-quota-used"], 4096);
    assert_eq!(
        client.result("query-block-exports").await[1],
        json!({
            "id": "e", "type": "vhost-user-blk", "node-name": "n", "shutting-down": false,
            "x-writable": true, "x-client": true,
        })
    );
    let stats = client.result("query-blockstats").await;
    assert_eq!(stats.as_array().unwrap().len(), 2);
    assert_eq!(
        (&stats[0]["device"], &stats[0]["node-name"]),
        (&json!("e"), &json!("n"))
    );
    assert_eq!(stats[0]["stats"]["account_failed"], true);
    // QEMU's members that are there before the first request, and ours.
    let ours = [
        "x-attempts",
        "x-holds",
        "x-hold-time-ns",
        "x-events-merged",
        "x-dropped",
        "x-lost",
    ];
    let counters = members(&stats[0]["stats"]);
    assert_eq!(counters.len(), 32 + ours.len(), "{counters:?}");
    let all = r#"{"execute":"query-blockstats","arguments":{"query-nodes":true}}"#;
    let stats = client.command(all).await;
    assert_eq!(stats["return"].as_array().unwrap().len(), 4);
    assert_eq!(members(&stats["return"][0]), ["node-name", "stats"]);
    assert_eq!(stats["return"][0]["node-name"], "n", "the oldest first");
    assert_eq!(stats["return"][0]["stats"]["account_failed"], false);
}

#[tokio::test]
async fn block_resize() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    for (arguments, desc) in [
        ("", "Parameter 'size' is missing"),
        (
            r#""size":"x""#,
            "Invalid parameter type for 'size', expected: integer",
        ),
        (r#""size":1"#, "Cannot find device='' nor node-name=''"),
        (
            r#""size":1,"device":"x""#,
            "Cannot find device='x' nor node-name=''",
        ),
        (
            r#""size":1,"device":"x","node-name":"y""#,
            "Cannot find device='x' nor node-name='y'",
        ),
        (
            r#""size":-1,"node-name":"n""#,
            "Parameter 'size' expects a >0 size",
        ),
        (r#""size":512,"node-name":"ro""#, "Image is read-only"),
    ] {
        let text = format!(r#"{{"execute":"block_resize","arguments":{{{arguments}}}}}"#);
        assert_eq!(client.error(&text).await, desc);
    }
    for (name, size) in [(r#""device":"e""#, 4096), (r#""node-name":"n""#, 8192)] {
        let text = format!(r#"{{"execute":"block_resize","arguments":{{{name},"size":{size}}}}}"#);
        assert_eq!(client.command(&text).await, json!({"return": {}}));
        assert_eq!(daemon.registry.node("n").unwrap().driver().length(), size);
    }
}

#[tokio::test]
async fn stop_and_cont() {
    let mut daemon = daemon().await;
    let lost = Arc::new(AtomicBool::new(false));
    daemon.node("l", Fake::new("file").latch(&lost));
    daemon.export("g", "l", HoldScope::Vm).await;
    let mut client = daemon.client().await;
    client.send(r#"{"execute":"stop"}"#).await;
    assert_eq!(client.events(1).await, ["STOP"]);
    assert_eq!(client.receive().await, json!({"return": {}}));
    // Again: success, no event.
    assert_eq!(client.result("stop").await, json!({}));
    assert_eq!(client.result("query-status").await["status"], "paused");

    daemon.fail("e", ENOSPC).await;
    assert_eq!(client.events(1).await, ["BLOCK_IO_ERROR"]);
    // A refused cont says why and changes nothing.
    lost.store(true, Ordering::SeqCst);
    assert_eq!(
        client.error(r#"{"execute":"cont"}"#).await,
        "Node 'n' lost data"
    );
    assert_eq!(client.result("query-status").await["status"], "paused");
    assert_eq!(
        client.result("query-block").await[0]["io-status"],
        "nospace"
    );
    let accept = r#"{"execute":"x-node-accept-loss","arguments":{"node-name":"l"}}"#;
    assert_eq!(client.command(accept).await, json!({"return": {}}));
    assert!(client.error(accept).await.contains("no loss to accept"));
    client.send(r#"{"execute":"cont"}"#).await;
    assert_eq!(client.events(1).await, ["RESUME"]);
    assert_eq!(client.receive().await, json!({"return": {}}));
    assert_eq!(client.result("cont").await, json!({}));

    let cont = |id| format!(r#"{{"execute":"x-block-export-cont","arguments":{{"id":"{id}"}}}}"#);
    assert_eq!(client.command(&cont("f")).await, json!({"return": {}}));
    assert!(client.error(&cont("e")).await.contains("hold-scope=vm"));
    assert_eq!(
        client.error(&cont("nosuch")).await,
        "Export 'nosuch' is not found"
    );
}

#[tokio::test]
async fn quota_and_blkdebug() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    let quota = |node: &str, limit: &str| {
        format!(
            r#"{{"execute":"x-quota-set","arguments":{{"node-name":"{node}","limit":{limit}}}}}"#
        )
    };
    assert_eq!(
        client.command(&quota("q", "65536")).await,
        json!({"return": {}})
    );
    assert_eq!(
        daemon
            .registry
            .node("q")
            .unwrap()
            .allocation_limit()
            .map(|limit| limit.quota()),
        Some((65536, 4096))
    );
    assert_eq!(
        client.error(&quota("n", "1")).await,
        "Node 'n' has driver 'file': name a node with driver 'quota'"
    );
    assert_eq!(
        client.error(&quota("x", "1")).await,
        "Cannot find device='' nor node-name='x'"
    );
    assert_eq!(
        client.error(&quota("q", "-1")).await,
        "Parameter 'limit' expects uint64"
    );
    let none = r#"{"execute":"x-quota-set","arguments":{"node-name":"q"}}"#;
    assert_eq!(client.error(none).await, "Parameter 'limit' is missing");

    let inject = |more: &str| {
        format!(r#"{{"execute":"x-blkdebug-inject","arguments":{{"node-name":"d"{more}}}}}"#)
    };
    let rule = r#","iotype":"write","errno":28,"once":true,"sector":3,"every-nth":2"#;
    let id = client.command(&inject(rule)).await["return"]["id"]
        .as_u64()
        .unwrap();
    let node = daemon.registry.node("d").unwrap();
    let rules = node.fault_plan().unwrap().status();
    assert_eq!((rules[0].rule.errno, rules[0].rule.once), (28, true));
    assert_eq!(
        (rules[0].rule.sector, rules[0].rule.every_nth),
        (Some(3), 2)
    );
    for (more, desc) in [
        (
            r#","event":"x""#,
            "Parameter 'event' does not accept value 'x'",
        ),
        (
            r#","iotype":"x""#,
            "Parameter 'iotype' does not accept value 'x'",
        ),
        (r#","errno":-5"#, "Parameter 'errno' expects 0 to 4095"),
        (
            r#","sector":-2"#,
            "Parameter 'sector' expects a sector number or -1",
        ),
        (
            r#","state":-1"#,
            "Parameter 'state' expects 0 to 4294967295",
        ),
    ] {
        assert_eq!(client.error(&inject(more)).await, desc);
    }
    let clear = |more: &str| {
        format!(r#"{{"execute":"x-blkdebug-clear","arguments":{{"node-name":"d"{more}}}}}"#)
    };
    let one = clear(&format!(r#","id":{id}"#));
    assert_eq!(client.command(&one).await, json!({"return": {}}));
    assert!(client.error(&one).await.starts_with("Node 'd' has no rule"));
    // Every event and type of request that options know can be injected.
    for event in [
        "none",
        "read_aio",
        "write_aio",
        "flush_to_disk",
        "pwritev_zero",
    ] {
        for iotype in ["read", "write", "write-zeroes", "discard", "flush"] {
            let more = format!(r#","event":"{event}","iotype":"{iotype}""#);
            assert!(client.command(&inject(&more)).await["return"]["id"].is_u64());
        }
    }
    assert_eq!(client.command(&clear("")).await, json!({"return": {}}));
    assert!(node.fault_plan().unwrap().status().is_empty());
}

/// A device that has vanished says ENOSPC: a manager extended a healthy volume for ever.
#[tokio::test]
async fn the_cause_is_shown_wherever_an_error_is() {
    let mut daemon = daemon().await;
    let mut client = daemon.client().await;
    let gone = block::Cause {
        kind: block::ErrorKind::BackingGone,
        errno: ENOSPC,
    };
    daemon.fail_because("e", gone).await;
    let event = client.receive().await;
    let data = &event["data"];
    assert_eq!(
        (&data["nospace"], &data["x-cause"], &data["x-errno"]),
        (&json!(false), &json!("backing-gone"), &json!(ENOSPC))
    );
    assert_eq!(
        (&data["node-name"], &data["x-error-node"]),
        (&json!("n"), &json!("below"))
    );
    assert_eq!(client.events(1).await, ["STOP"]);
    let e = &client.result("query-block").await[0];
    assert_eq!(e["io-status"], "failed");
    for error in ["x-first-error", "x-last-error"] {
        assert_eq!(e[error]["cause"], "backing-gone");
        assert_eq!(e[error]["error-node"], "below");
    }
    assert_eq!(e["x-incident-cause"], "backing-gone");
    assert_eq!(e["x-incident-node"], "below");
    let held = client.result("x-query-held").await;
    assert_eq!(held[0]["cause"], "backing-gone");
    assert_eq!(held[0]["error-node"], "below");
    let shown = "    I/O status:       failed\r\n    \
                 Cause:            backing-gone (node 'below': No space left on device)\r\n";
    let text = client.hmp("info block e").await;
    assert!(text.contains(shown), "{text}");
}

#[tokio::test]
async fn hmp() {
    let mut daemon = daemon().await;
    let mut client = daemon.client().await;
    assert_eq!(client.hmp("info status").await, "VM status: running\r\n");
    assert_eq!(client.hmp("").await, "");
    let e = "e (n): /file.img (file)\r\n    Attached to:      e\r\n    \
             Cache mode:       writeback\r\n";
    let f = "\r\nf (ro): /null-co.img (null-co, read-only)\r\n    Attached to:      f\r\n    \
             Cache mode:       writeback\r\n";
    assert_eq!(client.hmp("info block").await, format!("{e}{f}"));
    assert_eq!(client.hmp("info block f").await, f);
    // A node's name, for want of a device of that name; `d` is the first node, `n` is not.
    let d = "d: /blkdebug.img (blkdebug)\r\n    Cache mode:       writeback\r\n";
    assert_eq!(client.hmp("info block d").await, d);
    assert!(
        client
            .hmp("info block -n n")
            .await
            .starts_with("\r\nn: /file.img")
    );
    assert!(
        client
            .hmp("info block -v e")
            .await
            .contains("\r\n\r\nImages:\r\nimage: /file.img")
    );
    assert_eq!(client.hmp("info block nosuch").await, "");
    assert!(
        client
            .hmp("info blockstats")
            .await
            .starts_with("e: rd_bytes=0 wr_bytes=0 ")
    );
    for (line, text) in [
        ("info foo", "unknown command: 'info foo'\r\n"),
        ("foo bar", "unknown command: 'foo'\r\n"),
        (
            "info block a b",
            "block: extraneous characters at the end of line\r\n\
             Try \"help info block\" for more information\r\n",
        ),
        (
            "info block -x",
            "block: unsupported option -x\r\nTry \"help info block\" for more information\r\n",
        ),
        (
            "stop x",
            "stop|s: extraneous characters at the end of line\r\n\
             Try \"help stop\" for more information\r\n",
        ),
    ] {
        assert_eq!(client.hmp(line).await, text);
    }
    daemon.fail("e", ENOSPC).await;
    client.events(2).await;
    assert_eq!(
        client.hmp("info status").await,
        "VM status: paused (io-error)\r\n"
    );
    assert!(
        client
            .hmp("info block e")
            .await
            .contains("    I/O status:       nospace\r\n")
    );
    let lost = Arc::new(AtomicBool::new(true));
    daemon.node("l", Fake::new("file").latch(&lost));
    daemon.export("g", "l", HoldScope::Vm).await;
    assert_eq!(client.hmp("cont").await, "Error: Node 'n' lost data\r\n");
    lost.store(false, Ordering::SeqCst);
    client
        .send(r#"{"execute":"human-monitor-command","arguments":{"command-line":"cont"}}"#)
        .await;
    assert_eq!(client.events(1).await, ["RESUME"]);
    assert_eq!(client.receive().await, json!({"return": ""}));
}

/// `standfast qmp SOCKET x-query-held` said "JSON token count limit exceeded" in an incident with more than
/// 19,400 held requests, which two disks have room for.
#[test]
fn the_longest_answer_that_is_sent_is_understood() {
    let record = qapi::types::HeldRequestInfo {
        id: "vda".to_owned(),
        queue: 15,
        head: 1023,
        operation: "write".to_owned(),
        offset: 0,
        length: 0,
        errno: Some(ENOSPC),
        cause: Some("nospace".to_owned()),
        error_node: Some("file0".to_owned()),
        reason: Some("No space left on device".to_owned()),
        attempts: 1,
        since: std::time::SystemTime::UNIX_EPOCH.into(),
    };
    let one = serde_json::to_string(&record).unwrap().len() + 2;
    let answer = json!({ "return": vec![record; crate::OUTPUT_BYTES_MAX / one] }).to_string();
    assert!((crate::OUTPUT_BYTES_MAX * 9 / 10..crate::OUTPUT_BYTES_MAX).contains(&answer.len()));
    let mut stream = qapi::json::Stream::with_limits(qmp_client::ANSWER_LIMITS);
    let mut understood = 0;
    stream.feed(answer.as_bytes(), |value| {
        assert!(value.unwrap().get("return").is_some());
        understood += 1;
    });
    assert_eq!(understood, 1);
}

/// A driver whose own I/O fails.
#[derive(Debug)]
struct Unwritable;

impl block::OwnIo for Unwritable {
    fn write_back(&self) -> block::IoFuture<'_> {
        block::IoFuture::ready(Err(block::BlockError::from_errno(28)))
    }

    fn unwritten(&self) -> Option<block::Unwritten> {
        Some(block::Unwritten {
            bytes: 512,
            what: "header".to_owned(),
        })
    }
}

impl block::Driver for Unwritable {
    fn name(&self) -> &'static str {
        "unwritable"
    }

    fn info(&self) -> block::NodeInfo {
        block::NodeInfo::default()
    }

    fn length(&self) -> u64 {
        0
    }

    fn capabilities(&self) -> block::Capabilities<'_> {
        block::Capabilities {
            own_io: Some(self),
            ..block::Capabilities::default()
        }
    }

    fn submit<'a>(&'a self, _: block::Io<'a>) -> block::IoFuture<'a> {
        block::IoFuture::ready(Ok(()))
    }
}

#[tokio::test]
async fn what_a_driver_cannot_write_is_shown_once_it_has_failed() {
    let node = block::Node::new("d", Box::new(Unwritable));
    let told = || crate::convert::node(&node, &crate::storage::Sizes::default(), false);
    assert_eq!(told().x_unwritten, None);
    node.write_back().await;
    let shown = told().x_unwritten.unwrap();
    assert_eq!((shown.bytes, &*shown.what), (512, "header"));
    assert!(shown.reason.contains("No space left"), "{}", shown.reason);
}
