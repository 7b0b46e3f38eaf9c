//! What queries say of nodes above others, of counters and of histograms.

use block::HoldScope;
use serde_json::{Value, json};

use super::daemon::{Client, Daemon, Fake};

/// `filter` over `window` over `file`, with an export on the filter.
async fn daemon() -> Daemon {
    let daemon = Daemon::new().await;
    daemon.node("file", Fake::new("file").on_host());
    let file = daemon.registry.node("file").unwrap();
    daemon.node("window", Fake::new("raw").over("window", &file, 65536));
    let window = daemon.registry.node("window").unwrap();
    daemon.node("filter", Fake::new("throttle").over("filter", &window, 0));
    daemon.export("e", "filter", HoldScope::Vm).await;
    daemon
}

async fn nodes(client: &mut Client, flat: bool) -> Value {
    let flat = json!({"execute": "query-named-block-nodes", "arguments": {"flat": flat}});
    client.command(&flat.to_string()).await["return"].take()
}

#[tokio::test]
async fn a_filter_shows_what_it_filters() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    let all = nodes(&mut client, false).await;
    let names: Vec<_> = (0..3).map(|n| &all[n]["node-name"]).collect();
    assert_eq!(names, ["filter", "window", "file"], "the newest first");
    let below = json!({
        "filename": "/raw.img", "format": "raw", "virtual-size": 1 << 20, "actual-size": 4096,
        "dirty-flag": false,
    });
    assert_eq!(all[0]["backing_file_depth"], 1);
    assert_eq!(all[0]["image"]["backing-image"], below);
    assert_eq!(all[0]["image"]["dirty-flag"], false);
    assert_eq!(
        all[0]["children"],
        json!([{"child": "file", "node-name": "window"}])
    );
    // A format is no filter.
    assert_eq!(all[1]["backing_file_depth"], 0);
    assert_eq!(all[1]["image"], below);
    assert_eq!(
        all[2]["image"]["format-specific"],
        json!({"type": "file", "data": {}})
    );
    let flat = nodes(&mut client, true).await;
    assert_eq!(flat[0]["backing_file_depth"], 0);
    assert_eq!(flat[0]["image"]["backing-image"], Value::Null);
    let block = client.result("query-block").await;
    let inserted = &block[0]["inserted"];
    assert_eq!(inserted["image"]["backing-image"], below);
    let text = client.hmp("info block -v e").await;
    let images = "image: /throttle.img\r\nfile format: throttle\r\n\
                  virtual size: 1 MiB (1048576 bytes)\r\ndisk size: 4 KiB\r\n\
                  image: /raw.img\r\nfile format: raw\r\n";
    assert!(text.contains(images), "{text}");
    assert!(!text.contains("Backing file:"), "{text}");
}

#[tokio::test]
async fn sizes_are_shown_in_whole_sectors() {
    let daemon = Daemon::new().await;
    daemon.node("n", Fake::new("null-co"));
    let node = daemon.registry.node("n").unwrap();
    node.resize(1000).unwrap();
    let mut client = daemon.client().await;
    let all = nodes(&mut client, false).await;
    assert_eq!(all[0]["image"]["virtual-size"], 1024);
    assert_eq!(all[0]["image"]["dirty-flag"], Value::Null);
}

/// Only the node that was written to by a client told how far: a manager that looks at the node on the volume
/// saw nothing of what had been written through nodes above it.
#[tokio::test]
async fn what_is_written_through_a_node_is_written_below() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    daemon.registry.node("filter").unwrap().wrote(4096);
    let all = r#"{"execute":"query-blockstats","arguments":{"query-nodes":true}}"#;
    let stats = client.command(all).await["return"].take();
    let told = |entry: &Value| {
        (
            entry["node-name"].as_str().unwrap().to_owned(),
            entry["stats"]["wr_highest_offset"].as_u64().unwrap(),
        )
    };
    let file = ("file".to_owned(), 65536 + 4096);
    let window = ("window".to_owned(), 4096);
    assert_eq!(told(&stats[0]), file);
    assert_eq!(told(&stats[1]), window);
    assert_eq!(told(&stats[1]["parent"]), file);
    assert_eq!(told(&stats[2]), ("filter".to_owned(), 4096));
    assert_eq!(stats[2]["backing"], Value::Null);
    let stats = client.result("query-blockstats").await;
    assert_eq!(told(&stats[0]), ("filter".to_owned(), 4096));
    assert_eq!(told(&stats[0]["parent"]), window);
    assert_eq!(told(&stats[0]["backing"]), window);
    assert_eq!(told(&stats[0]["backing"]["parent"]), file);
    // When the nodes above go, that stays.
    let filter = daemon.registry.node("filter").unwrap();
    daemon.registry.graph().remove(&filter);
    let window = daemon.registry.node("window").unwrap();
    daemon.registry.graph().remove(&window);
    let stats = client.command(all).await["return"].take();
    assert_eq!(told(&stats[0]), file);
}

