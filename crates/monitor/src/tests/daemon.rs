//! What the sessions talk to.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use block::fault::{FaultId, FaultStatus, InjectError};
use block::run_control::Failed;
use block::{
    Action, AllocationLimit, Backend, BackendId, BoxFuture, Capabilities, Cause, Child,
    ContBlocker, Control, Corruption, Driver, Export, FaultPlan, FlushLatch, HoldScope, Io,
    IoFuture, LocalId, Loss, Node, NodeInfo, Operation, Policy, Registry, Request, Resize, Tag,
};
use qapi::Value;
use qapi::types::{VersionInfo, VersionTriple};
use qapi::wire::Layout;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::chardevs::FakeChardevs;
use super::graph::FakeGraph;
use super::link::{FakeLink, FakeObjects};
use crate::{Connection, Graph, Monitor, Objects};

/// A gate that a thread waits at.
#[derive(Debug, Default)]
pub struct Barrier {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Barrier {
    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let open = self.open.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(open, Duration::from_secs(10), |open| !*open);
        assert!(!waited.unwrap().1.timed_out(), "nobody opened the barrier");
    }
}

/// A driver with everything that commands can ask of one.
#[derive(Debug)]
pub struct Fake {
    name: &'static str,
    info: NodeInfo,
    length: AtomicU64,
    quota: Option<AtomicU64>,
    plan: Option<FakePlan>,
    latched: Arc<AtomicBool>,
    resize: Option<Arc<Barrier>>,
    hangs: Option<Arc<Barrier>>,
    child: Option<Child>,
    corruption: Corruption,
}

/// Remembers rules.
#[derive(Debug, Default)]
struct FakePlan(Mutex<(u64, Vec<FaultStatus>)>);

impl FaultPlan for FakePlan {
    fn add(&self, rule: InjectError) -> FaultId {
        let (last, rules) = &mut *self.0.lock().unwrap();
        *last += 1;
        let id = FaultId(*last);
        rules.push(FaultStatus {
            id,
            rule,
            active: true,
            hits: 0,
        });
        id
    }

    fn clear(&self, id: FaultId) -> bool {
        let (_, rules) = &mut *self.0.lock().unwrap();
        let before = rules.len();
        rules.retain(|known| known.id != id);
        rules.len() < before
    }

    fn clear_all(&self) {
        self.0.lock().unwrap().1.clear();
    }

    fn status(&self) -> Vec<FaultStatus> {
        self.0.lock().unwrap().1.clone()
    }
}

impl Fake {
    pub fn new(name: &'static str) -> Self {
        let filename = format!("/{name}.img");
        let info = NodeInfo {
            filename,
            ..NodeInfo::default()
        };
        Fake {
            name,
            info,
            length: AtomicU64::new(1 << 20),
            quota: (name == "quota").then(AtomicU64::default),
            plan: (name == "blkdebug").then(FakePlan::default),
            latched: Arc::default(),
            resize: None,
            hangs: None,
            child: None,
            corruption: Corruption::default(),
        }
    }

    /// It lies on a file of the host.
    pub fn on_host(mut self) -> Self {
        self.info.host_file = true;
        self
    }

    /// The node `name`, whose offset 0 is at `offset` of `child`; a filter where that is 0.
    pub fn over(mut self, name: &str, child: &Arc<Node>, offset: u64) -> Self {
        self.child = Some(Child::of(&name.into(), "file", Arc::clone(child)));
        self.info.child_offset = Some(offset);
        self.info.filter = offset == 0;
        self
    }

    pub fn read_only(mut self) -> Self {
        self.info.read_only = true;
        self
    }

    pub fn warning(mut self, text: &str) -> Self {
        self.info.warning = Some(text.to_owned());
        self
    }

    pub fn latch(mut self, latched: &Arc<AtomicBool>) -> Self {
        self.latched = Arc::clone(latched);
        self
    }

    pub fn slow_resize(mut self, barrier: &Arc<Barrier>) -> Self {
        self.resize = Some(Arc::clone(barrier));
        self
    }

    /// Its storage does not answer.
    pub fn hanging(mut self, barrier: &Arc<Barrier>) -> Self {
        self.hangs = Some(Arc::clone(barrier));
        self
    }

    pub fn node(self, name: &str) -> Arc<Node> {
        Node::new(name, Box::new(self))
    }
}

impl Driver for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn info(&self) -> NodeInfo {
        self.info.clone()
    }

    fn actual_size(&self) -> Option<u64> {
        if let Some(barrier) = &self.hangs {
            barrier.wait();
        }
        Some(4096)
    }

    fn length(&self) -> u64 {
        self.length.load(Ordering::SeqCst)
    }

    fn children(&self) -> Vec<&Child> {
        self.child.iter().collect()
    }

    fn submit<'a>(&'a self, _: Io<'a>) -> IoFuture<'a> {
        IoFuture::ready(Ok(()))
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            flush_latch: Some(self),
            cont_blocker: Some(self),
            resize: Some(self),
            corruption: Some(&self.corruption),
            quota: self.quota.as_ref().map(|_| self as _),
            fault_plan: self.plan.as_ref().map(|plan| plan as _),
            ..Capabilities::default()
        }
    }
}

