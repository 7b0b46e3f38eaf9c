//! A writer of cpio archives in the "newc" format, which the kernel unpacks as its initramfs.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive being written. Directories must come before what they contain.
#[derive(Debug)]
pub(super) struct Archive<W> {
    output: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output, entries: 0 }
    }

    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    pub(super) fn executable(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, EXECUTABLE, (0, 0), content)
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK, (0, 0), target.as_bytes())
    }

    pub(super) fn character_device(
        &mut self,
        path: &str,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Writes the trailer and gives the output back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        self.entries += 1;
        let len = |len: usize| u32::try_from(len).map_err(io::Error::other);
        let fields = [
            self.entries,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // modification time
            len(content.len())?,
            0, // device of the file system, major
            0, // and minor
            device.0,
            device.1,
            len(path.len() + 1)?,
            0, // checksum: none in this format
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(path);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(content)
    }

    /// Writes bytes and zeroes up to a multiple of 4, the alignment of headers and contents.
    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.output.write_all(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_contents_are_aligned_and_sized() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin").unwrap();
        archive.executable("bin/x", b"12345").unwrap();
        archive.symlink("bin/y", "x").unwrap();
        archive.character_device("console", 5, 1).unwrap();
        let bytes = archive.finish().unwrap();

        let mut rest = bytes.as_slice();
        let mut names = Vec::new();
        while !rest.is_empty() {
            let field = |n: usize| {
                let text = std::str::from_utf8(&rest[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&rest[..6], b"070701");
            let (size, device, name_size) = (field(6), (field(9), field(10)), field(11));
            let name = String::from_utf8(rest[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(rest[110 + name_size - 1], 0);
            let data = (110 + name_size).next_multiple_of(4);
            names.push((name, rest[data..data + size].to_vec(), device));
            rest = &rest[(data + size).next_multiple_of(4)..];
        }
        let entry = |name: &str, data: &[u8], device| (name.to_owned(), data.to_vec(), device);
        assert_eq!(
            names,
            [
                entry("bin", b"", (0, 0)),
                entry("bin/x", b"12345", (0, 0)),
                entry("bin/y", b"x", (0, 0)),
                entry("console", b"", (5, 1)),
                entry("TRAILER!!!", b"", (0, 0)),
            ]
        );
    }
}
