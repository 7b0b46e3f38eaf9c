//! Against the monitors of QEMU and qemu-storage-daemon.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use qapi::{ErrorClass, Object, Value};
use serde_json::json;
use standfast_qmp_client::{
    Client, ClientError, Connection, Events, GREETING_TIMEOUT, Incoming, Wire, connect_unix, start,
};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

const QEMU: &str = "qemu-system-x86_64";
const STORAGE_DAEMON: &str = "qemu-storage-daemon";

/// A server with a QMP socket; it is killed when this is dropped.
struct Server {
    dir: TempDir,
    child: Child,
}

fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    if name == QEMU {
        command.args(["-machine", "none", "-nodefaults", "-display", "none"]);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

impl Server {
    /// `pretty`: its messages are on many lines each.
    async fn start(name: &str, pretty: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let chardev = format!("socket,id=m,path={},server=on,wait=off", path.display());
        let monitor = if pretty {
            "chardev=m,mode=control,pretty=on"
        } else {
            "chardev=m,mode=control"
        };
        let mut command = program(name);
        if name == QEMU {
            command.args(["-chardev", &chardev, "-mon", monitor]);
        } else {
            command.args(["--chardev", &chardev, "--monitor", monitor]);
        }
        let child = command.spawn().unwrap();
        Self { dir, child }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("qmp.sock")
    }

    async fn connect(&self) -> Connection<UnixStream> {
        let stream = connected(&self.path()).await;
        Connection::open(Wire::new(stream), LONG).await.unwrap()
    }

    async fn client(&self) -> (Client, Events) {
        let (client, events, driver) = start(self.connect().await);
        tokio::spawn(driver);
        (client, events)
    }
}

/// As soon as it listens.
async fn connected(path: &Path) -> UnixStream {
    let connects = async {
        loop {
            match connect_unix(path, LONG).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(LONG, connects).await.unwrap()
}

fn object(value: Value) -> Object {
    value.as_object().unwrap().clone()
}

#[tokio::test]
async fn stop_cont_and_their_events() {
    let server = Server::start(QEMU, false).await;
    let (client, mut events) = server.client().await;
    for (command, event, running) in [("stop", "STOP", false), ("cont", "RESUME", true)] {
        client.execute(command, Object::new()).await.unwrap();
        // It was told before the answer.
        let told = events.try_next().unwrap().unwrap();
        assert_eq!(told.name(), event);
        assert!(told.timestamp().is_some_and(|at| at.seconds > 0));
        let status = client.execute("query-status", Object::new()).await.unwrap();
        assert_eq!(status["running"], running);
    }
    let error = client.execute("nosuch", Object::new()).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused(error) if error.class == ErrorClass::CommandNotFound),
        "{error}"
    );
}

/// The longest answer that QEMU has, on one line and on many; with others behind it.
#[tokio::test]
async fn the_schema() {
    for (name, pretty) in [(QEMU, false), (QEMU, true), (STORAGE_DAEMON, false)] {
        let server = Server::start(name, pretty).await;
        let mut connection = server.connect().await;
        let commands = ["query-qmp-schema", "nosuch", "query-commands"];
        for command in commands {
            connection.send(command, &Object::new()).unwrap();
        }
        for command in commands {
            let Incoming::Answer(answer) = connection.next().await.unwrap() else {
                panic!("an event");
            };
            assert_eq!(answer.command, command);
            match command {
                "query-qmp-schema" => {
                    assert!(answer.result.unwrap().as_array().unwrap().len() > 300);
                }
                _ => assert_eq!(answer.result.is_ok(), command == "query-commands"),
            }
        }
    }
}

#[tokio::test]
async fn arguments_and_errors_of_the_storage_daemon() {
    let server = Server::start(STORAGE_DAEMON, false).await;
    let (client, _events) = server.client().await;
    let node = object(json!({"driver": "null-co", "node-name": "n", "size": 1 << 20}));
    client.execute("blockdev-add", node.clone()).await.unwrap();
    let error = client.execute("blockdev-add", node).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(_)), "{error}");
    let nodes = client.execute("query-named-block-nodes", Object::new());
    assert_eq!(nodes.await.unwrap()[0]["node-name"], "n");
}

/// A monitor has one client; who comes second is not greeted before the first has gone.
#[tokio::test]
async fn the_second_client_waits_for_the_first() {
    let server = Server::start(STORAGE_DAEMON, false).await;
    let first = server.connect().await;
    let wire = Wire::new(connected(&server.path()).await);
    let error = Connection::open(wire, Duration::from_millis(200)).await;
    assert!(
        matches!(error, Err(ClientError::NoGreeting { .. })),
        "{error:?}"
    );
    let second = tokio::spawn({
        let path = server.path();
        async move { Connection::open(Wire::new(connected(&path).await), LONG).await }
    });
    drop(first);
    second.await.unwrap().unwrap();
    // What the crate has for who does not say otherwise is enough for a server that is free.
    assert!(GREETING_TIMEOUT > Duration::from_millis(200));
}

#[tokio::test]
async fn over_pipes() {
    let mut command = program(STORAGE_DAEMON);
    command.args(["--chardev", "stdio,id=m", "--monitor", "chardev=m"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stream = tokio::io::join(child.stdout.take().unwrap(), child.stdin.take().unwrap());
    let connection = Connection::open(Wire::new(stream), LONG).await.unwrap();
    let (client, mut events, driver) = start(connection);
    let driver = tokio::spawn(driver);
    let commands = client.execute("query-commands", Object::new()).await;
    assert!(!commands.unwrap().as_array().unwrap().is_empty());
    client.execute("quit", Object::new()).await.unwrap();
    let end = timeout(LONG, events.next()).await.unwrap();
    assert!(matches!(end, Err(ClientError::Closed)), "{end:?}");
    driver.await.unwrap();
    assert!(child.wait().await.unwrap().success());
}

/// Nothing is asked while the server dies.
#[tokio::test]
async fn a_server_that_is_killed() {
    let mut server = Server::start(QEMU, false).await;
    let (client, mut events) = server.client().await;
    server.child.kill().await.unwrap();
    let end = timeout(LONG, events.next()).await.unwrap().unwrap_err();
    assert!(
        matches!(end, ClientError::Closed | ClientError::Io(_)),
        "{end}"
    );
    assert!(client.execute("stop", Object::new()).await.is_err());
}