impl FlushLatch for Fake {
    fn latched(&self) -> Option<Loss> {
        None
    }

    fn latch(&self, _: Loss) {}

    fn accept_loss(&self, _: u32) -> bool {
        self.latched.swap(false, Ordering::SeqCst)
    }
}

impl ContBlocker for Fake {
    fn cont_blocker(&self) -> Option<String> {
        self.latched
            .load(Ordering::SeqCst)
            .then(|| "Node 'n' lost data".to_owned())
    }
}

impl Resize for Fake {
    fn resized_length(&self, length: u64) -> block::Result<u64> {
        Ok(length)
    }

    fn resize(&self, length: u64) -> block::Result<()> {
        if let Some(barrier) = &self.resize {
            barrier.wait();
        }
        self.length.store(length, Ordering::SeqCst);
        Ok(())
    }
}

impl AllocationLimit for Fake {
    fn set_quota(&self, limit: u64) -> block::Result<u64> {
        if let Some(quota) = &self.quota {
            quota.store(limit, Ordering::SeqCst);
        }
        Ok(4096)
    }

    fn quota(&self) -> (u64, u64) {
        let limit = self.quota.as_ref();
        (limit.map_or(0, |limit| limit.load(Ordering::SeqCst)), 4096)
    }
}

#[derive(Debug)]
struct FakeExport(Arc<Backend>);

impl Export for FakeExport {
    fn id(&self) -> &str {
        self.0.device()
    }

    fn type_name(&self) -> &'static str {
        "vhost-user-blk"
    }

    fn backend(&self) -> &Arc<Backend> {
        &self.0
    }

    fn writable(&self) -> bool {
        true
    }

    fn has_client(&self) -> bool {
        true
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A daemon without data plane.
pub struct Daemon {
    pub registry: Arc<Registry>,
    pub monitor: Monitor,
    objects: Arc<FakeObjects>,
    graph: Arc<FakeGraph>,
    pub quit: iothread::mailbox::Receiver<&'static str>,
    seq: u64,
    began: Instant,
    /// Number of reported failures.
    reports: AtomicUsize,
}

impl Daemon {
    pub async fn new() -> Self {
        let (control, task) = block::control();
        tokio::spawn(task.run());
        let (registry, quit) = Registry::new(control);
        let qemu = VersionTriple {
            micro: 0,
            minor: 2,
            major: 7,
        };
        let version = VersionInfo {
            qemu,
            package: "standfast 0.1".to_owned(),
        };
        let objects = Arc::new(FakeObjects {
            registry: Arc::clone(&registry),
            vm0: FakeLink::new("vm0"),
        });
        let shared: Arc<dyn Objects> = Arc::<FakeObjects>::clone(&objects);
        let graph = FakeGraph::new(&registry);
        let asked: Arc<dyn Graph> = Arc::<FakeGraph>::clone(&graph);
        let monitor = Monitor::new(
            Arc::clone(&registry),
            shared,
            asked,
            Arc::new(FakeChardevs::default()),
            Arc::default(),
            version,
        )
        .await;
        Daemon {
            registry,
            monitor,
            objects,
            graph,
            quit,
            seq: 0,
            began: Instant::now(),
            reports: AtomicUsize::new(0),
        }
    }

    pub fn control(&self) -> &Control {
        self.registry.control()
    }

    /// What has been asked of the graph since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.graph.asked.lock().unwrap())
    }

    /// What `object-add` of a `vm0` adds.
    pub fn vm0(&self) -> Arc<FakeLink> {
        Arc::clone(&self.objects.vm0)
    }

    pub fn node(&self, name: &str, driver: Fake) {
        self.registry.graph().add(&driver.node(name)).unwrap();
    }

    /// An export with an attached client, on an existing node.
    pub async fn export(&self, id: &str, node: &str, scope: HoldScope) {
        let node = self.registry.node(node).unwrap();
        let policy = Policy::default();
        let backend = Backend::new(self.control(), id, Child::root(id, node), policy, scope)
            .await
            .unwrap();
        let number = backend.id();
        self.registry
            .add_export(Arc::new(FakeExport(backend)))
            .unwrap();
        self.control()
            .call(move |state, wiring| {
                state.add_local(number, LocalId(number.0), wiring).unwrap();
                state.attach(number, wiring).unwrap();
            })
            .await
            .unwrap();
    }

    pub fn backend(&self, id: &str) -> BackendId {
        self.registry.export(id).unwrap().backend().id()
    }

    /// A write of `id` fails and is held.
    pub async fn fail(&mut self, id: &str, errno: i32) {
        self.fail_because(id, Cause::of_errno(errno)).await;
    }

    /// The same, with a cause that the errno does not tell.
    pub async fn fail_because(&mut self, id: &str, cause: Cause) {
        self.seq += 1;
        let (seq, backend) = (self.seq, self.backend(id));
        let failed = Failed {
            backend,
            local: LocalId(backend.0),
            generation: 1,
            seq,
            order: seq,
            request: Request {
                tag: Tag { queue: 0, head: 7 },
                op: Operation::Write,
                offset: 8192,
                bytes: 512,
            },
            cause,
            node: Some("below".into()),
            at: SystemTime::now(),
        };
        self.control()
            .call(move |state, wiring| state.failed(&failed, wiring))
            .await
            .unwrap();
    }

    /// A write of `id` fails and is reported, again and again, so slowly that each is told of.
    pub async fn report(&self, id: &str, errno: i32, times: usize) {
        let reported = block::run_control::Reported {
            backend: self.backend(id),
            generation: 1,
            request: Request {
                tag: Tag { queue: 0, head: 7 },
                op: Operation::Write,
                offset: 0,
                bytes: 512,
            },
            action: Action::Report,
            cause: Cause::of_errno(errno),
            node: None,
            at: SystemTime::now(),
        };
        let before = self.reports.fetch_add(times, Ordering::Relaxed);
        let first = self.began;
        let all = move |state: &mut block::run_control::RunControl, wiring: &mut _| {
            for number in (before..).take(times) {
                let seconds = u32::try_from(number).unwrap();
                let now = first + block::run_control::REPORT_INTERVAL * seconds;
                state.reported(&reported, now, wiring);
            }
        };
        self.control().call(all).await.unwrap();
    }

    /// A client that has read the greeting.
    pub async fn connect(&self) -> Client {
        let mut client = self.connect_unread();
        let greeting = client.receive().await;
        assert_eq!(greeting["QMP"]["version"]["package"], "standfast 0.1");
        assert_eq!(greeting["QMP"]["capabilities"], json!(["oob"]));
        client
    }

    pub fn connect_unread(&self) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let monitor = self.monitor.clone();
        tokio::spawn(async move {
            let Connection { reader, writer } = theirs.into();
            monitor
                .session("test".to_owned(), reader, writer, Layout::Compact)
                .await;
        });
        Client {
            stream: BufReader::new(ours),
        }
    }

    /// A client that has negotiated.
    pub async fn client(&self) -> Client {
        let mut client = self.connect().await;
        let reply = client.command(r#"{"execute":"qmp_capabilities"}"#).await;
        assert_eq!(reply, serde_json::json!({"return": {}}));
        client
    }
}

