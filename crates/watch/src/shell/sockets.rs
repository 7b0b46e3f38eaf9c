//! The sockets that patterns of paths stand for.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::pattern::Pattern;

/// Most sockets of one pattern; more is a mistake of the pattern.
const SOCKETS_MAX: usize = 10_000;

/// The sockets that are there, in order. What cannot be read is as if it were not there.
pub fn find(pattern: &Pattern) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.text().split('/').filter(|part| !part.is_empty()) {
        found = if Pattern::is_plain(part) {
            found.iter().map(|path| path.join(part)).collect()
        } else {
            let part = Pattern::new(part);
            found
                .iter()
                .flat_map(|path| entries(path, &part))
                .take(SOCKETS_MAX)
                .collect()
        };
    }
    let is_socket =
        |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
    found.retain(is_socket);
    found.sort();
    found
}

fn entries(directory: &Path, part: &Pattern) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let hidden = part.text().starts_with('.');
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let names = names.filter(|name| (hidden || !name.starts_with('.')) && part.matches(name));
    names.map(|name| directory.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn sockets_alone_and_by_pattern() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut kept = Vec::new();
        for name in ["a/x.qmp", "b/x.qmp", "b/.y.qmp", "b/c/x.qmp"] {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            kept.push(UnixListener::bind(path).unwrap());
        }
        std::fs::write(root.join("a/file.qmp"), "").unwrap();
        let find = |pattern: &str| {
            let found = find(&Pattern::new(&format!("{}/{pattern}", root.display())));
            let names = found
                .iter()
                .map(|path| path.strip_prefix(root).unwrap().display().to_string());
            names.collect::<Vec<_>>()
        };
        assert_eq!(find("*/*.qmp"), ["a/x.qmp", "b/x.qmp"]);
        assert_eq!(find("a/x.qmp"), ["a/x.qmp"]);
        assert_eq!(find("b/.*.qmp"), ["b/.y.qmp"]);
        assert_eq!(find("[bz]/c/x.qm?"), ["b/c/x.qmp"]);
        assert_eq!(find("a/file.qmp"), [""; 0]);
        assert_eq!(find("gone/*"), [""; 0]);
    }
}
