//! Overlays that come in above disks under load: what was acknowledged is below, what comes after it above, and what
//! cannot be done changes nothing.
//!
//! Needs root, FUSE, qemu-img and qemu-io.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use block::fault::{InjectError, IoType};
    use frontend::Request;
    use serde_json::{Value, json};
    use testkit::cut::{BLOCK, Log, Writer, chain_of, let_end, numbers_of};
    use testkit::place::{PATIENCE, eventually};
    use testkit::qcow2_image::run;
    use testkit::{FuseFile, FuseOp, Rng, soak};

    use super::common::{House, actions_of};

    /// Blocks of a disk.
    const BLOCKS: u64 = super::common::BLOCKS as u64;
    const DISK: u64 = BLOCKS * BLOCK as u64;
    const LIMIT: Duration = Duration::from_millis(300);

    fn text(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    /// A qcow2 image; with a backing file it says so.
    fn image(house: &House, name: &str, backing: Option<&str>) {
        let (path, length) = (house.path(name), DISK.to_string());
        let mut arguments = vec!["create", "-qufqcow2"];
        if let Some(backing) = backing {
            arguments.extend(["-F", "qcow2", "-b", backing]);
        }
        arguments.extend([text(&path), &length]);
        run("qemu-img", &arguments).unwrap();
    }

    /// The node `name` of the image of that name, which is in the node `file`.
    fn qcow2(name: &str, file: &str, backing: &Value) -> Value {
        json!({ "driver": "qcow2", "node-name": name, "file": file, "backing": backing })
    }

    fn inline(house: &House, name: &str) -> Value {
        json!({ "driver": "qcow2", "node-name": name, "backing": null,
            "file": { "driver": "file", "node-name": format!("{name}-file"), "filename": house.path(name) } })
    }

    fn snapshot(node: &str, overlay: &str) -> Value {
        json!({ "type": "blockdev-snapshot", "data": { "node": node, "overlay": overlay } })
    }

    fn snapshot_sync(house: &House, node: &str, name: &str) -> Value {
        json!({ "type": "blockdev-snapshot-sync", "data": { "node-name": node,
            "snapshot-file": house.path(name), "snapshot-node-name": name } })
    }

    /// A node of that name through which errors can be injected, on a file of it.
    fn faulty(house: &House, name: &str) -> String {
        house.file(&format!("{name}-file"), name).unwrap();
        let faulty = format!("{name}-faulty");
        let options = json!({ "driver": "blkdebug", "node-name": faulty,
            "image": format!("{name}-file") });
        house.node(&options).unwrap();
        faulty
    }

    /// A disk, and the chain that it has got, the latest last.
    struct Stack {
        number: usize,
        export: &'static str,
        chain: Vec<String>,
        made: u64,
    }

    impl Stack {
        fn new(house: &House, number: usize, export: &'static str, scope: &str) -> Self {
            let name = format!("{export}-0");
            image(house, &name, None);
            let file = faulty(house, &name);
            house.node(&qcow2(&name, &file, &Value::Null)).unwrap();
            house.export_of_scope(export, &name, scope).unwrap();
            Self {
                number,
                export,
                chain: vec![name],
                made: 0,
            }
        }

        fn top(&self) -> &str {
            self.chain.last().unwrap()
        }

        fn next(&mut self) -> String {
            self.made += 1;
            format!("{}-{}", self.export, self.made)
        }

        /// The action that puts `name` above: a node that there is, or a file that is made.
        fn action(&self, house: &House, name: &str, is_sync: bool) -> Value {
            if is_sync {
                return snapshot_sync(house, self.top(), name);
            }
            image(house, name, Some(self.top()));
            let file = faulty(house, name);
            house.node(&qcow2(name, &file, &Value::Null)).unwrap();
            snapshot(self.top(), name)
        }

        /// Some requests of the latest image fail, those of tables, too.
        fn break_something(&self, house: &House, rng: &mut Rng) {
            let faulty = house.registry.node(&format!("{}-faulty", self.top()));
            let Ok(faulty) = faulty else {
                return;
            };
            let kind = [
                IoType::Write,
                IoType::Write,
                IoType::WriteZeroes,
                IoType::Flush,
            ];
            faulty.fault_plan().unwrap().add(InjectError {
                iotype: Some(kind[usize::try_from(rng.below(4)).unwrap()]),
                errno: if rng.below(2) == 0 {
                    libc::ENOSPC
                } else {
                    libc::EIO
                },
                every_nth: 1 + rng.below(20),
                limit: Some(1 + rng.below(3)),
                ..InjectError::default()
            });
        }

        fn mend(&self, house: &House) {
            if let Ok(faulty) = house.registry.node(&format!("{}-faulty", self.top())) {
                faulty.fault_plan().unwrap().clear_all();
            }
        }

        /// As when others have put all that is below the latest one into one image: that is behind it then.
        fn flatten(&mut self, house: &House) {
            let top = self.chain.pop().unwrap();
            let flat = self.next();
            let to = house.path(&flat);
            let from = chain_of(self.chain.iter().map(|name| house.path(name)));
            let arguments = ["convert", "-UOqcow2", &from, text(&to)];
            run("qemu-img", &arguments).unwrap();
            let below = json!({ "driver": "qcow2", "node-name": flat, "read-only": true,
                "file": { "driver": "file", "filename": to } });
            house.node(&below).unwrap();
            let file = house.registry.node(&top).unwrap().child("file").unwrap();
            let mut wanted = qcow2(&top, file.name(), &json!(flat));
            if house.registry.node(&format!("{top}-faulty")).is_err() {
                // It was defined with its file in place.
                wanted["file"] = json!({ "driver": "file", "filename": house.path(&top) });
            }
            house.reopen(&wanted, Some(PATIENCE)).unwrap();
            for former in std::mem::take(&mut self.chain).iter().rev() {
                // One that came with its file is gone when nobody uses it.
                if house.registry.node(former).is_ok() {
                    house.delete_node(former).unwrap();
                    for part in ["faulty", "file"] {
                        let part = format!("{former}-{part}");
                        if house.registry.node(&part).is_ok() {
                            house.delete_node(&part).unwrap();
                        }
                    }
                }
            }
            self.chain = vec![flat, top];
        }
    }

    /// Two disks, whose snapshots are taken one by one or together, while requests fail and are held.
    fn under_load(scope: &str, rounds: u64, seed: u64) {
        let house = House::new();
        let mut stacks = [
            Stack::new(&house, 0, "vda", scope),
            Stack::new(&house, 1, "vdb", scope),
        ];
        let log = Arc::new(Log::default());
        let writers = stacks
            .each_ref()
            .map(|stack| Writer::start(&log, stack.number, house.connect(stack.export), BLOCKS));
        let mut rng = Rng::new(seed);
        let (mut held, mut refused) = (0, 0);
        for round in 0..rounds {
            for stack in &stacks {
                if rng.below(4) > 0 {
                    stack.break_something(&house, &mut rng);
                }
            }
            let begin = Instant::now();
            let is_held = || house.held("vda") + house.held("vdb") > 0;
            while begin.elapsed() < Duration::from_millis(50) && !is_held() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(rng.below(5)));
            let both = rng.below(3) == 0;
            let which = usize::try_from(rng.below(2)).unwrap();
            let mut switched = Vec::new();
            let mut actions = Vec::new();
            for stack in &mut stacks {
                if both || stack.number == which {
                    let name = stack.next();
                    actions.push(stack.action(&house, &name, rng.below(2) == 0));
                    switched.push((stack.number, name));
                }
            }
            let actions = json!(actions);
            let begin = Instant::now();
            let (from, to) = loop {
                held += house.held("vda") + house.held("vdb");
                let from = log.now();
                match house.transact(actions.clone(), Some(PATIENCE)) {
                    Ok(()) => break (from, log.now()),
                    // Tables do not get to the disk: nothing has changed, and it can be tried again.
                    Err(error) if error.contains("before all of it is on disk") => {
                        refused += 1;
                        house.go_on().unwrap();
                    }
                    Err(error) => panic!("{error}"),
                }
                assert!(begin.elapsed() < PATIENCE, "round {round}");
            };
            let mut contents = Vec::new();
            for (number, name) in switched {
                let stack = &mut stacks[number];
                let top = house
                    .registry
                    .export(stack.export)
                    .unwrap()
                    .backend()
                    .node();
                assert_eq!(**top.name(), *name);
                let below = house.registry.node(stack.top()).unwrap();
                assert!(below.read_only());
                assert!(Arc::ptr_eq(&top.backing().unwrap(), &below));
                let alone = chain_of([house.path(stack.top())]);
                run("qemu-img", &["check", "-Uq", &alone]).unwrap();
                let below = chain_of(stack.chain.iter().map(|name| house.path(name)));
                contents.push((number, numbers_of(&below).unwrap()));
                stack.mend(&house);
                stack.chain.push(name);
            }
            let checked = log.check_cut(from, to, &contents);
            checked.unwrap_or_else(|error| panic!("round {round}: {error}"));
            house.go_on().unwrap();
            for stack in &mut stacks {
                if stack.chain.len() > 6 {
                    stack.flatten(&house);
                }
            }
        }
        stacks.iter().for_each(|stack| stack.mend(&house));
        let_end(&writers.each_ref(), PATIENCE, || {
            house.go_on()?;
            Ok(())
        })
        .unwrap();
        for writer in writers {
            let (completed, _disk) = writer.end().unwrap();
            assert!(completed > rounds, "{completed}");
        }
        assert!(held > 0, "nothing was ever held");
        for stack in &stacks {
            house.delete_export(stack.export, true).unwrap();
        }
        println!("{rounds} rounds, {scope}: {held} seen held, {refused} refused");
        house.close();
    }

    #[test]
    fn what_is_below_is_exact_while_the_vm_is_held() {
        under_load("vm", soak(12, 500), 1);
    }

    #[test]
    fn what_is_below_is_exact_while_requests_are_held() {
        under_load("request", soak(12, 500), 2);
    }

    fn names(house: &House) -> Vec<String> {
        let nodes = house.registry.nodes();
        nodes.iter().map(|node| node.name().to_string()).collect()
    }

    fn root(house: &House, export: &str) -> String {
        let export = house.registry.export(export).unwrap();
        export.backend().node().name().to_string()
    }

    /// Opens the image as another process that writes, or reads.
    fn other(house: &House, name: &str, flags: &str) -> bool {
        let command = if flags.contains('r') {
            "read -q 0 512"
        } else {
            "write -q 0 512"
        };
        let path = house.path(name);
        run("qemu-io", &[flags, "qcow2", "-c", command, text(&path)]).is_ok()
    }

    /// Two disks, with an overlay for each.
    fn two() -> House {
        let house = House::new();
        for (number, export) in ["vda", "vdb"].into_iter().enumerate() {
            let (base, over) = (format!("base{number}"), format!("over{number}"));
            image(&house, &base, None);
            image(&house, &over, None);
            house.node(&inline(&house, &base)).unwrap();
            house.node(&inline(&house, &over)).unwrap();
            house.export(export, &base, true).unwrap();
        }
        house
    }

    /// A failure of one part undoes all: nobody has another node, other permissions or other locks than before.
    #[test]
    fn what_cannot_be_changes_nothing() {
        let house = two();
        image(&house, "third", None);
        house.node(&inline(&house, "third")).unwrap();
        let group = json!({ "qom-type": "throttle-group", "id": "g" });
        let group = qapi::options::ObjectOptions::parse(&group.to_string()).unwrap();
        house
            .wait(house.assembly.add_object(group))
            .map_err(|error| error.desc)
            .unwrap();
        let filter = json!({ "driver": "throttle", "node-name": "filter", "throttle-group": "g",
            "file": "third" });
        house.node(&filter).unwrap();
        let load = house.load("vda");
        let state = || {
            let nodes = house.registry.nodes().into_iter();
            let state = |node: Arc<block::Node>| {
                (node.name().clone(), Arc::as_ptr(&node).addr(), node.users())
            };
            nodes.map(state).collect::<Vec<_>>()
        };
        let before = state();
        let busy = "The overlay is already in use";
        let cases = [
            (
                json!([snapshot("none", "over0")]),
                "Cannot find device='none' nor node-name='none'",
            ),
            (
                json!([snapshot("base0", "none")]),
                "Cannot find device='none' nor node-name='none'",
            ),
            (json!([snapshot("base0", "base1")]), busy),
            (json!([snapshot("base0", "base0")]), busy),
            (
                json!([snapshot("base0", "over0-file")]),
                "The overlay does not support backing images",
            ),
            (
                json!([snapshot("base0", "filter")]),
                "Filters cannot be used as overlays",
            ),
            (
                json!([snapshot("over0", "over0")]),
                "Making 'over0' a backing child of 'over0' would create a cycle",
            ),
            (
                json!([snapshot("filter", "third")]),
                "Making 'filter' a backing child of 'third' would create a cycle",
            ),
            (
                json!([snapshot("base0", "over0"), snapshot("base1", "over0")]),
                busy,
            ),
            (
                json!([snapshot("base0", "over0"), snapshot("base0", "over1")]),
                "Node 'base0' is busy: node is used as backing hd of 'over0'",
            ),
            (
                json!([snapshot("base0", "over0"), snapshot("base1", "none")]),
                "Cannot find device='none' nor node-name='none'",
            ),
            (
                json!([snapshot("base0", "over0"), { "type": "abort", "data": {} }]),
                "Transaction aborted using Abort action",
            ),
            (
                json!([{ "type": "blockdev-snapshot-sync", "data": { "node-name": "base0", "snapshot-file": "x" } }]),
                "New overlay node-name missing",
            ),
            (
                json!([snapshot_sync(&house, "base0", "over1")]),
                "New overlay node-name already in use",
            ),
            (
                json!([
                    snapshot_sync(&house, "base0", "made"),
                    snapshot_sync(&house, "base1", "made")
                ]),
                "New overlay node-name already in use",
            ),
        ];
        for (actions, words) in cases {
            let refused = house.transact(actions.clone(), Some(PATIENCE));
            assert_eq!(refused, Err(words.to_owned()), "{actions}");
            // What was opened for it is closed beside.
            eventually("nothing has changed", || state() == before);
        }
        assert!(
            house.path("made").exists(),
            "a file that was made stays, as with QEMU"
        );
        // A part that fails late: another process has the image of the second overlay.
        let path = house.path("over1");
        let moved = house.path("moved");
        fs::rename(house.path("base1"), &moved).unwrap();
        fs::copy(&path, house.path("base1")).unwrap();
        let refused = house.transact(
            json!([snapshot("base0", "over0"), snapshot("base1", "over1")]),
            Some(PATIENCE),
        );
        let refused = refused.unwrap_err();
        assert!(
            refused.contains("its file name leads to another image by now"),
            "{refused}"
        );
        fs::rename(&moved, house.path("base1")).unwrap();
        eventually("nothing has changed", || state() == before);
        assert!(!other(&house, "base0", "-f") && other(&house, "third", "-f"));
        house
            .transact(
                json!([snapshot("base0", "over0"), snapshot("vdb", "over1")]),
                Some(PATIENCE),
            )
            .unwrap();
        assert_eq!(
            (root(&house, "vda"), root(&house, "vdb")),
            ("over0".to_owned(), "over1".to_owned())
        );
        // The base may be read by others, and is written by nobody.
        assert!(other(&house, "base0", "-rf") && !other(&house, "base0", "-f"));
        assert!(!other(&house, "over0", "-rf"));
        assert!(load.end() > 100);
        house.close();
    }

    /// What uses the disk uses the overlay, filters above it, too; and what is defined goes along.
    #[test]
    fn filters_stay_above_and_chains_are_reopened() {
        let house = two();
        image(&house, "top", None);
        house.delete_export("vdb", true).unwrap();
        let filter = json!({ "driver": "quota", "node-name": "filter", "file": "base1", "limit": 1_u64 << 40 });
        house.node(&filter).unwrap();
        house.export("vdb", "filter", true).unwrap();
        let load = house.load("vdb");
        house
            .transact(json!([snapshot("base1", "over1")]), Some(PATIENCE))
            .unwrap();
        assert_eq!(root(&house, "vdb"), "filter");
        let filter = house.registry.node("filter").unwrap();
        assert_eq!(&**filter.filtered().unwrap().name(), "over1");
        // Above a filter that cannot be opened anew.
        house.node(&inline(&house, "top")).unwrap();
        house
            .transact(json!([snapshot("filter", "top")]), Some(PATIENCE))
            .unwrap();
        assert_eq!(root(&house, "vdb"), "top");
        assert!(house.registry.node("base1").unwrap().read_only());
        let chain: Vec<_> = house.registry.node("top").unwrap().chain().collect();
        let chain: Vec<_> = chain.iter().map(|node| &**node.name()).collect();
        assert_eq!(chain, ["top", "filter", "over1", "base1"]);
        // The definitions say what is there.
        let top = |backing: Value| {
            json!({ "driver": "qcow2", "node-name": "top", "backing": backing,
            "file": { "driver": "file", "node-name": "top-file", "filename": house.path("top") } })
        };
        let missing = json!({ "driver": "qcow2", "node-name": "top",
            "file": { "driver": "file", "node-name": "top-file", "filename": house.path("top") } });
        let refused = house.reopen(&missing, Some(PATIENCE));
        assert_eq!(refused, Err("backing is missing for 'top'".to_owned()));
        house.reopen(&top(json!("over1")), Some(PATIENCE)).unwrap();
        drop(filter);
        house.delete_node("filter").unwrap();
        assert!(load.end() > 100);
        house.delete_export("vdb", true).unwrap();
        for node in ["top", "over1", "base1"] {
            house.delete_node(node).unwrap();
        }
        house.close();
    }

    /// An overlay that came with its file goes with its last user, and what is below stays.
    #[test]
    fn overlays_that_are_made() {
        let house = two();
        let load = house.load("vda");
        let before = names(&house).len();
        house
            .transact(
                json!([
                    snapshot_sync(&house, "base0", "one"),
                    snapshot_sync(&house, "one", "two")
                ]),
                Some(PATIENCE),
            )
            .unwrap();
        let device = json!([{ "type": "blockdev-snapshot-sync", "data": { "device": "vda",
            "snapshot-file": house.path("three") } }]);
        house.transact(device, Some(PATIENCE)).unwrap();
        assert!(root(&house, "vda").starts_with("#block"));
        assert_eq!(names(&house).len(), before + 6);
        assert!(house.delete_node("two").unwrap_err().contains("is busy"));
        assert!(load.end() > 100);
        let info = run(
            "qemu-img",
            &["info", "-U", "--output=json", text(&house.path("three"))],
        )
        .unwrap();
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["backing-filename"], text(&house.path("two")));
        assert_eq!(info["backing-filename-format"], "qcow2");
        assert_eq!(info["virtual-size"], DISK);
        house.delete_export("vda", true).unwrap();
        eventually("they are gone", || names(&house).len() == before);
        house.delete_node("base0").unwrap();
        run("qemu-img", &["check", "-q", text(&house.path("three"))]).unwrap();
        house.close();
    }

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

    /// A node asked the one behind it for its file name twice, and so on: with thirty images behind one that say nothing of
    /// that, it took minutes.
    #[test]
    fn a_long_chain_of_images_that_name_nothing() {
        let house = two();
        let begin = Instant::now();
        let mut base = "base0".to_owned();
        for number in 0..60 {
            let over = format!("o{number}");
            image(&house, &over, None);
            house.node(&inline(&house, &over)).unwrap();
            house
                .transact(json!([snapshot(&base, &over)]), None)
                .unwrap();
            base = over;
        }
        assert!(begin.elapsed() < 2 * PATIENCE);
        let top = house.registry.node(&base).unwrap();
        assert_eq!(top.chain().count(), 61);
        let name = top.driver().info().filename;
        assert!(
            name.starts_with("json:") && name.contains(text(&house.path("base0"))),
            "{name}"
        );
        drop(top);
        let mut disk = house.connect("vda");
        assert!(disk.execute(0, Request::Flush, PATIENCE).unwrap().is_ok());
        drop(disk);
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
