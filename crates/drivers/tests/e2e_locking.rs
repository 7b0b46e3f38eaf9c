//! Image locking against QEMU's own tools: each side keeps the other out, in the same words.
//!
//! Needs qemu-img, qemu-io and qemu-storage-daemon (Debian: qemu-utils, qemu-system-common).

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Output, Stdio};

    use parking_lot::Mutex;
    use standfast_drivers::file::Locking;
    use standfast_drivers::{FileDriver, FileOptions, OpenError};

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

        fn open(&self, change: impl FnOnce(&mut FileOptions)) -> Result<FileDriver, OpenError> {
            let mut options = FileOptions {
                filename: self.name().to_owned(),
                ..FileOptions::default()
            };
            change(&mut options);
            FileDriver::open_file(options)
        }

        fn open_writable(&self) -> Result<FileDriver, OpenError> {
            self.open(|_| {})
        }
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
        let ours = image.open_writable().expect("nobody else is there");
        let write = ["-f", "raw", "-c", "write 0 4k", image.name()];
        refused(&tool("qemu-io", &write), "Failed to get \"write\" lock");
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
        let output = tool("qemu-io", &write);
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn our_writer_keeps_qcow2_readers_out() {
        let image = Image::qcow2();
        let ours = image.open_writable().expect("nobody else is there");
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
        let ours = image
            .open(|options| options.read_only = true)
            .expect("nobody else is there");
        let read = ["-r", "-f", "raw", "-c", "read 0 4k", image.name()];
        let output = tool("qemu-io", &read);
        assert!(output.status.success(), "{output:?}");
        refused(
            &tool("qemu-io", &["-f", "raw", "-c", "write 0 4k", image.name()]),
            "Failed to get \"write\" lock",
        );
        drop(ours);
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
            let error = image.open_writable().expect_err("locked");
            assert_eq!(error.desc, reason);
            assert_eq!(
                error.hint,
                Some(format!(
                    "Is another process using the image [{}]?",
                    image.name()
                ))
            );
            assert!(error.is_locked());
            let error = image
                .open(|options| options.read_only = true)
                .expect_err("locked");
            assert_eq!(error.desc, "Failed to get shared \"write\" lock");
            image
                .open(|options| {
                    options.read_only = true;
                    options.force_share = true;
                })
                .expect("does not mind");
            image
                .open(|options| options.locking = Locking::Off)
                .expect("does not look");
            drop(theirs);
            children_have_let_go();
            image.open_writable().expect("it has let go");
        }
    }

    #[test]
    fn qemus_reader_keeps_our_writer_out() {
        let image = Image::qcow2();
        let theirs = QemuIo::hold(&image, "qcow2", &["-r"]);
        image
            .open(|options| options.read_only = true)
            .expect("readers get along");
        let error = image.open_writable().expect_err("locked");
        assert_eq!(error.desc, "Failed to get \"write\" lock");
        drop(theirs);
    }
}
