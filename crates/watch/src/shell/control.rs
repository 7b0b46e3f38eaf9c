//! The socket on which the running watcher says how it is: whoever connects gets one JSON document.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use listener::{Access, Socket, SocketError, bind_socket};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::fleet::Fleet;

/// Who asks at a time.
const CLIENTS_MAX: usize = 16;
/// Who does not read has gone.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// More is not said by a watcher.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Binds the socket. A second watcher is refused here.
///
/// # Errors
/// If there is one, or the system refuses.
pub fn bind(path: &Path) -> Result<Socket, SocketError> {
    bind_socket(path, Access::default())
}

/// Answers, for ever; the watcher began at `began`.
pub async fn serve(socket: Socket, fleet: Arc<Fleet>, began: Instant) -> io::Result<()> {
    let listener = StdListener::from(socket.as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        match listener.accept().await {
            Ok((mut client, _)) => {
                let text =
                    serde_json::json!({ "machines": fleet.all(began.elapsed()) }).to_string();
                tokio::spawn(async move {
                    let _place = place;
                    let _ = timeout(CLIENT_LIMIT, client.write_all(text.as_bytes())).await;
                });
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Why a watcher did not say how it is.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody is there.
    #[error("no watcher answers at {}: {source}; is it running, with this runtime-directory?", path.display())]
    Unreachable {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What it says cannot be understood.
    #[error("what the watcher says cannot be understood: {0}")]
    Nonsense(serde_json::Error),
}

/// Asks the watcher whose control socket that is. Blocks, for some seconds at most.
///
/// # Errors
/// [`StatusError`].
pub fn ask_status(path: &Path) -> Result<Value, StatusError> {
    let asked = || {
        let stream = StdStream::connect(path)?;
        stream.set_read_timeout(Some(CLIENT_LIMIT))?;
        let mut text = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = asked().map_err(|source| StatusError::Unreachable {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&text).map_err(StatusError::Nonsense)
}
