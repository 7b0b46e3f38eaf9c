//! Two clients on one backend, over a file on a tmpfs that is really full.
//!
//! Needs root and tmpfs.

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::rc::Rc;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use block::{
        Backend, Child, Client, ClientError, HoldScope, LocalBackend, Node, OnError, Operation,
        Policy, Request, RunState, Status, Tag, Unmapped,
    };
    use iothread::{Config, IoThread};
    use pollster::block_on;
    use standfast_drivers::{FileDriver, FileOptions};
    use testkit::Tmpfs;

    const MIB: u64 = 1 << 20;
    const BYTES: usize = 64 << 10;
    /// Writes of each client.
    const WRITES: u16 = 8;

    #[derive(Default)]
    struct Told {
        completed: Vec<u16>,
        failed: usize,
        dropped: Vec<u16>,
    }

    /// Its writes are full of one byte.
    struct Guest {
        byte: u8,
        buffers: RefCell<BTreeMap<u16, Vec<u8>>>,
        told: Arc<Mutex<Told>>,
    }

    impl Guest {
        fn new(byte: u8) -> (Rc<Self>, Arc<Mutex<Told>>) {
            let told = Arc::new(Mutex::new(Told::default()));
            let guest = Self {
                byte,
                buffers: RefCell::default(),
                told: Arc::clone(&told),
            };
            (Rc::new(guest), told)
        }

        /// Of `n` clients the `nth` one's writes lie between those of the others.
        fn write_all(&self, part: &LocalBackend, nth: u64, n: u64) {
            for head in 0..WRITES {
                let buffer = vec![self.byte; BYTES];
                self.buffers.borrow_mut().insert(head, buffer);
                part.submit(Request {
                    tag: Tag { queue: 0, head },
                    op: Operation::Write,
                    offset: (u64::from(head) * n + nth) * BYTES as u64,
                    bytes: BYTES as u64,
                });
            }
        }
    }

    impl Client for Guest {
        fn map(&self, request: &Request, iov: &mut Vec<libc::iovec>) -> Result<(), Unmapped> {
            let mut buffers = self.buffers.borrow_mut();
            let buffer = buffers.get_mut(&request.tag.head).ok_or(Unmapped::Gone)?;
            iov.push(libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            });
            Ok(())
        }
        fn unmap(&self, _: &Request) {}
        fn has_lost(&self, _: &Request, _: &[libc::iovec]) -> bool {
            false
        }
        fn complete(&self, request: &Request, result: Result<(), ClientError>) {
            let mut told = self.told.lock().expect("not poisoned");
            match result {
                Ok(()) => told.completed.push(request.tag.head),
                Err(_) => told.failed += 1,
            }
        }
        fn dropped(&self, request: &Request) {
            let mut told = self.told.lock().expect("not poisoned");
            told.dropped.push(request.tag.head);
        }
        fn resume(&self) {}
    }

    fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline, "timed out waiting for {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// One of two clients leaves while both have writes held because the filesystem is full. Space
    /// comes, and `cont`: of the other's writes none is lost and none done twice, and of what was
    /// dropped nothing is ever written.
    #[test]
    fn one_of_two_leaves_a_full_filesystem() {
        // Whoever freezes with its first failure has the rest waiting.
        for (scope, held) in [(HoldScope::Vm, 1), (HoldScope::Request, WRITES)] {
            one_of_two_leaves(scope, usize::from(held));
        }
    }

    /// Of each `held` are held.
    fn one_of_two_leaves(scope: HoldScope, held: usize) {
        let tmpfs = Tmpfs::new(MIB).expect("a tmpfs");
        let path = tmpfs.path().join("image");
        let image = std::fs::File::create(&path).expect("a file");
        image.set_len(16 * MIB).expect("sparse");
        let mut ballast = std::fs::File::create(tmpfs.path().join("ballast")).expect("a file");
        while ballast.write(&[1; 4096]).is_ok() {}

        let (control, task) = block::control();
        let task = std::thread::spawn(move || block_on(task.run()));
        let driver = FileDriver::open_file(FileOptions {
            node_name: "disk0".into(),
            filename: path.to_str().expect("ASCII").to_owned(),
            ..FileOptions::default()
        });
        let node = Node::new("disk0", Box::new(driver.expect("opens")));
        let policy = Policy::new(OnError::Enospc, OnError::Report);
        let backend = Backend::new(&control, "nbd0", Child::root("nbd0", node), policy, scope);
        let backend = block_on(backend).expect("run control runs");
        let connect = || Arc::new(block_on(backend.connect()).expect("run control runs"));
        let (a, b) = (connect(), connect());
        let threads = [(); 2].map(|()| IoThread::spawn(Config::default()).expect("an iothread"));

        // On one iothread: neither hears of the other's failure before its own.
        let (of_a, of_b) = (Arc::clone(&a), Arc::clone(&b));
        let both = move || async move {
            let ((guest_a, told_a), (guest_b, told_b)) = (Guest::new(0xaa), Guest::new(0xbb));
            let a = LocalBackend::open(&of_a, Rc::clone(&guest_a) as Rc<dyn Client>, 1).await;
            let b = LocalBackend::open(&of_b, Rc::clone(&guest_b) as Rc<dyn Client>, 1).await;
            let (a, b) = (a.expect("it runs"), b.expect("it runs"));
            guest_a.write_all(&a, 0, 2);
            guest_b.write_all(&b, 1, 2);
            (told_a, told_b)
        };
        let told = threads[0].handle().run_blocking(both);
        let (told_a, told_b) = told.expect("it runs");
        let known = || {
            block_on(control.call(|_, _| ())).expect("run control runs");
            control.read(|run| {
                let state = run.backend(backend.id()).expect("it is there");
                let incident = state.incident().map(|incident| incident.number);
                (state.held().len(), incident, state.io_status())
            })
        };
        let writes = usize::from(WRITES);
        let nospace = Some(Status::Nospace);
        wait_until("something held of both", || known().0 == 2 * held);
        assert_eq!(known(), (2 * held, Some(1), nospace));
        let state = match scope {
            HoldScope::Vm => RunState::IoError,
            _ => RunState::Running,
        };
        assert_eq!(control.read(|run| run.state()), state);

        block_on(a.close());
        assert_eq!(known(), (held, Some(1), nospace));
        assert_eq!(control.read(|run| run.state()), state);
        assert_eq!(backend.stats().dropped, u64::from(WRITES));
        assert_eq!(told_a.lock().expect("not poisoned").dropped.len(), writes);

        // Back again, on another iothread, with new data.
        let again = connect();
        let of_again = Arc::clone(&again);
        let back = move || async move {
            let (guest, told) = Guest::new(0xcc);
            let part = LocalBackend::open(&of_again, Rc::clone(&guest) as Rc<dyn Client>, 1).await;
            guest.write_all(&part.expect("it runs"), 0, 4);
            told
        };
        let told_again = threads[1].handle().run_blocking(back).expect("it runs");
        tmpfs.resize(32 * MIB).expect("more space");
        let cont = match scope {
            HoldScope::Vm => block_on(control.cont(false)),
            _ => block_on(control.cont_backend("nbd0".to_owned())),
        };
        cont.expect("nothing refuses");
        for told in [&told_b, &told_again] {
            wait_until("the writes", || {
                told.lock().expect("not poisoned").completed.len() == writes
            });
        }
        assert_eq!(known(), (0, None, Some(Status::Ok)));
        block_on(async {
            b.close().await;
            again.close().await;
            backend.detach().await;
            backend.remove().await;
        });
        for told in [told_a, told_b, told_again] {
            let mut told = told.lock().expect("not poisoned");
            told.completed.sort_unstable();
            assert!(told.completed.is_sorted_by(|a, b| a < b), "once each");
            assert_eq!(told.completed.len() + told.dropped.len(), writes);
            assert_eq!(told.failed, 0);
        }
        for block in 0..4 * u64::from(WRITES) {
            let expected = match block {
                block if block % 4 == 0 => 0xcc,
                block if block % 2 == 1 && block < 2 * u64::from(WRITES) => 0xbb,
                _ => 0,
            };
            let mut data = vec![1; BYTES];
            let image = std::fs::File::open(&path).expect("the image");
            let read = image.read_exact_at(&mut data, block * BYTES as u64);
            read.expect("within its length");
            assert!(data == [expected; BYTES], "block {block}");
        }
        drop((a, b, again, backend, threads, control));
        task.join().expect("no panic");
    }
}
