//! Commands that change something and may wait for the storage.
//!
//! They run to their end, whatever becomes of the client: a node that is resized must not be let go
//! half-way. The client is answered within [`CHANGE_TIME_MAX`] in any case.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use qapi::QmpError;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long a client waits for a change.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(10);

/// Most changes at once, so that clients that ask again and again leave no more than that behind.
const CHANGES_MAX: usize = 16;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Changes {
    places: Arc<Semaphore>,
}

impl Default for Changes {
    fn default() -> Self {
        Changes {
            places: Arc::new(Semaphore::new(CHANGES_MAX)),
        }
    }
}

impl Changes {
    /// Runs `change` to its end, and waits for that as long as a client should. `what` names the
    /// command.
    ///
    /// # Errors
    /// Those of the change; if it has not ended in time, or if too many have not.
    pub(crate) async fn run<R: Send + 'static>(
        &self,
        what: &str,
        change: impl Future<Output = Result<R, QmpError>> + Send + 'static,
    ) -> Result<R, QmpError> {
        let seconds = CHANGE_TIME_MAX.as_secs();
        let place = Arc::clone(&self.places).acquire_owned();
        // The semaphore is never closed, so that the inner error cannot occur.
        let Ok(Ok(place)) = timeout(CHANGE_TIME_MAX, place).await else {
            return Err(QmpError::generic(format!(
                "'{what}' was not begun: {CHANGES_MAX} commands have waited for storage that does not \
                 answer for {seconds} s; try again when it does"
            )));
        };
        let running = tokio::spawn(async move {
            let result = change.await;
            drop(place);
            result
        });
        match timeout(CHANGE_TIME_MAX, running).await {
            Ok(ended) => ended.map_err(|e| QmpError::generic(format!("Internal error: {e}")))?,
            Err(_) => Err(QmpError::generic(format!(
                "'{what}' has not ended within {seconds} s, the storage does not answer; it goes on, \
                 and takes effect when it does"
            ))),
        }
    }
}