/// What must happen soon.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what)
        .await
        .expect("it took too long")
}

/// The other end of a session.
pub struct Client {
    pub stream: BufReader<UnixStream>,
}

impl Client {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// The next line; messages are lines. None at the end.
    pub async fn line(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        let read = soon(self.stream.read_until(b'\n', &mut line)).await;
        (read.unwrap_or(0) > 0).then_some(line)
    }

    /// The next message. None at the end.
    pub async fn next(&mut self) -> Option<Value> {
        let line = self.line().await?;
        assert!(line.ends_with(b"\r\n"));
        Some(serde_json::from_slice(&line).unwrap())
    }

    pub async fn receive(&mut self) -> Value {
        self.next().await.expect("the session has ended")
    }

    pub async fn command(&mut self, text: &str) -> Value {
        self.send(text).await;
        self.receive().await
    }

    /// The result of a command without arguments.
    pub async fn result(&mut self, name: &str) -> Value {
        let mut reply = self.command(&format!(r#"{{"execute":"{name}"}}"#)).await;
        assert!(reply.get("return").is_some(), "{name}: {reply}");
        reply["return"].take()
    }

    /// The description of the error that `text` gets.
    pub async fn error(&mut self, text: &str) -> String {
        let reply = self.command(text).await;
        assert_eq!(reply["error"]["class"], "GenericError", "{text}: {reply}");
        reply["error"]["desc"].as_str().unwrap().to_owned()
    }

    pub async fn hmp(&mut self, line: &str) -> String {
        let request = serde_json::json!({
            "execute": "human-monitor-command", "arguments": {"command-line": line},
        });
        let reply = self.command(&request.to_string()).await;
        reply["return"]
            .as_str()
            .unwrap_or_else(|| panic!("{reply}"))
            .to_owned()
    }

    /// The names of the next events.
    pub async fn events(&mut self, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..count {
            let event = self.receive().await;
            assert!(event["timestamp"]["seconds"].as_i64() > Some(0), "{event}");
            names.push(
                event["event"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{event}"))
                    .to_owned(),
            );
        }
        names
    }
}
