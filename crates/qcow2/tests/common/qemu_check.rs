//! What `qemu-img check` says of an image.

#![allow(dead_code, reason = "each test target uses a part of it")]
use std::path::Path;

pub use testkit::qcow2_image::Verdict;

/// The verdict on the image at `path`, and the words.
pub fn of_file(path: &Path) -> (Verdict, String) {
    testkit::qcow2_image::check(path).expect("qemu-img comes to a verdict")
}

/// The same for an image in memory.
pub fn of_bytes(image: &[u8]) -> (Verdict, String) {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file");
    std::fs::write(file.path(), image).expect("there is memory");
    of_file(file.path())
}

/// It must be as a clean end leaves it.
pub fn is_clean(path: &Path, what: &str) {
    let (verdict, words) = of_file(path);
    assert_eq!(verdict, Verdict::Clean, "{what}: {words}");
}