#[tokio::test]
async fn histograms_are_set_whole_or_not_at_all() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    let set = |arguments: Value| {
        json!({"execute": "block-latency-histogram-set", "arguments": arguments}).to_string()
    };
    let kinds = ["rd", "wr", "zone_append", "flush"];
    async fn there(client: &mut Client, kinds: [&str; 4]) -> Vec<Value> {
        let stats = client.result("query-blockstats").await;
        let stats = &stats[0]["stats"];
        let of = |kind: &str| stats[format!("{kind}_latency_histogram")]["boundaries"].clone();
        kinds.into_iter().map(of).collect()
    }
    let none = vec![Value::Null; 4];
    assert_eq!(there(&mut client, kinds).await, none);
    for (arguments, class, desc) in [
        (
            json!({"boundaries": [1]}),
            "GenericError",
            "Parameter 'id' is missing",
        ),
        (
            json!({"id": "nope"}),
            "DeviceNotFound",
            "Device 'nope' not found",
        ),
        (
            json!({"id": "e", "boundaries": [10, 20], "boundaries-write": [20, 10]}),
            "GenericError",
            "Device 'e' set write boundaries fail",
        ),
        (
            json!({"id": "e", "boundaries": [10, 20], "boundaries-zap": [0, 10]}),
            "GenericError",
            "Device 'e' set append write boundaries fail",
        ),
        (
            json!({"id": "e", "boundaries-read": [1, 1], "boundaries-flush": [0]}),
            "GenericError",
            "Device 'e' set read boundaries fail",
        ),
        (
            json!({"id": "e", "boundaries": vec![1; 5000]}),
            "GenericError",
            "Device 'e' set read boundaries fail",
        ),
        (
            json!({"id": "e", "boundaries": 7}),
            "GenericError",
            "Invalid parameter type for 'boundaries', expected: array",
        ),
    ] {
        let reply = client.command(&set(arguments)).await;
        assert_eq!(reply["error"], json!({"class": class, "desc": desc}));
        // QEMU would have set what comes before the mistake.
        assert_eq!(there(&mut client, kinds).await, none, "{desc}");
    }
    for (arguments, expected) in [
        (
            json!({"boundaries": [10, 20]}),
            [
                json!([10, 20]),
                json!([10, 20]),
                json!([10, 20]),
                json!([10, 20]),
            ],
        ),
        (
            json!({"boundaries-write": [5]}),
            [
                json!([10, 20]),
                json!([5]),
                json!([10, 20]),
                json!([10, 20]),
            ],
        ),
        // Crashes QEMU with the next request.
        (
            json!({"boundaries-write": [], "boundaries-flush": []}),
            [json!([10, 20]), Value::Null, json!([10, 20]), Value::Null],
        ),
        (
            json!({"boundaries": [7], "boundaries-read": [8, 9]}),
            [json!([8, 9]), json!([7]), json!([7]), json!([7])],
        ),
        (json!({}), [(); 4].map(|()| Value::Null)),
        (json!({"boundaries": [1]}), [(); 4].map(|()| json!([1]))),
        (json!({"boundaries": []}), [(); 4].map(|()| Value::Null)),
    ] {
        let mut arguments = arguments;
        arguments["id"] = "e".into();
        assert_eq!(client.command(&set(arguments)).await, json!({"return": {}}));
        assert_eq!(there(&mut client, kinds).await, expected);
    }
    let boundaries = json!({"id": "e", "boundaries": [10, 20]});
    client.command(&set(boundaries)).await;
    let stats = client.result("query-blockstats").await;
    assert_eq!(
        stats[0]["stats"]["rd_latency_histogram"],
        json!({"boundaries": [10, 20], "bins": [0, 0, 0]})
    );
}

