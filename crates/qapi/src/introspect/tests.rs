use std::collections::BTreeSet;

use super::*;
use crate::command::{NoArguments, QomSet};
use crate::event::Event;
use crate::options::{BlockdevDriver, BlockdevOptions, ExportOptions, ObjectOptions, ObjectType};
use crate::types::{BlockInfo, Empty};

fn schema() -> Vec<SchemaInfo> {
    let mut schema = Schema::default();
    schema
        .command::<BlockdevOptions, Empty>("blockdev-add")
        .unwrap();
    schema
        .command::<ObjectOptions, Empty>("object-add")
        .unwrap();
    schema
        .command::<ExportOptions, Empty>("block-export-add")
        .unwrap();
    schema
        .command::<NoArguments, Vec<BlockInfo>>("query-block")
        .unwrap();
    schema.command::<QomSet, String>("qom-set").unwrap();
    schema.events::<Event>().unwrap();
    schema.infos()
}

fn named<'a>(infos: &'a [SchemaInfo], name: &str) -> &'a SchemaInfoVariant {
    let mut found = infos.iter().filter(|info| info.base.name == name);
    let info = found
        .next()
        .unwrap_or_else(|| panic!("{name} is not there"));
    assert!(found.next().is_none(), "{name} is there twice");
    &info.variant
}

fn arguments<'a>(infos: &'a [SchemaInfo], command: &str) -> &'a SchemaInfoObject {
    match named(infos, command) {
        SchemaInfoVariant::Command(it) => object(infos, &it.arg_type),
        other => panic!("{other:?}"),
    }
}

fn object<'a>(infos: &'a [SchemaInfo], name: &str) -> &'a SchemaInfoObject {
    match named(infos, name) {
        SchemaInfoVariant::Object(it) => it,
        other => panic!("{name}: {other:?}"),
    }
}

fn cases(object: &SchemaInfoObject) -> Vec<&str> {
    let variants = object.variants.as_ref().unwrap();
    variants
        .iter()
        .map(|variant| variant.case.as_str())
        .collect()
}

/// With two members that lead to nodes again, recording never came to the second one: it overflowed its stack.
#[test]
fn a_type_may_lead_to_itself_by_several_members() {
    let infos = schema();
    let all = arguments(&infos, "blockdev-add");
    let variants = all.variants.as_ref().unwrap();
    let qcow2 = variants.iter().find(|one| one.case == "qcow2").unwrap();
    let qcow2 = object(&infos, &qcow2.r#type);
    let member = |name: &str| qcow2.members.iter().find(|one| one.name == name).unwrap();
    for (name, count) in [("file", 2), ("backing", 3), ("overlap-check", 2)] {
        match named(&infos, &member(name).r#type) {
            SchemaInfoVariant::Alternate(it) => assert_eq!(it.members.len(), count, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn unions_have_all_their_cases() {
    let infos = schema();
    let blockdev = arguments(&infos, "blockdev-add");
    assert_eq!(blockdev.tag.as_deref(), Some("driver"));
    assert_eq!(
        cases(blockdev),
        BlockdevDriver::ALL.map(BlockdevDriver::name)
    );
    let added = arguments(&infos, "object-add");
    assert_eq!(added.tag.as_deref(), Some("qom-type"));
    assert_eq!(cases(added), ObjectType::ALL.map(ObjectType::name));
    let variants = blockdev.variants.as_ref().unwrap();
    let quota = variants.iter().find(|it| it.case == "quota").unwrap();
    let quota = object(&infos, &quota.r#type);
    let names: Vec<_> = quota.members.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["file", "limit"]);
    // A node in a node: the same type again, or the name of one.
    let SchemaInfoVariant::Alternate(file) = named(&infos, &quota.members[0].r#type) else {
        panic!("{quota:?}");
    };
    let file: BTreeSet<_> = file.members.iter().map(|it| it.r#type.as_str()).collect();
    let SchemaInfoVariant::Command(command) = named(&infos, "blockdev-add") else {
        panic!("it is a command");
    };
    assert_eq!(file, ["str", &command.arg_type].into());
}

#[test]
fn members_are_optional_or_not() {
    let infos = schema();
    let blockdev = arguments(&infos, "blockdev-add");
    let member = |name: &str| blockdev.members.iter().find(|it| it.name == name).unwrap();
    assert_eq!(member("driver").default, None);
    assert_eq!(member("node-name").default, Some(Value::Null));
    assert_eq!(member("node-name").r#type, "str");
    assert_eq!(member("read-only").r#type, "bool");
    let value = arguments(&infos, "qom-set").members.last().unwrap();
    assert_eq!(
        (value.name.as_str(), value.r#type.as_str()),
        ("value", "any")
    );
}

#[test]
fn commands_and_events_without_content_have_the_empty_object() {
    let infos = schema();
    let SchemaInfoVariant::Command(query) = named(&infos, "query-block") else {
        panic!("it is a command");
    };
    assert_eq!(query.arg_type, EMPTY);
    assert!(query.ret_type.starts_with('['), "{query:?}");
    for (name, has_data) in [("STOP", false), ("RESUME", false), ("BLOCK_IO_ERROR", true)] {
        let SchemaInfoVariant::Event(event) = named(&infos, name) else {
            panic!("it is an event");
        };
        assert_eq!(event.arg_type != EMPTY, has_data, "{name}");
    }
    let events = infos.iter().filter(|it| it.kind().name() == "event");
    let events: Vec<_> = events.map(|it| it.base.name.as_str()).collect();
    assert_eq!(events, Event::NAMES);
}
