//! Conversations that change the graph: objects, nodes and exports come, are opened anew, resized and go, in any
//! order and under few names, by a client of the monitor, on a whole assembly. Each command has one answer, what
//! is there is what was said to be, and in the end all of it can be deleted.
//!
//! Two bytes are a command: what, and with which of few choices.
#![no_main]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use assembly::Assembly;
use block::{BoxFuture, Registry};
use libfuzzer_sys::fuzz_target;
use monitor::{ChardevObject, Chardevs, Monitor, UnixInput};
use qapi::QmpError;
use qapi::options::{ChardevBackend, ChardevOptions};
use qapi::types::{ChardevInfo, ChardevReturn, VersionInfo, VersionTriple};
use qapi::wire::Layout;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Most commands of a conversation: each may start a thread.
const COMMANDS_MAX: usize = 24;
/// Nobody waits for anything outside here.
const PATIENCE: Duration = Duration::from_secs(8);

const NODES: [&str; 4] = ["a", "b", "c", "d"];
const EXPORTS: [&str; 2] = ["e", "f"];
const GROUPS: [&str; 2] = ["t", "u"];
const IOTHREAD: &str = "io";

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory");
    for image in ["0.img", "1.img"] {
        let file = std::fs::File::create(dir.path().join(image)).expect("a file");
        file.set_len(64 << 10).expect("a sparse file");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .expect("a runtime")
        .block_on(converse(dir.path(), bytes));
});

/// No character devices: they are not of the graph.
#[derive(Debug)]
struct NoChardevs;

fn none() -> QmpError {
    QmpError::generic("there are none here")
}

impl Chardevs for NoChardevs {
    fn add(&self, _: ChardevOptions) -> BoxFuture<'_, Result<ChardevReturn, QmpError>> {
        Box::pin(async { Err(none()) })
    }

    fn change(
        &self,
        _: String,
        _: ChardevBackend,
    ) -> BoxFuture<'_, Result<ChardevReturn, QmpError>> {
        Box::pin(async { Err(none()) })
    }

    fn remove(&self, _: String) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async { Err(none()) })
    }

    fn query(&self) -> Vec<ChardevInfo> {
        Vec::new()
    }

    fn objects(&self) -> Vec<ChardevObject> {
        Vec::new()
    }

    fn ringbuf_write(&self, _: &str, _: &[u8]) -> Result<(), QmpError> {
        Err(none())
    }

    fn ringbuf_read(&self, _: &str, _: usize) -> Result<Vec<u8>, QmpError> {
        Err(none())
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    /// The answer; events come in between.
    async fn say(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = json!({ "execute": command, "arguments": arguments, "id": command });
        let line = format!("{line}\n");
        self.0.write_all(line.as_bytes()).await.expect("it listens");
        loop {
            let answer = self.receive().await;
            if answer.get("event").is_some() {
                continue;
            }
            assert_eq!(answer["id"], command, "{answer}");
            return match answer.get("return") {
                Some(result) => Ok(result.clone()),
                None => {
                    let desc = answer["error"]["desc"].as_str().expect("an error");
                    assert!(!desc.is_empty() && !desc.contains("Internal"), "{answer}");
                    Err(desc.to_owned())
                }
            };
        }
    }

    async fn receive(&mut self) -> Value {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_line(&mut line));
        read.await.expect("an answer in time").expect("an answer");
        serde_json::from_str(&line).expect("JSON")
    }

    async fn names(&mut self, query: &str, member: &str) -> BTreeSet<String> {
        let all = self.say(query, json!({})).await.expect("a query");
        let all = all.as_array().expect("a list").iter();
        all.map(|one| one[member].as_str().expect("a name").to_owned())
            .collect()
    }
}

