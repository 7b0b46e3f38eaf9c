//! What a section wishes for disks, and what comes of several that are put one on the other.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::core::backoff::Backoff;
use crate::core::headroom::HeadRoom;
use crate::settings::{Lvm, OnFailed, Program, Settings, Strategy, Zfs, ZfsProperty};

use super::error::ConfigError;
use super::units::{Bytes, Span, human};

/// How long a program may take unless said otherwise.
const PROGRAM_LIMIT: Duration = Duration::from_secs(60);

/// Where the tools of LVM and ZFS are unless said otherwise.
const TOOLS: &str = "/usr/sbin";

/// The head-room is so many steps at most unless said otherwise.
const HEAD_ROOM_STEPS: u64 = 4;

/// Twice what is written during an extension unless said otherwise.
const SAFETY: f64 = 2.0;

/// A step below that is a mistake.
const STEP_MIN: u64 = 64 << 10;

/// The strategies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StrategyName {
    Leave,
    Wait,
    Command,
    Quota,
    Lvm,
    Zfs,
}

/// What is done about other failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailedName {
    Leave,
    ResumeWhenHealthy,
    ResumeAfter,
}

impl StrategyName {
    /// As it is written.
    fn name(self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Wait => "wait",
            Self::Command => "command",
            Self::Quota => "quota",
            Self::Lvm => "lvm",
            Self::Zfs => "zfs",
        }
    }
}

/// What a section says; what it does not say is as in the one above.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub strategy: Option<StrategyName>,
    pub command: Option<Vec<String>>,
    pub command_time_limit: Option<Span>,
    pub quota_node: Option<String>,
    pub tools: Option<String>,
    pub sole_writer: Option<bool>,
    pub zfs_property: Option<ZfsProperty>,
    pub dataset: Option<String>,
    pub step: Option<Bytes>,
    pub cap: Option<Bytes>,
    pub enough: Option<Bytes>,
    pub reserve: Option<Bytes>,
    pub early: Option<bool>,
    pub head_room_min: Option<Bytes>,
    pub head_room_max: Option<Bytes>,
    pub head_room_safety: Option<f64>,
    pub on_failed: Option<OnFailedName>,
    pub failed_delay: Option<Span>,
    pub health_command: Option<Vec<String>>,
    pub health_time_limit: Option<Span>,
    pub backoff_first: Option<Span>,
    pub backoff_max: Option<Span>,
    pub give_up_after: Option<u32>,
    pub settle: Option<Span>,
    pub poll: Option<Span>,
}

/// A program, of the key `key`.
///
/// # Errors
/// If there is none, or it would be looked for.
pub fn program(
    key: &str,
    argv: Vec<String>,
    limit: Option<Duration>,
) -> Result<Program, ConfigError> {
    let name = argv.first().map(String::as_str).unwrap_or_default();
    if !name.starts_with('/') {
        return Err(ConfigError::new(format!(
            "{key}: '{name}' is not the absolute path of a program; write {key} = [\"/path/of/program\", ...]"
        )));
    }
    let time_limit = limit.unwrap_or(PROGRAM_LIMIT);
    if time_limit.is_zero() {
        return Err(ConfigError::new(format!("{key}: its time limit is 0")));
    }
    Ok(Program { argv, time_limit })
}

impl Wishes {
    /// These, put on `below`.
    pub fn over(self, below: &Self) -> Self {
        let below = below.clone();
        Self {
            strategy: self.strategy.or(below.strategy),
            command: self.command.or(below.command),
            command_time_limit: self.command_time_limit.or(below.command_time_limit),
            quota_node: self.quota_node.or(below.quota_node),
            tools: self.tools.or(below.tools),
            sole_writer: self.sole_writer.or(below.sole_writer),
            zfs_property: self.zfs_property.or(below.zfs_property),
            dataset: self.dataset.or(below.dataset),
            step: self.step.or(below.step),
            cap: self.cap.or(below.cap),
            enough: self.enough.or(below.enough),
            reserve: self.reserve.or(below.reserve),
            early: self.early.or(below.early),
            head_room_min: self.head_room_min.or(below.head_room_min),
            head_room_max: self.head_room_max.or(below.head_room_max),
            head_room_safety: self.head_room_safety.or(below.head_room_safety),
            on_failed: self.on_failed.or(below.on_failed),
            failed_delay: self.failed_delay.or(below.failed_delay),
            health_command: self.health_command.or(below.health_command),
            health_time_limit: self.health_time_limit.or(below.health_time_limit),
            backoff_first: self.backoff_first.or(below.backoff_first),
            backoff_max: self.backoff_max.or(below.backoff_max),
            give_up_after: self.give_up_after.or(below.give_up_after),
            settle: self.settle.or(below.settle),
            poll: self.poll.or(below.poll),
        }
    }

