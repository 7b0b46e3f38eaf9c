//! Which differences are known, and why. Data: `tests/qsd/ledger.toml`. It only shrinks: what is in it
//! and differs no more is an error, too, until it is taken out.

use crate::compare::Difference;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What begins the reason of a difference that will go: the name of what is missing follows.
const NOT_YET: &str = "not yet: ";

/// What stands before everything else in the file.
const HEAD: &str = "\
# Known differences to qemu-storage-daemon. One table a case, one line a part of an answer that differs,
# and why: the name of a reason below, or 'not yet: ' and the name of what is missing.
# `cargo xtask test qsd` fails if something differs that is not here, and if something here does not.
# `cargo xtask test qsd --bless-ledger` takes out what differs no more, and brings docs/compatibility.md up to it.
";

/// The known differences.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Reasons, by their names.
    #[serde(default)]
    pub why: BTreeMap<String, Reason>,
    /// What is missing, by names.
    #[serde(default)]
    pub missing: BTreeMap<String, Missing>,
    /// Of each case, the parts that differ, and why.
    #[serde(default)]
    differs: BTreeMap<String, BTreeMap<String, String>>,
}

/// Why something differs for good, as a user is told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// What is different.
    pub what: String,
    /// Why it stays so.
    pub why: String,
}

/// What is not there yet, as a user is told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// What does not work.
    pub what: String,
    /// What to do instead.
    pub instead: String,
}

/// What a case's differences are to the ledger.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What differs and is not known.
    pub unknown: Vec<Difference>,
    /// What is known and differs no more.
    pub gone: Vec<String>,
}

impl Ledger {
    /// From the text of its file. Each reason must be there, and each that is there must be used; so must what
    /// is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let ledger: Self = toml::from_str(text).context("the ledger")?;
        let mut used = BTreeSet::new();
        for (case, parts) in &ledger.differs {
            for (part, why) in parts {
                let is_there = match why.strip_prefix(NOT_YET) {
                    Some(name) => ledger.missing.contains_key(name),
                    None => ledger.why.contains_key(why),
                };
                if !is_there {
                    bail!("{case}, '{part}': there is no reason '{why}'");
                }
                used.insert(why.as_str());
            }
        }
        if let Some(unused) = ledger.why.keys().find(|name| !used.contains(name.as_str())) {
            bail!("nothing differs because of '{unused}': take that reason out");
        }
        let is_unused = |name: &&String| !used.contains(format!("{NOT_YET}{name}").as_str());
        if let Some(unused) = ledger.missing.keys().find(is_unused) {
            bail!("nothing differs because '{unused}' is missing: take it out");
        }
        Ok(ledger)
    }

    /// The text of its file.
    pub fn render(&self) -> String {
        let mut text = HEAD.to_owned();
        for (name, Reason { what, why }) in &self.why {
            // Writing to a string does not fail.
            let _ = write!(text, "\n[why.{name}]\nwhat = {what:?}\nwhy = {why:?}\n");
        }
        for (name, Missing { what, instead }) in &self.missing {
            let _ = write!(
                text,
                "\n[missing.{name}]\nwhat = {what:?}\ninstead = {instead:?}\n"
            );
        }
        for (case, parts) in &self.differs {
            let _ = write!(text, "\n[differs.{case:?}]\n");
            for (part, why) in parts {
                let _ = writeln!(text, "{part:?} = {why:?}");
            }
        }
        text
    }

    /// Judges what differs in a case.
    pub fn judge(&self, case: &str, differences: &[Difference]) -> Verdict {
        let none = BTreeMap::new();
        let known = self.differs.get(case).unwrap_or(&none);
        let unknown = differences.iter().filter(|d| !known.contains_key(&d.part));
        let is_gone = |part: &&String| !differences.iter().any(|d| d.part == **part);
        Verdict {
            unknown: unknown.cloned().collect(),
            gone: known.keys().filter(is_gone).cloned().collect(),
        }
    }

    /// Why a part differs, if that is known.
    pub fn reason(&self, case: &str, part: &str) -> Option<&str> {
        self.differs.get(case)?.get(part).map(String::as_str)
    }

    /// The cases that are in it.
    pub fn cases(&self) -> impl Iterator<Item = &str> {
        self.differs.keys().map(String::as_str)
    }

    /// Takes out what differs no more, and reasons that nothing needs then.
    pub fn remove(&mut self, case: &str, parts: &[String]) {
        if let Some(known) = self.differs.get_mut(case) {
            known.retain(|part, _| !parts.contains(part));
        }
        self.differs.retain(|_, parts| !parts.is_empty());
        let used: BTreeSet<&String> = self.differs.values().flat_map(BTreeMap::values).collect();
        let used: BTreeSet<String> = used.into_iter().cloned().collect();
        self.why.retain(|name, _| used.contains(name));
        (self.missing).retain(|name, _| used.contains(&format!("{NOT_YET}{name}")));
    }

    /// Adds what is not known, for somebody to say why: not a ledger yet.
    pub fn add(&mut self, case: &str, unknown: &[Difference]) {
        for difference in unknown {
            let parts = self.differs.entry(case.to_owned()).or_default();
            parts.insert(difference.part.clone(), "?".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(part: &str) -> Difference {
        Difference {
            part: part.to_owned(),
            ours: None,
            peer: None,
        }
    }

    const TEXT: &str = r#"
[why.text]
what = "a text"
why = "ours says more"

[missing.jobs]
what = "jobs"
instead = "wait"

[differs."g/a"]
"q: x" = "text"
"q: y" = "not yet: jobs"
"#;

    #[test]
    fn what_is_rendered_is_read_again() {
        let ledger = Ledger::parse(TEXT).unwrap();
        let text = ledger.render();
        assert_eq!(Ledger::parse(&text).unwrap().render(), text);
        assert!(text.starts_with(HEAD));
    }

    #[test]
    fn unknown_and_gone_are_told() {
        let mut ledger = Ledger::parse(TEXT).unwrap();
        let verdict = ledger.judge("g/a", &[at("q: y"), at("q: z")]);
        assert_eq!(verdict.unknown, [at("q: z")]);
        assert_eq!(verdict.gone, ["q: x"]);
        ledger.remove("g/a", &verdict.gone);
        assert!(ledger.why.is_empty(), "nothing needs the reason any more");
        assert_eq!(ledger.reason("g/a", "q: y"), Some("not yet: jobs"));
        ledger.remove("g/a", &["q: y".to_owned()]);
        assert_eq!(ledger.cases().count(), 0);
        assert!(ledger.missing.is_empty(), "it is there");
        ledger.add("g/a", &verdict.unknown);
        Ledger::parse(&ledger.render()).unwrap_err();
    }

    #[test]
    fn reasons_must_be_there_and_used() {
        let no_reason = TEXT.replace("= \"text\"", "= \"test\"");
        Ledger::parse(&no_reason).unwrap_err();
        let unused = TEXT.replace("\"q: x\" = \"text\"", "");
        Ledger::parse(&unused).unwrap_err();
        for name in ["", "job"] {
            let nothing = TEXT.replace("yet: jobs", &format!("yet: {name}"));
            Ledger::parse(&nothing).unwrap_err();
        }
        let unused = TEXT.replace("\"q: y\" = \"not yet: jobs\"", "");
        Ledger::parse(&unused).unwrap_err();
    }
}
