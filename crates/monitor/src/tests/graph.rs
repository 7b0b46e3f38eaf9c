//! Nodes and exports that come and go: what is asked of the assembly, and what is answered.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use block::{BoxFuture, HoldScope, Registry};
use qapi::QmpError;
use qapi::command::{BlockdevCreateVariant, TransactionActionVariant};
use qapi::options::{BlockdevOptions, ExportOptions};
use serde_json::json;

use super::daemon::{Daemon, Fake};
use crate::Graph;

/// Writes down what it is asked for. `refused` is refused.
#[derive(Debug)]
pub struct FakeGraph {
    pub registry: Arc<Registry>,
    pub asked: Mutex<Vec<String>>,
}

impl FakeGraph {
    pub fn new(registry: &Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            registry: Arc::clone(registry),
            asked: Mutex::default(),
        })
    }

    fn ask(&self, name: &str, what: String) -> BoxFuture<'_, Result<(), QmpError>> {
        self.asked.lock().unwrap().push(what);
        let result = match name {
            "refused" => Err(QmpError::generic("it is refused")),
            _ => Ok(()),
        };
        Box::pin(std::future::ready(result))
    }
}

fn name(options: &BlockdevOptions) -> String {
    options.base.node_name.clone().unwrap_or_default()
}

/// The node that an action is about.
fn snapshot_of(action: &TransactionActionVariant) -> String {
    match action {
        TransactionActionVariant::Abort(_) => "abort".to_owned(),
        TransactionActionVariant::BlockdevSnapshot(action) => action.data.node.clone(),
        TransactionActionVariant::BlockdevSnapshotSync(action) => {
            action.data.node_name.clone().unwrap_or_default()
        }
    }
}

impl Graph for FakeGraph {
    fn add_node(&self, options: BlockdevOptions) -> BoxFuture<'_, Result<(), QmpError>> {
        let name = name(&options);
        let node = Fake::new("file").node(&name);
        // A name that is taken is the assembly's business.
        let _ = self.registry.graph().add(&node);
        self.ask(&name, format!("add {name}"))
    }

    fn delete_node(&self, name: String) -> BoxFuture<'_, Result<(), QmpError>> {
        self.ask(&name, format!("delete {name}"))
    }

    fn reopen_nodes(&self, options: Vec<BlockdevOptions>) -> BoxFuture<'_, Result<(), QmpError>> {
        let names: Vec<_> = options.iter().map(name).collect();
        self.ask("", format!("reopen {names:?}"))
    }

    fn transact(
        &self,
        actions: Vec<TransactionActionVariant>,
    ) -> BoxFuture<'_, Result<(), QmpError>> {
        let nodes: Vec<_> = actions.iter().map(snapshot_of).collect();
        let first = nodes.first().map_or("", String::as_str);
        self.ask(first, format!("transact {nodes:?}"))
    }

    fn add_export(&self, options: ExportOptions) -> BoxFuture<'_, Result<(), QmpError>> {
        let id = &options.base.id;
        self.ask(id, format!("export {id}"))
    }

    fn delete_export(&self, id: String, hard: bool) -> BoxFuture<'_, Result<(), QmpError>> {
        self.ask(&id, format!("end {id} hard={hard}"))
    }

    fn create_image(
        &self,
        options: BlockdevCreateVariant,
        _: Arc<AtomicBool>,
    ) -> BoxFuture<'_, Result<(), QmpError>> {
        let name = options.kind().name();
        self.ask(name, format!("create {name}"))
    }

    fn set_iothread(
        &self,
        node: String,
        iothread: Option<String>,
        force: bool,
    ) -> BoxFuture<'_, Result<(), QmpError>> {
        self.ask(&node, format!("move {node} {iothread:?} force={force}"))
    }
}

fn command(name: &str, arguments: serde_json::Value) -> String {
    json!({ "execute": name, "arguments": arguments }).to_string()
}

