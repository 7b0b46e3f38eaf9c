//! Image locking against QEMU's own tools: each side keeps the other out, in the same words.
//!
//! Needs qemu-img, qemu-io and qemu-storage-daemon (Debian: qemu-utils, qemu-system-common).

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Output, Stdio};

    use block::{Access, Driver, ImageLocks, LockError, Permissions};
    use parking_lot::Mutex;
    use standfast_drivers::file::Locking;
    use standfast_drivers::{FileDriver, FileOptions};

    struct Image {
        file: tempfile::NamedTempFile,
    }

    impl Image {
        fn new() -> Self {
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            file.as_file().set_len(1 << 20).expect("sparse");
            Self { file }
        }

        /// One with metadata, which QEMU guards more strictly.
        fn qcow2() -> Self {
            let image = Self::new();
            let output = tool("qemu-img", &["create", "-f", "qcow2", image.name(), "1M"]);
            assert!(output.status.success(), "{output:?}");
            image
        }

        fn name(&self) -> &str {
            self.file.path().to_str().expect("ASCII")
        }

        /// That lock is somebody else's.
        fn refusal(&self, words: &str) -> String {
            format!("{words} on '{}'", self.name())
        }

        /// Nobody uses it yet.
        fn open(&self, change: impl FnOnce(&mut FileOptions)) -> FileDriver {
            let mut options = FileOptions {
                filename: self.name().to_owned(),
                ..FileOptions::default()
            };
            change(&mut options);
            FileDriver::open_file(options).expect("opens")
        }

        fn open_used(
            &self,
            held: Permissions,
            change: impl FnOnce(&mut FileOptions),
        ) -> Result<FileDriver, LockError> {
            let driver = self.open(change);
            locks(&driver).lock(access(held)).map(|()| driver)
        }

        fn writer(&self) -> Result<FileDriver, LockError> {
            self.open_used(WRITES, |_| {})
        }

        fn reader(&self) -> Result<FileDriver, LockError> {
            self.open_used(READS, |options| options.read_only = true)
        }

        fn can_be_written(&self) {
            children_have_let_go();
            let write = ["-f", "raw", "-c", "write 0 4k", self.name()];
            let output = tool("qemu-io", &write);
            assert!(output.status.success(), "{output:?}");
        }

        fn cannot_be_written(&self) {
            let write = ["-f", "raw", "-c", "write 0 4k", self.name()];
            refused(&tool("qemu-io", &write), "Failed to get \"write\" lock");
        }

        fn can_be_read(&self) {
            let read = ["-r", "-f", "raw", "-c", "read 0 4k", self.name()];
            let output = tool("qemu-io", &read);
            assert!(output.status.success(), "{output:?}");
        }
    }

    const READS: Permissions = Permissions::CONSISTENT_READ;
    const WRITES: Permissions = READS.and(Permissions::WRITE);

    /// What an export asks for.
    fn access(held: Permissions) -> Access {
        let shared = Permissions::ALL;
        Access { held, shared }
    }

    fn locks(driver: &FileDriver) -> &dyn ImageLocks {
        driver.capabilities().image_locks.expect("it has some")
    }

    /// Held while a child is made. Until its exec it has a copy of every descriptor, and of every lock
    /// with it: an image that one test had just closed was still locked by the child of another test, and
    /// qemu-img did not get it.
    static SPAWNING: Mutex<()> = Mutex::new(());

    fn spawn(command: &mut Command) -> Child {
        let _spawning = SPAWNING.lock();
        command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} must be there for this test: {error}"))
    }

    /// When this returns no child has what was closed before.
    fn children_have_let_go() {
        drop(SPAWNING.lock());
    }

    fn tool(name: &str, args: &[&str]) -> Output {
        let mut command = Command::new(name);
        command.args(args).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        spawn(&mut command).wait_with_output().expect("it ends")
    }

    fn refused(output: &Output, with: &str) {
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "{text}");
        assert!(text.contains(with), "{text}");
        assert!(
            text.contains("Is another process using the image"),
            "{text}"
        );
    }

    #[test]
    fn our_writer_keeps_qemus_tools_out() {
        let image = Image::new();
        let ours = image.writer().expect("nobody else is there");
        image.cannot_be_written();
        // The storage daemon prints no hints.
        let output = tool(
            "qemu-storage-daemon",
            &[
                "--blockdev",
                &format!("file,node-name=f,filename={}", image.name()),
                "--export",
                "vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path=/nonexistent/s",
            ],
        );
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("Failed to get \"write\" lock"), "{text}");
        drop(ours);
        image.can_be_written();
    }

    /// Whoever has an image open and does not use it is in nobody's way, before and after.
    #[test]
    fn we_keep_out_as_many_as_our_users_need() {
        let image = Image::new();
        let ours = image.open(|_| {});
        for _ in 0..2 {
            image.can_be_written();
            locks(&ours).lock(access(READS)).expect("nobody is there");
            image.can_be_read();
            image.cannot_be_written();
            locks(&ours).lock(access(WRITES)).expect("nobody is there");
            image.cannot_be_written();
            locks(&ours).settle(access(READS));
            image.can_be_read();
            let others = image.reader().expect("it reads");
            let error = locks(&ours).lock(access(WRITES)).expect_err("two readers");
            assert_eq!(error.desc, image.refusal("Failed to get \"write\" lock"));
            drop(others);
            locks(&ours).settle(Access::NONE);
        }
        image.can_be_written();
        // Filters above that do not share something are not in use either.
        let shared = Permissions::NONE;
        let held = Permissions::NONE;
        let unused = locks(&ours).lock(Access { held, shared });
        unused.expect("nothing to lock");
        image.can_be_written();
    }

    /// Not even when it is opened by the kernel's rules of old: what is on the storage counts when the use
    /// begins.
    #[test]
    fn the_length_is_that_of_the_first_use() {
        let image = Image::new();
        for locking in [Locking::On, Locking::Off] {
            let ours = image.open(|options| options.locking = locking);
            let locks = locks(&ours);
            assert_eq!(ours.length(), 1 << 20);
            let resize = |length: &str| {
                children_have_let_go();
                let resize = ["resize", "-f", "raw", "--shrink", image.name(), length];
                let output = tool("qemu-img", &resize);
                assert!(output.status.success(), "{output:?}");
            };
            resize("3M");
            assert_eq!(ours.length(), 1 << 20, "nobody uses it");
            locks.lock(access(READS)).expect("nobody is there");
            assert_eq!(ours.length(), 3 << 20);
            // A reader of ours does not mind: it is what has been seen.
            image.file.as_file().set_len(2 << 20).expect("truncated");
            locks.lock(access(WRITES)).expect("nobody is there");
            assert_eq!(ours.length(), 3 << 20, "it is in use");
            locks.settle(Access::NONE);
            resize("1M");
            locks.lock(access(WRITES)).expect("nobody is there");
            assert_eq!(ours.length(), 1 << 20);
        }
    }

    /// Two openings of one image are known by what they are, and the second one takes over.
    #[test]
    fn another_opening_of_ours_takes_over() {
        let image = Image::new();
        let link = image.file.path().with_extension("link");
        std::fs::hard_link(image.file.path(), &link).expect("another name");
        let one = image.writer().expect("nobody else is there");
        let other_name = link.to_str().expect("ASCII").to_owned();
        let two = image.open(|options| options.filename = other_name);
        std::fs::remove_file(&link).expect("it is there");
        assert_eq!(locks(&one).image(), locks(&two).image());
        let stranger = Image::new().open(|_| {});
        assert_ne!(locks(&one).image(), locks(&stranger).image());
        let error = locks(&two).lock(access(WRITES)).expect_err("in use");
        assert!(error.is_locked());
        image.file.as_file().set_len(2 << 20).expect("longer");
        let beside = locks(&two).lock_beside(access(WRITES));
        beside.expect("it is ours");
        assert_eq!(two.length(), 2 << 20);
        image.cannot_be_written();
        drop(one);
        children_have_let_go();
        image.cannot_be_written();
        locks(&two).settle(Access::NONE);
        image.can_be_written();
    }

    #[test]
    fn our_writer_keeps_qcow2_readers_out() {
        let image = Image::qcow2();
        let ours = image.writer().expect("nobody else is there");
        refused(
            &tool("qemu-img", &["info", image.name()]),
            "Failed to get shared \"write\" lock",
        );
        let shared = tool("qemu-img", &["info", "-U", image.name()]);
        assert!(shared.status.success(), "-U does not mind: {shared:?}");
        drop(ours);
        let output = tool("qemu-img", &["info", image.name()]);
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn our_reader_keeps_only_writers_out() {
        let image = Image::new();
        // An export that does not write, of a node that could, is a reader.
        let writable = image
            .open_used(READS, |_| {})
            .expect("nobody else is there");
        let ours = image.reader().expect("readers get along");
        image.can_be_read();
        image.cannot_be_written();
        drop(writable);
        image.cannot_be_written();
        drop(ours);
        image.can_be_written();
    }

    /// A qemu-io that holds the image until it is dropped.
    struct QemuIo(Child);

    impl QemuIo {
        fn hold(image: &Image, format: &str, args: &[&str]) -> Self {
            let mut command = Command::new("qemu-io");
            command.args(args).args(["-f", format, image.name()]);
            let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
            let stdin = child.stdin.as_mut().expect("piped");
            stdin.write_all(b"length\n").expect("it reads");
            stdin.flush().expect("it reads");
            // The answer comes after the image is open.
            let mut answer = String::new();
            let stdout = child.stdout.as_mut().expect("piped");
            let mut lines = BufReader::new(stdout);
            while !answer.contains("1 MiB") {
                answer.clear();
                let read = lines.read_line(&mut answer).expect("it writes");
                assert!(read > 0, "qemu-io ended");
            }
            Self(child)
        }
    }

    impl Drop for QemuIo {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn qemus_writer_keeps_us_out() {
        // A raw image QEMU would share with another writer; we do not.
        for (image, format, reason) in [
            (Image::new(), "raw", "Failed to get shared \"write\" lock"),
            (Image::qcow2(), "qcow2", "Failed to get \"write\" lock"),
        ] {
            let theirs = QemuIo::hold(&image, format, &[]);
            let unused = image.open(|_| {});
            let error = image.writer().expect_err("locked");
            assert_eq!(error.desc, image.refusal(reason));
            assert_eq!(
                error.hint,
                Some(format!(
                    "Is another process using the image [{}]?",
                    image.name()
                ))
            );
            assert!(error.is_locked());
            let error = image.reader().expect_err("locked");
            assert_eq!(
                error.desc,
                image.refusal("Failed to get shared \"write\" lock")
            );
            let shares = image.open_used(READS, |options| {
                options.read_only = true;
                options.force_share = true;
            });
            drop(shares.expect("does not mind"));
            let careless = image.open_used(WRITES, |options| options.locking = Locking::Off);
            drop(careless.expect("does not look"));
            drop(theirs);
            children_have_let_go();
            let late = locks(&unused).lock(access(WRITES));
            late.expect("it has let go");
        }
    }

    #[test]
    fn qemus_reader_keeps_our_writer_out() {
        let image = Image::qcow2();
        let theirs = QemuIo::hold(&image, "qcow2", &["-r"]);
        drop(image.reader().expect("readers get along"));
        let error = image.writer().expect_err("locked");
        assert_eq!(error.desc, image.refusal("Failed to get \"write\" lock"));
        drop(theirs);
    }
}
