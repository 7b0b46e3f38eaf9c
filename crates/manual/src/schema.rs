//! What `query-qmp-schema` says, for people: the members of a command's arguments with the kinds of their values,
//! those of nested objects by dotted names, as on the command line.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use qapi::types::{
    SchemaInfo, SchemaInfoObject, SchemaInfoObjectMember, SchemaInfoVariant as Variant,
};

/// How deeply members of members are told.
const DEPTH_MAX: usize = 6;

/// A member, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name; dots where it is in another one.
    pub name: String,
    /// What its value is.
    pub kind: String,
    /// Whether it may be left out.
    pub is_optional: bool,
}

/// The members that there are if one of them has a certain value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// That value.
    pub value: String,
    /// The members.
    pub members: Vec<Member>,
}

/// An object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// What there always is.
    pub members: Vec<Member>,
    /// The member on which the others depend.
    pub tag: Option<String>,
    /// The others.
    pub cases: Vec<Case>,
}

/// A command or an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entity {
    /// Its name.
    pub name: String,
    /// What it takes, or tells.
    pub data: Shape,
    /// What it returns; none of an event.
    pub returns: Option<String>,
}

/// All commands and events.
#[derive(Clone, Debug)]
pub struct Schema {
    types: BTreeMap<String, SchemaInfo>,
    /// Names, in the order in which they are told.
    entities: Vec<String>,
}

impl Schema {
    /// That of the monitor.
    ///
    /// # Errors
    /// If a type has none: a bug.
    pub fn new() -> Result<Self> {
        let infos = monitor::schema().map_err(|error| anyhow::anyhow!(error.desc))?;
        let is_entity =
            |info: &&SchemaInfo| matches!(info.variant, Variant::Command(_) | Variant::Event(_));
        let entities = infos.iter().filter(is_entity);
        Ok(Self {
            entities: entities.map(|info| info.base.name.clone()).collect(),
            types: infos
                .into_iter()
                .map(|info| (info.base.name.clone(), info))
                .collect(),
        })
    }

    /// The commands.
    ///
    /// # Errors
    /// If a type is not there: a bug.
    pub fn commands(&self) -> Result<Vec<Entity>> {
        self.entities(|variant| match variant {
            Variant::Command(command) => Some((&command.arg_type, Some(&command.ret_type))),
            _ => None,
        })
    }

    /// The events.
    ///
    /// # Errors
    /// If a type is not there: a bug.
    pub fn events(&self) -> Result<Vec<Entity>> {
        self.entities(|variant| match variant {
            Variant::Event(event) => Some((&event.arg_type, None)),
            _ => None,
        })
    }

    fn entities(
        &self,
        wanted: impl Fn(&Variant) -> Option<(&String, Option<&String>)>,
    ) -> Result<Vec<Entity>> {
        let mut entities = Vec::new();
        for name in &self.entities {
            let Some((data, result)) = wanted(self.variant(name)?) else {
                continue;
            };
            entities.push(Entity {
                name: name.clone(),
                data: self.shape(data)?,
                returns: result.map(|result| self.result(result)).transpose()?,
            });
        }
        Ok(entities)
    }

    /// What a command takes.
    ///
    /// # Errors
    /// If there is no such command, or a type is not there: bugs, both.
    pub fn command(&self, name: &str) -> Result<Shape> {
        match self.variant(name)? {
            Variant::Command(command) => self.shape(&command.arg_type),
            _ => anyhow::bail!("'{name}' is no command"),
        }
    }

    fn variant(&self, name: &str) -> Result<&Variant> {
        let info = self.types.get(name);
        let info = info.with_context(|| format!("'{name}' is not in the schema"))?;
        Ok(&info.variant)
    }

    fn object(&self, name: &str) -> Result<&SchemaInfoObject> {
        match self.variant(name)? {
            Variant::Object(object) => Ok(object),
            _ => anyhow::bail!("'{name}' is no object"),
        }
    }