#[tokio::test]
async fn arguments_become_options() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    let nested = json!({ "driver": "blkdebug", "node-name": "top",
        "image": { "driver": "file", "filename": "f" } });
    let export = json!({ "type": "vhost-user-blk", "id": "e", "node-name": "top",
        "addr": { "type": "unix", "path": "s" } });
    let file = json!({ "driver": "file", "node-name": "f", "filename": "f" });
    let commands = [
        ("blockdev-add", nested, "add top"),
        ("block-export-add", export, "export e"),
        ("block-export-del", json!({ "id": "e" }), "end e hard=false"),
        (
            "block-export-del",
            json!({ "id": "e", "mode": "safe" }),
            "end e hard=false",
        ),
        (
            "block-export-del",
            json!({ "id": "e", "mode": "hard" }),
            "end e hard=true",
        ),
        ("blockdev-del", json!({ "node-name": "top" }), "delete top"),
        (
            "blockdev-reopen",
            json!({ "options": [file, file] }),
            "reopen [\"f\", \"f\"]",
        ),
        ("blockdev-reopen", json!({ "options": [] }), "reopen []"),
        (
            "blockdev-snapshot",
            json!({ "node": "base", "overlay": "over" }),
            "transact [\"base\"]",
        ),
        (
            "blockdev-snapshot-sync",
            json!({ "node-name": "base", "snapshot-file": "f", "snapshot-node-name": "over" }),
            "transact [\"base\"]",
        ),
        (
            "transaction",
            json!({ "actions": [
                { "type": "blockdev-snapshot", "data": { "node": "base", "overlay": "over" } },
                { "type": "blockdev-snapshot-sync", "data": { "node-name": "other", "snapshot-file": "f" } },
                { "type": "abort", "data": {} },
            ], "properties": { "completion-mode": "individual" } }),
            "transact [\"base\", \"other\", \"abort\"]",
        ),
        (
            "human-monitor-command",
            json!({ "command-line": "snapshot_blkdev -n vda f qcow2" }),
            "transact [\"\"]",
        ),
        (
            "x-blockdev-set-iothread",
            json!({ "node-name": "top", "iothread": null }),
            "move top None force=false",
        ),
        (
            "x-blockdev-set-iothread",
            json!({ "node-name": "top", "iothread": "t0", "force": true }),
            "move top Some(\"t0\") force=true",
        ),
    ];
    for (name, arguments, asked) in commands {
        let reply = client.command(&command(name, arguments.clone())).await;
        let done = match name {
            "human-monitor-command" => json!({ "return": "" }),
            _ => json!({ "return": {} }),
        };
        assert_eq!(reply, done, "{name} {arguments}");
        assert_eq!(daemon.asked().pop().as_deref(), Some(asked));
    }
    let refused = command("blockdev-del", json!({ "node-name": "refused" }));
    assert_eq!(client.error(&refused).await, "it is refused");
}

/// The words are those of qemu-storage-daemon.
#[tokio::test]
async fn arguments_that_are_wrong() {
    let daemon = Daemon::new().await;
    let mut client = daemon.client().await;
    let cases = [
        (
            "blockdev-add",
            json!({ "driver": "file", "filename": "f" }),
            "'node-name' must be specified for the root node",
        ),
        (
            "blockdev-add",
            json!({ "driver": "file", "filename": "f", "node-name": "9a" }),
            "Invalid node-name: '9a'",
        ),
        (
            "blockdev-add",
            json!({ "driver": "file", "node-name": "b" }),
            "Parameter 'filename' is missing",
        ),
        (
            "blockdev-add",
            json!({ "driver": "blkdebug", "node-name": "b", "image": 5 }),
            "Invalid parameter type for 'image', expected: BlockdevRef",
        ),
        (
            "blockdev-add",
            json!({ "driver": "blkdebug", "node-name": "b", "image": { "driver": "file" } }),
            "Parameter 'image.filename' is missing",
        ),
        (
            "blockdev-del",
            json!({}),
            "Parameter 'node-name' is missing",
        ),
        (
            "transaction",
            json!({ "actions": [{ "type": "blockdev-snapshot", "data": { "node": "a", "overlay": "b" } }],
                "properties": { "completion-mode": "grouped" } }),
            "Action 'blockdev-snapshot' does not support Transaction property completion-mode = grouped",
        ),
        (
            "blockdev-snapshot-sync",
            json!({ "snapshot-file": "f", "mode": "new" }),
            "Parameter 'mode' does not accept value 'new'",
        ),
        (
            "blockdev-reopen",
            json!({ "options": {} }),
            "Invalid parameter type for 'options', expected: array",
        ),
        (
            "blockdev-reopen",
            json!({ "options": [{}] }),
            "Parameter 'options[0].driver' is missing",
        ),
        (
            "block-export-add",
            json!({ "type": "vhost-user-blk", "id": "9e", "node-name": "n",
                "addr": { "type": "unix", "path": "s" } }),
            "Invalid block export id",
        ),
        (
            "block-export-del",
            json!({ "id": "e", "mode": "soft" }),
            "Parameter 'mode' does not accept value 'soft'",
        ),
        (
            "x-blockdev-set-iothread",
            json!({ "node-name": "a" }),
            "Parameter 'iothread' is missing",
        ),
        (
            "x-blockdev-set-iothread",
            json!({ "node-name": "a", "iothread": 5 }),
            "Invalid parameter type for 'iothread', expected: StrOrNull",
        ),
    ];
    for (name, arguments, words) in cases {
        let line = command(name, arguments);
        assert_eq!(client.error(&line).await, words, "{line}");
    }
    assert!(daemon.asked().is_empty());
}

#[tokio::test]
async fn the_newest_export_comes_first() {
    let daemon = Daemon::new().await;
    daemon.node("n", Fake::new("file"));
    for id in ["a", "b"] {
        daemon.export(id, "n", HoldScope::Vm).await;
    }
    let mut client = daemon.client().await;
    let exports = client.result("query-block-exports").await;
    let ids: Vec<_> = exports
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["id"])
        .collect();
    assert_eq!(ids, ["b", "a"]);
    assert_eq!(exports[0]["shutting-down"], false);
}
