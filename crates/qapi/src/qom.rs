//! The types of objects, and their properties: what `qom-list-types` and `qom-list-properties` say.

use crate::types::{ObjectPropertyInfo, ObjectTypeInfo};
use crate::{QmpError, Value};

/// A type of objects.
#[derive(Debug)]
pub struct Type {
    /// Its name.
    pub name: &'static str,
    /// What it is a kind of.
    parent: Option<&'static str>,
    /// Whether there are no objects of it.
    is_abstract: bool,
    /// Whether `object-add` makes them.
    is_user_creatable: bool,
    /// All it has but `type`.
    properties: &'static [Property],
}

/// A property of a type.
#[derive(Debug)]
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    kind: &'static str,
    /// What it is if nobody has said anything.
    default: Default,
}

/// What a property is from the beginning.
#[derive(Debug)]
enum Default {
    Integer(i64),
    Text(&'static str),
    /// What it is depends on something else.
    None,
}

const fn integer(name: &'static str, default: i64) -> Property {
    Property {
        name,
        kind: "int",
        default: Default::Integer(default),
    }
}

const fn text(name: &'static str, kind: &'static str, default: &'static str) -> Property {
    Property {
        name,
        kind,
        default: Default::Text(default),
    }
}

const fn other(name: &'static str, kind: &'static str) -> Property {
    Property {
        name,
        kind,
        default: Default::None,
    }
}

const EVENT_LOOP: [Property; 3] = [
    integer("thread-pool-min", 0),
    integer("aio-max-batch", 0),
    integer("thread-pool-max", 64),
];

/// How all types of character devices are called: this, and the name of the backend.
const CHARDEV: &str = "chardev-";

const VMM_SOCKET: &[Property] = &[text("path", "string", "")];

const fn abstract_type(name: &'static str, parent: &'static str) -> Type {
    Type {
        name,
        parent: Some(parent),
        is_abstract: true,
        is_user_creatable: false,
        properties: &[],
    }
}

/// There are objects of it, but `object-add` does not make them.
const fn concrete(
    name: &'static str,
    parent: &'static str,
    properties: &'static [Property],
) -> Type {
    Type {
        name,
        parent: Some(parent),
        is_abstract: false,
        is_user_creatable: false,
        properties,
    }
}

const fn user_creatable(
    name: &'static str,
    parent: &'static str,
    properties: &'static [Property],
) -> Type {
    Type {
        name,
        parent: Some(parent),
        is_abstract: false,
        is_user_creatable: true,
        properties,
    }
}

/// The interface of all that `object-add` makes.
const USER_CREATABLE: &str = "user-creatable";

/// What is in the tree and holds others.
pub const CONTAINER: &str = "container";

/// All types there are, as far as QMP tells of them.
static TYPES: &[Type] = &[
    concrete(CONTAINER, "object", &[]),
    abstract_type("chardev", "object"),
    abstract_type("chardev-fd", "chardev"),
    concrete("chardev-file", "chardev-fd", &[]),
    concrete("chardev-memory", "chardev-ringbuf", &[]),
    concrete("chardev-null", "chardev", &[]),
    concrete("chardev-pty", "chardev", &[]),
    concrete("chardev-ringbuf", "chardev", &[]),
    concrete(
        "chardev-socket",
        "chardev",
        &[other("connected", "bool"), other("addr", "SocketAddress")],
    ),
    concrete("chardev-stdio", "chardev-fd", &[]),
    Type {
        name: "object",
        parent: None,
        is_abstract: true,
        is_user_creatable: false,
        properties: &[],
    },
    Type {
        properties: &EVENT_LOOP,
        ..abstract_type("event-loop-base", "object")
    },
    user_creatable(
        "iothread",
        "event-loop-base",
        &[
            integer("thread-pool-min", 0),
            integer("aio-max-batch", 0),
            integer("thread-pool-max", 64),
            integer("poll-max-ns", 32768),
            integer("poll-grow", 0),
            integer("poll-shrink", 0),
        ],
    ),
    abstract_type("secret_common", "object"),
    user_creatable(
        "secret",
        "secret_common",
        &[
            text("iv", "string", ""),
            text("keyid", "string", ""),
            text("format", "QCryptoSecretFormat", "raw"),
            text("file", "string", ""),
            text("data", "string", ""),
        ],
    ),
    user_creatable(
        "throttle-group",
        "object",
        &[
            other("limits", "ThrottleLimits"),
            integer("x-bps-total", 0),
            integer("x-bps-total-max", 0),
            integer("x-bps-total-max-length", 1),
            integer("x-bps-read", 0),
            integer("x-bps-read-max", 0),
            integer("x-bps-read-max-length", 1),
            integer("x-bps-write", 0),
            integer("x-bps-write-max", 0),
            integer("x-bps-write-max-length", 1),
            integer("x-iops-total", 0),
            integer("x-iops-total-max", 0),
            integer("x-iops-total-max-length", 1),
            integer("x-iops-read", 0),
            integer("x-iops-read-max", 0),
            integer("x-iops-read-max-length", 1),
            integer("x-iops-write", 0),
            integer("x-iops-write-max", 0),
            integer("x-iops-write-max-length", 1),
            integer("x-iops-size", 0),
        ],
    ),
    user_creatable("vmm-qemu", "object", VMM_SOCKET),
    user_creatable("vmm-cloud-hypervisor", "object", VMM_SOCKET),
    user_creatable("vmm-firecracker", "object", VMM_SOCKET),
    user_creatable(
        "vmm-command",
        "object",
        &[
            other("pause", "VmmArgv"),
            other("resume", "VmmArgv"),
            text("state", "VmmArgv", ""),
        ],
    ),
    abstract_type(USER_CREATABLE, "interface"),
];

impl Type {
    /// The type of that name.
    pub fn by_name(name: &str) -> Option<&'static Type> {
        TYPES.iter().find(|known| known.name == name)
    }

