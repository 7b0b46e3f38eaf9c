//! Changes of the graph that meet: each is as if it had come after the other, or it is refused.
//!
//! Needs root, FUSE, qemu-img and qemu-io.

mod common;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use block::Permissions;
    use frontend::{Disk, Request};
    use qapi::options::{BlockdevOptions, ExportOptions, ObjectOptions};
    use serde_json::{Value, json};
    use standfast_assembly::TimeLimits;
    use testkit::place::{PATIENCE, eventually};
    use testkit::{FuseFile, FuseOp};

    use super::common::snapshot::{image, inline, root, snapshot, two};
    use super::common::{BLOCKS, House, actions_of, descriptors, qemu_io};

    fn file(path: &Path) -> Value {
        json!({ "driver": "file", "node-name": "file0", "filename": path })
    }

    /// Reopens `file0`, and does something else that has to wait for that.
    fn beside_a_reopen<T>(house: &House, fuse: &FuseFile, other: impl Future<Output = T>) -> T {
        let options = BlockdevOptions::parse(&file(&fuse.path()).to_string()).unwrap();
        let before = fuse.count(FuseOp::Fsync);
        fuse.hang(FuseOp::Fsync, true);
        let hangs = || async {
            while fuse.count(FuseOp::Fsync) == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let other = async {
            hangs().await;
            other.await
        };
        let goes_on = async {
            hangs().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            fuse.hang(FuseOp::Fsync, false);
        };
        house.wait(async {
            let reopened = house.assembly.reopen_nodes(vec![options], None);
            let (reopened, other, ()) = tokio::join!(reopened, other, goes_on);
            reopened.map_err(|error| error.desc).unwrap();
            other
        })
    }

    fn far() -> (House, FuseFile) {
        let house = House::new();
        let fuse = FuseFile::new(BLOCKS * 4096).unwrap();
        house.node(&file(&fuse.path())).unwrap();
        (house, fuse)
    }

    fn export(house: &House, id: &str, node: &str) -> ExportOptions {
        let options = json!({ "type": "vhost-user-blk", "id": id, "node-name": node,
            "writable": true, "addr": { "type": "unix", "path": house.path(id) } });
        ExportOptions::parse(&options.to_string()).unwrap()
    }

    /// Whoever waited found another node under the name, and used it without permissions and locks.
    #[test]
    fn who_waits_for_a_reopen_uses_what_comes_of_it() {
        let (house, fuse) = far();
        house.export("vda", "file0", true).unwrap();
        let added = house
            .assembly
            .add_export(export(&house, "vdb", "file0"), TimeLimits::START);
        beside_a_reopen(&house, &fuse, added)
            .map_err(|error| error.desc)
            .unwrap();
        house.delete_export("vda", true).unwrap();
        let node = house.registry.node("file0").unwrap();
        let [vdb] = &node.users()[..] else {
            panic!("{:?}", node.users())
        };
        assert!(vdb.access.held.contains(Permissions::WRITE), "{vdb:?}");
        qemu_io(&fuse.path()).expect_err("it is in use");
        drop(node);
        house.delete_export("vdb", true).unwrap();
        qemu_io(&fuse.path()).expect("nobody uses it");
        house.close();
    }

    /// The second one moved nobody, and said that it had.
    #[test]
    fn two_reopens_at_once() {
        let (house, fuse) = far();
        let options = json!({ "driver": "quota", "node-name": "quota0", "file": "file0",
            "limit": 1 << 30 });
        house.node(&options).unwrap();
        house.export("vda", "quota0", true).unwrap();
        let mut options = file(&fuse.path());
        options["cache"] = json!({ "direct": true });
        let options = BlockdevOptions::parse(&options.to_string()).unwrap();
        let reopened = house.assembly.reopen_nodes(vec![options], None);
        beside_a_reopen(&house, &fuse, reopened)
            .map_err(|error| error.desc)
            .unwrap();
        let quota = house.registry.node("quota0").unwrap();
        let below = quota.driver().children()[0].node();
        assert!(Arc::ptr_eq(&below, &house.registry.node("file0").unwrap()));
        assert!(below.driver().info().cache_direct);
        assert_eq!(descriptors(&fuse.path()), 1);
        drop((quota, below));
        house.close();
    }

    fn groups(house: &House) {
        for id in ["one", "other"] {
            let options = json!({ "qom-type": "throttle-group", "id": id });
            let options = ObjectOptions::parse(&options.to_string()).unwrap();
            house.wait(house.assembly.add_object(options)).unwrap();
        }
    }

    fn filter(group: &str, file: &str) -> Value {
        json!({ "driver": "throttle", "node-name": "filter", "throttle-group": group, "file": file })
    }

    fn parse(options: &Value) -> Vec<BlockdevOptions> {
        vec![BlockdevOptions::parse(&options.to_string()).unwrap()]
    }

    /// The upper one had been opened with the lower one as it was, and took that along: the guest's requests went to a node that
    /// was not in the graph any more, past its successor, which had the locks.
    #[test]
    fn a_node_and_the_one_below_it_are_reopened_at_once() {
        let (house, fuse) = far();
        groups(&house);
        house.node(&filter("one", "file0")).unwrap();
        house.export("vda", "filter", true).unwrap();
        let load = house.load("vda");
        let upper = parse(&filter("other", "file0"));
        let reopened = house.assembly.reopen_nodes(upper, None);
        beside_a_reopen(&house, &fuse, reopened)
            .map_err(|error| error.desc)
            .unwrap();
        let filter = house.registry.node("filter").unwrap();
        let below = filter.filtered().unwrap();
        assert!(Arc::ptr_eq(&below, &house.registry.node("file0").unwrap()));
        assert_eq!(descriptors(&fuse.path()), 1, "the former one is closed");
        drop((filter, below));
        assert!(load.end() > 0);
        house.close();
    }

    /// Each is in order by itself. One of them is done: neither is refused for what the other one has opened and gives up.
    #[test]
    fn two_reopens_that_would_make_a_circle() {
        let house = House::new();
        for name in ["a", "b"] {
            image(&house, name, None);
            house.node(&inline(&house, name)).unwrap();
        }
        for round in 0..10_u64 {
            let on = |name: &str, backing: &str| {
                let mut options = inline(&house, name);
                options["backing"] = json!(backing);
                options["read-only"] = json!(true);
                parse(&options)
            };
            let one = house.assembly.reopen_nodes(on("a", "b"), None);
            let other = async {
                tokio::time::sleep(Duration::from_micros(100 * round)).await;
                house.assembly.reopen_nodes(on("b", "a"), None).await
            };
            let (one, other) = house.wait(async { tokio::join!(one, other) });
            let (top, refused) = match (one, other) {
                (Ok(()), Err(refused)) => ("a", refused.desc),
                (Err(refused), Ok(())) => ("b", refused.desc),
                both => panic!("{both:?}"),
            };
            assert!(refused.ends_with("would create a cycle"), "{refused}");
            assert_eq!(house.registry.node(top).unwrap().chain().count(), 2);
            house.reopen(&inline(&house, top), None).unwrap();
        }
        house.close();
    }

    /// A disk on slow storage below a filter, with a write in flight; and an overlay that is there.
    fn below_a_filter() -> (House, FuseFile, Disk) {
        let (house, fuse) = far();
        groups(&house);
        house.node(&filter("one", "file0")).unwrap();
        house.export("vda", "filter", true).unwrap();
        image(&house, "over", None);
        house.node(&inline(&house, "over")).unwrap();
        let mut disk = house.connect("vda");
        let count = fuse.count(FuseOp::Write);
        fuse.hang(FuseOp::Write, true);
        let data = vec![1; 4096];
        let write = Request::Write {
            sector: 8,
            data: &data,
        };
        disk.submit(0, write).unwrap();
        disk.kick(0).unwrap();
        eventually("it is in flight", || fuse.count(FuseOp::Write) > count);
        (house, fuse, disk)
    }

    /// Both `first` and, a moment later, `second` wait for what is in flight.
    fn one_after_the_other<T, U>(
        house: &House,
        fuse: &FuseFile,
        first: impl Future<Output = T>,
        second: impl Future<Output = U>,
    ) -> (T, U) {
        let moment = Duration::from_millis(100);
        let second = async {
            tokio::time::sleep(moment).await;
            second.await
        };
        let goes_on = async {
            tokio::time::sleep(4 * moment).await;
            fuse.hang(FuseOp::Write, false);
        };
        let (first, second, ()) = house.wait(async { tokio::join!(first, second, goes_on) });
        (first, second)
    }

    /// The snapshot wrote down what the filter above had been defined as before the reopen: the next one that wanted that found
    /// nothing to be done.
    #[test]
    fn a_filter_is_reopened_while_an_overlay_comes_in_below() {
        let (house, fuse, disk) = below_a_filter();
        let reopened = house
            .assembly
            .reopen_nodes(parse(&filter("other", "file0")), None);
        let actions = actions_of(json!([snapshot("file0", "over")]));
        let taken = house.assembly.transact(actions, None);
        let (reopened, taken) = one_after_the_other(&house, &fuse, reopened, taken);
        reopened.map_err(|error| error.desc).unwrap();
        taken.map_err(|error| error.desc).unwrap();
        let now = || house.registry.node("filter").unwrap();
        assert_eq!(&**now().filtered().unwrap().name(), "over");
        let before = now();
        house.reopen(&filter("one", "over"), None).unwrap();
        assert!(!Arc::ptr_eq(&before, &now()), "it is in its former group");
        drop((before, disk));
        house.close();
    }

    /// As if it had come later: the base is below an overlay by then, and nobody writes it.
    #[test]
    fn a_filter_is_not_put_past_an_overlay_that_comes_in_meanwhile() {
        let (house, fuse, mut disk) = below_a_filter();
        let actions = actions_of(json!([snapshot("file0", "over")]));
        let taken = house.assembly.transact(actions, None);
        let reopened = house
            .assembly
            .reopen_nodes(parse(&filter("other", "file0")), None);
        let (taken, reopened) = one_after_the_other(&house, &fuse, taken, reopened);
        taken.map_err(|error| error.desc).unwrap();
        let refused = reopened.unwrap_err().desc;
        assert!(refused.contains("file0"), "{refused}");
        let filter = house.registry.node("filter").unwrap();
        assert_eq!(&**filter.filtered().unwrap().name(), "over");
        assert!(disk.wait(0, PATIENCE).unwrap().unwrap().is_ok());
        assert!(disk.execute(0, Request::Flush, PATIENCE).unwrap().is_ok());
        drop((filter, disk));
        house.close();
    }

    /// The image stayed locked for an export that had gone.
    #[test]
    fn an_export_goes_while_its_node_is_opened_anew() {
        let (house, fuse) = far();
        house.export("vda", "file0", true).unwrap();
        let deleted = house.assembly.delete_export("vda", true);
        beside_a_reopen(&house, &fuse, deleted)
            .map_err(|error| error.desc)
            .unwrap();
        assert!(house.registry.node("file0").unwrap().users().is_empty());
        qemu_io(&fuse.path()).expect("nobody uses it");
        house.close();
    }

    /// The second one had opened an overlay as it was before the first one, and put that in its place: what the guest had
    /// written before was behind nothing any more.
    #[test]
    fn two_at_once() {
        let house = two();
        let load = house.load("vda");
        let mut both = 0;
        for round in 0..20_u64 {
            let [first, second] = ["first", "second"].map(|name| format!("{name}{round}"));
            for name in [&first, &second] {
                image(&house, name, None);
                house.node(&inline(&house, name)).unwrap();
            }
            let base = root(&house, "vda");
            let one = actions_of(json!([snapshot(&base, &first)]));
            let other = actions_of(json!([snapshot(&first, &second)]));
            let one = house.assembly.transact(one, None);
            let other = async {
                tokio::time::sleep(Duration::from_micros(500 * round)).await;
                house.assembly.transact(other, None).await
            };
            let (one, other) = house.wait(async { tokio::join!(one, other) });
            let said =
                |done: Result<(), standfast_assembly::SetupError>| done.map_err(|error| error.desc);
            let expected = [
                Ok(()),
                Err("Somebody else has changed the nodes meanwhile: look what there is, and try again".to_owned()),
                // The other one was first.
                Err("The overlay is already in use".to_owned()),
            ];
            let (one, other) = (said(one), said(other));
            assert!(
                expected.contains(&one) && expected.contains(&other),
                "{one:?}, {other:?}"
            );
            both += u32::from(one.is_ok() && other.is_ok());
            let top = match (one, other) {
                (Ok(()), Ok(())) => &second,
                (Ok(()), Err(_)) => &first,
                (Err(_), _) => &base,
            };
            assert_eq!(root(&house, "vda"), *top);
        }
        assert!(load.end() > 100);
        println!("{both} of 20 were both done");
        house.close();
    }
}
