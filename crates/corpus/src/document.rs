//! The part of `docs/compatibility.md` that comes from the ledger.

use crate::ledger::{Ledger, Missing, Reason};
use anyhow::{Context, Result};

/// What the part stands between.
const BEGIN: &str = "<!-- from tests/qsd/ledger.toml -->\n";
const END: &str = "<!-- end -->\n";

/// The document with the part that this ledger gives.
///
/// # Errors
///
/// If the document does not have the marks between which it stands.
pub fn with_ledger(document: &str, ledger: &Ledger) -> Result<String> {
    let marks = "the marks of the table are not there";
    let (before, rest) = document.split_once(BEGIN).context(marks)?;
    let (_, after) = rest.split_once(END).context(marks)?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", part(ledger)))
}

fn part(ledger: &Ledger) -> String {
    let mut text = "| what differs | why |\n|---|---|\n".to_owned();
    for Reason { what, why } in ledger.why.values() {
        text += &format!("| {what} | {why} |\n");
    }
    if !ledger.missing.is_empty() {
        text += "\nNot there yet; what is refused is refused by its name, so that nobody waits for it:\n\n";
        text += "| what does not work | instead |\n|---|---|\n";
        for Missing { what, instead } in ledger.missing.values() {
            text += &format!("| {what} | {instead} |\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_between_the_marks_is_replaced() {
        let text = "[why.a]\nwhat = \"W\"\nwhy = \"Y\"\n[missing.n]\nwhat = \"N\"\ninstead = \"I\"\n[differs.\"g/a\"]\nq = \"a\"\nr = \"not yet: n\"\n";
        let ledger = Ledger::parse(text).unwrap();
        let document = format!("before\n{BEGIN}old\n{END}after\n");
        let expected = format!(
            "before\n{BEGIN}| what differs | why |\n|---|---|\n| W | Y |\n\nNot there yet; what is refused is refused by its name, \
             so that nobody waits for it:\n\n| what does not work | instead |\n|---|---|\n| N | I |\n{END}after\n"
        );
        assert_eq!(with_ledger(&document, &ledger).unwrap(), expected);
        with_ledger("no marks", &ledger).unwrap_err();
    }
}
