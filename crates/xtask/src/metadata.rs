//! What cargo knows about a workspace: its targets and where it builds.

use crate::run::{cargo, output};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A workspace, as far as we need it.
#[derive(Debug)]
pub struct Metadata {
    /// Where builds go.
    pub target_directory: PathBuf,
    targets: Vec<Target>,
}

/// One thing that cargo builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The package it belongs to.
    pub package: String,
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test`, ...
    pub kind: String,
    /// Its root file.
    pub source: PathBuf,
}

impl Metadata {
    /// Asks cargo about the workspace of a manifest, relative to our root.
    pub fn of(manifest: &Path) -> Result<Self> {
        let mut command = cargo(["metadata", "--format-version=1", "--no-deps"]);
        command.arg("--manifest-path").arg(manifest);
        Self::parse(&output(&mut command)?)
            .with_context(|| format!("cannot understand cargo metadata of {}", manifest.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(text)?;
        let mut targets = Vec::new();
        for package in array(&root, "packages")? {
            for target in array(package, "targets")? {
                for kind in array(target, "kind")? {
                    targets.push(Target {
                        package: string(package, "name")?,
                        name: string(target, "name")?,
                        kind: kind
                            .as_str()
                            .context("a target's kind is no string")?
                            .to_owned(),
                        source: string(target, "src_path")?.into(),
                    });
                }
            }
        }
        Ok(Self {
            target_directory: string(&root, "target_directory")?.into(),
            targets,
        })
    }

    /// The targets of one kind, by name.
    pub fn targets(&self, kind: &str) -> Vec<&Target> {
        let mut targets: Vec<_> = self.targets.iter().filter(|t| t.kind == kind).collect();
        targets.sort_by_key(|target| &target.name);
        targets
    }
}

fn array<'a>(value: &'a Value, member: &str) -> Result<&'a Vec<Value>> {
    value[member]
        .as_array()
        .with_context(|| format!("no array '{member}'"))
}

fn string(value: &Value, member: &str) -> Result<String> {
    value[member]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("no string '{member}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_targets_by_kind() {
        let metadata = Metadata::parse(
            r#"{"target_directory": "/t", "packages": [
                {"name": "b", "targets": [
                    {"name": "e2e_x", "kind": ["test"], "src_path": "/s"},
                    {"name": "b", "kind": ["lib"], "src_path": "/l"}]},
                {"name": "a", "targets": [{"name": "e2e_a", "kind": ["test"], "src_path": "/s"}]}]}"#,
        )
        .unwrap();
        assert_eq!(metadata.target_directory, Path::new("/t"));
        let target = |package: &str, name: &str| Target {
            package: package.to_owned(),
            name: name.to_owned(),
            kind: "test".to_owned(),
            source: "/s".into(),
        };
        assert_eq!(
            metadata.targets("test"),
            [&target("a", "e2e_a"), &target("b", "e2e_x")]
        );
    }

    #[test]
    fn says_what_is_missing() {
        let error = Metadata::parse(r#"{"packages": []}"#).unwrap_err();
        assert_eq!(error.to_string(), "no string 'target_directory'");
    }

    #[test]
    fn understands_our_own() {
        let metadata = Metadata::of(Path::new("Cargo.toml")).unwrap();
        assert!(
            metadata
                .targets("bin")
                .iter()
                .any(|t| t.package == "standfast-xtask")
        );
    }
}
