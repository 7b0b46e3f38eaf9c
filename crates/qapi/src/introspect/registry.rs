//! The types that have been met.

use std::collections::HashMap;

/// A type, as others name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ref {
    Builtin(&'static str),
    /// A place in the registry.
    Type(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) is_optional: bool,
    pub(super) r#type: Ref,
}

/// One of several things that a value may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Somebody looks at it, or has.
    begun: bool,
    /// What it is made of; none: nothing, or not known yet.
    pub(super) content: Option<Ref>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Enum(&'static [&'static str]),
    Array(Ref),
    Object {
        members: Vec<Member>,
        /// The discriminator, if there is one.
        tag: Option<&'static str>,
        cases: Vec<Case>,
    },
    Alternate(Vec<Case>),
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    kinds: Vec<Kind>,
    /// By the names that Rust has for them.
    known: HashMap<&'static str, usize>,
    /// What may be left out and is being looked at.
    inside: Vec<&'static str>,
}

impl Registry {
    pub(super) fn kind(&self, at: usize) -> Option<&Kind> {
        self.kinds.get(at)
    }

    /// Begins with something that may be left out; false if it is in itself.
    pub(super) fn enter(&mut self, name: &'static str) -> bool {
        let is_new = !self.inside.contains(&name);
        if is_new {
            self.inside.push(name);
        }
        is_new
    }

    pub(super) fn leave(&mut self, name: &'static str) {
        self.inside.retain(|&inside| inside != name);
    }

    /// The place of the type that Rust calls `name`.
    pub(super) fn at(&mut self, name: &'static str, new: impl FnOnce() -> Kind) -> usize {
        if let Some(at) = self.known.get(name) {
            return *at;
        }
        let at = self.add(new());
        self.known.insert(name, at);
        at
    }

    /// A type without a name.
    pub(super) fn add(&mut self, kind: Kind) -> usize {
        self.kinds.push(kind);
        self.kinds.len() - 1
    }

    pub(super) fn array(&mut self, element: Ref) -> usize {
        let is_it = |kind: &Kind| matches!(kind, Kind::Array(known) if *known == element);
        let known = self.kinds.iter().position(is_it);
        known.unwrap_or_else(|| self.add(Kind::Array(element)))
    }

    pub(super) fn set_members(&mut self, at: usize, found: Vec<Member>) {
        if let Some(Kind::Object { members, .. }) = self.kinds.get_mut(at) {
            *members = found;
        }
    }

    pub(super) fn members(&self, at: Ref) -> Vec<Member> {
        match at {
            Ref::Type(at) => match self.kinds.get(at) {
                Some(Kind::Object { members, .. }) => members.clone(),
                _ => Vec::new(),
            },
            Ref::Builtin(_) => Vec::new(),
        }
    }

    fn cases(&self, at: usize) -> &[Case] {
        match self.kinds.get(at) {
            Some(Kind::Object { cases, .. } | Kind::Alternate(cases)) => cases,
            _ => &[],
        }
    }

    fn cases_mut(&mut self, at: usize) -> Option<&mut Vec<Case>> {
        match self.kinds.get_mut(at) {
            Some(Kind::Object { cases, .. } | Kind::Alternate(cases)) => Some(cases),
            _ => None,
        }
    }

    /// Which case of the type at `at` is looked at now: one that has not been looked at, or that leads to
    /// one; else the one that is simplest.
    pub(super) fn choose(&mut self, at: usize, names: &'static [&'static str]) -> usize {
        self.begin(at, names);
        let cases = self.cases(at);
        let chosen = cases
            .iter()
            .position(|case| !case.begun)
            .or_else(|| {
                // Not by way of what is looked at: that would lead back here.
                let leads = |case: &Case| {
                    let content = case.content;
                    content.is_some_and(|it| self.is_unfinished_beside(it, Some(at)))
                };
                cases.iter().position(leads)
            })
            .unwrap_or_else(|| self.simplest(at));
        self.looked_at(at, chosen)
    }

    /// The case that leads nowhere, of a type that is in itself.
    pub(super) fn choose_simplest(&mut self, at: usize, names: &'static [&'static str]) -> usize {
        self.begin(at, names);
        self.looked_at(at, self.simplest(at))
    }

    fn begin(&mut self, at: usize, names: &'static [&'static str]) {
        if let Some(cases) = self.cases_mut(at)
            && cases.is_empty()
        {
            cases.extend(names.iter().map(|name| Case {
                name,
                begun: false,
                content: None,
            }));
        }
    }

    fn simplest(&self, at: usize) -> usize {
        let mut cases = self.cases(at).iter();
        cases.position(|case| case.name == "@string").unwrap_or(0)
    }

    fn looked_at(&mut self, at: usize, chosen: usize) -> usize {
        if let Some(case) = self.cases_mut(at).and_then(|cases| cases.get_mut(chosen)) {
            case.begun = true;
        }
        chosen
    }

    pub(super) fn set_content(&mut self, at: usize, case: usize, content: Option<Ref>) {
        if let Some(case) = self.cases_mut(at).and_then(|cases| cases.get_mut(case)) {
            case.content = content;
        }
    }

    /// Whether there is anything below `from` that has not been looked at.
    pub(super) fn is_unfinished(&self, from: Ref) -> bool {
        self.is_unfinished_beside(from, None)
    }

    /// The same, without what only the type at `beside` leads to.
    fn is_unfinished_beside(&self, from: Ref, beside: Option<usize>) -> bool {
        let mut seen = vec![false; self.kinds.len()];
        if let Some(beside) = beside {
            seen[beside] = true;
        }
        let mut left = vec![from];
        while let Some(next) = left.pop() {
            let Ref::Type(at) = next else { continue };
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let cases = self.cases(at);
            if cases.iter().any(|case| !case.begun) {
                return true;
            }
            left.extend(cases.iter().filter_map(|case| case.content));
            match &self.kinds[at] {
                Kind::Object { members, .. } => left.extend(members.iter().map(|it| it.r#type)),
                Kind::Array(element) => left.push(*element),
                Kind::Enum(_) | Kind::Alternate(_) => {}
            }
        }
        false
    }
}