async fn converse(dir: &Path, bytes: &[u8]) {
    let (control, task) = block::control();
    tokio::spawn(task.run());
    let (registry, _quit) = Registry::new(control);
    let assembly = Arc::new(Assembly::new(Arc::clone(&registry)));
    let qemu = VersionTriple {
        major: 10,
        minor: 0,
        micro: 0,
    };
    let version = VersionInfo {
        qemu,
        package: String::new(),
    };
    let (objects, graph) = (Arc::clone(&assembly), Arc::clone(&assembly));
    let descriptors = Arc::clone(assembly.descriptors());
    let devices = Arc::new(NoChardevs);
    let monitor = Monitor::new(registry, objects, graph, devices, descriptors, version).await;
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    tokio::spawn(async move {
        let (reader, writer) = theirs.into_split();
        let reader = UnixInput::new(reader);
        (monitor.session("fuzz".to_owned(), reader, writer, Layout::Compact)).await;
    });
    let mut client = Client(BufReader::new(ours));
    client.receive().await;
    client
        .say("qmp_capabilities", json!({}))
        .await
        .expect("negotiation");

    let mut there = There::default();
    for pair in bytes.as_chunks::<2>().0.iter().take(COMMANDS_MAX) {
        there.change(&mut client, dir, *pair).await;
        let nodes = client.names("query-named-block-nodes", "node-name").await;
        assert!(there.roots.is_subset(&nodes), "{there:?} of {nodes:?}");
        let told = client.names("query-block-exports", "id").await;
        assert_eq!(told, there.exports);
    }
    there.clear(&mut client).await;
    let settled = assembly.settle("fuzz").await;
    assembly.close_exports(settled).await;
}

/// What was said to be there.
#[derive(Debug, Default)]
struct There {
    objects: BTreeSet<String>,
    /// Nodes that were added by themselves.
    roots: BTreeSet<String>,
    exports: BTreeSet<String>,
}

impl There {
    /// One command. `what` and `which` of few choices.
    async fn change(&mut self, client: &mut Client, dir: &Path, [what, which]: [u8; 2]) {
        let node = NODES[usize::from(which & 3)];
        let other = NODES[usize::from(which >> 2 & 3)];
        let export = EXPORTS[usize::from(which >> 4 & 1)];
        let group = GROUPS[usize::from(which & 1)];
        let flag = which & 0x40 != 0;
        match what % 16 {
            0..=3 => {
                let options = options(dir, what >> 4, node, other, which);
                if client.say("blockdev-add", options).await.is_ok() {
                    assert!(self.roots.insert(node.to_owned()), "{node} was there");
                }
            }
            4 => {
                let deleted = client.say("blockdev-del", json!({ "node-name": node }));
                if deleted.await.is_ok() {
                    assert!(self.roots.remove(node), "{node} was not there");
                }
            }
            5 | 6 => {
                let options = [node, other].map(|name| options(dir, what >> 4, name, node, which));
                let count = usize::from(which >> 6);
                let options = options.into_iter().take(count).collect::<Value>();
                // Whatever becomes of it, what is there is still there.
                let _ = client
                    .say("blockdev-reopen", json!({ "options": options }))
                    .await;
            }
            7 => {
                let options = json!({ "type": "vhost-user-blk", "id": export, "node-name": node,
                    "writable": flag, "addr": { "type": "unix", "path": dir.join(export) } });
                if client.say("block-export-add", options).await.is_ok() {
                    let added = self.exports.insert(export.to_owned());
                    assert!(added, "{export} was there");
                }
            }
            8 => {
                let mode = if flag { "hard" } else { "safe" };
                let arguments = json!({ "id": export, "mode": mode });
                if client.say("block-export-del", arguments).await.is_ok() {
                    assert!(self.exports.remove(export), "{export} was not there");
                }
            }
            9 => {
                let size = i64::from(which >> 2) * 4096 - 512 * i64::from(which & 1);
                let arguments = json!({ "node-name": node, "size": size });
                let _ = client.say("block_resize", arguments).await;
            }
            10 => {
                let iothread = match which & 0x20 {
                    0 => Value::Null,
                    _ => json!(IOTHREAD),
                };
                let arguments = json!({ "node-name": node, "iothread": iothread, "force": flag });
                let _ = client.say("x-blockdev-set-iothread", arguments).await;
            }
            11 => {
                let arguments =
                    json!({ "node-name": node, "write-threshold": i64::from(which) * 512 });
                let _ = client.say("block-set-write-threshold", arguments).await;
            }
            12 => {
                let options = match which & 2 {
                    0 => json!({ "qom-type": "throttle-group", "id": group,
                        "limits": { "iops-total": which } }),
                    _ => json!({ "qom-type": "iothread", "id": IOTHREAD }),
                };
                let id = options["id"].as_str().expect("an id").to_owned();
                if client.say("object-add", options).await.is_ok() {
                    assert!(self.objects.insert(id.clone()), "{id} was there");
                }
            }
            13 => {
                let id = if which & 2 == 0 { group } else { IOTHREAD };
                if client.say("object-del", json!({ "id": id })).await.is_ok() {
                    assert!(self.objects.remove(id), "{id} was not there");
                }
            }
            14 => {
                let limits = json!({ "bps-write": which, "iops-total": u32::from(which) << 4 });
                let arguments = json!({ "path": group, "property": "limits", "value": limits });
                let set = client.say("qom-set", arguments).await;
                assert!(
                    set.is_err() || self.objects.contains(group),
                    "{group} is not there"
                );
            }
            _ => {
                let _ = client.say("query-blockstats", json!({})).await;
                let _ = client.say("query-block", json!({})).await;
            }
        }
    }

