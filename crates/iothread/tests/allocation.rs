//! In the steady state the data plane of an io_uring allocates nothing.
//!
//! One test only: the counter counts the whole process.
#![cfg(not(loom))]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering},
};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system allocator's condition.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the system allocator's condition.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io::Write, os::fd::AsFd, rc::Rc, time::Duration};

    use standfast_iothread::{Deferred, Engine, defer, mailbox, ops, spawn_local, time};

    use super::*;
    use crate::common::*;

    struct Hook {
        queued: Cell<bool>,
        call: ops::Notifier,
    }

    impl Deferred for Hook {
        fn run(&self) {
            self.queued.set(false);
            self.call.notify();
        }
    }

    /// Everything a request does: operations (several workers at once), a hook, a call, a message
    /// in its own entry, a timer.
    #[test]
    fn none_per_request() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 4096]).unwrap();
        let iothread = start(Engine::IoUring, 32_768, 4);
        let (warm, measured) = run(&iothread, || async move {
            let file = Rc::new(file);
            let hook = Rc::new(Hook {
                queued: Cell::new(false),
                call: ops::Notifier::new(eventfd(true)),
            });
            let warm = requests(&file, &hook, 200).await;
            (warm, requests(&file, &hook, 1000).await)
        });
        // Proves that the counter counts: starting the tasks allocates.
        assert!(warm.0 > 0);
        assert_eq!(measured.1, 0);
    }

    /// Runs `count` requests on each of 16 workers; yields the allocations of starting the workers
    /// and those of the requests.
    async fn requests(file: &Rc<std::fs::File>, hook: &Rc<Hook>, count: u32) -> (u64, u64) {
        let (sender, mut receiver) = mailbox::channel();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let (go, stop) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let workers: Vec<_> = (0..16)
            .map(|_| {
                let (file, hook, sender) = (file.clone(), hook.clone(), sender.clone());
                let (go, stop) = (go.clone(), stop.clone());
                let entry = mailbox::Entry::new();
                spawn_local(async move {
                    while !go.get() {
                        time::sleep(Duration::from_millis(1)).await;
                    }
                    let mut buffer = [0u8; 64];
                    for request in 0..count {
                        let iov = [iovec(&mut buffer)];
                        // SAFETY: the buffer outlives the await.
                        let read = unsafe { ops::readv(file.as_fd(), &iov, 64) }.await;
                        assert_eq!(read.unwrap(), 64);
                        if !hook.queued.replace(true) {
                            defer(hook.clone());
                        }
                        if request % 100 == 0 {
                            time::sleep(Duration::from_micros(50)).await;
                        }
                        // Refused if this worker's last message has not been received yet.
                        let _ = sender.post(&entry, request);
                    }
                    drop(sender);
                    // Ends only when all are done, so that no end is counted.
                    while !stop.get() {
                        time::sleep(Duration::from_millis(1)).await;
                    }
                })
            })
            .collect();
        drop(sender);
        time::sleep(Duration::from_millis(3)).await;
        let started = ALLOCATIONS.load(Ordering::Relaxed);
        go.set(true);
        let mut received = 0;
        while receiver.recv().await.is_some() {
            received += 1;
        }
        let done = ALLOCATIONS.load(Ordering::Relaxed);
        stop.set(true);
        for worker in workers {
            worker.await;
        }
        assert!(received > 0);
        (started - before, done - started)
    }
}
