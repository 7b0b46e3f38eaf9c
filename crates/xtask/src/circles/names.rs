//! Which file a name leads to.

use super::modules::{Module, ModulePath};
use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use syn::visit::{self, Visit};
use syn::{Item, UseTree, Visibility};

/// Uses between files: from, to, and what is used.
pub type Uses = BTreeMap<(PathBuf, PathBuf), BTreeSet<String>>;

type Modules = BTreeMap<ModulePath, Module>;

/// What one module says about names.
#[derive(Debug, Default)]
struct Scope {
    /// What is defined in it.
    defined: BTreeSet<String>,
    /// What is imported, by the name that it has here.
    imported: BTreeMap<String, Vec<String>>,
    /// Where everything is imported from.
    globs: Vec<Vec<String>>,
}

/// Who uses what of whom.
pub fn uses(modules: &Modules) -> Uses {
    let scopes: BTreeMap<&ModulePath, Scope> = modules
        .iter()
        .map(|(path, module)| (path, Scope::of(path, module)))
        .collect();
    let resolver = Resolver { modules, scopes };
    let mut uses = Uses::new();
    for (path, module) in modules {
        let mut found = Found::default();
        for item in &module.items {
            match item {
                // Passing a child's name on is no use of it.
                Item::Use(import) if !matches!(import.vis, Visibility::Inherited) => {
                    let leaves = leaves(path, &import.tree);
                    let strange = leaves
                        .names
                        .into_iter()
                        .filter(|(_, target)| !target.starts_with(path));
                    found.absolute.extend(strange.map(|(_, target)| target));
                }
                Item::Use(import) => {
                    let leaves = leaves(path, &import.tree);
                    found
                        .absolute
                        .extend(leaves.names.into_iter().map(|(_, target)| target));
                }
                item => found.visit_item(item),
            }
        }
        let relative = found.relative.into_iter();
        let named = relative.map(|segments| absolute(path, &segments));
        for target in found.absolute.into_iter().chain(named) {
            let Some((owner, name)) = resolver.resolve(&target, 0) else {
                continue;
            };
            let to = &resolver.modules[owner].file;
            if *to != module.file {
                uses.entry((module.file.clone(), to.clone()))
                    .or_default()
                    .insert(name);
            }
        }
    }
    uses
}

struct Resolver<'a> {
    modules: &'a Modules,
    scopes: BTreeMap<&'a ModulePath, Scope>,
}

/// How many imports of imports are followed: more is a circle of imports, which the compiler refuses.
const HOPS_MAX: u8 = 16;

impl<'a> Resolver<'a> {
    /// The module in which what `path` (from the crate's root) leads to is defined, and its name. None:
    /// it is of another crate, or nothing we know.
    fn resolve(&self, path: &[String], hops: u8) -> Option<(&'a ModulePath, String)> {
        if hops > HOPS_MAX {
            return None;
        }
        let mut module: ModulePath = Vec::new();
        for (index, name) in path.iter().enumerate() {
            let mut child = module.clone();
            child.push(name.clone());
            if self.modules.contains_key(&child) {
                module = child;
                continue;
            }
            let rest = &path[index + 1..];
            let (owner, _) = self.modules.get_key_value(&module)?;
            let scope = &self.scopes[owner];
            if scope.defined.contains(name) {
                return Some((owner, name.clone()));
            }
            let onward = |target: &[String]| {
                let path: Vec<_> = target.iter().chain(rest).cloned().collect();
                self.resolve(&path, hops + 1)
            };
            if let Some(target) = scope.imported.get(name) {
                return onward(target);
            }
            let elsewhere = scope.globs.iter().find_map(|glob| {
                let target: Vec<_> = glob.iter().chain([name]).cloned().collect();
                onward(&target).filter(|(owner, name)| self.scopes[owner].defined.contains(name))
            });
            // What nobody defines for us to see, a macro does.
            return elsewhere.or_else(|| Some((owner, name.clone())));
        }
        // A module itself: what is used of it is named where it is used.
        None
    }
}

impl Scope {
    fn of(path: &ModulePath, module: &Module) -> Self {
        let mut scope = Self::default();
        for item in &module.items {
            let ident = match item {
                Item::Const(item) => &item.ident,
                Item::Enum(item) => &item.ident,
                Item::Fn(item) => &item.sig.ident,
                Item::Static(item) => &item.ident,
                Item::Struct(item) => &item.ident,
                Item::Trait(item) => &item.ident,
                Item::TraitAlias(item) => &item.ident,
                Item::Type(item) => &item.ident,
                Item::Union(item) => &item.ident,
                Item::Macro(item) => match &item.ident {
                    Some(ident) => ident,
                    None => continue,
                },
                Item::Use(import) => {
                    let leaves = leaves(path, &import.tree);
                    scope.imported.extend(leaves.names);
                    scope.globs.extend(leaves.globs);
                    continue;
                }
                _ => continue,
            };
            scope.defined.insert(ident.to_string());
        }
        scope
    }
}

#[derive(Default)]
struct Leaves {
    /// Name here, and where it leads to.
    names: Vec<(String, Vec<String>)>,
    globs: Vec<Vec<String>>,
}

/// What a `use` brings in.
fn leaves(module: &ModulePath, tree: &UseTree) -> Leaves {
    let mut leaves = Leaves::default();
    collect(module, &mut Vec::new(), tree, &mut leaves);
    leaves
}

fn collect(module: &ModulePath, before: &mut Vec<String>, tree: &UseTree, leaves: &mut Leaves) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            collect(module, before, &path.tree, leaves);
            before.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                collect(module, before, tree, leaves);
            }
        }
        UseTree::Glob(_) => leaves.globs.push(absolute(module, before)),
        UseTree::Name(name) => leaf(module, before, &name.ident.to_string(), None, leaves),
        UseTree::Rename(name) => {
            let here = Some(name.rename.to_string());
            leaf(module, before, &name.ident.to_string(), here, leaves);
        }
    }
}

fn leaf(
    module: &ModulePath,
    before: &[String],
    name: &str,
    here: Option<String>,
    leaves: &mut Leaves,
) {
    let mut path = before.to_vec();
    // `use a::{self}` is a.
    if name != "self" || before.is_empty() {
        path.push(name.to_owned());
    }
    let Some(last) = path.last() else { return };
    let here = here.unwrap_or_else(|| last.clone());
    leaves.names.push((here, absolute(module, &path)));
}

/// A path as it is written in a module, from the crate's root.
fn absolute(module: &ModulePath, path: &[String]) -> Vec<String> {
    let mut base = module.clone();
    let mut rest = path;
    while let [first, others @ ..] = rest {
        match first.as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => drop(base.pop()),
            _ => break,
        }
        rest = others;
    }
    base.extend(rest.iter().cloned());
    base
}

/// The paths in a piece of code, as they are written.
#[derive(Default)]
struct Found {
    relative: BTreeSet<Vec<String>>,
    absolute: BTreeSet<Vec<String>>,
}

impl<'ast> Visit<'ast> for Found {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        self.relative.insert(segments.collect());
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        // Inside a function.
        let leaves = leaves(&Vec::new(), &import.tree);
        self.relative
            .extend(leaves.names.into_iter().map(|(_, path)| path));
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

impl Found {
    /// Paths of two and more names in what is given to a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path);
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end(&mut path);
                    self.tokens(group.stream());
                }
                _ => self.end(&mut path),
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Vec<String>) {
        if path.len() > 1 {
            self.relative.insert(std::mem::take(path));
        }
        path.clear();
    }
}
