//! A graph that lives: who may use what, what is in use stays, and nodes that take each other's place
//! under load.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::poll_fn;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex, mpsc};
    use std::task::Poll;
    use std::time::Duration;

    use block::{
        Access, BlockError, BoxFuture, Capabilities, ContBlocker, Driver, Extent, Io, IoFuture,
        Node, NodeInfo, Operation, Permissions, Resize,
    };
    use frontend::Request;
    use serde_json::json;

    use super::common::{BLOCKS, House};

    fn disk() -> House {
        let house = House::new();
        house.image("disk0.img");
        house.file("file0", "disk0.img").unwrap();
        house
    }

    fn filter(house: &House, name: &str, below: &str) {
        let options = json!({ "driver": "blkdebug", "node-name": name, "image": below });
        house.node(&options).unwrap();
    }

    fn quota(house: &House, name: &str, below: &str) {
        let options =
            json!({ "driver": "quota", "node-name": name, "file": below, "limit": 1 << 30 });
        house.node(&options).unwrap();
    }

    #[test]
    fn a_filter_comes_in_and_goes_under_load() {
        let house = disk();
        house.export("vda", "file0", true).unwrap();
        let load = house.load("vda");
        let root = || house.registry.export("vda").unwrap().backend().node();
        for round in 0..20 {
            match round % 2 {
                0 => filter(&house, "filter0", "file0"),
                _ => quota(&house, "filter0", "file0"),
            }
            house.replace("file0", "filter0").unwrap();
            assert_eq!(&**root().name(), "filter0");
            std::thread::sleep(Duration::from_millis(10));
            let error = house.delete_node("filter0").unwrap_err();
            assert_eq!(error, "Node filter0 is in use");
            house.replace("filter0", "file0").unwrap();
            let gone = Arc::downgrade(&house.registry.node("filter0").unwrap());
            house.delete_node("filter0").unwrap();
            assert!(gone.upgrade().is_none(), "no iothread has it");
            assert_eq!(&**root().name(), "file0");
        }
        assert!(load.end() > 100);
        house.close();
    }

    #[test]
    fn a_node_below_a_filter_is_replaced_under_load() {
        let house = disk();
        quota(&house, "top", "file0");
        house.export("vda", "top", true).unwrap();
        let load = house.load("vda");
        for _ in 0..20 {
            filter(&house, "middle", "file0");
            house.replace("file0", "middle").unwrap();
            let users = house.registry.node("middle").unwrap().users();
            assert_eq!(users.len(), 1);
            assert_eq!(users[0].user.to_string(), "node 'top'");
            std::thread::sleep(Duration::from_millis(10));
            house.replace("middle", "file0").unwrap();
            house.delete_node("middle").unwrap();
        }
        assert!(load.end() > 100);
        house.close();
    }

    /// It failed at the old node, is held, and succeeds at the new one.
    #[test]
    fn what_is_held_goes_to_the_new_node() {
        let house = disk();
        house
            .node(
                &json!({ "driver": "blkdebug", "node-name": "full", "image": "file0",
                "inject-error": [{ "event": "none", "iotype": "write", "errno": 28 }] }),
            )
            .unwrap();
        house.export("vda", "full", true).unwrap();
        let mut disk = house.connect("vda");
        let data = vec![0x5a; 4096];
        let write = Request::Write {
            sector: 8,
            data: &data,
        };
        let token = disk.submit(0, write).unwrap();
        disk.kick(0).unwrap();
        let control = house.registry.control().clone();
        let backend = house.registry.export("vda").unwrap().backend().id();
        let held = || control.read(|run| run.backend(backend).map_or(0, |b| b.held().len()));
        testkit::wait_until("it is held", Duration::from_secs(20), || Ok(held() == 1)).unwrap();

        house.replace("full", "file0").unwrap();
        assert_eq!(held(), 1, "it waits for cont");
        house.delete_node("full").unwrap();
        house
            .wait(control.call(|run, wiring| run.cont(None, false, wiring)))
            .unwrap()
            .unwrap();
        let done = disk.wait(0, Duration::from_secs(20)).unwrap().unwrap();
        assert_eq!((done.token, done.status), (token, 0));
        let mut there = vec![0; 4096];
        let image = fs::File::open(house.path("disk0.img")).unwrap();
        image.read_exact_at(&mut there, 4096).unwrap();
        assert_eq!(there, data);
        drop(disk);
        house.close();
    }

    #[test]
    fn what_is_in_use_stays() {
        let house = disk();
        filter(&house, "filter0", "file0");
        house.export("vda", "filter0", false).unwrap();
        for (name, words) in [
            ("nothing", "Failed to find node with node-name='nothing'"),
            ("filter0", "Node filter0 is in use"),
            ("file0", "Block device file0 is in use"),
        ] {
            assert_eq!(house.delete_node(name).unwrap_err(), words);
        }
        let access = || house.registry.node("file0").unwrap().access();
        let (read, all) = (Permissions::CONSISTENT_READ, Permissions::ALL);
        assert_eq!(
            access(),
            Access {
                held: read,
                shared: all
            }
        );
        house.export("vdb", "file0", true).unwrap();
        let writer = read.and(Permissions::WRITE);
        assert_eq!(
            access(),
            Access {
                held: writer,
                shared: all
            }
        );
        let client = house.connect("vdb");
        let refused = || house.delete_export("vdb", false).unwrap_err();
        testkit::wait_until("it has a client", Duration::from_secs(20), || {
            Ok(house.registry.export("vdb").unwrap().has_client())
        })
        .unwrap();
        assert_eq!(refused(), "export 'vdb' still in use");
        house.delete_export("vdb", true).unwrap();
        drop(client);
        assert_eq!(
            access(),
            Access {
                held: read,
                shared: all
            }
        );
        assert_eq!(refused(), "Export 'vdb' is not found");
        house.delete_export("vda", false).unwrap();
        assert_eq!(access(), Access::NONE);

        house.image("disk1.img");
        let options = json!({ "driver": "blkdebug", "node-name": "outer", "image": {
            "driver": "file", "node-name": "inner", "filename": house.path("disk1.img") } });
        house.node(&options).unwrap();
        let error = house.delete_node("inner").unwrap_err();
        assert_eq!(error, "Node inner is not owned by the monitor");
        house.delete_node("outer").unwrap();
        house.delete_node("filter0").unwrap();
        house.delete_node("file0").unwrap();
        assert!(house.registry.nodes().is_empty());
        house.close();
    }

    #[test]
    fn who_cannot_serve_all_users_takes_nobodys_place() {
        let house = disk();
        fs::File::create(house.path("short.img"))
            .unwrap()
            .set_len(4096)
            .unwrap();
        house.image("ro.img");
        house.file("short", "short.img").unwrap();
        let path = house.path("ro.img");
        let options = json!({ "driver": "file", "node-name": "ro", "filename": path,
            "read-only": true });
        house.node(&options).unwrap();
        house.export("vda", "file0", true).unwrap();
        assert_eq!(
            house.replace("file0", "ro").unwrap_err(),
            "Block node is read-only"
        );
        quota(&house, "quota0", "file0");
        let error = house.replace("file0", "short").unwrap_err();
        assert!(error.contains("unshared by node 'quota0'"), "{error}");
        let root = house.registry.export("vda").unwrap().backend().node();
        assert_eq!(&**root.name(), "file0", "nothing has changed");
        house.delete_node("quota0").unwrap();
        // Of a former daemon a client might hand something back, until one has come without.
        let error = house.replace("file0", "short").unwrap_err();
        assert!(
            error.starts_with("Cannot replace node 'file0' by node 'short': "),
            "{error}"
        );
        let client = house.connect("vda");
        house.replace("file0", "short").unwrap();
        drop(client);
        let root = house.registry.export("vda").unwrap().backend().node();
        assert_eq!(root.driver().length(), 4096);
        house.delete_node("file0").unwrap();
        house.close();
    }

    /// As long as `file0`. Its flushes wait, and then it has lost something; it does not say what it has.
    #[derive(Debug, Default)]
    struct Loses {
        goes_on: Arc<AtomicBool>,
        begun: Arc<AtomicBool>,
        lost: AtomicBool,
    }

    impl ContBlocker for Loses {
        fn cont_blocker(&self) -> Option<String> {
            let lost = self.lost.load(Ordering::SeqCst);
            lost.then(|| "it has lost something".to_owned())
        }
    }

    impl Driver for Loses {
        fn name(&self) -> &'static str {
            "loses"
        }

        fn info(&self) -> NodeInfo {
            NodeInfo::default()
        }

        fn length(&self) -> u64 {
            BLOCKS as u64 * 4096
        }

        fn capabilities(&self) -> Capabilities<'_> {
            Capabilities {
                cont_blocker: Some(self),
                ..Capabilities::default()
            }
        }

        fn block_status(&self, _: Range<u64>) -> BoxFuture<'_, block::Result<Vec<Extent>>> {
            let mute = Err(BlockError::from_errno(libc::EIO));
            Box::pin(std::future::ready(mute))
        }

        fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
            if io.op != Operation::Flush {
                return IoFuture::ready(Ok(()));
            }
            self.begun.store(true, Ordering::SeqCst);
            IoFuture::new(async {
                poll_fn(|cx| match self.goes_on.load(Ordering::SeqCst) {
                    true => Poll::Ready(()),
                    false => {
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                })
                .await;
                self.lost.store(true, Ordering::SeqCst);
                Err(BlockError::from_errno(libc::EIO))
            })
        }
    }

    fn loses(house: &House) -> (Arc<AtomicBool>, Arc<AtomicBool>) {
        let driver = Loses::default();
        let shared = (Arc::clone(&driver.begun), Arc::clone(&driver.goes_on));
        let node = Node::new("loses", Box::new(driver));
        house.wait(house.registry.add_node(&node)).unwrap();
        shared
    }

    /// The flush that was in flight fails as all is drained. The new node would acknowledge it.
    #[test]
    fn what_is_lost_meanwhile_is_not_forgotten() {
        let house = disk();
        let (begun, goes_on) = loses(&house);
        house.export("vda", "loses", true).unwrap();
        let mut disk = house.connect("vda");
        disk.submit(0, Request::Flush).unwrap();
        disk.kick(0).unwrap();
        testkit::wait_until("it is in flight", Duration::from_secs(20), || {
            Ok(begun.load(Ordering::SeqCst))
        })
        .unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            goes_on.store(true, Ordering::SeqCst);
        });
        let error = house.replace("loses", "file0").unwrap_err();
        ends.join().unwrap();
        assert!(error.contains("it has lost something"), "{error}");
        let root = house.registry.export("vda").unwrap().backend().node();
        assert_eq!(&**root.name(), "loses");
        drop(disk);
        house.close();
    }

    /// What a quota has counted of the old node is what counts if the new one does not say.
    #[test]
    fn a_replacement_that_fails_changes_no_account() {
        let house = House::new();
        let image = house.image("disk0.img");
        let image = fs::File::options().write(true).open(image).unwrap();
        image.write_all_at(&[1; 8192], 0).unwrap();
        house.file("file0", "disk0.img").unwrap();
        quota(&house, "top", "file0");
        loses(&house);
        let top = house.registry.node("top").unwrap();
        let limit = || top.allocation_limit().unwrap().quota();
        assert_eq!(limit(), (1 << 30, 8192));
        house.replace("file0", "loses").unwrap_err();
        assert_eq!(limit(), (1 << 30, 8192));
        let below = top.driver().children()[0].node();
        assert_eq!(&**below.name(), "file0");
        drop((top, below));
        house.close();
    }

    /// Storage that does not answer when it is resized.
    #[derive(Debug)]
    struct Stuck {
        begun: Arc<AtomicBool>,
        goes_on: Mutex<mpsc::Receiver<()>>,
    }

    impl Driver for Stuck {
        fn name(&self) -> &'static str {
            "stuck"
        }

        fn info(&self) -> NodeInfo {
            NodeInfo::default()
        }

        fn length(&self) -> u64 {
            4096
        }

        fn capabilities(&self) -> Capabilities<'_> {
            Capabilities {
                resize: Some(self),
                ..Capabilities::default()
            }
        }

        fn submit<'a>(&'a self, _: Io<'a>) -> IoFuture<'a> {
            IoFuture::ready(Ok(()))
        }
    }

    impl Resize for Stuck {
        fn resized_length(&self, length: u64) -> block::Result<u64> {
            Ok(length)
        }

        fn resize(&self, _: u64) -> block::Result<()> {
            self.begun.store(true, Ordering::SeqCst);
            let _ = self.goes_on.lock().unwrap().recv();
            Ok(())
        }
    }

    #[test]
    fn the_end_waits_for_no_change_that_hangs() {
        let house = House::new();
        let (go_on, goes_on) = mpsc::channel();
        let begun = Arc::<AtomicBool>::default();
        let stuck = Stuck {
            begun: Arc::clone(&begun),
            goes_on: Mutex::new(goes_on),
        };
        let node = Node::new("stuck", Box::new(stuck));
        house.wait(house.registry.add_node(&node)).unwrap();
        house.export("vda", "stuck", true).unwrap();
        let registry = Arc::clone(&house.registry);
        house.wait(async {
            let resized = tokio::spawn(async move { registry.resize("stuck", 8192).await });
            while !begun.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let settled = house.assembly.settle("host-qmp-quit").await;
            let closed = house.assembly.close_exports(settled);
            let closed = tokio::time::timeout(Duration::from_secs(20), closed).await;
            drop(go_on);
            closed.expect("it hangs, too");
            resized.await.unwrap().unwrap();
        });
    }
}
