//! Result of `query-qmp-schema`.

use crate::Value;
use crate::de::flat_union;
use serde::{Deserialize, Serialize};

flat_union! {
    /// Element of the result of `query-qmp-schema`: a command, an event, or a type.
    pub struct SchemaInfo { tag: "@meta-type", base: SchemaInfoBase }

    /// Kinds of them.
    pub enum SchemaMetaType;

    /// What there is to say of a kind.
    pub enum SchemaInfoVariant {
        /// A type without parts.
        Builtin("builtin", SchemaInfoBuiltin),
        /// One of several names.
        Enum("enum", SchemaInfoEnum),
        /// A list.
        Array("array", SchemaInfoArray),
        /// An object, some of whose members may depend on the value of another one.
        Object("object", SchemaInfoObject),
        /// One of several types, which can be told apart.
        Alternate("alternate", SchemaInfoAlternate),
        /// A command.
        Command("command", SchemaInfoCommand),
        /// An event.
        Event("event", SchemaInfoEvent),
    }
}

/// What all of them have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaInfoBase {
    /// The name of a command or event. That of a type is arbitrary.
    pub name: String,
}

/// Types of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JsonType {
    /// A string.
    String,
    /// A number.
    Number,
    /// A number without a fraction.
    Int,
    /// True or false.
    Boolean,
    /// Null.
    Null,
    /// An object.
    Object,
    /// An array.
    Array,
    /// Any of them.
    Value,
}

/// A type without parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SchemaInfoBuiltin {
    /// How it is written.
    pub json_type: JsonType,
}

/// One of several names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaInfoEnum {
    /// The names.
    pub members: Vec<SchemaInfoEnumMember>,
    /// The same, for old clients.
    pub values: Vec<String>,
}

/// A name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaInfoEnumMember {
    /// The name.
    pub name: String,
}

/// A list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SchemaInfoArray {
    /// The name of the type of its elements.
    pub element_type: String,
}

/// An object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SchemaInfoObject {
    /// The members that it always may have.
    pub members: Vec<SchemaInfoObjectMember>,
    /// The name of the member on which the variant depends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// What the values of that member mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variants: Option<Vec<SchemaInfoObjectVariant>>,
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchemaInfoObjectMember {
    /// Its name.
    pub name: String,
    /// There if it may be left out: null, since the default is not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// The name of its type.
    pub r#type: String,
}

/// What a value of the member `tag` means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaInfoObjectVariant {
    /// The value.
    pub case: String,
    /// The name of the object type whose members there are then, too.
    pub r#type: String,
}

/// One of several types.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaInfoAlternate {
    /// The types.
    pub members: Vec<SchemaInfoAlternateMember>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaInfoAlternateMember {
    /// The name of the type.
    pub r#type: String,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SchemaInfoCommand {
    /// The name of the object type of its arguments.
    pub arg_type: String,
    /// The name of the type of its result.
    pub ret_type: String,
    /// Whether it can be sent out of band. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_oob: Option<bool>,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SchemaInfoEvent {
    /// The name of the object type of its data.
    pub arg_type: String,
}
