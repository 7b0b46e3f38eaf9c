//! QEMU, by QMP.

use std::collections::VecDeque;
use std::path::PathBuf;

use block::VmState;
use qapi::Value;
use qapi::wire::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::machine::{Action, Answer, Failure};
use crate::qmp::{self, Input, Message};
use crate::report::Report;
use crate::time_limit::TIME_LIMIT;

/// Statuses in which a VM has not run yet: whoever has started it will resume it. After a reset a
/// paused VM is in `prelaunch`, too.
const FRESH: [&str; 3] = ["prelaunch", "inmigrate", "preconfig"];

/// A QEMU, connected as long as it can be.
#[derive(Debug)]
pub(crate) struct Qemu {
    path: PathBuf,
    connection: Option<Connection>,
    /// What it is waited for, for the message when the time is over.
    waits_for: &'static str,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    input: Input,
    messages: VecDeque<Message>,
    last_id: u64,
    /// The process that listens.
    process: Option<i32>,
    /// Nothing was asked on this connection yet.
    new: bool,
}

/// Why a connection is of no use.
enum Broken {
    Io(std::io::Error),
    Closed,
    Garbage(String),
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl Connection {
    /// The next message. Loses nothing if it is dropped while it waits.
    async fn message(&mut self) -> Result<Message, Broken> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes).await?;
            if read == 0 {
                return Err(Broken::Closed);
            }
            let messages = &mut self.messages;
            self.input
                .feed(&bytes[..read], |message| messages.push_back(message))
                .map_err(Broken::Garbage)?;
        }
    }

    /// Executes a command; what is told meanwhile goes to `reports`.
    async fn execute(
        &mut self,
        name: &str,
        reports: &mpsc::Sender<Report>,
    ) -> Result<Outcome, Broken> {
        self.last_id += 1;
        let id = self.last_id;
        self.stream.write_all(&qmp::command(name, id)).await?;
        loop {
            match self.message().await? {
                Message::Event(event) => told(&event, reports).await,
                Message::Response(response) => {
                    return qmp::outcome(response, id).ok_or_else(|| {
                        Broken::Garbage(format!("the answer to '{name}' has another id"))
                    });
                }
                Message::Greeting(_) => {
                    return Err(Broken::Garbage("a second greeting".to_owned()));
                }
            }
        }
    }
}

/// What an event says of the VM.
async fn told(event: &str, reports: &mpsc::Sender<Report>) {
    let report = match event {
        "STOP" => Report::Event(VmState::Paused),
        "RESUME" => Report::Event(VmState::Running),
        "RESET" | "SHUTDOWN" | "SUSPEND" | "WAKEUP" => Report::Changed,
        _ => return,
    };
    // Nobody receives any more: the link ends.
    let _ = reports.send(report).await;
}

