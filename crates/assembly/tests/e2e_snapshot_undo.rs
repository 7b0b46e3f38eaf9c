//! Snapshots that are given up, or cannot be: nothing of them is left.
//!
//! Needs root, FUSE and qemu-img.

mod common;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use frontend::Request;
    use serde_json::json;
    use testkit::cut::BLOCK;
    use testkit::place::{PATIENCE, eventually};
    use testkit::{FuseFile, FuseOp};

    use super::common::snapshot::{image, inline, root, snapshot, text, two};
    use super::common::{House, actions_of};

    const LIMIT: Duration = Duration::from_millis(300);

    /// Storage that hangs: with a request in flight, with what makes it durable, when the base is opened anew.
    #[test]
    fn nothing_has_changed_when_the_limit_is_over() {
        let house = House::new();
        let fuse = FuseFile::new(super::common::BLOCKS * BLOCK).unwrap();
        let base = json!({ "driver": "file", "node-name": "base", "filename": fuse.path() });
        house.node(&base).unwrap();
        image(&house, "over", None);
        house.node(&inline(&house, "over")).unwrap();
        house.export("vda", "base", true).unwrap();
        let before = [
            house.registry.node("base").unwrap(),
            house.registry.node("over").unwrap(),
        ];
        let mut disk = house.connect("vda");
        let data = vec![1; 4096];
        let write = Request::Write {
            sector: 8,
            data: &data,
        };
        for op in [FuseOp::Open, FuseOp::Write, FuseOp::Fsync] {
            fuse.hang(op, true);
            let count = fuse.count(op);
            let token = disk.submit(0, write).unwrap();
            disk.kick(0).unwrap();
            if op == FuseOp::Write {
                eventually("it hangs", || fuse.count(op) > count);
            }
            let refused = house
                .transact(json!([snapshot("base", "over")]), Some(LIMIT))
                .unwrap_err();
            assert!(refused.contains(text(&fuse.path())), "{refused}");
            assert!(
                refused.ends_with("has not ended within 0.3 s; nothing has changed")
                    || refused.ends_with("does not answer, and the limit of 0.3 s is over"),
                "{refused}"
            );
            fuse.hang(op, false);
            let done = disk.wait(0, PATIENCE).unwrap().unwrap();
            assert_eq!((done.token, done.status), (token, 0));
            for node in &before {
                assert!(Arc::ptr_eq(
                    node,
                    &house.registry.node(node.name()).unwrap()
                ));
            }
        }
        drop(before);
        house
            .transact(json!([snapshot("base", "over")]), Some(PATIENCE))
            .unwrap();
        assert!(disk.execute(0, write, PATIENCE).unwrap().is_ok());
        assert_eq!(root(&house, "vda"), "over");
        drop(disk);
        house.close();
    }

    /// What cannot be made durable below is no snapshot.
    #[test]
    fn what_is_lost_has_no_snapshot() {
        let house = House::new();
        let fuse = FuseFile::new(super::common::BLOCKS * BLOCK).unwrap();
        let base = json!({ "driver": "file", "node-name": "base", "filename": fuse.path() });
        house.node(&base).unwrap();
        image(&house, "over", None);
        house.node(&inline(&house, "over")).unwrap();
        house.export("vda", "base", true).unwrap();
        let mut disk = house.connect("vda");
        fuse.fail(FuseOp::Fsync, libc::EIO);
        let refused = house
            .transact(json!([snapshot("base", "over")]), Some(PATIENCE))
            .unwrap_err();
        assert!(
            refused.starts_with("Cannot take a snapshot before all of it is on disk: "),
            "{refused}"
        );
        fuse.fail(FuseOp::Fsync, 0);
        let refused = house
            .transact(json!([snapshot("base", "over")]), Some(PATIENCE))
            .unwrap_err();
        assert!(
            refused.starts_with("Cannot take a snapshot of what has lost data."),
            "{refused}"
        );
        house.wait(house.registry.accept_loss("base")).unwrap();
        house
            .transact(json!([snapshot("base", "over")]), Some(PATIENCE))
            .unwrap();
        assert!(disk.execute(0, Request::Flush, PATIENCE).unwrap().is_ok());
        drop(disk);
        house.close();
    }

    /// Given up at any moment, it is done or not, and nothing is left of a half.
    #[test]
    fn whoever_asked_goes_away_at_any_moment() {
        let house = two();
        let load = house.load("vda");
        let mut done = 0;
        for round in 0..50_u64 {
            let over = format!("try{round}");
            image(&house, &over, None);
            house.node(&inline(&house, &over)).unwrap();
            let base = root(&house, "vda");
            let actions = actions_of(json!([snapshot(&base, &over)]));
            let transacted = house.assembly.transact(actions, None);
            let after = Duration::from_micros(2000 * round);
            let _ = house.wait(async { tokio::time::timeout(after, transacted).await });
            // What goes on beside is the end of it.
            let now = || house.registry.node(&root(&house, "vda")).unwrap();
            eventually("it has ended", || {
                house
                    .registry
                    .node(&over)
                    .is_ok_and(|node| node.users().is_empty())
                    || **now().name() == *over
            });
            if root(&house, "vda") == over {
                done += 1;
            }
        }
        assert!(load.end() > 100);
        println!("{done} of 50 were done");
        house.close();
    }
}
