//! What can be typed, and what is said of it.

/// A command: its names, its arguments, what it does.
type Command = (&'static str, &'static str, &'static str);

const COMMANDS: [Command; 10] = [
    ("block_resize", "device size", "resize a block image"),
    ("cont|c", "", "resume emulation"),
    ("help|?", "[cmd]", "show the help"),
    (
        "info",
        "[subcommand]",
        "show various information about the system state",
    ),
    (
        "object_add",
        "[qom-type=]type,id=str[,prop=value][,...]",
        "create QOM object",
    ),
    ("object_del", "id", "destroy QOM object"),
    ("quit|q", "", "quit the emulator"),
    (
        "snapshot_blkdev",
        "[-n] device [new-image-file] [format]",
        "initiates a live snapshot\n\t\t\t\
         of device. If a new image file is specified, the\n\t\t\t\
         new image file will become the new root image.\n\t\t\t\
         If format is specified, the snapshot file will\n\t\t\t\
         be created in that format.\n\t\t\t\
         The default format is qcow2.  The -n flag requests QEMU\n\t\t\t\
         to reuse the image found in new-image-file, instead of\n\t\t\t\
         recreating it from scratch.",
    ),
    ("stop|s", "", "stop emulation"),
    ("system_reset", "", "reset the system"),
];

const INFO: [Command; 7] = [
    (
        "block",
        "[-n] [-v] [device]",
        "show info of one block device or all block devices \
         (-n: show named nodes; -v: show details)",
    ),
    (
        "block-jobs",
        "",
        "show progress of ongoing block device operations",
    ),
    ("blockstats", "", "show block device statistics"),
    ("chardev", "", "show the character devices"),
    ("iothreads", "", "show iothreads"),
    ("status", "", "show the current VM status (running|paused)"),
    ("version", "", "show the version of QEMU"),
];

fn line(prefix: &str, (names, arguments, text): Command) -> String {
    format!("{prefix}{names} {arguments} -- {text}\n")
}

fn find(commands: &[Command], name: &str) -> Option<Command> {
    let mut commands = commands.iter();
    let found = commands.find(|(names, ..)| names.split('|').any(|known| known == name));
    found.copied()
}

/// All names of a command, by one of them.
pub(super) fn name(name: &str) -> Option<&'static str> {
    find(&COMMANDS, name).map(|(names, ..)| names)
}

/// Whether there is `info name`.
pub(super) fn is_info(name: &str) -> bool {
    find(&INFO, name).is_some()
}

/// What there is to ask.
pub(super) fn info() -> String {
    INFO.iter().map(|command| line("info ", *command)).collect()
}

/// The help on a topic; on all commands, if there is none.
pub(super) fn of(topic: &[String]) -> String {
    let mut words = topic.iter().map(String::as_str);
    let (first, second) = (words.next(), words.next());
    let found = match (first, second) {
        (None, _) => return COMMANDS.iter().map(|command| line("", *command)).collect(),
        (Some("info"), None) => return info(),
        (Some("info"), Some(name)) => find(&INFO, name).map(|command| line("info ", command)),
        (Some(name), _) => find(&COMMANDS, name).map(|command| line("", command)),
    };
    found.unwrap_or_else(|| {
        let said = match (first, second) {
            (Some("info"), Some(name)) => format!("info {name}"),
            (first, _) => first.unwrap_or_default().to_owned(),
        };
        format!("unknown command: '{said}'\n")
    })
}
