//! `cargo xtask test qsd`: the differential corpus against qemu-storage-daemon.

mod python;

use crate::metadata::Metadata;
use crate::packages::peer;
use crate::run::{cargo, root, run};
use anyhow::{Context, Result, bail};
use corpus::case::{self, Case};
use corpus::compare::Difference;
use corpus::document;
use corpus::ledger::Ledger;
use corpus::program::{Kind, Program};
use corpus::runner::{Outcome, Programs};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the cases are.
const CASES: &str = "tests/qsd";
/// The known differences.
const LEDGER: &str = "tests/qsd/ledger.toml";
/// Where users are told of them.
const DOCUMENT: &str = "docs/compatibility.md";
/// Cases at a time: most of their time they wait.
const THREADS: usize = 6;
/// What is told to be slow: something has not come.
const SLOW: Duration = Duration::from_secs(10);
/// How much of an answer is shown.
const SHOWN_CHARS: usize = 240;

/// Options of the part.
#[derive(Debug, Default, clap::Args)]
pub struct QsdArgs {
    /// Take out of the ledger what differs no more, and bring the documentation up to it
    #[arg(long)]
    bless_ledger: bool,
    /// Only the cases whose names contain this
    #[arg(long = "case", value_name = "TEXT")]
    cases: Vec<String>,
    /// Play them to this standfastd, and do not build one
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
}

/// Plays the cases, compares, judges.
pub fn main(
    args: &QsdArgs,
    metadata: &Metadata,
    profile: &[&str],
    is_thorough: bool,
) -> Result<()> {
    let ours = match &args.daemon {
        Some(daemon) => {
            fs::canonicalize(daemon).with_context(|| format!("cannot find {}", daemon.display()))?
        }
        None => {
            run(cargo(["build", "--package", "standfast-daemon", "--bins"]).args(profile))?;
            metadata.target_directory.join("checked/standfastd")
        }
    };
    let directory = metadata.target_directory.join("qsd");
    fs::create_dir_all(&directory)?;
    let peers = peer::programs(&directory)?;
    let knows_newest = peers.iter().any(|peer| peer.libraries.is_some());
    let programs = Programs {
        ours: Program {
            name: "standfastd".to_owned(),
            path: ours,
            libraries: None,
            kind: Kind::StorageDaemon,
        },
        peers,
        is_thorough,
    };
    for peer in &programs.peers {
        println!("compared with {}", peer.name);
    }
    let root = root();
    let mut cases = case::all(&root.join(CASES))?;
    let total = cases.len();
    let is_wanted = |case: &Case| args.cases.iter().any(|part| case.name.contains(part));
    cases.retain(|case| args.cases.is_empty() || is_wanted(case));
    let ledger = Ledger::parse(&read(&root.join(LEDGER))?)?;
    if args.cases.is_empty() {
        python::run_against(&programs.ours.path, &directory)?;
    }
    let mut outcomes = corpus::runner::run(&cases, &programs, THREADS);
    play_again(&mut outcomes, &cases, &programs, &ledger);
    let judged = judge(&outcomes, &ledger);
    fs::write(directory.join("differences.txt"), &judged.all)?;
    fs::write(directory.join("ledger.toml"), judged.new.render())?;
    if args.bless_ledger {
        bless(&root, &judged.blessed)?;
    }
    print!("{}", judged.failures);
    if is_thorough {
        let between: usize = outcomes.iter().map(|outcome| outcome.between_peers).sum();
        println!("the peers differ from each other in {between} parts");
    }
    for outcome in outcomes.iter().filter(|outcome| outcome.time > SLOW) {
        println!(
            "slow: {}, {:.1} s",
            outcome.case,
            outcome.time.as_secs_f64()
        );
    }
    println!(
        "{} of {total} cases: {} the same, {} known to differ, {} parts not known, {} parts known that \
         differ no more, {} not played; all differences: {}",
        cases.len(),
        judged.same,
        judged.known,
        judged.unknown,
        judged.gone,
        judged.broken,
        directory.join("differences.txt").display(),
    );
    if judged.broken > 0 {
        bail!("{} cases could not be played", judged.broken);
    }
    if !knows_newest && judged.unknown + judged.gone > 0 {
        println!(
            "warning: only the installed peer was there, whose answers may be older than those that are \
             the measure: nothing is judged"
        );
        return Ok(());
    }
    if judged.unknown > 0 {
        bail!("{} parts differ that are not in {LEDGER}", judged.unknown);
    }
    if judged.gone > 0 && !args.bless_ledger {
        bail!(
            "{} parts of {LEDGER} differ no more: `cargo xtask test qsd --bless-ledger`",
            judged.gone
        );
    }
    Ok(())
}

