//! Overlays that come in above disks under load: what was acknowledged is below, and what comes after it above.
//!
//! Needs qemu-img.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use block::fault::{InjectError, IoType};
    use serde_json::{Value, json};
    use testkit::cut::{Log, Writer, chain_of, let_end, numbers, numbers_of};
    use testkit::place::PATIENCE;
    use testkit::qcow2_image::run;
    use testkit::{Rng, soak};

    use super::common::House;
    use super::common::snapshot::{
        BLOCKS, faulty, image, image_with_data, qcow2, snapshot, snapshot_sync, text,
    };

    /// Where the clusters of images are.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Clusters {
        Inside,
        /// In files of their own.
        Beside,
        /// Those of the first image in one that is what the guest sees.
        BesideRaw,
    }

    /// A disk, and the chain that it has got, the latest last.
    struct Stack {
        number: usize,
        export: &'static str,
        clusters: Clusters,
        chain: Vec<String>,
        made: u64,
    }

    impl Stack {
        fn new(
            house: &House,
            (number, export): (usize, &'static str),
            scope: &str,
            clusters: Clusters,
        ) -> Self {
            let name = format!("{export}-0");
            let first = Self {
                number,
                export,
                clusters,
                chain: vec![name.clone()],
                made: 0,
            };
            first.node(house, &name, None);
            house.export_of_scope(export, &name, scope).unwrap();
            first
        }

        /// An image of that name, and its node.
        fn node(&self, house: &House, name: &str, backing: Option<&str>) {
            let is_raw = self.clusters == Clusters::BesideRaw && backing.is_none();
            match self.clusters {
                Clusters::Inside => image(house, name, backing),
                _ => image_with_data(house, name, backing, is_raw),
            }
            let mut options = qcow2(name, &faulty(house, name), &Value::Null);
            if self.clusters != Clusters::Inside {
                options["data-file"] = json!(faulty(house, &data_of(name)));
            }
            house.node(&options).unwrap();
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
            // An image has room for so much; what the faults are injected through has to be said, too.
            let below = house.registry.node(self.top()).unwrap();
            if is_sync && below.driver().info().filename.len() <= 1023 {
                return snapshot_sync(house, self.top(), name);
            }
            self.node(house, name, Some(self.top()));
            snapshot(self.top(), name)
        }

        /// Some requests of the latest image fail, those of tables, too.
        fn break_something(&self, house: &House, rng: &mut Rng) {
            let kinds = [
                IoType::Write,
                IoType::Write,
                IoType::WriteZeroes,
                IoType::Flush,
            ];
            for faulty in self.faulty(house) {
                faulty.fault_plan().unwrap().add(InjectError {
                    iotype: Some(kinds[usize::try_from(rng.below(4)).unwrap()]),
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
        }

        fn mend(&self, house: &House) {
            for faulty in self.faulty(house) {
                faulty.fault_plan().unwrap().clear_all();
            }
        }

        /// Where requests of the latest image may fail.
        fn faulty(&self, house: &House) -> Vec<Arc<block::Node>> {
            let parts = [self.top().to_owned(), data_of(self.top())];
            let nodes = parts
                .iter()
                .map(|part| house.registry.node(&format!("{part}-faulty")));
            nodes.filter_map(Result::ok).collect()
        }

        /// What is in the first data file, if that is the disk as long as nothing is above it.
        fn raw(&self, house: &House) -> Option<Vec<u8>> {
            let is_first = self.chain.len() == 1 && self.chain[0].ends_with("-0");
            let is_raw = self.clusters == Clusters::BesideRaw && is_first;
            is_raw.then(|| fs::read(house.path(&data_of(&self.chain[0]))).unwrap())
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
                    for part in ["-faulty", "-file", ".data-faulty", ".data-file"] {
                        let part = format!("{former}{part}");
                        if house.registry.node(&part).is_ok() {
                            house.delete_node(&part).unwrap();
                        }
                    }
                }
            }
            self.chain = vec![flat, top];
        }
    }

    /// The file with the clusters of an image.
    fn data_of(image: &str) -> String {
        format!("{image}.data")
    }

    /// Two disks, whose snapshots are taken one by one or together, while requests fail and are held.
    fn under_load(scope: &str, clusters: Clusters, rounds: u64, seed: u64) {
        let house = House::new();
        let mut stacks = [
            Stack::new(&house, (0, "vda"), scope, clusters),
            Stack::new(&house, (1, "vdb"), scope, clusters),
        ];
        let log = Arc::new(Log::default());
        let writers = stacks
            .each_ref()
            .map(|stack| Writer::start(&log, stack.number, house.connect(stack.export), BLOCKS));
        let mut rng = Rng::new(seed);
        let (mut held, mut refused, mut raws) = (0, 0, 0);
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
                if let Some(raw) = stack.raw(&house) {
                    contents.push((number, numbers(&raw).unwrap()));
                    raws += 1;
                }
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
        let expected = if clusters == Clusters::BesideRaw {
            2
        } else {
            0
        };
        assert_eq!(raws, expected, "first switches");
        for stack in &stacks {
            house.delete_export(stack.export, true).unwrap();
        }
        println!("{rounds} rounds, {scope}: {held} seen held, {refused} refused");
        house.close();
    }

    #[test]
    fn what_is_below_is_exact_while_the_vm_is_held() {
        under_load("vm", Clusters::Inside, soak(12, 500), 1);
    }

    #[test]
    fn what_is_below_is_exact_while_requests_are_held() {
        under_load("request", Clusters::Inside, soak(12, 500), 2);
    }
    /// Tables and clusters are in two files, each of which fails by itself.
    #[test]
    fn what_is_below_is_exact_with_data_files() {
        under_load("request", Clusters::Beside, soak(10, 500), 3);
    }

    /// What is left below is the disk to whoever reads the data file alone.
    #[test]
    fn what_is_below_is_exact_with_raw_data_files() {
        under_load("vm", Clusters::BesideRaw, soak(10, 500), 4);
    }
}
