//! How others use the connection of a machine.

use qapi::{Object, Value};
use tokio::sync::{mpsc, oneshot};

/// A command for the machine's task to send.
#[derive(Debug)]
pub struct Call {
    /// Its name.
    pub command: &'static str,
    /// Its arguments.
    pub arguments: Object,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Value, String>>,
}

/// A handle of the connection, whichever it is at the moment.
#[derive(Clone, Debug)]
pub struct Link(mpsc::Sender<Call>);

impl Link {
    /// A handle and the end for the machine's task.
    pub fn new() -> (Self, mpsc::Receiver<Call>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self(sender), receiver)
    }

    /// Executes a command.
    ///
    /// # Errors
    /// It is refused, or the connection has ended.
    pub async fn execute(&self, command: &'static str, arguments: Object) -> Result<Value, String> {
        let (reply, answer) = oneshot::channel();
        let call = Call {
            command,
            arguments,
            reply,
        };
        let lost = || format!("'{command}': the connection to the machine has ended");
        self.0.send(call).await.map_err(|_| lost())?;
        answer.await.map_err(|_| lost())?
    }
}
