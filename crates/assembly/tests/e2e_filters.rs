//! Nodes on top of each other, as management software builds them: what fails below is held and named right,
//! what waits for a budget is waited for by nobody, and thresholds are told once.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use block::event::EventKind;
    use block::{ErrorKind, Event, Observer};
    use frontend::protocol::STATUS_OK;
    use frontend::{Disk, Request};
    use qapi::options::ObjectOptions;
    use serde_json::{Value, json};
    use testkit::place::{PATIENCE, eventually};

    use super::common::{BLOCKS, House};

    const BLOCK: usize = 4096;

    fn group(house: &House, text: &str) {
        let options = ObjectOptions::parse(&format!("throttle-group,{text}")).unwrap();
        house.wait(house.assembly.add_object(options)).unwrap();
    }

    fn set_limits(house: &House, group: &str, limits: &Value) {
        let path = format!("/objects/{group}");
        let objects: &dyn monitor::Objects = &house.assembly;
        objects.set(&[], &path, "limits", limits.clone()).unwrap();
    }

    fn write(disk: &mut Disk, at: usize, data: &[u8]) {
        let request = Request::Write {
            sector: at as u64 / 512,
            data,
        };
        disk.submit(0, request).unwrap();
        disk.kick(0).unwrap();
    }

    fn done(disk: &mut Disk, count: usize) {
        for _ in 0..count {
            let done = disk.wait(0, PATIENCE).unwrap().expect("it ends");
            assert_eq!(done.status, STATUS_OK);
        }
    }

    fn plan(house: &House) {
        let node = house.registry.node("debug0").unwrap();
        node.fault_plan().unwrap().clear_all();
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<EventKind>>);

    struct Ear(Arc<Heard>);

    impl Observer for Ear {
        fn event(&self, event: &Event) -> bool {
            self.0.0.lock().unwrap().push(event.kind.clone());
            true
        }
    }

    fn listen(house: &House) -> Arc<Heard> {
        let heard = Arc::<Heard>::default();
        let ear = Arc::new(Ear(Arc::clone(&heard)));
        house.wait(house.registry.control().observe(ear));
        heard
    }

    /// A write that fails below is held as the guest has sent it, wherever the nodes in between have put it and
    /// whatever they have made of it; the second time it is done, and there.
    #[test]
    fn what_fails_below_is_held_and_done_where_it_belongs() {
        let window = 16 * BLOCK;
        for (top, data, operation, at) in [
            (
                json!({ "driver": "raw", "file": "debug0", "offset": window, "size": 64 * BLOCK }),
                vec![0x5a; BLOCK],
                "write",
                window,
            ),
            (
                json!({ "driver": "throttle", "file": "debug0", "throttle-group": "group0" }),
                vec![0x5a; BLOCK],
                "write",
                0,
            ),
            (
                json!({ "driver": "raw", "file": "debug0", "offset": window, "discard": "unmap",
                    "detect-zeroes": "unmap" }),
                vec![0; BLOCK],
                "write-zeroes",
                window,
            ),
            (
                json!({ "driver": "throttle", "throttle-group": "group0", "detect-zeroes": "on",
                    "file": { "driver": "raw", "file": "debug0", "offset": window } }),
                vec![0; BLOCK],
                "write-zeroes",
                window,
            ),
        ] {
            let house = House::new();
            let image = house.image("disk0.img");
            fs::write(&image, vec![7; BLOCKS * BLOCK]).unwrap();
            house.file("file0", "disk0.img").unwrap();
            group(&house, "id=group0,limits.iops-total=10000");
            house
                .node(
                    &json!({ "driver": "blkdebug", "node-name": "debug0", "image": "file0",
                    "inject-error": [{ "event": "none", "iotype": operation, "errno": 28 }] }),
                )
                .unwrap();
            let mut options = top;
            options["node-name"] = json!("top");
            house.node(&options).unwrap();
            let heard = listen(&house);
            house.export("vda", "top", true).unwrap();
            let mut disk = house.connect("vda");
            write(&mut disk, 8 * BLOCK, &data);
            eventually("it is held", || house.held("vda") == 1);
            let backend = house.registry.export("vda").unwrap().backend().id();
            house.registry.control().read(|run| {
                let held: Vec<_> = run.backend(backend).unwrap().held().collect();
                let request = held[0].request;
                assert_eq!(request.op.name(), "write", "{options}");
                assert_eq!((request.offset, request.bytes), (8 * 4096, 4096));
                assert_eq!(
                    held[0].cause.map(|cause| cause.kind),
                    Some(ErrorKind::NoSpace)
                );
            });
            let is_told = |kind: &EventKind| match kind {
                EventKind::BlockIoError(error) => {
                    (error.node_name.as_str(), error.offset) == ("top", 8 * 4096)
                }
                _ => false,
            };
            assert!(heard.0.lock().unwrap().iter().any(is_told));
            plan(&house);
            house.go_on().unwrap();
            done(&mut disk, 1);
            drop(disk);
            house.delete_export("vda", true).unwrap();
            let place = at + 8 * BLOCK;
            let content = fs::read(&image).unwrap();
            assert!(content[place..place + BLOCK] == data, "{options}");
            assert!(content[..place].iter().all(|byte| *byte == 7));
            assert!(content[place + BLOCK..].iter().all(|byte| *byte == 7));
            house.close();
        }
    }

    /// What an export straight on the child holds was compared with the length of the window, which begins behind
    /// that one's first byte, and so nothing could be resized that would have fitted.
    #[test]
    fn a_window_is_resized_below_what_is_held_of_its_child() {
        let house = House::new();
        let image = house.image("disk0.img");
        house.file("file0", "disk0.img").unwrap();
        let rules = json!([{ "event": "none", "iotype": "write", "errno": 28 }]);
        house
            .node(
                &json!({ "driver": "blkdebug", "node-name": "debug0", "image": "file0",
                "inject-error": rules }),
            )
            .unwrap();
        let offset = (BLOCKS / 2 * BLOCK) as u64;
        house
            .node(
                &json!({ "driver": "raw", "node-name": "raw0", "file": "debug0",
                "offset": offset }),
            )
            .unwrap();
        house.export("vda", "debug0", true).unwrap();
        let mut disk = house.connect("vda");
        write(&mut disk, (BLOCKS - 1) * BLOCK, &[1; BLOCK]);
        eventually("it is held", || house.held("vda") == 1);
        let resize = |length| house.wait(house.registry.resize("raw0", length));
        let whole = (BLOCKS * BLOCK) as u64;
        resize(whole - offset).unwrap();
        resize(whole - offset + 4096).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().len(), whole + 4096);
        let refused = resize(whole - offset - 4096).unwrap_err().to_string();
        assert!(refused.contains("'vda'"), "{refused}");
        assert_eq!(fs::metadata(&image).unwrap().len(), whole + 4096);
        plan(&house);
        house.go_on().unwrap();
        done(&mut disk, 1);
        drop(disk);
        house.close();
    }

    /// A disk whose budget is used up for hours: whatever is done with it does not wait for that.
    #[test]
    fn nothing_waits_for_a_budget() {
        let house = House::new();
        let image = house.image("disk0.img");
        house.file("file0", "disk0.img").unwrap();
        group(&house, "id=slow,limits.bps-write=1");
        group(&house, "id=fast");
        let throttle = |group: &str| {
            json!({ "driver": "throttle", "node-name": "top", "file": "file0",
            "throttle-group": group })
        };
        house.node(&throttle("slow")).unwrap();
        house.export("vda", "top", true).unwrap();
        let mut disk = house.connect("vda");
        let begin = Instant::now();
        for byte in 1..=8 {
            write(&mut disk, usize::from(byte) * BLOCK, &[byte; BLOCK]);
        }
        // The first one goes; 4096 s each for the others.
        done(&mut disk, 1);
        // A drain.
        let length = 2 * BLOCKS as u64 * 4096;
        house.wait(house.registry.resize("file0", length)).unwrap();
        // A stop of the rings (GET_VRING_BASE), and a start.
        disk.stop().unwrap();
        disk.start().unwrap();
        house.wait(house.registry.control().stop()).unwrap();
        house.go_on().unwrap();
        // Another node in its place.
        let raw = json!({ "driver": "raw", "node-name": "raw0", "file": "file0" });
        house.node(&raw).unwrap();
        house.replace("file0", "raw0").unwrap();
        house.replace("raw0", "file0").unwrap();
        assert!(begin.elapsed() < PATIENCE);
        assert_eq!(house.held("vda"), 0);
        // The same node, of another group: what waited goes.
        house.reopen(&throttle("fast"), Some(PATIENCE)).unwrap();
        done(&mut disk, 7);
        house.wait(house.assembly.delete_object("slow")).unwrap();
        let content = fs::read(&image).unwrap();
        for byte in 1..=8 {
            let at = usize::from(byte) * BLOCK;
            assert!(content[at..at + BLOCK] == [byte; BLOCK], "{byte}");
        }
        // And the end of an export.
        set_limits(&house, "fast", &json!({ "bps-write": 1 }));
        for at in 0..8 {
            write(&mut disk, at * BLOCK, &[9; BLOCK]);
        }
        done(&mut disk, 1);
        let begin = Instant::now();
        house.delete_export("vda", true).unwrap();
        assert!(begin.elapsed() < PATIENCE);
        drop(disk);
        house.close();
    }

    /// One disk of a group holds what has failed, and more of it waits behind that: what the budget allows from
    /// then on is for the other one.
    #[test]
    fn what_is_held_takes_no_budget() {
        let house = House::new();
        house.image("disk0.img");
        house.image("disk1.img");
        house.file("file0", "disk0.img").unwrap();
        house.file("file1", "disk1.img").unwrap();
        house
            .node(
                &json!({ "driver": "blkdebug", "node-name": "debug0", "image": "file0",
                "inject-error": [{ "event": "none", "iotype": "write", "errno": 28 }] }),
            )
            .unwrap();
        group(&house, "id=group0,limits.bps-write=1");
        for (top, file) in [("top0", "debug0"), ("top1", "file1")] {
            house
                .node(
                    &json!({ "driver": "throttle", "node-name": top, "file": file,
                    "throttle-group": "group0" }),
                )
                .unwrap();
        }
        house.export_of_scope("vda", "top0", "device").unwrap();
        house.export_of_scope("vdb", "top1", "device").unwrap();
        let mut held = house.connect("vda");
        for at in 0..8 {
            write(&mut held, at * BLOCK, &[1; BLOCK]);
        }
        eventually("one is held", || house.held("vda") == 1);
        let mut other = house.connect("vdb");
        write(&mut other, 0, &[2; BLOCK]);
        // A fresh budget, for one write. Seven have come before this one, and do not wait any more.
        set_limits(&house, "group0", &json!({ "bps-write": 1 }));
        done(&mut other, 1);
        assert_eq!(house.held("vda"), 1);
        plan(&house);
        set_limits(&house, "group0", &json!({ "bps-write": 0 }));
        house.go_on().unwrap();
        done(&mut held, 8);
        drop((held, other));
        house.close();
    }

    /// The threshold is that of the node which grows, below what the guest sees, and is told once.
    #[test]
    fn a_write_threshold_is_told_once_by_the_node_that_has_it() {
        let house = House::new();
        house.image("disk0.img");
        house.file("file0", "disk0.img").unwrap();
        let offset = 64 * BLOCK as u64;
        house
            .node(
                &json!({ "driver": "raw", "node-name": "raw0", "file": "file0", "offset": offset }),
            )
            .unwrap();
        house
            .node(
                &json!({ "driver": "quota", "node-name": "top", "file": "raw0",
                "limit": 16 * BLOCK }),
            )
            .unwrap();
        let heard = listen(&house);
        house.export("vda", "top", true).unwrap();
        let mut disk = house.connect("vda");
        let thresholds = || {
            let heard = heard.0.lock().unwrap();
            let told = heard.iter().filter_map(|kind| match kind {
                EventKind::BlockWriteThreshold {
                    node_name,
                    amount,
                    threshold,
                } => Some((node_name.clone(), *amount, *threshold)),
                _ => None,
            });
            told.collect::<Vec<_>>()
        };
        let armed = |name: &str| house.registry.node(name).unwrap().write_threshold().get();
        let set = |name, threshold| house.registry.set_write_threshold(name, threshold);
        let at = 8 * BLOCK;
        set("file0", offset + at as u64).unwrap();
        set("top", 3 * 4096).unwrap();
        assert!(set("nosuch", 1).is_err());
        write(&mut disk, 0, &[1; BLOCK]);
        write(&mut disk, at - BLOCK, &[1; BLOCK]);
        done(&mut disk, 2);
        // It goes along with the node.
        let anew = json!({ "driver": "file", "node-name": "file0", "discard": "unmap",
            "filename": house.path("disk0.img") });
        house.reopen(&anew, Some(PATIENCE)).unwrap();
        assert_eq!(armed("file0"), offset + at as u64);
        for _ in 0..3 {
            write(&mut disk, at, &[1; 2 * BLOCK]);
            done(&mut disk, 1);
        }
        eventually("both are told", || thresholds().len() == 2);
        let mut told = thresholds();
        told.sort_unstable();
        assert_eq!(
            told,
            [
                ("file0".to_owned(), 2 * 4096, offset + at as u64),
                ("top".to_owned(), 4096, 3 * 4096),
            ]
        );
        assert_eq!((armed("file0"), armed("top")), (0, 0));
        // What a quota refuses has asked for too much as well; and it is known before that.
        set("top", 15 * 4096).unwrap();
        write(&mut disk, 32 * BLOCK, &[1; 16 * BLOCK]);
        eventually("it is held", || house.held("vda") == 1);
        eventually("it is told", || thresholds().len() == 3);
        assert_eq!(thresholds()[2], ("top".to_owned(), 5 * 4096, 15 * 4096));
        drop(disk);
        house.delete_export("vda", true).unwrap();
        house.close();
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
