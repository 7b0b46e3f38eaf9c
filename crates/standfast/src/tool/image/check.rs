//! `standfast image check`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use qcow2::check::{Fix, Fixed, Limits, RepairError, Report, check, repair};
use serde_json::{Value, json};

use super::file::Wanted;
use super::opened::{EXIT_FAILED, Format, ImageError, ImageFileOptions, Opened, Output, print};

const EXIT_CORRUPT: u8 = 2;
const EXIT_LEAKS: u8 = 3;

/// As [`ImageFileOptions`], and what is repaired.
#[derive(Debug, Args)]
pub struct CheckOptions {
    #[command(flatten)]
    image: ImageFileOptions,
    /// Repair leaked clusters, or all that can be repaired without throwing data away; nobody else may use
    /// the image
    #[arg(short, long, value_name = "WHAT")]
    repair: Option<Repair>,
    /// Print nothing but failures
    #[arg(short, long)]
    quiet: bool,
    /// MiB of memory for counting references; a cluster in use takes 6 bytes
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    max_memory: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Repair {
    Leaks,
    All,
}

impl From<Repair> for Fix {
    fn from(repair: Repair) -> Self {
        match repair {
            Repair::Leaks => Self::Leaks,
            Repair::All => Self::All,
        }
    }
}

/// Checks an image, and repairs it if that was wanted.
pub fn run(options: &CheckOptions) -> Result<ExitCode, ImageError> {
    let wanted = match options.repair {
        Some(_) if options.image.force_share => return Err(ImageError::SharedRepair),
        Some(_) => Wanted::Write,
        None => Wanted::Read,
    };
    let mut opened = Opened::new(&options.image, wanted)?;
    if opened.format == Format::Raw {
        return Err(ImageError::NoCheck);
    }
    let limits = Limits {
        memory: u64::from(options.max_memory) << 20,
        ..Limits::default()
    };
    let (report, fixed) = match options.repair {
        None => (check(&opened.qcow2()?, &limits), None),
        Some(what) => match repair(&mut opened.file, what.into(), &limits) {
            Ok(fixed) => {
                if !options.quiet {
                    tell(&fixed.before);
                }
                (fixed.after.clone(), Some(fixed))
            }
            Err(RepairError::Open(error)) => return Err(opened.cannot_open(&error)),
            Err(error) => return Err(opened.failed(error)),
        },
    };
    if !options.quiet {
        if fixed.is_none() || fixed.as_ref().is_some_and(|fixed| !fixed.after.is_clean()) {
            tell(&report);
        }
        match options.image.output {
            Output::Json => {
                let object = object(&opened.name, &report, fixed.as_ref());
                print(&format!("{object:#}\n"))?;
            }
            Output::Human => print(&human(&report, fixed.as_ref()))?,
        }
    }
    Ok(match () {
        () if report.errors > 0 => ExitCode::from(EXIT_FAILED),
        () if report.corruptions > 0 => ExitCode::from(EXIT_CORRUPT),
        () if report.leaks > 0 => ExitCode::from(EXIT_LEAKS),
        () => ExitCode::SUCCESS,
    })
}

/// What was found, a line each.
fn tell(report: &Report) {
    let mut text = String::new();
    for finding in &report.findings {
        text.push_str(&format!("{finding}\n"));
    }
    let all = report.corruptions + report.leaks + report.errors;
    let more = all.saturating_sub(report.findings.len() as u64);
    if more > 0 {
        text.push_str(&format!("and {more} more\n"));
    }
    if report.hidden {
        text.push_str("Not all tables could be followed: what seems leaked may be in use.\n");
    }
    // Nowhere to print to: the exit status says it.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// QEMU's `ImageCheck`.
fn object(name: &str, report: &Report, fixed: Option<&Fixed>) -> Value {
    let layout = &report.layout;
    let mut all = json!({
        "filename": name,
        "format": Format::Qcow2.name(),
        "check-errors": report.errors,
    });
    let members = [
        ("image-end-offset", report.image_end),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", fixed.map_or(0, Fixed::corruptions)),
        ("leaks-fixed", fixed.map_or(0, Fixed::leaks)),
        ("total-clusters", layout.total),
        ("allocated-clusters", layout.allocated),
        ("fragmented-clusters", layout.fragmented),
        ("compressed-clusters", layout.compressed),
    ];
    if let Some(all) = all.as_object_mut() {
        for (name, value) in members.into_iter().filter(|(_, value)| *value != 0) {
            all.insert(name.to_owned(), value.into());
        }
    }
    all
}

fn human(report: &Report, fixed: Option<&Fixed>) -> String {
    let mut all = String::new();
    let repaired = fixed.map_or((0, 0), |fixed| (fixed.leaks(), fixed.corruptions()));
    if repaired != (0, 0) {
        let (leaks, corruptions) = repaired;
        all.push_str(&format!(
            "The following inconsistencies were found and repaired:\n\n    {leaks} leaked clusters\n    \
             {corruptions} corruptions\n\nDouble checking the fixed image now...\n"
        ));
    }
    if report.is_clean() {
        all.push_str("No errors were found on the image.\n");
    }
    if report.corruptions > 0 {
        all.push_str(&format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image \
             may corrupt it.\n",
            report.corruptions
        ));
    }
    if report.leaks > 0 {
        all.push_str(&format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to \
             data.\n",
            report.leaks
        ));
    }
    if report.errors > 0 {
        let errors = report.errors;
        let text = format!("\n{errors} internal errors have occurred during the check.\n");
        all.push_str(&text);
    }
    let layout = &report.layout;
    if layout.total > 0 && layout.allocated > 0 {
        all.push_str(&format!(
            "{}/{} = {}% allocated, {}% fragmented, {}% compressed clusters\n",
            layout.allocated,
            layout.total,
            percent(layout.allocated, layout.total),
            percent(layout.fragmented, layout.allocated),
            percent(layout.compressed, layout.allocated),
        ));
    }
    if report.image_end > 0 {
        all.push_str(&format!("Image end offset: {}\n", report.image_end));
    }
    all
}

fn percent(part: u64, whole: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let share = part as f64 * 100.0 / whole as f64;
    format!("{share:.2}")
}
