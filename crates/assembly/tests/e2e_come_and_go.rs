//! Nodes and exports come and go while another disk is under load. One test, as it looks at all of its
//! process.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::common::House;

    /// What the allocator may keep of its own accord, in KiB.
    const GROWTH_KIB_MAX: u64 = 4096;

    #[derive(Debug, PartialEq, Eq)]
    struct Footprint {
        descriptors: usize,
        /// Their names.
        threads: Vec<String>,
    }

    fn footprint() -> Footprint {
        let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
        let name = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm")).ok();
        let mut threads: Vec<_> = threads.filter_map(name).collect();
        // Those of the kernel and of the pool for blocking work come and go as they like.
        threads.retain(|name| !name.starts_with("iou-") && !name.starts_with("tokio"));
        threads.sort();
        Footprint {
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            threads,
        }
    }

    fn resident_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.unwrap().parse().unwrap()
    }

    /// Threads that are ending need a moment.
    fn settles(before: &Footprint) {
        let settled = testkit::wait_until(
            "descriptors and threads are as before",
            std::time::Duration::from_secs(10),
            || {
                let now = footprint();
                // One that has just ended may have been among those before.
                Ok(now.descriptors <= before.descriptors
                    && now.threads.len() <= before.threads.len())
            },
        );
        settled.unwrap_or_else(|error| panic!("{error}: {before:?}, now {:?}", footprint()));
    }

    #[test]
    fn a_node_and_an_export_come_and_go_under_load() {
        let rounds = match std::env::var_os("STANDFAST_SOAK") {
            Some(_) => 1000,
            None => 250,
        };
        let house = House::new();
        house.image("disk0.img");
        let other = house.image("other.img");
        house.file("disk0", "disk0.img").unwrap();
        house.export("vda", "disk0", true).unwrap();
        let load = house.load("vda");
        let round = || {
            house
                .node(
                    &json!({ "driver": "quota", "node-name": "quota1", "limit": 1 << 30,
                    "file": { "driver": "file", "node-name": "file1", "filename": other } }),
                )
                .unwrap();
            house.export("vdb", "quota1", true).unwrap();
            drop(house.connect("vdb"));
            house.delete_export("vdb", true).unwrap();
            house.delete_node("quota1").unwrap();
            assert_eq!(house.registry.nodes().len(), 1, "the file went with it");
        };
        (0..20).for_each(|_| round());
        let (mut before, resident) = (footprint(), resident_kib());
        // What closes a node may be about to end; afterwards there is none.
        before.threads.retain(|name| name != "block-beside\n");
        (0..rounds).for_each(|_| round());
        settles(&before);
        let grown = resident_kib().saturating_sub(resident);
        assert!(
            grown < GROWTH_KIB_MAX,
            "{grown} KiB more after {rounds} rounds"
        );
        let writes = load.end();
        assert!(writes > 100, "it was under load: {writes}");
        house.close();
    }
}
