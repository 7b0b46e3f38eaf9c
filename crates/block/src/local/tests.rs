use super::*;

use std::time::Duration;

use iothread::{Config, IoThread};

use crate::control::task::control;
use crate::driver::io::Io;
use crate::words::error_policy::{OnError, Policy};
use crate::words::hold_scope::HoldScope;
use crate::words::request::Tag;
use crate::{Child, Driver, IoFuture, NodeInfo};
use pollster::block_on;

#[derive(Debug)]
struct Null;

impl Driver for Null {
    fn name(&self) -> &'static str {
        "null"
    }
    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }
    fn length(&self) -> u64 {
        1 << 20
    }
    fn submit<'a>(&'a self, _: Io<'a>) -> IoFuture<'a> {
        IoFuture::ready(Ok(()))
    }
}

#[derive(Default)]
struct Guest {
    completed: RefCell<Vec<Result<(), ClientError>>>,
}

impl Client for Guest {
    fn map(&self, _: &Request, _: &mut Vec<libc::iovec>) -> Result<(), Unmapped> {
        Ok(())
    }
    fn unmap(&self, _: &Request) {}
    fn has_lost(&self, _: &Request, _: &[libc::iovec]) -> bool {
        false
    }
    fn complete(&self, _: &Request, result: Result<(), ClientError>) {
        self.completed.borrow_mut().push(result);
    }
    fn dropped(&self, _: &Request) {}
    fn resume(&self) {}
}

/// A request whose ticket was dropped was an assertion in builds that have them. In others its
/// client, drains, GET_VRING_BASE and the end of the daemon waited for it for ever, without a word.
#[test]
fn a_lost_request_fails_and_nobody_waits_for_it() {
    let (control, task) = control();
    std::thread::spawn(|| block_on(task.run()));
    let node = Node::new("disk", Box::new(Null));
    let policy = Policy::new(OnError::Report, OnError::Report);
    let backend = Backend::new(
        &control,
        "vda",
        Child::root("vda", node),
        policy,
        HoldScope::Vm,
    );
    let backend = block_on(backend).unwrap();
    let thread = IoThread::spawn(Config::default()).unwrap();
    let here = Arc::clone(&backend);
    let completed = thread.handle().run_blocking(move || async move {
        let guest = Rc::new(Guest::default());
        let client = Rc::clone(&guest) as Rc<dyn Client>;
        let connection = here.connect_device();
        let local = LocalBackend::open(&connection, client, 1).await.unwrap();
        here.attach().await.unwrap();
        while !local.may_pop(0) {
            // It is frozen until it has heard from run control.
            here.control().call(|_, _| ()).await.unwrap();
        }
        let request = Request {
            tag: Tag { queue: 0, head: 3 },
            op: Operation::Write,
            offset: 0,
            bytes: 512,
        };
        let admission = local.0.gate.borrow_mut().admit(request, |_, _| false);
        let Admission::Start(ticket) = admission else {
            unreachable!("nothing is in its way");
        };
        drop(ticket);
        local.stop_queue(0).await;
        drop(here.drain().await);
        local.close().await;
        guest.completed.take()
    });
    let eio = ClientError::Io(Cause::of_errno(libc::EIO));
    assert_eq!(completed.unwrap(), [Err(eio)]);
    let stats = backend.stats();
    assert_eq!((stats.lost, stats.wr.failed), (1, 1));
    assert!(stats.idle.unwrap() < Duration::from_secs(600));
}
