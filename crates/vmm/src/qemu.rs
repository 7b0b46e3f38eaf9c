//! QEMU, by QMP.

use std::path::PathBuf;

use block::VmState;
use qapi::{Object, QmpError, Value, json};
use qmp_client::{ClientError, Connection, Incoming, Wire};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::machine::{Action, Answer, Failure};
use crate::peer;
use crate::report::Report;
use crate::time_limit::TIME_LIMIT;

/// Statuses in which a VM has not run yet: whoever has started it will resume it. After a reset a
/// paused VM is in `prelaunch`, too.
const FRESH: [&str; 3] = ["prelaunch", "inmigrate", "preconfig"];

/// A QEMU, connected as long as it can be.
#[derive(Debug)]
pub(crate) struct Qemu {
    path: PathBuf,
    connection: Option<Box<Monitor>>,
    /// What it is waited for, for the message when the time is over.
    waits_for: &'static str,
}

#[derive(Debug)]
struct Monitor {
    qmp: Connection<UnixStream>,
    /// The process that listens.
    process: Option<i32>,
    /// Nothing was asked on this connection yet.
    new: bool,
}

impl Monitor {
    /// Executes a command; what is told meanwhile goes to `reports`.
    async fn execute(
        &mut self,
        name: &str,
        reports: &mpsc::Sender<Report>,
    ) -> Result<Result<Value, QmpError>, ClientError> {
        self.qmp.send(name, &Object::new())?;
        loop {
            match self.qmp.next().await? {
                Incoming::Event(event) => told(event.name(), reports).await,
                // No other command is under way.
                Incoming::Answer(answer) => return Ok(answer.result),
            }
        }
    }
}

const NO_STATUS: &str = "the answer to 'query-status' lacks 'running' or 'status'";

/// The state of a VM, from the answer to `query-status`: whether it runs, and QEMU's name for it.
fn status(answer: &Value) -> Option<(bool, &str)> {
    let running = answer.get("running")?.as_bool()?;
    Some((running, answer.get("status")?.as_str()?))
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
                    said = connection.qmp.next() => {
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
    async fn said(&mut self, said: Result<Incoming, ClientError>, reports: &mpsc::Sender<Report>) {
        match said {
            Ok(Incoming::Event(event)) => told(event.name(), reports).await,
            // Nothing is under way.
            Ok(Incoming::Answer(_)) => {}
            Err(broken) => {
                self.connection = None;
                // Nobody receives any more: the link ends.
                let _ = reports.send(Report::Lost(self.text(&broken))).await;
            }
        }
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
            status(&value).ok_or_else(|| Failure::Lost(self.no_qmp(NO_STATUS)))?;
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
            fresh: new && FRESH.contains(&status),
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
        let process = peer::process(&stream);
        self.waits_for = "greeting";
        // Nothing that is asked here has a long answer.
        let wire = Wire::with_limits(stream, json::Limits::default());
        let qmp = (Connection::greet(wire).await).map_err(|broken| self.lost(&broken))?;
        self.connection = Some(Box::new(Monitor {
            qmp,
            process,
            new: true,
        }));
        let negotiated = self.execute("qmp_capabilities", reports).await;
        if negotiated.is_err() {
            // Nothing can be asked on it: the next attempt begins anew.
            self.connection = None;
        }
        negotiated.map(drop)
    }

    async fn execute(
        &mut self,
        command: &'static str,
        reports: &mpsc::Sender<Report>,
    ) -> Result<Value, Failure> {
        self.waits_for = command;
        let Some(connection) = &mut self.connection else {
            return Err(self.lost(&ClientError::Closed));
        };
        match connection.execute(command, reports).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Failure::Refused(format!(
                "QEMU at '{}' refuses '{command}': {error}",
                self.path.display()
            ))),
            Err(broken) => Err(self.lost(&broken)),
        }
    }

    fn lost(&self, broken: &ClientError) -> Failure {
        Failure::Lost(self.text(broken))
    }

    fn text(&self, broken: &ClientError) -> String {
        let path = self.path.display();
        match broken {
            ClientError::Closed => format!(
                "QEMU has closed its QMP socket '{path}'; it has ended, or another program needs \
                 the socket for itself"
            ),
            ClientError::Protocol(why) | ClientError::NotGreeted { why, .. } => self.no_qmp(why),
            ClientError::Io(error) => self.failed(error),
            // Time limits are kept here, and events are taken: there is nothing else.
            other => self.failed(other),
        }
    }

    fn failed(&self, why: impl std::fmt::Display) -> String {
        let path = self.path.display();
        format!("QEMU's QMP socket '{path}' has failed: {why}; see whether QEMU is still there")
    }

    fn no_qmp(&self, why: impl std::fmt::Display) -> String {
        let path = self.path.display();
        format!(
            "What listens at '{path}' does not speak QMP: {why}; set 'path' to a QMP socket of QEMU"
        )
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