impl Qemu {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            connection: None,
            waits_for: "",
        }
    }

    pub(crate) async fn serve(
        mut self,
        mut actions: mpsc::Receiver<Action>,
        reports: mpsc::Sender<Report>,
    ) {
        loop {
            let action = match &mut self.connection {
                None => actions.recv().await,
                Some(connection) => tokio::select! {
                    action = actions.recv() => action,
                    said = connection.message() => {
                        self.said(said, &reports).await;
                        continue;
                    }
                },
            };
            let Some(action) = action else { return };
            let result = match timeout(TIME_LIMIT, self.perform(action, &reports)).await {
                Ok(result) => result,
                Err(_) => Err(Failure::Lost(self.too_slow())),
            };
            if let Err(Failure::Lost(_)) = result {
                // An answer that comes late must not be taken for another one.
                self.connection = None;
            }
            if reports.send(Report::Done(result)).await.is_err() {
                return;
            }
        }
    }

    /// It said something without being asked.
    async fn said(&mut self, said: Result<Message, Broken>, reports: &mpsc::Sender<Report>) {
        let broken = match said {
            Ok(Message::Event(event)) => return told(&event, reports).await,
            Ok(_) => Broken::Garbage("an answer to nothing".to_owned()),
            Err(broken) => broken,
        };
        self.connection = None;
        // Nobody receives any more: the link ends.
        let _ = reports.send(Report::Lost(self.text(&broken))).await;
    }

    async fn perform(
        &mut self,
        action: Action,
        reports: &mpsc::Sender<Report>,
    ) -> Result<Answer, Failure> {
        self.connect(reports).await?;
        let command = match action {
            Action::Query => "query-status",
            Action::Pause => "stop",
            Action::Resume => "cont",
            Action::Reset => "system_reset",
        };
        let value = self.execute(command, reports).await?;
        if action != Action::Query {
            return Ok(Answer::default());
        }
        let (running, status) =
            qmp::status(&value).map_err(|why| self.lost(&Broken::Garbage(why)))?;
        let connection = self.connection.as_mut();
        let (process, new) = connection.map_or((None, false), |connection| {
            (connection.process, std::mem::take(&mut connection.new))
        });
        Ok(Answer {
            vm: if running {
                VmState::Running
            } else {
                VmState::Paused
            },
            process,
            fresh: new && FRESH.contains(&status.as_str()),
        })
    }

    async fn connect(&mut self, reports: &mpsc::Sender<Report>) -> Result<(), Failure> {
        if self.connection.is_some() {
            return Ok(());
        }
        self.waits_for = "connect";
        let stream = UnixStream::connect(&self.path).await.map_err(|e| {
            let path = self.path.display();
            Failure::Lost(format!(
                "Cannot connect to QEMU's QMP socket '{path}': {e}; start QEMU with '-qmp \
                 unix:{path},server=on,wait=off'"
            ))
        })?;
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        self.connection = Some(Connection {
            stream,
            input: Input::default(),
            messages: VecDeque::new(),
            last_id: 0,
            process,
            new: true,
        });
        self.waits_for = "greeting";
        if let Some(connection) = &mut self.connection {
            match connection.message().await {
                Ok(Message::Greeting(_)) => {}
                Ok(_) => {
                    let garbage = Broken::Garbage("it begins with no greeting".to_owned());
                    return Err(self.lost(&garbage));
                }
                Err(broken) => return Err(self.lost(&broken)),
            }
        }
        self.execute("qmp_capabilities", reports).await?;
        Ok(())
    }

    async fn execute(
        &mut self,
        command: &'static str,
        reports: &mpsc::Sender<Report>,
    ) -> Result<Value, Failure> {
        self.waits_for = command;
        let Some(connection) = &mut self.connection else {
            return Err(self.lost(&Broken::Closed));
        };
        match connection.execute(command, reports).await {
            Ok(Outcome::Return(value)) => Ok(value),
            Ok(Outcome::Error(error)) => Err(Failure::Refused(format!(
                "QEMU at '{}' refuses '{command}': {error}",
                self.path.display()
            ))),
            Err(broken) => Err(self.lost(&broken)),
        }
    }

    fn lost(&self, broken: &Broken) -> Failure {
        Failure::Lost(self.text(broken))
    }

    fn text(&self, broken: &Broken) -> String {
        let path = self.path.display();
        match broken {
            Broken::Io(e) => format!(
                "QEMU's QMP socket '{path}' has failed: {e}; see whether QEMU is still there"
            ),
            Broken::Closed => format!(
                "QEMU has closed its QMP socket '{path}'; it has ended, or another program needs \
                 the socket for itself"
            ),
            Broken::Garbage(why) => format!(
                "What listens at '{path}' does not speak QMP: {why}; set 'path' to a QMP socket of \
                 QEMU"
            ),
        }
    }

    fn too_slow(&self) -> String {
        let path = self.path.display();
        let limit = TIME_LIMIT.as_secs();
        match self.waits_for {
            "connect" | "greeting" => format!(
                "QEMU's QMP socket '{path}' has not greeted within {limit} s; it serves one client \
                 at a time: give the link a QMP socket of its own"
            ),
            command => format!(
                "QEMU at '{path}' has not answered '{command}' within {limit} s; see what it is \
                 busy with"
            ),
        }
    }
}
