//! No circle between the files of a crate: whoever reads one file never needs the file that needs it.
//!
//! A small reader of names instead of a kept tool: `cargo-modules` knows circles of modules, but counts a
//! module's own declaration as a use and builds rust-analyzer to tell. What counts here: file A uses file
//! B if A's code names something that is defined in B. Not counted: that a module declares its children
//! or passes their names on (`pub use`), and test code.

mod modules;
mod names;

use crate::metadata::Metadata;
use anyhow::{Result, bail};
use names::Uses;
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Checks every library and program of the workspace.
///
/// # Errors
/// Names the files of each circle, and what they take from each other; and what cannot be read.
pub fn check(metadata: &Metadata, root: &Path) -> Result<()> {
    let mut uses = Uses::new();
    for kind in ["lib", "bin"] {
        for target in metadata.targets(kind) {
            uses.extend(uses_of(&target.source)?);
        }
    }
    let circles = circles(&uses);
    if circles.is_empty() {
        println!("no circle between {} files", files(&uses).len());
        return Ok(());
    }
    for (number, circle) in circles.iter().enumerate() {
        println!("circle {}:", number + 1);
        for ((from, to), what) in &uses {
            if circle.contains(from.as_path()) && circle.contains(to.as_path()) {
                let what: Vec<_> = what.iter().map(String::as_str).collect();
                let short = |path: &Path| {
                    path.strip_prefix(root)
                        .unwrap_or(path)
                        .display()
                        .to_string()
                };
                println!("  {} -> {}: {}", short(from), short(to), what.join(", "));
            }
        }
    }
    bail!(
        "{} circles between files: move what both sides need to a file below them",
        circles.len()
    )
}

/// What the files of one crate use of each other.
fn uses_of(root: &Path) -> Result<Uses> {
    let modules = modules::read(root)?;
    Ok(names::uses(&modules))
}

fn files(uses: &Uses) -> BTreeSet<&Path> {
    let ends = uses.keys().flat_map(|(from, to)| [from, to]);
    ends.map(PathBuf::as_path).collect()
}

/// The files that can reach themselves, by circle.
fn circles(uses: &Uses) -> Vec<BTreeSet<&Path>> {
    let edges = uses.keys().map(|(from, to)| (from.as_path(), to.as_path()));
    let graph: DiGraphMap<&Path, ()> = DiGraphMap::from_edges(edges);
    let components = tarjan_scc(&graph).into_iter();
    let circles = components.filter(|component| component.len() > 1);
    circles.map(|circle| circle.into_iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A crate of some files, in a directory that goes with the test.
    struct House(PathBuf);

    impl House {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let directory =
                std::env::temp_dir().join(format!("circles-{name}-{}", std::process::id()));
            for (file, text) in files {
                let path = directory.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(directory)
        }

        /// `from -> to: names`, without the directory.
        fn uses(&self) -> Vec<String> {
            let uses = uses_of(&self.0.join("lib.rs")).unwrap();
            let short = |path: &Path| path.strip_prefix(&self.0).unwrap().display().to_string();
            let lines = uses.iter().map(|((from, to), what)| {
                let what: Vec<_> = what.iter().map(String::as_str).collect();
                format!("{} -> {}: {}", short(from), short(to), what.join(","))
            });
            lines.collect()
        }

        fn circles(&self) -> Vec<Vec<String>> {
            let uses = uses_of(&self.0.join("lib.rs")).unwrap();
            let short = |path: &&Path| path.strip_prefix(&self.0).unwrap().display().to_string();
            let circles = circles(&uses).into_iter();
            circles
                .map(|circle| circle.iter().map(short).collect())
                .collect()
        }
    }

    impl Drop for House {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn finds_one_that_is_put_in() {
        let above = "use crate::below::Below; pub struct Above(Below);";
        let straight = House::new(
            "straight",
            &[
                ("lib.rs", "mod above; mod below; pub use above::Above;"),
                ("above.rs", above),
                ("below.rs", "pub struct Below;"),
            ],
        );
        assert_eq!(straight.uses(), ["above.rs -> below.rs: Below"]);
        assert_eq!(straight.circles(), [[""; 0]; 0]);

        // Through a name that the crate passes on, in an expression, in a macro.
        for bad in [
            "pub struct Below; fn f() -> Option<crate::Above> { None }",
            "pub struct Below; fn f() { super::above::g(); }",
            "use crate::above as up; pub struct Below; fn f() { println!(\"{}\", up::N); }",
            "pub struct Below; fn f() { assert!(crate::above::g()); }",
            "use super::*; pub struct Below; fn f(_: Above) {}",
        ] {
            let circle = House::new(
                "circle",
                &[
                    ("lib.rs", "mod above; mod below; pub use above::Above;"),
                    ("above.rs", above),
                    ("below.rs", bad),
                ],
            );
            assert_eq!(circle.circles(), [["above.rs", "below.rs"]], "{bad}");
        }
    }

    #[test]
    fn a_parent_that_uses_a_child_that_uses_it_is_one() {
        let parent = "mod child; use child::Part; pub struct Whole(Part); pub const N: u8 = 1;";
        let files = |child| {
            House::new(
                "family",
                &[
                    ("lib.rs", "mod parent;"),
                    ("parent/mod.rs", parent),
                    ("parent/child.rs", child),
                ],
            )
        };
        assert_eq!(files("pub struct Part;").circles(), [[""; 0]; 0]);
        assert_eq!(
            files("pub struct Part; const M: u8 = super::N;").circles(),
            [["parent/child.rs", "parent/mod.rs"]]
        );
    }

    #[test]
    fn tests_and_inline_modules_are_no_files() {
        let house = House::new(
            "tests",
            &[
                ("lib.rs", "mod a; mod b;"),
                (
                    "a.rs",
                    "pub fn f() {} pub mod inner { pub fn g() { super::f(); } } #[cfg(test)] mod tests { use crate::b::h; }",
                ),
                ("b.rs", "pub fn h() { crate::a::inner::g(); }"),
            ],
        );
        assert_eq!(house.uses(), ["b.rs -> a.rs: g"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let house = House::new("broken", &[("lib.rs", "mod gone;")]);
        let error = format!("{:#}", uses_of(&house.0.join("lib.rs")).unwrap_err());
        assert!(
            error.contains("gone.rs") && error.contains("gone/mod.rs"),
            "{error}"
        );
    }
}
