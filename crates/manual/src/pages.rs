//! Manual pages: of each program and its subcommands, and `standfastd-qmp(7)`.

use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use qapi::options::CHARDEV_PARAMETERS;
use qapi::qom;
use roff::{Roff, bold, italic, roman};

use crate::made::Made;
use crate::programs::{self, Program};
use crate::schema::{Entity, Member, Schema, Shape};

/// What every page says on top.
const MANUAL: &str = "Standfast";

/// All pages.
///
/// # Errors
/// If a type has no schema, or a page is not text: bugs, both.
pub fn all() -> Result<Vec<Made>> {
    let schema = Schema::new()?;
    let mut files = vec![qmp(&schema)?];
    for program in programs::all() {
        let Program {
            command,
            section,
            see_also,
        } = program;
        let extra = match command.get_name() == daemon::PROGRAM {
            true => daemon_sections(&schema)?,
            false => Roff::new(),
        };
        // Subcommands get the names by which they are called, and `help` is nobody's page.
        let mut command = command.disable_help_subcommand(true);
        command.build();
        add(&mut files, &command, section, &extra, see_also)?;
    }
    Ok(files)
}

/// Adds the page of a command, and those of its subcommands.
fn add(
    files: &mut Vec<Made>,
    command: &Command,
    section: &str,
    extra: &Roff,
    see_also: &[&str],
) -> Result<()> {
    files.push(page(command, section, extra, see_also)?);
    let parent = format!("{}({section})", full_name(command));
    for subcommand in command.get_subcommands() {
        add(files, subcommand, section, &Roff::new(), &[parent.as_str()])?;
    }
    Ok(())
}

/// Its name, with those of the commands that it is in.
fn full_name(command: &Command) -> &str {
    (command.get_display_name()).unwrap_or_else(|| command.get_name())
}

fn file(name: &str, section: &str, text: Vec<u8>) -> Result<Made> {
    Ok(Made {
        path: format!("man/man{section}/{name}.{section}").into(),
        text: String::from_utf8(text).with_context(|| format!("the page {name} is no text"))?,
    })
}

fn page(command: &Command, section: &str, extra: &Roff, see_also: &[&str]) -> Result<Made> {
    let name = full_name(command).to_owned();
    let man = Man::new(command.clone());
    let mut text = title(&name, section).into_bytes();
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        let mut options = Vec::new();
        man.render_options_section(&mut options)?;
        let options = String::from_utf8_lossy(&options);
        // Before the values that an option may have: a blank line with breaks around it, which readers complain of.
        text.extend_from_slice(options.replace(".br\n\n.br\n", ".sp\n").as_bytes());
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut last = Roff::new();
    if let Some(said) = command.get_after_help() {
        last.extend([said_after(&said.to_string())]);
    }
    last.extend([pages(see_also)]);
    text.extend_from_slice(extra.render().as_bytes());
    text.extend_from_slice(last.render().as_bytes());
    file(&name, section, text)
}

/// The first line: without a date, so that a build gives the same twice. What writes roff drops what is empty.
fn title(name: &str, section: &str) -> String {
    let (name, version) = (name.to_uppercase(), env!("CARGO_PKG_VERSION"));
    format!(".TH {name} {section} \"\" \"standfast {version}\" {MANUAL}\n")
}

/// What a help says at its end: headings (`Examples:`), text, what is shown as it is (indented by four), and
/// names with what they are (indented by two, with two spaces between).
fn said_after(text: &str) -> Roff {
    let mut roff = Roff::new();
    // Whether there is a heading; whether something stands below it; whether that is shown as it is.
    let (mut is_headed, mut is_begun, mut is_shown) = (false, false, false);
    // Whether a shell would go on with the next line.
    let mut goes_on = false;
    for line in text.lines() {
        let shown = line
            .strip_prefix("    ")
            .or_else(|| goes_on.then_some(line));
        goes_on = shown.is_some_and(|shown| shown.ends_with('\\'));
        if is_shown && shown.is_none() && !line.is_empty() {
            roff.control("fi", []).control("RE", []);
            is_shown = false;
        }
        if let Some(shown) = shown {
            if !is_shown {
                roff.control("RS", ["4"]).control("nf", []);
                is_shown = true;
            }
            roff.text([roman(shown)]);
        } else if let Some(heading) = line.strip_suffix(':').filter(|it| is_heading(it)) {
            roff.control("SH", [heading.to_uppercase().as_str()]);
            (is_headed, is_begun) = (true, false);
        } else if !line.is_empty() {
            if !is_headed {
                roff.control("SH", ["NOTES"]);
                is_headed = true;
            }
            let line = line.trim_start();
            match line.split_once("  ") {
                Some((name, what)) => {
                    roff.control("TP", []);
                    roff.text([bold(name)]);
                    roff.text([roman(what.trim_start())]);
                }
                None => {
                    if is_begun {
                        roff.control("PP", []);
                    }
                    roff.text([roman(line)]);
                }
            }
            is_begun = true;
        }
    }
    if is_shown {
        roff.control("fi", []).control("RE", []);
    }
    roff
}