    /// What is wrong with each on its own, in a section of that name.
    ///
    /// # Errors
    /// The first.
    pub fn check(&self, section: &str) -> Result<(), ConfigError> {
        let wrong = |why: String| Err(ConfigError::new(format!("{section}: {why}")));
        if let Some(Bytes(step)) = self.step
            && step < STEP_MIN
        {
            return wrong(format!(
                "step: {step} bytes are too few, use {} or more",
                human(STEP_MIN)
            ));
        }
        if self.give_up_after == Some(0) {
            return wrong("give-up-after: 0 attempts are none; use 1 or more".to_owned());
        }
        if self.command_time_limit.is_some_and(|span| span.0.is_zero()) {
            return wrong("command-time-limit: nothing ends within 0 s".to_owned());
        }
        for (key, span) in [
            ("backoff-first", self.backoff_first),
            ("backoff-max", self.backoff_max),
            ("poll", self.poll),
        ] {
            if span.is_some_and(|span| span.0 < Duration::from_millis(50)) {
                return wrong(format!("{key}: use 50ms or more"));
            }
        }
        Ok(())
    }

    fn tools(&self) -> Result<PathBuf, ConfigError> {
        let tools = PathBuf::from(self.tools.as_deref().unwrap_or(TOOLS));
        match tools.is_absolute() {
            true => Ok(tools),
            false => Err(ConfigError::new(format!(
                "tools: '{}' is not an absolute path",
                tools.display()
            ))),
        }
    }

