//! Where sessions come from.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use block::{Observer, Registry};
use qapi::types::VersionInfo;
use qapi::wire::Layout;
use tokio::io::AsyncWrite;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::changes::Changes;
use crate::chardevs::Chardevs;
use crate::context::Shared;
use crate::descriptors::Descriptors;
use crate::door::{Connection, Door, Input};
use crate::graph::Graph;
use crate::hub::Hub;
use crate::objects::Objects;
use crate::outbox::Outbox;
use crate::session;
use crate::storage::Storage;

/// Most sessions at once on one listener. Further clients wait in its backlog.
pub const SESSIONS_MAX: usize = 64;

/// How long to wait before accepting again after that has failed, e.g. for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// All QMP sessions of a daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Monitor {
    shared: Arc<Shared>,
    hub: Arc<Hub>,
}

impl Monitor {
    /// A monitor over all of that, which introduces itself as `version`. Its sessions will get the events
    /// from now on.
    pub async fn new(
        registry: Arc<Registry>,
        objects: Arc<dyn Objects>,
        graph: Arc<dyn Graph>,
        chardevs: Arc<dyn Chardevs>,
        descriptors: Arc<Descriptors>,
        version: VersionInfo,
    ) -> Self {
        let hub = Arc::new(Hub::new());
        registry
            .control()
            .observe(Arc::clone(&hub) as Arc<dyn Observer>)
            .await;
        Monitor {
            shared: Arc::new(Shared {
                registry,
                objects,
                graph,
                chardevs,
                descriptors,
                version,
                storage: Storage::default(),
                changes: Changes::default(),
            }),
            hub,
        }
    }

    /// Accepts clients on a bound socket, any number of times, and serves each. Returns after
    /// [`Self::close`], when all its sessions have ended.
    ///
    /// # Errors
    /// If the socket cannot be used in this runtime.
    pub async fn serve(&self, listener: StdUnixListener, layout: Layout) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.serve_door(UnixListener::from_std(listener)?, layout)
            .await;
        Ok(())
    }

    /// Serves all that come through a door, as [`Self::serve`].
    pub async fn serve_door(&self, door: impl Door, layout: Layout) {
        let places = Arc::new(Semaphore::new(SESSIONS_MAX));
        let mut sessions = JoinSet::new();
        let mut number: u64 = 0;
        loop {
            let accept = async {
                // The semaphore is never closed, so that an error cannot occur.
                let place = Arc::clone(&places).acquire_owned().await;
                (place, door.next().await)
            };
            tokio::select! {
                () = self.hub.closing() => break,
                Some(_) = sessions.join_next() => {}
                (place, accepted) = accept => match accepted {
                    Ok(Connection { reader, writer }) => {
                        number += 1;
                        let monitor = self.clone();
                        sessions.spawn(async move {
                            let name = format!("client {number}");
                            monitor.session(name, reader, writer, layout).await;
                            drop(place);
                        });
                    }
                    Err(e) => {
                        tracing::warn!("cannot accept a monitor client: {e}; trying again");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
            }
        }
        drop(door);
        while sessions.join_next().await.is_some() {}
    }

    /// Waits until [`Self::close`] is called.
    pub async fn closing(&self) {
        self.hub.closing().await;
    }

    /// Serves one client on standard input and output. Returns when the input ends, or after
    /// [`Self::close`].
    ///
    /// A read from standard input cannot be taken back: a runtime that has served it is ended with
    /// `shutdown_background`.
    pub async fn serve_stdio(&self, layout: Layout) {
        self.session(
            "stdio".to_owned(),
            tokio::io::stdin(),
            tokio::io::stdout(),
            layout,
        )
        .await;
    }

    /// Serves one client, called `name` in log lines, until it is gone or [`Self::close`] is
    /// called.
    pub async fn session(
        &self,
        name: String,
        reader: impl Input,
        writer: impl AsyncWrite + Unpin,
        layout: Layout,
    ) {
        let outbox = Arc::new(Outbox::new(name, layout));
        let Some(presence) = self.hub.enter(&outbox) else {
            return;
        };
        session::serve(Arc::clone(&self.shared), outbox, reader, writer).await;
        drop(presence);
    }

    /// Accepts no more clients and ends all sessions: commands under way end, what waits to be sent
    /// is sent, as far as clients read it within a second.
    pub fn close(&self) {
        self.hub.close();
    }
}
