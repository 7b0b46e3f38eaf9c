//! `help` as an argument of an option, in the form of qemu-storage-daemon.

use std::fmt::Write;

use qapi::options::{CHARDEV_BACKENDS, CHARDEV_PARAMETERS};
use qapi::{QmpError, keyval, qom};

/// What all types are that can be added.
const USER_CREATABLE: &str = "user-creatable";

/// The help that `--object ARG` asks for, if it does.
///
/// # Errors
/// If the argument is no keyval.
pub fn object(arg: &str) -> Result<Option<String>, QmpError> {
    if arg.starts_with('{') {
        return Ok(None);
    }
    let (members, is_asked) = keyval::parse_help(arg, Some("qom-type"))?;
    if !is_asked {
        return Ok(None);
    }
    let wanted = members.get("qom-type").and_then(|value| value.as_str());
    let mut types: Vec<_> = qom::list_types(Some(USER_CREATABLE), false)
        .into_iter()
        .map(|known| known.name)
        .collect();
    types.sort();
    let Some(name) = types.iter().find(|name| wanted == Some(name)) else {
        return Ok(Some(list("List of user creatable objects:", types)));
    };
    let properties = qom::list_properties(name)?.into_iter();
    let mut properties: Vec<_> = properties
        .filter(|property| property.name != "type")
        .map(|property| format!("{}=<{}>", property.name, property.r#type))
        .collect();
    properties.sort();
    Ok(Some(list(&format!("{name} options:"), properties)))
}

/// The help that `--chardev ARG` asks for, if it does; whether the daemon succeeds with it.
pub fn chardev(arg: &str) -> Option<(String, bool)> {
    let mut items = arg.split(',');
    if !items.clone().any(|item| matches!(item, "help" | "?")) {
        return None;
    }
    let first = items.next().unwrap_or_default();
    if matches!(first, "help" | "?") {
        // The space is QEMU's.
        let text = list("Available chardev backend types: ", CHARDEV_BACKENDS);
        return Some((text, true));
    }
    let parameters = CHARDEV_PARAMETERS
        .iter()
        .map(|(name, kind)| format!("{name}=<{}>", kind.name()));
    Some((list("chardev options:", parameters), false))
}

fn list(title: &str, items: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    let mut text = format!("{title}\n");
    for item in items {
        let _ = writeln!(text, "  {item}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects() {
        let all = object("help").unwrap().unwrap();
        assert!(all.starts_with("List of user creatable objects:\n  iothread\n"));
        for same in ["?", "nosuch,help", "help,", "qom-type=nosuch,?"] {
            assert_eq!(object(same).unwrap().unwrap(), all, "{same}");
        }
        let iothread = object("iothread,id=x,help").unwrap().unwrap();
        assert!(
            iothread.starts_with("iothread options:\n  aio-max-batch=<int>\n  poll-grow=<int>\n")
        );
        assert_eq!(object("iothread,id=help").unwrap(), None);
        assert_eq!(object("{'qom-type':'help'}").unwrap(), None);
        assert_eq!(
            object("help,iothread").unwrap_err().desc,
            "Expected '=' after parameter 'iothread'"
        );
    }

    #[test]
    fn chardevs() {
        let (text, succeeds) = chardev("help").unwrap();
        assert!(text.starts_with("Available chardev backend types: \n  "));
        assert!(text.contains("\n  socket\n") && succeeds);
        let (text, succeeds) = chardev("socket,help").unwrap();
        assert!(text.contains("\n  server=<bool (on/off)>\n") && !succeeds);
        assert_eq!(chardev("socket,id=help"), None);
    }
}
