//! The modules of a crate, read from its files.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use syn::{Attribute, Item, ItemMod, Meta};

/// The way to a module from the crate's root; empty for the root itself.
pub type ModulePath = Vec<String>;

/// One module: its file, and what is written in it without the modules inside.
#[derive(Debug)]
pub struct Module {
    /// Where it is written.
    pub file: PathBuf,
    /// What it consists of, other modules and tests left out.
    pub items: Vec<Item>,
}

/// All modules of the crate whose root file this is, test code left out.
///
/// # Errors
/// Names the file that is missing or is no Rust.
pub fn read(root: &Path) -> Result<BTreeMap<ModulePath, Module>> {
    let mut modules = BTreeMap::new();
    let directory = root.parent().context("a crate's root is in a directory")?;
    let items = parse(root)?;
    add(&mut modules, Vec::new(), root, directory, items)?;
    Ok(modules)
}

/// Adds a module and all inside it; its children's files are in `directory`.
fn add(
    modules: &mut BTreeMap<ModulePath, Module>,
    path: ModulePath,
    file: &Path,
    directory: &Path,
    items: Vec<Item>,
) -> Result<()> {
    let mut own = Vec::new();
    for item in items {
        match item {
            Item::Mod(module) if is_test(&module.attrs) => {}
            Item::Mod(module) => {
                let name = module.ident.to_string();
                let mut path = path.clone();
                path.push(name.clone());
                let below = directory.join(&name);
                if let Some((_, items)) = module.content {
                    add(modules, path, file, &below, items)?;
                } else {
                    let (file, below) = find(&module, directory, below)?;
                    let items = parse(&file)?;
                    add(modules, path, &file, &below, items)?;
                }
            }
            Item::Fn(function) if is_test(&function.attrs) => {}
            Item::Impl(block) if is_test(&block.attrs) => {}
            Item::Use(import) if is_test(&import.attrs) => {}
            other => own.push(other),
        }
    }
    let file = file.to_owned();
    modules.insert(path, Module { file, items: own });
    Ok(())
}

/// The file of a module, and the directory of its children.
fn find(module: &ItemMod, directory: &Path, below: PathBuf) -> Result<(PathBuf, PathBuf)> {
    let name = module.ident.to_string();
    let told = module
        .attrs
        .iter()
        .find_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                syn::Expr::Lit(syn::ExprLit {
                    lit: syn::Lit::Str(path),
                    ..
                }) => Some(path.value()),
                _ => None,
            },
            _ => None,
        });
    if let Some(told) = told {
        return Ok((directory.join(told), below));
    }
    let flat = directory.join(format!("{name}.rs"));
    let nested = below.join("mod.rs");
    match (flat.is_file(), nested.is_file()) {
        (true, _) => Ok((flat, below)),
        (false, true) => Ok((nested, below)),
        (false, false) => bail!(
            "module '{name}' has neither {} nor {}",
            flat.display(),
            nested.display()
        ),
    }
}

fn parse(file: &Path) -> Result<Vec<Item>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parsed = syn::parse_file(&text);
    Ok(parsed
        .with_context(|| format!("cannot understand {}", file.display()))?
        .items)
}

/// Whether something is built for tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        Meta::NameValue(_) => false,
    })
}
