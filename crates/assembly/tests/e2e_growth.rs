//! Clients of a node that becomes longer by what somebody else writes to it.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use block::{Access, Child, Driver, Io, IoFuture, Limits, Node, NodeInfo, Permissions};
    use frontend::protocol::STATUS_OK;
    use frontend::{Disk, Request};
    use serde_json::json;

    use super::common::{BLOCKS, House};

    const PATIENCE: Duration = Duration::from_secs(20);
    const IMAGE_BYTES: u64 = BLOCKS as u64 * 4096;
    const BLOCK: usize = 4096;

    /// Has a length of its own, and makes its file as long as it takes.
    #[derive(Debug)]
    struct Format(Child);

    impl Driver for Format {
        fn name(&self) -> &'static str {
            "format"
        }
        fn info(&self) -> NodeInfo {
            NodeInfo::default()
        }
        fn length(&self) -> u64 {
            16 * IMAGE_BYTES
        }
        fn limits(&self) -> Limits {
            self.0.limits()
        }
        fn children(&self) -> Vec<&Child> {
            vec![&self.0]
        }
        fn child_access(&self, _: &Child, above: Access) -> Access {
            Access {
                held: above.held.and(Permissions::RESIZE),
                shared: above.shared,
            }
        }
        fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
            self.0.submit(io)
        }
    }

    fn format(house: &House, file: &str) {
        let file = house.registry.node(file).unwrap();
        let child = Child::of(&"format0".into(), "file", file);
        let node = Node::new("format0", Box::new(Format(child)));
        house.wait(house.registry.add_node(&node)).unwrap();
    }

    fn write(disk: &mut Disk, at: u64, byte: u8) -> bool {
        let data = [byte; BLOCK];
        let request = Request::Write {
            sector: at / 512,
            data: &data,
        };
        disk.execute(0, request, PATIENCE).unwrap().status == STATUS_OK
    }

    /// None: it cannot be read.
    fn read(disk: &mut Disk, at: u64) -> Option<Vec<u8>> {
        let request = Request::Read {
            sector: at / 512,
            len: 4096,
        };
        let completion = disk.execute(0, request, PATIENCE).unwrap();
        (completion.status == STATUS_OK).then_some(completion.data)
    }

    /// The guest hears of a new length, and sees it.
    fn sees(disk: &mut Disk, bytes: u64) {
        testkit::wait_until("a new length is told", PATIENCE, || {
            Ok(disk.take_config_changes()? > 0)
        })
        .unwrap();
        assert_eq!(disk.refresh_config().unwrap().capacity, bytes / 512);
    }

    /// A quota above a file, with exports on both, and above that a format that makes them longer.
    #[test]
    fn those_on_the_nodes_below_hear_of_it() {
        let house = House::new();
        let image = house.image("disk0.img");
        house.file("file0", "disk0.img").unwrap();
        let filter = json!({ "driver": "blkdebug", "node-name": "debug0", "image": "file0" });
        house.node(&filter).unwrap();
        let quota = json!({ "driver": "quota", "node-name": "quota0", "file": "debug0",
            "limit": 64 << 10 });
        house.node(&quota).unwrap();
        format(&house, "quota0");
        house.export("vda", "format0", true).unwrap();
        house.export("vdb", "quota0", false).unwrap();
        house.export("vdc", "file0", true).unwrap();
        let [mut top, mut above, mut below] = ["vda", "vdb", "vdc"].map(|id| house.connect(id));

        // Nobody but the format makes it longer.
        assert!(!write(&mut below, IMAGE_BYTES, 1));
        assert_eq!(read(&mut above, IMAGE_BYTES), None);
        assert!(write(&mut top, 0, 1));
        let length = IMAGE_BYTES + 8 * BLOCK as u64;
        let last = length - BLOCK as u64;
        assert!(write(&mut top, last, 2));
        assert_eq!(fs::metadata(&image).unwrap().len(), length);
        // From then on all of it may be used, heard of or not.
        assert_eq!(read(&mut above, last), Some(vec![2; BLOCK]));
        assert_eq!(read(&mut above, IMAGE_BYTES), Some(vec![0; BLOCK]));
        assert!(write(&mut below, IMAGE_BYTES, 3));
        assert_eq!(read(&mut below, length), None);
        sees(&mut above, length);
        sees(&mut below, length);

        // Who comes now sees it.
        drop(above);
        let mut above = house.connect("vdb");
        assert_eq!(above.config().capacity, length / 512);
        for block in 0..4 {
            assert!(write(&mut top, length + block * BLOCK as u64, 4));
        }
        let length = length + 4 * BLOCK as u64;
        sees(&mut below, length);
        sees(&mut above, length);

        // What is too much is held, and makes nothing longer. The format's own clients never hear.
        let quota = house.registry.node("quota0").unwrap();
        let limit = quota.allocation_limit().unwrap();
        let (_, allocated) = limit.quota();
        assert_eq!(allocated, 6 * BLOCK as u64);
        limit.set_quota(allocated).unwrap();
        let control = house.registry.control().clone();
        house.wait(control.call(|_, _| ())).unwrap();
        for disk in [&mut below, &mut above] {
            disk.take_config_changes().unwrap();
        }
        let data = [5; BLOCK];
        let request = Request::Write {
            sector: length / 512,
            data: &data,
        };
        let token = top.submit(0, request).unwrap();
        top.kick(0).unwrap();
        testkit::wait_until("it is held", PATIENCE, || Ok(house.held("vda") == 1)).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().len(), length);
        assert_eq!(below.take_config_changes().unwrap(), 0);
        limit.set_quota(1 << 20).unwrap();
        house.go_on().unwrap();
        let completion = top.wait(0, PATIENCE).unwrap().unwrap();
        assert!(completion.is_ok() && completion.token == token);
        sees(&mut below, length + BLOCK as u64);
        sees(&mut above, length + BLOCK as u64);
        assert_eq!(top.take_config_changes().unwrap(), 0);
        for disk in [&top, &above, &below] {
            assert_eq!(disk.violations(), []);
        }
        drop((top, above, below, quota));
        house.close();
    }
}