/// What is not as the ledger has it is played once more, one case after the other: where programs have
/// no order between two of their answers, a busy machine chooses. What comes of that counts.
fn play_again(outcomes: &mut [Outcome], cases: &[Case], programs: &Programs, ledger: &Ledger) {
    for outcome in outcomes {
        let is_known = outcome.differences.as_ref().is_ok_and(|differences| {
            let verdict = ledger.judge(&outcome.case, differences);
            verdict.unknown.is_empty() && verdict.gone.is_empty()
        });
        let case = cases.iter().find(|case| case.name == outcome.case);
        let (false, Some(case)) = (is_known, case) else {
            continue;
        };
        println!("once more: {}", case.name);
        if let Some(again) = corpus::runner::run(std::slice::from_ref(case), programs, 1).pop() {
            *outcome = again;
        }
    }
}

/// What all outcomes come to.
#[derive(Debug, Default)]
struct Judged {
    same: usize,
    known: usize,
    unknown: usize,
    gone: usize,
    broken: usize,
    /// What makes the part fail, for people.
    failures: String,
    /// Everything that differs, a line each.
    all: String,
    /// The ledger without what differs no more.
    blessed: Ledger,
    /// The same with what is not known yet.
    new: Ledger,
}

fn judge(outcomes: &[Outcome], ledger: &Ledger) -> Judged {
    let text = ledger.render();
    let copy = || Ledger::parse(&text).unwrap_or_default();
    let mut judged = Judged {
        blessed: copy(),
        new: copy(),
        ..Judged::default()
    };
    for Outcome {
        case, differences, ..
    } in outcomes
    {
        // Writing to a string does not fail.
        let differences = match differences {
            Ok(differences) => differences,
            Err(error) => {
                judged.broken += 1;
                let _ = writeln!(judged.failures, "{case}: {error:#}");
                continue;
            }
        };
        for difference in differences {
            let why = ledger.reason(case, &difference.part).unwrap_or("?");
            let _ = writeln!(judged.all, "{case} {} [{why}]", shown(difference));
        }
        let verdict = ledger.judge(case, differences);
        judged.unknown += verdict.unknown.len();
        judged.gone += verdict.gone.len();
        judged.blessed.remove(case, &verdict.gone);
        judged.new.remove(case, &verdict.gone);
        judged.new.add(case, &verdict.unknown);
        match (differences.is_empty(), verdict.unknown.is_empty()) {
            (true, _) => judged.same += 1,
            (false, true) => judged.known += 1,
            (false, false) => {}
        }
        for difference in &verdict.unknown {
            let _ = writeln!(judged.failures, "{case}: {}", shown(difference));
        }
        for part in &verdict.gone {
            let _ = writeln!(judged.failures, "{case}: {part} differs no more");
        }
    }
    judged
}

fn shown(difference: &Difference) -> String {
    let value = |value: &Option<Value>| match value {
        None => "nothing".to_owned(),
        Some(value) => {
            let text = value.to_string();
            let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
            if shown.len() < text.len() {
                shown += "...";
            }
            shown
        }
    };
    let Difference { part, ours, peer } = difference;
    format!("{part} | peer {} | ours {}", value(peer), value(ours))
}

fn bless(root: &Path, ledger: &Ledger) -> Result<()> {
    fs::write(root.join(LEDGER), ledger.render())?;
    let document = root.join(DOCUMENT);
    fs::write(&document, document::with_ledger(&read(&document)?, ledger)?)?;
    println!("{LEDGER} and {DOCUMENT} are written");
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
