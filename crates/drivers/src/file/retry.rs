//! Trying again what failed for no fault of the storage.

use std::io;
use std::time::Duration;

/// Attempts beyond the first; with the pauses between them about 100 ms.
const RETRIES_MAX: u32 = 10;

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// The bounded patience of one operation with EAGAIN, EINTR, ECANCELED and ENOMEM.
#[derive(Debug)]
pub struct Retry {
    retries: u32,
}

impl Retry {
    /// Full patience.
    pub const fn new() -> Self {
        Self { retries: 0 }
    }

    /// Whether to try again; waits a little before it says so.
    pub async fn again(&mut self, error: &io::Error) -> bool {
        if !is_transient(error) || self.retries == RETRIES_MAX {
            return false;
        }
        let pause = Duration::from_micros(100 << self.retries).min(PAUSE_MAX);
        self.retries += 1;
        iothread::time::sleep(pause).await;
        true
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EINTR | libc::ECANCELED | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use iothread::{Config, IoThread};

    #[test]
    fn patience_is_bounded_and_only_for_the_transient() {
        let thread = IoThread::spawn(Config::default()).expect("an iothread");
        let counts = thread.handle().run_blocking(|| async {
            let mut counts = Vec::new();
            for errno in [libc::EAGAIN, libc::ENOMEM, libc::EIO, libc::ENOSPC] {
                let error = io::Error::from_raw_os_error(errno);
                let (mut retry, mut count) = (Retry::new(), 0);
                while retry.again(&error).await {
                    count += 1;
                }
                counts.push(count);
            }
            counts
        });
        assert_eq!(counts, Ok(vec![RETRIES_MAX, RETRIES_MAX, 0, 0]));
    }
}
