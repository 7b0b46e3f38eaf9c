//! One QMP session.

use std::collections::VecDeque;
use std::sync::Arc;

use qapi::command::QmpCapabilities;
use qapi::de::{self, Mode};
use qapi::types::Empty;
use qapi::wire::{BadRequest, Greeting, Request, Response};
use qapi::{ErrorClass, QmpError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::commands::{self, Context};
use crate::framing::{Framing, value_of};
use crate::outbox::Outbox;

/// How much is read at once, in bytes.
const READ_BYTES_MAX: usize = 16 << 10;

/// Serves one client until it is gone or `outbox` is told to finish.
pub(crate) async fn serve(
    context: Arc<Context>,
    outbox: Arc<Outbox>,
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin,
) {
    outbox.push(&Greeting::new(context.version.clone()));
    let session = Session {
        context,
        outbox: Arc::clone(&outbox),
        negotiated: false,
    };
    let receive = async {
        session.receive(reader).await;
        outbox.finish();
    };
    // Both run to their end: a command under way is never abandoned half-way.
    futures_util::future::join(receive, outbox.send_to(writer)).await;
}

struct Session {
    context: Arc<Context>,
    outbox: Arc<Outbox>,
    negotiated: bool,
}

impl Session {
    async fn receive(mut self, mut reader: impl AsyncRead + Unpin) {
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
            framing.feed(bytes, |request| requests.push_back(request));
            while let Some(request) = requests.pop_front() {
                // A client that sends and does not read is not served; only events are for ever
                // put in its queue.
                if !self.outbox.has_room().await {
                    return;
                }
                self.request(request).await;
            }
        }
    }

    async fn request(&mut self, request: Result<Request, BadRequest>) {
        let request = match request {
            Ok(request) => request,
            Err(BadRequest { error, id }) => {
                self.outbox.push(&Response::new(Err(error), id));
                return;
            }
        };
        let Request {
            execute,
            arguments,
            id,
        } = request;
        let result = match (self.negotiated, execute.as_str()) {
            (false, "qmp_capabilities") => {
                match de::from_object::<QmpCapabilities>(&arguments, Mode::Json) {
                    Ok(_) => return self.negotiate(Response::new(value_of(Empty {}), id)).await,
                    Err(e) => Err(e),
                }
            }
            (false, _) => Err(QmpError {
                class: ErrorClass::CommandNotFound,
                desc: "Expecting capabilities negotiation with 'qmp_capabilities'".to_owned(),
            }),
            (true, name) => commands::execute(&self.context, name, arguments).await,
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
