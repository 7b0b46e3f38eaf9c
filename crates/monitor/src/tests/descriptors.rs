//! Descriptors that come with commands.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use qapi::Value;
use qapi::wire::Layout;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;

use super::daemon::{Daemon, soon};
use crate::Connection;

/// A client that passes descriptors.
struct Passing {
    socket: StdUnixStream,
    lines: BufReader<UnixStream>,
}

impl Passing {
    async fn new(daemon: &Daemon) -> Self {
        let (theirs, ours) = StdUnixStream::pair().unwrap();
        for socket in [&theirs, &ours] {
            socket.set_nonblocking(true).unwrap();
        }
        let Connection { reader, writer } = UnixStream::from_std(ours).unwrap().into();
        let monitor = daemon.monitor.clone();
        tokio::spawn(async move {
            let name = "passing".to_owned();
            monitor.session(name, reader, writer, Layout::Compact).await;
        });
        let socket = theirs.try_clone().unwrap();
        let lines = BufReader::new(UnixStream::from_std(theirs).unwrap());
        let mut client = Self { socket, lines };
        client.receive().await;
        client
            .command(r#"{"execute":"qmp_capabilities"}"#, &[])
            .await;
        client
    }

    async fn receive(&mut self) -> Value {
        let mut line = String::new();
        soon(self.lines.read_line(&mut line)).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn send(&self, text: &str, files: &[File]) {
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        }
        let sent = sendmsg(
            &self.socket,
            &[IoSlice::new(text.as_bytes())],
            &mut control,
            SendFlags::empty(),
        );
        assert_eq!(sent.unwrap(), text.len());
    }

    async fn command(&mut self, text: &str, files: &[File]) -> Value {
        self.send(text, files);
        self.receive().await
    }
}

fn files(count: usize) -> Vec<File> {
    (0..count)
        .map(|_| File::open("/dev/null").unwrap())
        .collect()
}

/// How many descriptors lead to a file: those of other tests, which run at the same time, come and go.
fn open_descriptors(path: &Path) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target == path).count()
}

#[tokio::test]
async fn one_comes_with_a_command() {
    let daemon = Daemon::new().await;
    let mut client = Passing::new(&daemon).await;
    let none = json!("No file descriptor supplied via SCM_RIGHTS");
    let desc = |answer: Value| answer["error"]["desc"].clone();
    let add = r#"{"execute":"add-fd","arguments":{"fdset-id":3,"opaque":"o"}}"#;
    assert_eq!(desc(client.command(add, &[]).await), none);
    let added = client.command(add, &files(1)).await;
    assert_eq!(added["return"]["fdset-id"], 3, "{added}");
    let fd = added["return"]["fd"].clone();
    // What came with one command is not there for the next.
    assert_eq!(desc(client.command(add, &[]).await), none);
    assert_eq!(
        client.command(r#"{"execute":"query-fdsets"}"#, &[]).await,
        json!({"return": [{"fdset-id": 3, "fds": [{"fd": fd, "opaque": "o"}]}]})
    );
    let get = r#"{"execute":"getfd","arguments":{"fdname":"x"}}"#;
    assert_eq!(desc(client.command(get, &[]).await), none);
    assert_eq!(client.command(get, &files(1)).await, json!({"return": {}}));
    let close = r#"{"execute":"closefd","arguments":{"fdname":"x"}}"#;
    assert_eq!(client.command(close, &[]).await, json!({"return": {}}));
    let remove = r#"{"execute":"remove-fd","arguments":{"fdset-id":3}}"#;
    assert_eq!(client.command(remove, &[]).await, json!({"return": {}}));
}

/// Descriptors are a resource of the whole daemon: whoever passes ever more of them with commands that do
/// not want any, with half commands, or before anything else, has none of them in it.
#[tokio::test]
async fn nobody_fills_the_daemon_with_them() {
    let daemon = Daemon::new().await;
    let mut client = Passing::new(&daemon).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path();
    let fifty: Vec<_> = (0..50).map(|_| File::open(path).unwrap()).collect();
    for _ in 0..40 {
        let answer = client
            .command(r#"{"execute":"query-status"}"#, &fifty)
            .await;
        assert!(answer["return"].is_object(), "{answer}");
    }
    for _ in 0..40 {
        client.send(" ", &fifty);
    }
    let answer = client.command(r#"{"execute":"query-status"}"#, &[]).await;
    assert!(answer["return"].is_object(), "{answer}");
    drop(fifty);
    let closed = async {
        // The test's own, and at most what came last: what there is space for, 16 and what alignment adds.
        while open_descriptors(path) > 1 + 20 {
            tokio::task::yield_now().await;
        }
    };
    soon(closed).await;
}
