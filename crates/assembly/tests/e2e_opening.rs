//! Opening and closing what does not answer: everything else goes on, it ends in time, and nothing of it
//! is left.
//!
//! Needs root, FUSE and qemu-io.

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use block::{Access, Permissions, Registry};
    use qapi::options::{BlockdevOptions, ExportOptions};
    use standfast_assembly::{Assembly, CLOSE_TIME_MAX, OPEN_TIME_MAX, TimeLimits};
    use testkit::place::PATIENCE;
    use testkit::{FuseFile, FuseOp};

    const MIB: usize = 1 << 20;
    const LIMIT: Duration = Duration::from_millis(300);

    fn limits(open: Duration) -> TimeLimits {
        TimeLimits {
            open: Some(open),
            ..TimeLimits::SERVING
        }
    }

    struct Place {
        assembly: Arc<Assembly>,
        registry: Arc<Registry>,
        fuse: FuseFile,
    }

    impl Place {
        fn new() -> Self {
            let (control, task) = block::control();
            tokio::spawn(task.run());
            let (registry, _quit) = Registry::new(control);
            Self {
                assembly: Arc::new(Assembly::new(Arc::clone(&registry))),
                registry,
                fuse: FuseFile::new(MIB).expect("root, and /dev/fuse"),
            }
        }

        fn filename(&self) -> String {
            self.fuse.path().to_str().expect("ASCII").to_owned()
        }

        fn file(&self, name: &str) -> String {
            format!("driver=file,node-name={name},filename={}", self.filename())
        }

        async fn add(&self, options: &str, limit: Duration) -> Result<(), String> {
            let options = BlockdevOptions::parse(options).expect("an option");
            let added = self.assembly.add_node(options, limits(limit)).await;
            added.map_err(|error| error.desc)
        }

        /// Adds it while it hangs, in a task; returns when it does.
        async fn hang(
            &self,
            options: &str,
            op: FuseOp,
            limit: Duration,
        ) -> tokio::task::JoinHandle<Result<(), String>> {
            let before = self.fuse.count(op);
            self.fuse.hang(op, true);
            let (assembly, options) = (Arc::clone(&self.assembly), options.to_owned());
            let options = BlockdevOptions::parse(&options).expect("an option");
            let added = tokio::spawn(async move {
                let added = assembly.add_node(options, limits(limit)).await;
                added.map_err(|error| error.desc)
            });
            until("it hangs", || self.fuse.count(op) > before).await;
            added
        }

        /// Sorted.
        fn names(&self) -> Vec<String> {
            let nodes = self.registry.nodes();
            let mut names: Vec<_> = nodes.iter().map(|node| node.name().to_string()).collect();
            names.sort();
            names
        }

        /// All that was opened has been closed, and nobody holds a lock.
        async fn is_as_before(&self) {
            let (opened, closed) = (FuseOp::Open, FuseOp::Flush);
            until("what came late is closed", || {
                self.fuse.count(opened) == self.fuse.count(closed)
            })
            .await;
            self.is_free().await;
        }

        /// No thread hangs, and nobody holds a lock.
        async fn is_free(&self) {
            until("its thread ends", || threads() == 0).await;
            let path = self.fuse.path();
            let opened = tokio::task::spawn_blocking(move || qemu_io(&path)).await;
            opened.expect("no panic");
        }
    }

    /// Another user of the image, which wants to write.
    fn qemu_io(path: &Path) {
        let arguments = ["-f", "raw", "-c", "write 0 512"];
        let output = Command::new("qemu-io").args(arguments).arg(path).output();
        let output = output.expect("qemu-io is needed for this test");
        assert!(output.status.success(), "{output:?}");
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < PATIENCE, "never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many threads wait for storage. One test at a time: they share a process.
    fn threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").expect("there are some");
        let names =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "block-beside").count()
    }

    fn run(test: impl Future<Output = ()>) {
        static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one = ONE.lock();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(test);
    }

    #[test]
    fn everything_else_goes_on_until_the_limit() {
        run(async {
            let place = Place::new();
            let added = place
                .hang(&place.file("far"), FuseOp::Open, 3 * LIMIT)
                .await;

            place
                .add("driver=null-co,node-name=near", LIMIT)
                .await
                .expect("another node");
            let dir = tempfile::tempdir().expect("a directory");
            let socket = dir.path().join("socket");
            let export = format!(
                "type=vhost-user-blk,id=vda,node-name=near,addr.type=unix,addr.path={}",
                socket.display()
            );
            let export = ExportOptions::parse(&export).expect("an option");
            place
                .assembly
                .add_export(export, TimeLimits::SERVING)
                .await
                .expect("it is served");
            assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
            assert_eq!(place.names(), ["near"]);
            assert_eq!(
                place.add("driver=null-co,node-name=far", LIMIT).await,
                Err("Duplicate nodes with node-name='far'".to_owned()),
                "the name is kept"
            );
            assert!(!added.is_finished());

            let error = added.await.expect("no panic").expect_err("the limit");
            assert_eq!(
                error,
                format!(
                    "Could not open node 'far': '{}' does not answer, and the limit of 0.9 s is over",
                    place.filename()
                )
            );
            // Whoever has just locked an image ends soon.
            until("one hangs on, alone", || threads() == 1).await;
            place
                .add("driver=null-co,node-name=far", LIMIT)
                .await
                .expect("the name is free");

            // It ends all the same, and as fast.
            let settled = place.assembly.settle("host-signal").await;
            place.assembly.close_exports(settled).await;
            until("one hangs on, alone", || threads() == 1).await;
            place.fuse.hang(FuseOp::Open, false);
            place.is_as_before().await;
            assert_eq!(place.names(), ["far", "near"]);
            assert_eq!(
                place.registry.node("far").expect("there").driver().name(),
                "null-co"
            );
        });
    }

    /// Whoever asked has gone: wherever it hangs, a thread is left, and then nothing.
    #[test]
    fn cancelled_wherever_it_hangs() {
        run(async {
            for op in [FuseOp::Open, FuseOp::GetAttr] {
                for above in ["", "driver=quota,node-name=top,limit=1G,file."] {
                    let place = Place::new();
                    let options = place.file("far");
                    let options = match above {
                        "" => options,
                        _ => format!("{above}{}", options.replace(',', ",file.")),
                    };
                    let added = place.hang(&options, op, OPEN_TIME_MAX).await;
                    added.abort();
                    assert!(added.await.expect_err("cancelled").is_cancelled());
                    until("one hangs on, alone", || threads() == 1).await;
                    for name in ["far", "top"] {
                        let other = format!("driver=null-co,node-name={name}");
                        place.add(&other, LIMIT).await.expect("the names are free");
                    }
                    place.fuse.hang(op, false);
                    place.is_as_before().await;
                    assert_eq!(place.names(), ["far", "top"]);
                }
            }
        });
    }

    /// A node that is removed and hangs is gone for everybody, and its name is free.
    #[test]
    fn a_removal_does_not_wait_for_what_hangs_at_its_close() {
        run(async {
            let place = Place::new();
            for _ in 0..2 {
                place
                    .add(&place.file("far"), OPEN_TIME_MAX)
                    .await
                    .expect("it answers");
                place.fuse.hang(FuseOp::Flush, true);
                let assembly = Arc::clone(&place.assembly);
                let begin = Instant::now();
                let removed = tokio::spawn(async move { assembly.delete_node("far").await });
                until("it hangs", || {
                    place.fuse.count(FuseOp::Flush) == place.fuse.count(FuseOp::Open)
                })
                .await;
                let near = "driver=null-co,node-name=far";
                place.add(near, LIMIT).await.expect("the name is free");
                assert!(!removed.is_finished());
                removed.await.expect("no panic").expect("it is removed");
                let took = begin.elapsed();
                assert!(took >= CLOSE_TIME_MAX && took < PATIENCE, "{took:?}");
                until("one hangs on, alone", || threads() == 1).await;

                place.assembly.delete_node("far").await.expect("it is idle");
                place.fuse.hang(FuseOp::Flush, false);
                place.is_as_before().await;
            }
        });
    }

    /// The end of the daemon: what hangs while it is closed keeps neither the end nor other images.
    #[test]
    fn the_end_does_not_wait_for_what_hangs_at_its_close() {
        run(async {
            let place = Place::new();
            let quota = place.file("far").replace(',', ",file.");
            place
                .add(
                    &format!("driver=quota,node-name=top,limit=1G,file.{quota}"),
                    OPEN_TIME_MAX,
                )
                .await
                .expect("it answers");
            let near = tempfile::NamedTempFile::new().expect("a file");
            near.as_file().set_len(MIB as u64).expect("a length");
            let file = near.path().display();
            place
                .add(
                    &format!("driver=file,node-name=near,filename={file}"),
                    LIMIT,
                )
                .await
                .expect("it answers");
            let use_near = async || {
                let access = Access {
                    held: Permissions::WRITE,
                    shared: Permissions::ALL,
                };
                let used = place.registry.begin_use("vda", "near", access).await;
                drop(used.expect("nobody has locked it"));
            };
            use_near().await;
            // Whoever still has a node closes it when he lets go, beside as well.
            let far = place.registry.node("far").expect("it is there");

            let settled = place.assembly.settle("host-signal").await;
            place.assembly.close_exports(settled).await;
            place.fuse.hang(FuseOp::Flush, true);
            let before = place.fuse.count(FuseOp::Flush);
            let begin = Instant::now();
            place.assembly.close_nodes(LIMIT).await;
            let took = begin.elapsed();
            assert!(took >= LIMIT && took < PATIENCE, "{took:?}");
            assert!(place.names().is_empty());
            // Not by another process: a fork closes what we have open on its way to its exec, and hangs.
            place
                .add(
                    &format!("driver=file,node-name=near,filename={file}"),
                    LIMIT,
                )
                .await
                .expect("its name is free");
            use_near().await;
            assert_eq!(place.fuse.count(FuseOp::Flush), before, "somebody has it");
            drop(far);
            until("it hangs", || place.fuse.count(FuseOp::Flush) > before).await;
            until("one hangs on, alone", || threads() == 1).await;

            place.fuse.hang(FuseOp::Flush, false);
            // A quota asks by a descriptor of its own, so that there are more closes than opens.
            place.is_free().await;
            place.assembly.close_nodes(LIMIT).await;
        });
    }

    /// A filter that asks what it stands on: the same, and however often that is tried, one thread
    /// hangs.
    #[test]
    fn a_filter_that_asks_what_hangs() {
        run(async {
            let place = Place::new();
            place
                .add(&place.file("file0"), OPEN_TIME_MAX)
                .await
                .expect("it answers");
            place.fuse.hang(FuseOp::GetAttr, true);
            let quota = "driver=quota,node-name=quota0,limit=1G,file=file0";
            for _ in 0..5 {
                let error = place.add(quota, LIMIT / 3).await.expect_err("the limit");
                let file = place.filename();
                assert!(
                    error.contains("'quota0'") && error.contains(&file),
                    "{error}"
                );
                until("one hangs on, alone", || threads() == 1).await;
            }
            assert_eq!(place.names(), ["file0"]);
            let file0 = place.registry.node("file0").expect("it stays");
            assert!(file0.users().is_empty(), "{:?}", file0.users());
            place.fuse.hang(FuseOp::GetAttr, false);
            place.add(quota, OPEN_TIME_MAX).await.expect("it answers");
            assert_eq!(place.names(), ["file0", "quota0"]);
            until("no thread is left", || threads() == 0).await;
        });
    }
}