fn is_heading(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase()) && !text.contains(' ')
}

fn pages(names: &[&str]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(names.join(", "))]);
    roff
}

/// What the options of the daemon take.
fn daemon_sections(schema: &Schema) -> Result<Roff> {
    let mut roff = Roff::new();
    for (title, option, command) in [
        ("NODES", "--blockdev", "blockdev-add"),
        ("EXPORTS", "--export", "block-export-add"),
    ] {
        roff.control("SH", [title]);
        roff.text([
            roman("What "),
            bold(option),
            roman(" takes, and "),
            bold(command),
            roman(" over QMP. What may be left out is in brackets."),
        ]);
        shape(&mut roff, &schema.command(command)?);
    }
    roff.control("SH", ["OBJECTS"]);
    roff.text([
        roman("What "),
        bold("--object"),
        roman(" takes beside "),
        bold("id"),
        roman(", and "),
        bold("object-add"),
        roman(" over QMP."),
    ]);
    let mut types: Vec<_> = (qom::list_types(Some("user-creatable"), false).into_iter())
        .map(|known| known.name)
        .collect();
    types.sort();
    for name in types {
        roff.control("SS", [name.as_str()]);
        let properties =
            qom::list_properties(&name).map_err(|error| anyhow::anyhow!(error.desc))?;
        for property in properties.iter().filter(|it| it.name != "type") {
            roff.control("TP", []);
            roff.text([bold(&*property.name)]);
            roff.text([roman(&*property.r#type)]);
        }
    }
    roff.control("SH", ["CHARACTER DEVICES"]);
    roff.text([
        roman("What "),
        bold("--chardev"),
        roman(" takes beside "),
        bold("id"),
        roman("; each backend looks at what concerns it. "),
        bold("chardev-add"),
        roman(" over QMP: see standfastd-qmp(7)."),
    ]);
    for (name, kind) in CHARDEV_PARAMETERS {
        roff.control("TP", []);
        roff.text([bold(*name)]);
        roff.text([roman(kind.name())]);
    }
    Ok(roff)
}

fn shape(roff: &mut Roff, shape: &Shape) {
    members(roff, &shape.members);
    let tag = shape.tag.as_deref().unwrap_or_default();
    for case in shape.cases.iter().filter(|case| !case.members.is_empty()) {
        roff.control("SS", [format!("{tag}={}", case.value).as_str()]);
        members(roff, &case.members);
    }
}

fn members(roff: &mut Roff, members: &[Member]) {
    for member in members {
        roff.control("TP", []);
        roff.text(match member.is_optional {
            true => vec![roman("["), bold(&*member.name), roman("]")],
            false => vec![bold(&*member.name)],
        });
        roff.text([roman(&*member.kind)]);
    }
}

/// `standfastd-qmp(7)`: all commands and events.
fn qmp(schema: &Schema) -> Result<Made> {
    const NAME: &str = "standfastd-qmp";
    const SECTION: &str = "7";
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!(
        "{NAME} - commands and events of standfastd's monitor"
    ))]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        roman("Commands, arguments, results, errors and events of the machine protocol that "),
        bold("standfastd --monitor"),
        roman(
            " speaks are QEMU's; those that begin with x- are ours. What may be left out is in brackets. ",
        ),
        bold("standfast qmp"),
        roman(" says one command."),
    ]);
    for (title, entities) in [
        ("COMMANDS", schema.commands()?),
        ("EVENTS", schema.events()?),
    ] {
        roff.control("SH", [title]);
        for entity in entities {
            tell(&mut roff, &entity);
        }
    }
    roff.extend([pages(&["standfastd(8)", "standfast-qmp(1)"])]);
    let text = title(NAME, SECTION) + &roff.render();
    file(NAME, SECTION, text.into_bytes())
}

fn tell(roff: &mut Roff, entity: &Entity) {
    roff.control("SS", [entity.name.as_str()]);
    shape(roff, &entity.data);
    if let Some(result) = entity.returns.as_deref().filter(|result| *result != "{}") {
        // A heading is the beginning of a paragraph.
        if !entity.data.members.is_empty() {
            roff.control("PP", []);
        }
        roff.text([roman("Returns "), italic(result)]);
    }
}
