//! Which names are well-formed.

use crate::QmpError;

/// Longest node name, in bytes.
pub const NODE_NAME_BYTES_MAX: usize = 31;

/// A letter, then letters, digits, `-`, `.` and `_`.
pub fn is_wellformed(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// Checks a node name given by the user.
pub fn check_node_name(name: &str) -> Result<(), QmpError> {
    if !is_wellformed(name) {
        return Err(QmpError::generic(format!("Invalid node-name: '{name}'")));
    }
    if name.len() > NODE_NAME_BYTES_MAX {
        return Err(QmpError::generic("Node name too long"));
    }
    Ok(())
}

/// Checks the id of an export.
pub fn check_export_id(id: &str) -> Result<(), QmpError> {
    if !is_wellformed(id) {
        return Err(QmpError::generic("Invalid block export id"));
    }
    Ok(())
}

/// Checks the id of an object, chardev or monitor.
pub fn check_id(id: &str) -> Result<(), QmpError> {
    if !is_wellformed(id) {
        let error = QmpError::generic("Parameter 'id' expects an identifier");
        let hint = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";
        return Err(error.with_hint(hint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let desc = |r: Result<(), QmpError>| r.err().map(|e| e.desc);
        assert_eq!(desc(check_node_name("n-1._x")), None);
        for name in ["", "9n", "-n", "a b", "#block001", "n\u{e9}"] {
            assert_eq!(
                desc(check_node_name(name)),
                Some(format!("Invalid node-name: '{name}'"))
            );
        }
        assert_eq!(desc(check_node_name(&"a".repeat(31))), None);
        assert_eq!(
            desc(check_node_name(&"a".repeat(32))).as_deref(),
            Some("Node name too long")
        );
        assert_eq!(
            desc(check_export_id("9e")).as_deref(),
            Some("Invalid block export id")
        );
        let error = check_id("9").unwrap_err();
        assert_eq!(error.desc, "Parameter 'id' expects an identifier");
        assert!(error.whole().ends_with("starting with a letter."));
        assert_eq!(desc(check_id("iothread0")), None);
    }
}