    /// How much is to be free before it is full.
    fn head_room(&self, step: u64, enough: u64) -> Result<HeadRoom, ConfigError> {
        let min = self.head_room_min.map_or(enough, |bytes| bytes.0);
        let most = step.saturating_mul(HEAD_ROOM_STEPS).max(min);
        let max = self.head_room_max.map_or(most, |bytes| bytes.0);
        if min == 0 || min > max {
            return Err(ConfigError::new(format!(
                "head-room-min: {} is not between 1 byte and a head-room-max of {}",
                human(min),
                human(max)
            )));
        }
        let safety = self.head_room_safety.unwrap_or(SAFETY);
        if !(1.0..=100.0).contains(&safety) {
            return Err(ConfigError::new(format!(
                "head-room-safety: {safety} is not between 1 and 100"
            )));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is between 1 and 100"
        )]
        let safety = (safety * 100.0).round() as u32;
        Ok(HeadRoom { min, max, safety })
    }

    /// What comes of it, in a section of that name which itself has said `own`.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn settings(&self, section: &str, own: &Self) -> Result<Settings, ConfigError> {
        own.check(section)?;
        let wrong = |why: String| ConfigError::new(format!("{section}: {why}"));
        let of_section = |error: ConfigError| wrong(error.to_string());
        let span = |span: Option<Span>, default: Duration| span.map_or(default, |span| span.0);
        let defaults = Settings::default();
        let strategy = self.strategy.unwrap_or(StrategyName::Leave);
        for (key, is_said, of) in [
            (
                "command",
                own.command.is_some(),
                &[StrategyName::Command][..],
            ),
            (
                "quota-node",
                own.quota_node.is_some(),
                &[StrategyName::Quota],
            ),
            (
                "reserve",
                own.reserve.is_some(),
                &[StrategyName::Quota, StrategyName::Lvm, StrategyName::Zfs],
            ),
            (
                "tools",
                own.tools.is_some(),
                &[StrategyName::Lvm, StrategyName::Zfs],
            ),
            (
                "sole-writer",
                own.sole_writer.is_some(),
                &[StrategyName::Lvm],
            ),
            (
                "zfs-property",
                own.zfs_property.is_some(),
                &[StrategyName::Zfs],
            ),
            ("dataset", own.dataset.is_some(), &[StrategyName::Zfs]),
        ] {
            if is_said && !of.contains(&strategy) {
                let names: Vec<_> = of
                    .iter()
                    .map(|name| format!("\"{}\"", name.name()))
                    .collect();
                return Err(wrong(format!(
                    "{key} is of use only with strategy = {}",
                    names.join(" or ")
                )));
            }
        }
        let time_limit = span(self.command_time_limit, PROGRAM_LIMIT);
        let strategy = match strategy {
            StrategyName::Leave => Strategy::Leave,
            StrategyName::Wait => Strategy::Wait,
            StrategyName::Quota => Strategy::Quota(self.quota_node.clone()),
            StrategyName::Lvm => Strategy::Lvm(Lvm {
                tools: self.tools().map_err(of_section)?,
                time_limit,
                sole_writer: self.sole_writer.unwrap_or(false),
            }),
            StrategyName::Zfs => Strategy::Zfs(Zfs {
                tools: self.tools().map_err(of_section)?,
                time_limit,
                property: self.zfs_property.ok_or_else(|| {
                    wrong("strategy = \"zfs\" needs zfs-property = \"volsize\", \"refquota\" or \"quota\"".to_owned())
                })?,
                dataset: self.dataset.clone(),
            }),
            StrategyName::Command => {
                let argv = self.command.clone().ok_or_else(|| {
                    wrong(
                        "strategy = \"command\" needs command = [\"/path/of/program\", ...]"
                            .to_owned(),
                    )
                })?;
                let limit = self.command_time_limit.map(|limit| limit.0);
                Strategy::Command(program("command", argv, limit).map_err(of_section)?)
            }
        };
        let on_failed = match self.on_failed.unwrap_or(OnFailedName::Leave) {
            OnFailedName::Leave => OnFailed::Leave,
            OnFailedName::ResumeAfter => {
                OnFailed::After(span(self.failed_delay, Duration::from_secs(30)))
            }
            OnFailedName::ResumeWhenHealthy => {
                let argv = self.health_command.clone().ok_or_else(|| {
                    wrong("on-failed = \"resume-when-healthy\" needs health-command = [\"/path/of/program\", ...]".to_owned())
                })?;
                let limit = self.health_time_limit.map(|limit| limit.0);
                OnFailed::WhenHealthy(program("health-command", argv, limit).map_err(of_section)?)
            }
        };
        let step = self.step.map_or(defaults.step, |step| step.0);
        let enough = self.enough.map_or(step / 2, |enough| enough.0);
        if enough > step || enough == 0 {
            return Err(wrong(format!(
                "enough: {} is not between 1 byte and a step of {}",
                human(enough),
                human(step)
            )));
        }
        let early = match (&strategy, self.early) {
            (Strategy::Leave | Strategy::Wait, Some(true)) if own.early.is_some() => {
                let why = "early = true is of use only with a strategy that extends";
                return Err(wrong(why.to_owned()));
            }
            (Strategy::Leave | Strategy::Wait, _) | (_, Some(false)) => None,
            (
                Strategy::Command(_) | Strategy::Quota(_) | Strategy::Lvm(_) | Strategy::Zfs(_),
                _,
            ) => Some(self.head_room(step, enough).map_err(of_section)?),
        };
        let backoff = Backoff {
            first: span(self.backoff_first, defaults.backoff.first),
            max: span(self.backoff_max, defaults.backoff.max),
        };
        if backoff.first > backoff.max {
            return Err(wrong("backoff-first is longer than backoff-max".to_owned()));
        }
        Ok(Settings {
            strategy,
            step,
            early,
            cap: self.cap.map(|cap| cap.0),
            enough,
            reserve: self.reserve.map_or(0, |reserve| reserve.0),
            path: None,
            on_failed,
            backoff,
            give_up_after: self.give_up_after.unwrap_or(defaults.give_up_after),
            settle: span(self.settle, defaults.settle),
            poll: span(self.poll, defaults.poll),
        })
    }
}