    fn shape(&self, name: &str) -> Result<Shape> {
        let object = self.object(name)?;
        let mut shape = Shape {
            members: self.members(object, "", false, &mut vec![name.to_owned()])?,
            tag: object.tag.clone(),
            cases: Vec::new(),
        };
        for variant in object.variants.iter().flatten() {
            let mut inside = vec![name.to_owned(), variant.r#type.clone()];
            let content = self.object(&variant.r#type)?;
            shape.cases.push(Case {
                value: variant.case.clone(),
                members: self.members(content, "", false, &mut inside)?,
            });
        }
        Ok(shape)
    }

    /// The members of an object that is called `prefix`; `inside`: the types that it is in.
    fn members(
        &self,
        object: &SchemaInfoObject,
        prefix: &str,
        is_optional: bool,
        inside: &mut Vec<String>,
    ) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        for SchemaInfoObjectMember {
            name,
            default,
            r#type,
        } in &object.members
        {
            let name = format!("{prefix}{name}");
            let is_optional = is_optional || default.is_some();
            let nested = match self.variant(r#type)? {
                Variant::Object(nested) if !inside.contains(r#type) && inside.len() < DEPTH_MAX => {
                    Some(nested)
                }
                _ => None,
            };
            let Some(nested) = nested else {
                members.push(Member {
                    name,
                    kind: self.kind(r#type)?,
                    is_optional,
                });
                continue;
            };
            inside.push(r#type.clone());
            let prefix = format!("{name}.");
            members.extend(self.members(nested, &prefix, is_optional, inside)?);
            for variant in nested.variants.iter().flatten() {
                let content = self.object(&variant.r#type)?;
                for mut member in self.members(content, &prefix, is_optional, inside)? {
                    let tag = nested.tag.as_deref().unwrap_or_default();
                    member.kind = format!("{} ({tag}={})", member.kind, variant.case);
                    members.push(member);
                }
            }
            inside.pop();
        }
        Ok(members)
    }

    /// What a value of a type is, in a few words.
    fn kind(&self, name: &str) -> Result<String> {
        Ok(match self.variant(name)? {
            Variant::Builtin(_) => match name {
                "str" => "string",
                "int" => "integer",
                "bool" => "boolean",
                other => other,
            }
            .to_owned(),
            Variant::Enum(names) => names.values.join(" | "),
            Variant::Array(array) => format!("list of {}", self.kind(&array.element_type)?),
            Variant::Object(_) => "object".to_owned(),
            Variant::Alternate(alternate) => {
                let kinds = (alternate.members.iter()).map(|member| self.kind(&member.r#type));
                kinds.collect::<Result<Vec<_>>>()?.join(" | ")
            }
            Variant::Command(_) | Variant::Event(_) => anyhow::bail!("'{name}' is no type"),
        })
    }

    /// What a command returns, with the names of its members.
    fn result(&self, name: &str) -> Result<String> {
        Ok(match self.variant(name)? {
            Variant::Array(array) => format!("[{}]", self.result(&array.element_type)?),
            Variant::Object(object) => {
                let variants = object.variants.iter().flatten();
                let mut members: Vec<_> = object.members.iter().map(shown).collect();
                for variant in variants {
                    for member in self.object(&variant.r#type)?.members.iter().map(shown) {
                        if !members.contains(&member) {
                            members.push(member);
                        }
                    }
                }
                format!("{{{}}}", members.join(", "))
            }
            _ => self.kind(name)?,
        })
    }
}

/// A name, marked if it may be missing.
fn shown(member: &SchemaInfoObjectMember) -> String {
    let mark = if member.default.is_some() { "?" } else { "" };
    format!("{}{mark}", member.name)
}

impl Shape {
    /// All in one line, with the names of what is outermost: `{id, mode?}`.
    pub fn in_short(&self) -> String {
        // What is in something that may be left out may be, too.
        let mut outermost: Vec<(&str, bool)> = Vec::new();
        for member in &self.members {
            let name = member.name.split('.').next().unwrap_or_default();
            match outermost.iter_mut().find(|(known, _)| *known == name) {
                Some((_, is_optional)) => *is_optional &= member.is_optional,
                None => outermost.push((name, member.is_optional)),
            }
        }
        let mark = |is_optional| if is_optional { "?" } else { "" };
        let names =
            (outermost.iter()).map(|(name, is_optional)| format!("{name}{}", mark(*is_optional)));
        let mut names: Vec<_> = names.collect();
        if let Some(tag) = &self.tag {
            names.push(format!("more by {tag}"));
        }
        match names.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, kind: &str, is_optional: bool) -> Member {
        Member {
            name: name.to_owned(),
            kind: kind.to_owned(),
            is_optional,
        }
    }

    #[test]
    fn nested_members_have_dotted_names() {
        let schema = Schema::new().unwrap();
        let node = schema.command("blockdev-add").unwrap();
        assert!(
            node.members
                .contains(&member("cache.direct", "boolean", true))
        );
        assert_eq!(node.tag.as_deref(), Some("driver"));
        let raw = node.cases.iter().find(|case| case.value == "raw").unwrap();
        // A node in a node ends there.
        assert!(
            raw.members
                .contains(&member("file", "string | object", false)),
            "{raw:?}"
        );
        let export = schema.command("block-export-add").unwrap();
        let path = export.cases.iter().flat_map(|case| &case.members);
        let path: Vec<_> = path.filter(|member| member.name == "addr.path").collect();
        assert_eq!(path, [&member("addr.path", "string (type=unix)", false)]);
    }

    #[test]
    fn everything_is_there() {
        let schema = Schema::new().unwrap();
        let commands = schema.commands().unwrap();
        let by_name = |name: &str| commands.iter().find(|it| it.name == name).unwrap();
        assert_eq!(by_name("stop").returns.as_deref(), Some("{}"));
        assert_eq!(by_name("stop").data.in_short(), "");
        assert_eq!(by_name("block-export-del").data.in_short(), "{id, mode?}");
        assert_eq!(by_name("chardev-add").data.in_short(), "{id, backend}");
        let events = schema.events().unwrap();
        assert!(events.iter().any(|event| event.name == "BLOCK_IO_ERROR"));
        assert!(events.iter().all(|event| event.returns.is_none()));
    }
}