    /// All of it can be deleted: what is above goes first.
    async fn clear(&self, client: &mut Client) {
        for export in &self.exports {
            let arguments = json!({ "id": export, "mode": "hard" });
            let deleted = client.say("block-export-del", arguments).await;
            deleted.expect("an export");
        }
        for _ in 0..NODES.len() {
            for node in NODES {
                let _ = client
                    .say("blockdev-del", json!({ "node-name": node }))
                    .await;
            }
        }
        let nodes = client.names("query-named-block-nodes", "node-name").await;
        assert!(nodes.is_empty(), "{nodes:?}");
        for id in &self.objects {
            let deleted = client.say("object-del", json!({ "id": id })).await;
            deleted.expect("an object that nobody uses");
        }
    }
}

/// The definition of node `name`, above or with `other` where its driver has a child.
fn options(dir: &Path, kind: u8, name: &str, other: &str, which: u8) -> Value {
    let path = dir.join(if which & 0x20 == 0 { "0.img" } else { "1.img" });
    let group = GROUPS[usize::from(which >> 3 & 1)];
    let file = json!({ "driver": "file", "filename": path, "cache": { "direct": which & 0x40 != 0 },
        "read-only": which & 0x80 != 0 });
    let named = |mut options: Value, name: &str| {
        options["node-name"] = json!(name);
        options
    };
    match kind % 13 {
        0 | 1 => named(file, name),
        2 => json!({ "driver": "null-co", "node-name": name, "size": 65536,
            "read-only": which & 0x80 != 0 }),
        3 => json!({ "driver": "blkdebug", "node-name": name, "image": other }),
        4 => json!({ "driver": "quota", "node-name": name, "limit": 1 << 20, "file": other }),
        5 => json!({ "driver": "blkdebug", "node-name": name, "image": named(file, other) }),
        6 => json!({ "driver": "quota", "node-name": name, "limit": 1 << 20,
            "file": { "driver": "blkdebug", "image": file } }),
        7 => json!({ "driver": "raw", "node-name": name, "file": other }),
        8 => json!({ "driver": "raw", "node-name": name, "offset": u32::from(which) << 7,
            "file": named(file, other) }),
        9 => json!({ "driver": "raw", "node-name": name, "offset": 4096, "file": other,
            "size": u32::from(which) << 8, "read-only": which & 0x80 != 0 }),
        10 => json!({ "driver": "throttle", "node-name": name, "throttle-group": group,
            "file": other }),
        11 => json!({ "driver": "copy-on-read", "node-name": name, "file": other }),
        _ => json!({ "driver": "throttle", "node-name": name, "throttle-group": group,
            "file": { "driver": "raw", "file": file }, "discard": "unmap",
            "detect-zeroes": "unmap" }),
    }
}
