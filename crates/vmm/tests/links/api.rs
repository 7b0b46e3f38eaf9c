//! API servers of Cloud Hypervisor and Firecracker, after their OpenAPI descriptions.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::harness::Task;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    CloudHypervisor,
    Firecracker,
}

/// How requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As described.
    Right,
    /// Pause and resume are refused with this status, and nothing is done.
    Refuse(u16),
    /// Pause is refused, but somebody else has paused the VM meanwhile.
    Overtaken,
    /// Never.
    Silent,
    /// Done, but the answer breaks off in its body.
    Half,
    /// Done, but the connection is closed without an answer.
    Close,
    /// By something else than HTTP.
    Garbage,
    /// With a body that is longer than any limit.
    Huge,
    /// With this instead of JSON.
    Nonsense,
}

#[derive(Debug)]
pub struct Vm {
    pub state: &'static str,
    pub mode: Mode,
    pub requests: Vec<String>,
}

pub struct Server {
    vm: Arc<Mutex<Vm>>,
    _task: Task,
}

impl Server {
    pub fn start(path: &Path, flavor: Flavor, state: &'static str) -> Self {
        let vm = Arc::new(Mutex::new(Vm {
            state,
            mode: Mode::Right,
            requests: Vec::new(),
        }));
        let listener = UnixListener::bind(path).expect("listen");
        let shared = Arc::clone(&vm);
        let task = Task::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    // A client that goes is no matter of the server.
                    let _ = serve(stream, flavor, &shared).await;
                });
            }
        });
        Self { vm, _task: task }
    }

    pub fn vm(&self) -> MutexGuard<'_, Vm> {
        self.vm.lock()
    }

    pub fn asked(&self, what: &str) -> usize {
        let vm = self.vm();
        vm.requests.iter().filter(|r| r.contains(what)).count()
    }
}

async fn read(stream: &mut UnixStream) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    loop {
        let mut some = [0; 512];
        let read = stream.read(&mut some).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&some[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        assert!(head.to_lowercase().contains("\r\nhost: "), "{head}");
        let length = head
            .to_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        if body.len() >= length {
            let line = head.lines().next().unwrap_or_default();
            return Ok(format!("{line} {body}"));
        }
    }
}

async fn serve(mut stream: UnixStream, flavor: Flavor, vm: &Mutex<Vm>) -> std::io::Result<()> {
    let request = read(&mut stream).await?;
    let (mode, status, body) = {
        let mut vm = vm.lock();
        vm.requests.push(request.clone());
        let (status, body) = match flavor {
            Flavor::CloudHypervisor => cloud_hypervisor(&request, &mut vm),
            Flavor::Firecracker => firecracker(&request, &mut vm),
        };
        (vm.mode, status, body)
    };
    let head = |length: usize| {
        format!(
            "HTTP/1.1 {status} X\r\nServer: API\r\nConnection: keep-alive\r\nContent-Length: \
             {length}\r\n\r\n"
        )
    };
    match mode {
        Mode::Silent => tokio::time::sleep(Duration::from_secs(60)).await,
        Mode::Half => {
            stream.write_all(head(100).as_bytes()).await?;
            stream.write_all(b"{\"state\": ").await?;
        }
        Mode::Close => {}
        Mode::Garbage => stream.write_all(b"\x00\x01QMP hello\r\n\r\n").await?,
        Mode::Huge => {
            stream.write_all(head(1 << 30).as_bytes()).await?;
            // The client gives up in the middle.
            while stream.write_all(&[b' '; 4096]).await.is_ok() {}
        }
        Mode::Nonsense => {
            stream.write_all(head(6).as_bytes()).await?;
            stream.write_all(b"<html>").await?;
        }
        Mode::Right | Mode::Refuse(_) | Mode::Overtaken => {
            // No length where there is no body: both VMMs answer 204 like that.
            let whole = match status {
                204 => "HTTP/1.1 204 \r\nServer: API\r\n\r\n".to_owned(),
                _ => head(body.len()) + &body,
            };
            for byte in whole.as_bytes().chunks(7) {
                stream.write_all(byte).await?;
            }
        }
    }
    Ok(())
}

/// What both have in common: pause and resume. None: it was done.
fn change(vm: &mut Vm, from: &str, to: &'static str) -> Option<u16> {
    match vm.mode {
        Mode::Refuse(status) => return Some(status),
        Mode::Overtaken => {
            vm.state = "Paused";
            return Some(500);
        }
        _ => {}
    }
    if vm.state != from {
        return Some(500);
    }
    vm.state = to;
    None
}

fn cloud_hypervisor(request: &str, vm: &mut Vm) -> (u16, String) {
    let (line, body) = request.split_once(" HTTP/1.1 ").unwrap_or((request, ""));
    assert_eq!(body, "", "{request}");
    let refusal = match line {
        "GET /api/v1/vm.info" => {
            return match vm.state {
                "none" => (500, r#"["Error from API","VM is not created"]"#.to_owned()),
                state => {
                    let info = format!(r#"{{"config": {{}}, "state": "{state}"}}"#);
                    (200, info)
                }
            };
        }
        "PUT /api/v1/vm.pause" => change(vm, "Running", "Paused"),
        "PUT /api/v1/vm.resume" => change(vm, "Paused", "Running"),
        "PUT /api/v1/vm.reboot" => match vm.state {
            "Running" | "Paused" => {
                vm.state = "Running";
                None
            }
            _ => Some(405),
        },
        _ => Some(404),
    };
    match refusal {
        None => (204, String::new()),
        Some(status) => (
            status,
            r#"["Error from API","The VM could not do it"]"#.to_owned(),
        ),
    }
}

fn firecracker(request: &str, vm: &mut Vm) -> (u16, String) {
    let (line, body) = request.split_once(" HTTP/1.1 ").unwrap_or((request, ""));
    let refusal = match (line, body) {
        ("GET /", "") => {
            let state = vm.state;
            let info = format!(
                r#"{{"app_name": "Firecracker", "id": "vm", "state": "{state}", "vmm_version": "1.14.1"}}"#
            );
            return (200, info);
        }
        ("PATCH /vm", r#"{"state": "Paused"}"#) => change(vm, "Running", "Paused"),
        ("PATCH /vm", r#"{"state": "Resumed"}"#) => change(vm, "Paused", "Running"),
        _ => Some(404),
    };
    match refusal {
        None => (204, String::new()),
        Some(_) => (
            400,
            r#"{"fault_message": "The VM could not do it"}"#.to_owned(),
        ),
    }
}
