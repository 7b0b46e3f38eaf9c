//! One QMP session.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use qapi::command::{QmpCapabilities, QmpCapability};
use qapi::de::{self, Mode};
use qapi::types::Empty;
use qapi::wire::{BadRequest, Greeting, Request, Response};
use qapi::{ErrorClass, QmpError};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::context::{Context, Shared};
use crate::descriptors;
use crate::door::Input;
use crate::framing::{Framing, value_of};
use crate::outbox::Outbox;
use crate::table;

/// How much is read at once, in bytes.
const READ_BYTES_MAX: usize = 16 << 10;

/// How often it is looked whether a client has left whose command is under way.
const LEFT_POLL: Duration = Duration::from_millis(100);

/// Waits until the client of a command that is under way has left.
async fn left(reader: &impl Input, outbox: &Outbox) {
    let polled = async {
        while !reader.has_left() {
            tokio::time::sleep(LEFT_POLL).await;
        }
    };
    tokio::select! {
        () = polled => {}
        () = outbox.closed() => {}
    }
}

/// Serves one client until it is gone or `outbox` is told to finish.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    reader: impl Input,
    writer: impl AsyncWrite + Unpin,
) {
    outbox.push(&Greeting::new(shared.version.clone()));
    let session = Session {
        context: Context {
            shared,
            passed: Mutex::default(),
        },
        outbox: Arc::clone(&outbox),
        negotiated: false,
        oob: false,
    };
    let receive = async {
        session.receive(reader).await;
        outbox.finish();
    };
    // Both run to their end: what has been answered is sent.
    futures_util::future::join(receive, outbox.send_to(writer)).await;
}

impl Drop for Session {
    fn drop(&mut self) {
        descriptors::close(std::mem::take(self.context.passed.get_mut()));
    }
}

struct Session {
    context: Context,
    outbox: Arc<Outbox>,
    negotiated: bool,
    /// It may send commands out of band.
    oob: bool,
}

impl Session {
    async fn receive(mut self, mut reader: impl Input) {
        let mut framing = Framing::new();
        let mut buffer = vec![0; READ_BYTES_MAX];
        let mut requests = VecDeque::new();
        loop {
            let read = tokio::select! {
                read = reader.read(&mut buffer) => read,
                () = self.outbox.finishing() => return,
            };
            let bytes = match read {
                Ok(0) | Err(_) => return,
                Ok(n) => &buffer[..n],
            };
            let passed = reader.take_descriptors();
            if !passed.is_empty() {
                let former = std::mem::replace(&mut *self.context.passed.lock(), passed);
                descriptors::close(former);
            }
            framing.feed(bytes, |request| requests.push_back(request));
            while let Some(request) = requests.pop_front() {
                // A client that sends and does not read is not served; only events are for ever
                // put in its queue.
                if !self.outbox.has_room().await {
                    return;
                }
                let outbox = Arc::clone(&self.outbox);
                tokio::select! {
                    biased;
                    () = self.request(request) => {}
                    // Whoever has left needs no answer, and must not keep a place. What must not stop
                    // half-way goes on by itself.
                    () = left(&reader, &outbox) => return,
                }
            }
        }
    }

    async fn request(&mut self, request: Result<Request, BadRequest>) {
        let request = match request {
            Ok(Request {
                is_oob: true, id, ..
            })
            | Err(BadRequest {
                is_oob: true, id, ..
            }) if !self.oob => Err(BadRequest::not_enabled(id)),
            request => request,
        };
        let request = match request {
            Ok(request) => request,
            Err(BadRequest { error, id, .. }) => {
                self.outbox.push(&Response::new(Err(error), id));
                return;
            }
        };
        let Request {
            execute,
            is_oob,
            arguments,
            id,
        } = request;
        let result = match (self.negotiated, execute.as_str()) {
            (false, "qmp_capabilities") => {
                match de::from_object::<QmpCapabilities>(&arguments, Mode::Json) {
                    Ok(QmpCapabilities { enable }) => {
                        self.oob = enable.is_some_and(|list| list.contains(&QmpCapability::Oob));
                        return self.negotiate(Response::new(value_of(Empty {}), id)).await;
                    }
                    Err(e) => Err(e),
                }
            }
            (false, _) => Err(QmpError {
                class: ErrorClass::CommandNotFound,
                desc: "Expecting capabilities negotiation with 'qmp_capabilities'".to_owned(),
                hint: None,
            }),
            (true, name) if is_oob => Err(table::out_of_band(name)),
            (true, name) => table::execute(&self.context, name, arguments).await,
        };
        self.outbox.push(&Response::new(result, id));
    }

    /// Ends the negotiation: this response, and from then on every event.
    async fn negotiate(&mut self, response: Response) {
        let outbox = Arc::clone(&self.outbox);
        let subscribed = self.context.registry.control().call(move |_, _| {
            outbox.push(&response);
            outbox.subscribe();
        });
        match subscribed.await {
            Some(()) => self.negotiated = true,
            // Run control has ended, and so will this session.
            None => self.outbox.finish(),
        }
    }
}
