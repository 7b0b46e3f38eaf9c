//! What commands and events are made of, for `query-qmp-schema`: the very types that parse and are sent,
//! walked by a deserializer that records what they ask for. Nothing is written down twice, so that nothing
//! can differ.
//!
//! Types have numbers for names, as with QEMU: what they are called is no interface.

mod record;
mod registry;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use serde::de::DeserializeOwned;

use self::record::record;
use self::registry::{Case, Kind, Ref, Registry};
use crate::de::DeError;
use crate::types::{
    JsonType, SchemaInfo, SchemaInfoAlternate, SchemaInfoAlternateMember, SchemaInfoArray,
    SchemaInfoBase, SchemaInfoBuiltin, SchemaInfoCommand, SchemaInfoEnum, SchemaInfoEnumMember,
    SchemaInfoEvent, SchemaInfoObject, SchemaInfoObjectMember, SchemaInfoObjectVariant,
    SchemaInfoVariant,
};
use crate::{QmpError, Value};

/// The name of the object without members.
const EMPTY: &str = "0";

const BUILTINS: [(&str, JsonType); 6] = [
    ("str", JsonType::String),
    ("any", JsonType::Value),
    ("bool", JsonType::Boolean),
    ("int", JsonType::Int),
    ("null", JsonType::Null),
    ("number", JsonType::Number),
];

/// A schema that is being put together.
#[derive(Debug, Default)]
pub struct Schema {
    registry: RefCell<Registry>,
    commands: Vec<(&'static str, Ref, Ref)>,
    events: Vec<(&'static str, Option<Ref>)>,
}

fn wrong(what: &str, error: &DeError) -> QmpError {
    QmpError::generic(format!("Internal error: {what} has no schema: {error}"))
}

impl Schema {
    /// Adds a command that takes `A` and returns `R`.
    ///
    /// # Errors
    /// If they are none of QAPI's constructions.
    pub fn command<A: DeserializeOwned, R: DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Result<(), QmpError> {
        let of_command = |error: DeError| wrong(name, &error);
        let arguments = record::<A>(&self.registry).map_err(of_command)?;
        let result = record::<R>(&self.registry).map_err(of_command)?;
        self.commands.push((name, arguments, result));
        Ok(())
    }

    /// Adds all events of `E`, an enum with the members `event` and `data`.
    ///
    /// # Errors
    /// If they are none of QAPI's constructions.
    pub fn events<E: DeserializeOwned>(&mut self) -> Result<(), QmpError> {
        let events = record::<E>(&self.registry).map_err(|error| wrong("an event", &error))?;
        let registry = self.registry.borrow();
        let Ref::Type(at) = events else { return Ok(()) };
        if let Some(Kind::Object { cases, .. }) = registry.kind(at) {
            // The content is an object with the member `data`.
            let data = |case: &Case| Some(registry.members(case.content?).first()?.r#type);
            (self.events).extend(cases.iter().map(|case| (case.name, data(case))));
        }
        Ok(())
    }

    /// What `query-qmp-schema` says: commands, events, and the types they are made of.
    pub fn infos(&self) -> Vec<SchemaInfo> {
        let registry = self.registry.borrow();
        let mut names = Names {
            registry: &registry,
            numbers: HashMap::new(),
            waiting: VecDeque::new(),
        };
        let mut infos = Vec::new();
        for (name, arguments, result) in &self.commands {
            let command = SchemaInfoCommand {
                arg_type: names.of(*arguments),
                ret_type: names.of(*result),
                allow_oob: None,
            };
            infos.push(info(name, SchemaInfoVariant::Command(command)));
        }
        for (name, data) in &self.events {
            let arg_type = data.map_or_else(|| EMPTY.to_owned(), |data| names.of(data));
            let event = SchemaInfoVariant::Event(SchemaInfoEvent { arg_type });
            infos.push(info(name, event));
        }
        let empty = SchemaInfoObject::default();
        infos.push(info(EMPTY, SchemaInfoVariant::Object(empty)));
        while let Some(at) = names.waiting.pop_front() {
            let name = names.of(Ref::Type(at));
            if let Some(kind) = registry.kind(at) {
                infos.push(info(&name, names.describe(kind)));
            }
        }
        infos.extend(BUILTINS.map(|(name, json_type)| {
            let builtin = SchemaInfoBuiltin { json_type };
            info(name, SchemaInfoVariant::Builtin(builtin))
        }));
        infos
    }
}

fn info(name: &str, variant: SchemaInfoVariant) -> SchemaInfo {
    let name = name.to_owned();
    SchemaInfo {
        base: SchemaInfoBase { name },
        variant,
    }
}

/// The names of types, given when they are first needed.
struct Names<'a> {
    registry: &'a Registry,
    numbers: HashMap<usize, usize>,
    /// Those that have a name and are not described yet.
    waiting: VecDeque<usize>,
}

impl Names<'_> {
    fn of(&mut self, r#type: Ref) -> String {
        let at = match r#type {
            Ref::Builtin(name) => return name.to_owned(),
            Ref::Type(at) => at,
        };
        let is_new = !self.numbers.contains_key(&at);
        match self.registry.kind(at) {
            Some(Kind::Object { members, cases, .. }) if members.is_empty() && cases.is_empty() => {
                return EMPTY.to_owned();
            }
            Some(Kind::Array(element)) => {
                if is_new {
                    self.numbers.insert(at, 0);
                    self.waiting.push_back(at);
                }
                return format!("[{}]", self.of(*element));
            }
            _ => {}
        }
        // Lists have no number of their own.
        let number = 1 + self.numbers.values().max().copied().unwrap_or(0);
        if is_new {
            self.waiting.push_back(at);
        }
        self.numbers.entry(at).or_insert(number).to_string()
    }

    fn describe(&mut self, kind: &Kind) -> SchemaInfoVariant {
        match kind {
            Kind::Enum(values) => {
                let values: Vec<_> = values.iter().map(|&value| value.to_owned()).collect();
                let members = values.iter().cloned();
                SchemaInfoVariant::Enum(SchemaInfoEnum {
                    members: members.map(|name| SchemaInfoEnumMember { name }).collect(),
                    values,
                })
            }
            Kind::Array(element) => SchemaInfoVariant::Array(SchemaInfoArray {
                element_type: self.of(*element),
            }),
            Kind::Alternate(cases) => {
                // What has no content is null.
                let content = cases
                    .iter()
                    .map(|case| case.content.unwrap_or(Ref::Builtin("null")));
                let members = content.map(|content| SchemaInfoAlternateMember {
                    r#type: self.of(content),
                });
                let members = members.collect();
                SchemaInfoVariant::Alternate(SchemaInfoAlternate { members })
            }
            Kind::Object {
                members,
                tag,
                cases,
            } => {
                // Without a name of its own the discriminator is the first member.
                let first = members.first().map(|member| member.name);
                let tag = tag.or(first.filter(|_| !cases.is_empty()));
                let members = members.iter().map(|member| SchemaInfoObjectMember {
                    name: member.name.to_owned(),
                    default: member.is_optional.then_some(Value::Null),
                    r#type: self.of(member.r#type),
                });
                let members = members.collect();
                let variants = tag.map(|_| {
                    let cases = cases.iter().map(|case| SchemaInfoObjectVariant {
                        case: case.name.to_owned(),
                        r#type: case
                            .content
                            .map_or_else(|| EMPTY.to_owned(), |content| self.of(content)),
                    });
                    cases.collect()
                });
                SchemaInfoVariant::Object(SchemaInfoObject {
                    members,
                    tag: tag.map(str::to_owned),
                    variants,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests;