    /// The type of the character devices with that backend.
    pub fn of_chardev(backend: &str) -> Option<&'static Type> {
        let is_it = |known: &&Type| known.name.strip_prefix(CHARDEV) == Some(backend);
        TYPES.iter().find(is_it)
    }

    /// Its property of that name; `type` is none of them.
    pub fn property(&self, name: &str) -> Option<&'static Property> {
        self.properties.iter().find(|known| known.name == name)
    }

    /// What `qom-list-properties` says, and `qom-list` of an object of this type.
    pub fn describe(&self) -> Vec<ObjectPropertyInfo> {
        let own = self.properties.iter().map(|it| property(it.name, it.kind));
        [property("type", "string")]
            .into_iter()
            .chain(own)
            .collect()
    }

    fn is(&self, name: &str) -> bool {
        let parent = self.parent.and_then(Type::by_name);
        self.name == name
            || (self.is_user_creatable && name == USER_CREATABLE)
            || parent.is_some_and(|parent| parent.is(name))
    }
}

impl Property {
    /// What it is if nobody has said anything.
    pub fn default_value(&self) -> Value {
        match self.default {
            Default::Integer(value) => value.into(),
            Default::Text(value) => value.into(),
            Default::None => Value::Null,
        }
    }
}

/// How a property is described.
pub fn property(name: &str, kind: &str) -> ObjectPropertyInfo {
    ObjectPropertyInfo {
        name: name.to_owned(),
        r#type: kind.to_owned(),
        description: None,
    }
}

/// `qom-list-types`.
pub fn list_types(implements: Option<&str>, with_abstract: bool) -> Vec<ObjectTypeInfo> {
    let wanted = |known: &&Type| {
        (with_abstract || !known.is_abstract) && implements.is_none_or(|name| known.is(name))
    };
    let types = TYPES.iter().filter(wanted);
    types
        .map(|known| ObjectTypeInfo {
            name: known.name.to_owned(),
            r#abstract: known.is_abstract.then_some(true),
            parent: known.parent.map(str::to_owned),
        })
        .collect()
}

/// `qom-list-properties`.
///
/// # Errors
/// If there is no such type.
pub fn list_properties(name: &str) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
    if name == USER_CREATABLE {
        let desc = "Parameter 'typename' expects a QOM type";
        return Err(QmpError::generic(desc));
    }
    let known = Type::by_name(name);
    let known =
        known.ok_or_else(|| QmpError::device_not_found(format!("Class '{name}' not found")))?;
    Ok(known.describe())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{CHARDEV_BACKENDS, ObjectType};

    fn names(implements: Option<&str>, with_abstract: bool) -> Vec<String> {
        let types = list_types(implements, with_abstract);
        types.into_iter().map(|known| known.name).collect()
    }

    #[test]
    fn types_are_kinds_of_others() {
        assert_eq!(names(Some("iothread"), false), ["iothread"]);
        assert_eq!(names(Some("event-loop-base"), false), ["iothread"]);
        assert_eq!(
            names(Some("event-loop-base"), true),
            ["event-loop-base", "iothread"]
        );
        assert_eq!(names(Some("nosuch"), true), Vec::<String>::new());
        assert!(names(None, false).contains(&CONTAINER.to_owned()));
        assert!(!names(Some(USER_CREATABLE), false).contains(&CONTAINER.to_owned()));
        assert!(names(Some(USER_CREATABLE), true).contains(&USER_CREATABLE.to_owned()));
    }

    /// A type that `object-add` takes has to be here, with all of its properties.
    #[test]
    fn whatever_can_be_added_is_described() {
        for name in ObjectType::ALL.map(ObjectType::name) {
            let known = Type::by_name(name).unwrap_or_else(|| panic!("{name} is not described"));
            assert!(known.is_user_creatable, "{name}");
            assert_eq!(
                list_properties(name).unwrap()[0],
                property("type", "string")
            );
        }
    }

    #[test]
    fn whatever_chardev_add_takes_has_a_type() {
        for name in CHARDEV_BACKENDS {
            let known = Type::of_chardev(name).unwrap_or_else(|| panic!("{name} is not described"));
            assert!(known.is("chardev") && !known.is_abstract && !known.is_user_creatable);
        }
        assert!(Type::of_chardev("nosuch").is_none());
    }

    #[test]
    fn unknown_types_are_refused() {
        let error = list_properties("nosuch").unwrap_err();
        assert_eq!(
            error,
            QmpError::device_not_found("Class 'nosuch' not found")
        );
        let error = list_properties("user-creatable").unwrap_err();
        assert_eq!(error.desc, "Parameter 'typename' expects a QOM type");
    }
}
