//! A device that is served at a socket: all that belongs to it, from its making to its end.

use std::fmt;
use std::io;
use std::sync::Arc;

use iothread::mailbox::{self, Receiver};
use listener::Socket;
use parking_lot::Mutex;

use crate::class::{Class, Closed, Part, Shape};
use crate::device::DeviceHandle;
use crate::door::Door;
use crate::labelled::Labelled;
use crate::protocol::back_channel::BackChannel;
use crate::queue::HangUp;
use crate::server::Server;
use crate::session::Session;
use crate::trouble::Trouble;
use crate::unclaimed::Unclaimed;

/// Why a device cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An iothread, or what the class needs, has ended.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The system refuses a thread or a descriptor.
    #[error("cannot start the control thread: {0}")]
    Thread(io::Error),
}

/// See the [module](self). Without [`Served::close`] it takes no client any more once it is dropped.
pub struct Served<P: Part> {
    trouble: Arc<Trouble>,
    device: DeviceHandle<P>,
    back_channel: Arc<BackChannel>,
    unclaimed: Arc<Unclaimed>,
    labelled: Arc<Labelled>,
    door: Arc<Door>,
    /// Yields none when the control thread has ended.
    ended: Mutex<Option<Receiver<()>>>,
}

impl<P: Part> fmt::Debug for Served<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl<P: Part> Served<P> {
    /// Serves a device at `socket`, with queue `i` on the iothread `i` modulo their number; there is
    /// at least one, and those beyond the number of queues are not used. Its parts are made of
    /// `config`; then `class` makes the control plane, which reaches them.
    ///
    /// # Errors
    /// [`ServeError`]; then the socket is gone.
    pub async fn open<C: Class<Part = P>>(
        shape: Shape,
        config: &P::Config,
        iothreads: &[iothread::Handle],
        socket: Socket,
        class: impl FnOnce(DeviceHandle<P>) -> C,
    ) -> Result<Self, ServeError> {
        let back_channel = Arc::new(BackChannel::default());
        let trouble = Arc::new(Trouble::new(Arc::clone(&back_channel)));
        let door = Arc::new(Door::new().map_err(ServeError::Thread)?);
        let hang_up: HangUp = {
            let door = Arc::clone(&door);
            Arc::new(move || door.disconnect())
        };
        let device = DeviceHandle::open(iothreads, &shape, config, &trouble, &hang_up).await?;
        let unclaimed = Arc::new(Unclaimed::default());
        let labelled = Arc::new(Labelled::default());
        let id = shape.id.clone();
        let session = Session::new(
            class(device.clone()),
            shape,
            device.clone(),
            Arc::clone(&back_channel),
            Arc::clone(&trouble),
            Arc::clone(&unclaimed),
            Arc::clone(&labelled),
        );
        let (ending, ended) = mailbox::channel();
        let server = Server {
            id,
            session,
            door: Arc::clone(&door),
            trouble: Arc::clone(&trouble),
        };
        if let Err(source) = server.spawn(socket, ending) {
            // Nothing has been in flight; a daemon that ends needs no tidying up.
            let _: Result<(), Closed> = close(&device).await;
            return Err(ServeError::Thread(source));
        }
        Ok(Self {
            trouble,
            device,
            back_channel,
            unclaimed,
            labelled,
            door,
            ended: Mutex::new(Some(ended)),
        })
    }

    /// Whether a client is served.
    pub fn has_client(&self) -> bool {
        self.door.is_connected()
    }

    /// What is wrong, in one line.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.text()
    }

    /// Why requests may come back that nobody in this process has seen; none if there are none.
    pub fn may_hand_back(&self) -> Option<String> {
        self.unclaimed.reason()
    }

    /// Labels the client's inflight region anew: a client that has it is served as long as
    /// [`Class::check_label`] takes that.
    pub fn set_label(&self, label: &[u8]) {
        self.labelled.set(label);
    }

    /// Tells the client that the configuration space has changed.
    pub fn config_changed(&self) {
        self.back_channel.config_changed();
    }

    /// Disconnects the client, stops all rings, and closes the parts. False if somebody else does it,
    /// or has done it.
    pub async fn close(&self) -> bool {
        let ended = self.ended.lock().take();
        // Closed a second time: the first call does it.
        let Some(mut ended) = ended else {
            return false;
        };
        self.door.close();
        while ended.recv().await.is_some() {}
        // An error means that the iothread is gone, and with it all that was in flight.
        let _: Result<(), Closed> = close(&self.device).await;
        true
    }
}

async fn close<P: Part>(device: &DeviceHandle<P>) -> Result<(), Closed> {
    (device.run_all(|device| async move { device.close().await })).await
}

impl<P: Part> Drop for Served<P> {
    fn drop(&mut self) {
        // Without `close` the thread would wait for clients for ever.
        self.door.close();
    }
}