#[tokio::test]
async fn intervals_are_shown_as_the_export_was_told() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    let export = daemon.registry.export("e").unwrap();
    export
        .backend()
        .configure_accounting(block::AccountingOptions {
            failed: false,
            invalid: false,
            intervals: [60, 5].into(),
        });
    let stats = client.result("query-blockstats").await;
    let stats = &stats[0]["stats"];
    assert_eq!(stats["account_failed"], false);
    assert_eq!(stats["account_invalid"], false);
    let timed = stats["timed_stats"].as_array().unwrap();
    let lengths: Vec<_> = timed.iter().map(|one| &one["interval_length"]).collect();
    assert_eq!(lengths, [60, 5]);
    let members = timed[0].as_object().unwrap();
    assert_eq!(members.len(), 16, "{members:?}");
    let zero = |value: &Value| value.as_f64() == Some(0.0);
    let mut rest = members
        .iter()
        .filter(|(name, _)| *name != "interval_length");
    assert!(rest.all(|(_, value)| zero(value)), "{members:?}");
}

#[tokio::test]
async fn what_people_type() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    let block = "info block [-n] [-v] [device] -- show info of one block device or all block devices \
                 (-n: show named nodes; -v: show details)\r\n";
    let all = client.hmp("help").await;
    assert!(all.starts_with("block_resize device size -- resize a block image\r\n"));
    assert_eq!(client.hmp("?").await, all);
    let info = client.hmp("info").await;
    assert!(info.starts_with(block), "{info}");
    assert_eq!(client.hmp("help info").await, info);
    let more = |topic: &str| format!("Try \"help {topic}\" for more information\r\n");
    let extraneous = "extraneous characters at the end of line\r\n";
    for (line, text) in [
        ("help info block", block.to_owned()),
        ("? c", "cont|c  -- resume emulation\r\n".to_owned()),
        ("help help", "help|? [cmd] -- show the help\r\n".to_owned()),
        ("help nosuch", "unknown command: 'nosuch'\r\n".to_owned()),
        ("help info x", "unknown command: 'info x'\r\n".to_owned()),
        ("info version", "7.2.0standfast 0.1\r\n".to_owned()),
        (
            "info version x",
            format!("version: {extraneous}{}", more("info version")),
        ),
        ("q x", format!("quit|q: {extraneous}{}", more("q"))),
        (
            "system_reset x",
            format!("system_reset: {extraneous}{}", more("system_reset")),
        ),
        (
            "block_resize",
            format!(
                "block_resize: block device name expected\r\n{}",
                more("block_resize")
            ),
        ),
        (
            "block_resize e",
            format!("invalid size\r\n{}", more("block_resize")),
        ),
        (
            "block_resize e -1",
            format!("invalid size\r\n{}", more("block_resize")),
        ),
        (
            "block_resize e 1x",
            format!("block_resize: {extraneous}{}", more("block_resize")),
        ),
        (
            "block_resize e 1 2",
            format!("block_resize: {extraneous}{}", more("block_resize")),
        ),
        ("info chardev", "r: filename=ringbuf\r\n".to_owned()),
        (
            "info chardev x",
            format!("chardev: {extraneous}{}", more("info chardev")),
        ),
        ("info block-jobs", "No active jobs\r\n".to_owned()),
        (
            "info block-jobs x",
            format!("block-jobs: {extraneous}{}", more("info block-jobs")),
        ),
        // The names of commands have no quotes.
        (
            "info \"block\"",
            "unknown command: 'info \"block\"'\r\n".to_owned(),
        ),
        (" foo bar", "unknown command: ' foo'\r\n".to_owned()),
        // Flags have an order, and each is a word.
        (
            "info block -n -n",
            format!("block: unsupported option -n\r\n{}", more("info block")),
        ),
        (
            "info block -v -n a",
            format!("block: {extraneous}{}", more("info block")),
        ),
        ("info block -nv", String::new()),
        (
            "info block \"e",
            format!(
                "block: block device name expected\r\n{}",
                more("info block")
            ),
        ),
        (
            "object_del \"e",
            format!("object_del: string expected\r\n{}", more("object_del")),
        ),
        ("help \"stop", String::new()),
        // As in QEMU a node is no device.
        (
            "block_resize filter 1",
            "Error: Cannot find device='filter' nor node-name=''\r\n".to_owned(),
        ),
        ("block_resize e 2", String::new()),
    ] {
        assert_eq!(client.hmp(line).await, text, "{line}");
    }
    let node = daemon.registry.node("filter").unwrap();
    assert_eq!(node.driver().length(), 2 << 20, "mebibytes");
}
