//! Work beside, where so much hangs that there is no thread left.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "the whole file is a test"
)]

use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread::{self, ThreadId};

use standfast_block::{beside, drop_beside};

/// Says where it is dropped.
struct Last(mpsc::Sender<ThreadId>);

impl Drop for Last {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().id());
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn nobody_waits_for_what_is_dropped_where_all_hang() {
    let (dropped, heard) = mpsc::channel();
    drop_beside(Last(dropped.clone()));
    assert_ne!(heard.recv().unwrap(), thread::current().id());

    let mut hanging = Vec::new();
    let refused = loop {
        let (go_on, hung) = mpsc::channel::<()>();
        let mut one = Box::pin(beside(move || hung.recv().is_ok()));
        match poll(one.as_mut()) {
            Poll::Ready(refused) => break refused.unwrap_err(),
            Poll::Pending => hanging.push((go_on, one)),
        }
        assert!(hanging.len() <= 1000);
    };
    assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
    drop_beside(Last(dropped.clone()));
    drop_beside(Last(dropped));
    assert!(heard.try_recv().is_err(), "its drop might hang, too");

    // One of them goes on.
    let (go_on, one) = hanging.pop().unwrap();
    drop(go_on);
    let _ = pollster::block_on(one).unwrap();
    for _ in 0..2 {
        assert_ne!(heard.recv().unwrap(), thread::current().id());
    }
    assert!(heard.recv().is_err(), "each once");
    for (go_on, one) in hanging {
        drop(go_on);
        let _ = pollster::block_on(one).unwrap();
    }
}
