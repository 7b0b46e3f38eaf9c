//! A configuration in words.

use std::path::PathBuf;
use std::sync::Arc;

use crate::core::headroom::HeadRoom;
use crate::pattern::Pattern;
use crate::settings::{OnFailed, Program, Selector, Settings, Strategy, ZfsProperty};

use super::file::Config;
use super::units::{human, span};

/// What would happen to each machine, in words; `sockets` are there now.
#[must_use]
pub fn in_words(config: &Config, sockets: &[PathBuf]) -> String {
    let mut lines = Vec::new();
    for section in &config.machines {
        let own = |socket: &&PathBuf| {
            config
                .section(&socket.to_string_lossy())
                .is_some_and(|found| Arc::ptr_eq(found, section))
        };
        let patterns: Vec<_> = section.sockets.iter().map(Pattern::text).collect();
        let name = section.name.as_deref().map(|name| format!("'{name}': "));
        lines.push(format!(
            "Machines {}{}:",
            name.unwrap_or_default(),
            patterns.join(", ")
        ));
        let there: Vec<_> = sockets.iter().filter(own).collect();
        match there.as_slice() {
            [] => lines
                .push("  no such socket is there now; they are watched when they come".to_owned()),
            there => lines.extend(there.iter().map(|socket| format!("  {}", socket.display()))),
        }
        if let Some(vmm) = &section.vmm {
            lines.push(format!(
                "  If it has a link: one VM with {vmm}, which is not continued as long as requests are held here"
            ));
        }
        for (selector, settings) in &section.disks {
            lines.push(format!("  Disks with {}:", of_selector(selector)));
            lines.extend(of_settings(settings));
        }
        let rest = if section.disks.is_empty() {
            "All disks"
        } else {
            "All other disks"
        };
        lines.push(format!("  {rest}:"));
        lines.extend(of_settings(&section.settings));
    }
    lines.extend(of_all(config));
    lines.join("\n") + "\n"
}

fn of_selector(selector: &Selector) -> String {
    let parts = [
        ("node", &selector.node),
        ("qdev", &selector.qdev),
        ("file", &selector.file),
    ];
    let parts = parts
        .into_iter()
        .filter_map(|(name, pattern)| Some(format!("{name} {}", pattern.as_ref()?.text())));
    parts.collect::<Vec<_>>().join(" and ")
}

fn of_program(program: &Program) -> String {
    format!(
        "{} (killed after {})",
        program.argv.join(" "),
        span(program.time_limit)
    )
}

/// What else must be so.
fn note(strategy: &Strategy) -> Option<&'static str> {
    match strategy {
        Strategy::Lvm(_) => Some(
            "a thin volume: its pool should fail at once when it is full (lvchange --errorwhenfull y), or nothing is heard of it for 60 s",
        ),
        Strategy::Zfs(zfs) if zfs.property != ZfsProperty::Volsize => Some(
            "QEMU's own disks need werror=stop: with werror=enospc QEMU tells its guest of an exceeded quota (EDQUOT)",
        ),
        _ => None,
    }
}

fn of_head_room(head_room: HeadRoom) -> String {
    let HeadRoom { min, max, safety } = head_room;
    if min == max {
        return format!(
            "before that: the same as soon as less than {} are free",
            human(min)
        );
    }
    format!(
        "before that: the same as soon as less is free than {}.{:02} times what is written during an extension, {} at least, {} at most",
        safety / 100,
        safety % 100,
        human(min),
        human(max)
    )
}

fn of_settings(settings: &Settings) -> Vec<String> {
    let Settings {
        step,
        enough,
        reserve,
        ..
    } = settings;
    let go_on = format!(
        "then the machine is continued; {} free are enough, without anything else",
        human(*enough)
    );
    let upto = match settings.cap {
        Some(cap) => format!(", up to {}", human(cap)),
        None => ", as long as the disk can use it".to_owned(),
    };
    let mut lines = vec![match &settings.strategy {
        Strategy::Leave => "no space: you are told, nothing is done".to_owned(),
        Strategy::Wait => format!(
            "no space: looks every {} whether somebody else has made room; {go_on}",
            span(settings.poll)
        ),
        Strategy::Command(program) => format!(
            "no space: runs {} for {} more{upto}; if the storage has grown, {go_on}",
            of_program(program),
            human(*step)
        ),
        Strategy::Quota(node) => format!(
            "no space: raises the quota of {} by {}{upto}, as long as {} stay free in the file system below; {go_on}",
            node.as_deref()
                .map_or_else(|| "its node".to_owned(), |node| format!("node '{node}'")),
            human(*step),
            human(*reserve)
        ),
        Strategy::Lvm(lvm) => format!(
            "no space: extends the logical volume, or the pool of a thin one, by {}{upto}, as long as {} stay free in the volume group, {}; {go_on}",
            human(*step),
            human(*reserve),
            match lvm.sole_writer {
                true => "which no other host changes (sole-writer)",
                false => "which must be locked among hosts (lvmlockd)",
            }
        ),
        Strategy::Zfs(zfs) => format!(
            "no space: raises {} of {} by {}{upto}, as long as {} stay free in the pool; {go_on}",
            zfs.property.name(),
            zfs.dataset.as_deref().unwrap_or("its dataset"),
            human(*step),
            human(*reserve)
        ),
    }];
    lines.extend(note(&settings.strategy).map(str::to_owned));
    lines.extend(settings.early.map(of_head_room));
    lines.push(match &settings.on_failed {
        OnFailed::Leave => "other failures: you are told, nothing is done".to_owned(),
        OnFailed::WhenHealthy(program) => format!(
            "other failures: the machine is continued when {} succeeds",
            of_program(program)
        ),
        OnFailed::After(delay) => format!(
            "other failures: the machine is continued after {}, if its storage can be looked at",
            span(*delay)
        ),
    });
    if settings.strategy != Strategy::Leave || settings.on_failed != OnFailed::Leave {
        lines.push(format!(
            "what does not help is tried again after {}, then ever later, up to {}; given up after {} attempts",
            span(settings.backoff.first),
            span(settings.backoff.max),
            settings.give_up_after
        ));
    }
    if let Some(path) = &settings.path {
        lines.push(format!("its data is taken to be at {}", path.display()));
    }
    lines
        .into_iter()
        .map(|line| format!("    {line}"))
        .collect()
}

fn of_all(config: &Config) -> Vec<String> {
    let limits = config.limits;
    let mut lines = vec![format!(
        "All together: {} extensions at a time, {} within an hour, {} within a day",
        config.parallel,
        limits.per_hour,
        human(limits.bytes_per_day)
    )];
    lines.push(match &config.alert {
        Some(program) => format!("Who has to be woken: {}", of_program(program)),
        None => {
            "Who has to be woken: nobody, only log and journal say it (alert-command)".to_owned()
        }
    });
    lines.push(match &config.journal {
        Some(path) => format!("Journal: {}", path.display()),
        None => "Journal: none".to_owned(),
    });
    lines.push(match &config.listen {
        Some(address) => format!("Metrics: {address}"),
        None => "Metrics: none (listen)".to_owned(),
    });
    lines
}
