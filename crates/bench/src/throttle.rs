//! How exactly the limits of a throttle group are kept, by us and by the rival, and bursts as configured.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

use crate::load::{Load, Loaded, Pattern};
use crate::process;
use crate::server::{Server, Setup};

/// What may be done at once in the beginning is over by then, and a burst has not ended.
const BEGUN: Duration = Duration::from_millis(300);
/// How long the burst of [`BURST`] lasts, with something to spare.
const BURST_OVER: Duration = Duration::from_secs(3);

/// One setting of a group.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name, to be chosen by.
    pub name: &'static str,
    /// The group's limits, as they are typed.
    limits: &'static str,
    /// Bytes per request.
    bytes: u32,
    /// Requests per second that it allows for long.
    rate: f64,
    /// Requests per second that it allows for some time before.
    burst: Option<f64>,
}

/// Every setting.
const SETTINGS: [Setting; 4] = [
    Setting {
        name: "throttle.500-iops",
        limits: "limits.iops-total=500",
        bytes: 4096,
        rate: 500.0,
        burst: None,
    },
    Setting {
        name: "throttle.20000-iops",
        limits: "limits.iops-read=20000",
        bytes: 4096,
        rate: 20_000.0,
        burst: None,
    },
    Setting {
        name: "throttle.3000-times-512-bps",
        limits: "limits.bps-read=1536000",
        bytes: 512,
        rate: 3000.0,
        burst: None,
    },
    BURST,
];

/// 4000 requests may be too many, and 1500 in a second are: a burst lasts for 2.7 s.
const BURST: Setting = Setting {
    name: "throttle.burst",
    limits: "limits.iops-total=500,limits.iops-total-max=2000,limits.iops-total-max-length=2",
    bytes: 4096,
    rate: 500.0,
    burst: Some(2000.0),
};

/// How much was done in a second, where a limit allowed so much.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Throttled {
    /// What.
    pub name: String,
    /// Requests per second that were allowed.
    pub allowed: f64,
    /// Those that we did.
    pub ours: f64,
    /// Those that the rival did.
    pub theirs: f64,
}

/// Those whose name contains one of the words; all if there are no words.
pub fn chosen(words: &[String]) -> Vec<Setting> {
    let wanted = |setting: &Setting| {
        words.is_empty()
            || words
                .iter()
                .any(|word| setting.name.contains(word.as_str()))
    };
    SETTINGS.into_iter().filter(wanted).collect()
}

/// Measures each setting on both servers, for `time` after what is allowed in the beginning.
///
/// # Errors
/// If a daemon does not do as it should.
pub fn measure(
    standfastd: &Path,
    cpus: [usize; 2],
    settings: &[Setting],
    time: Duration,
) -> Result<Vec<Throttled>> {
    let before = process::allowed_cpus()?;
    process::pin(cpus[1])?;
    let mut found = Vec::new();
    let mut result = Ok(());
    for setting in settings {
        println!("{}", setting.name);
        let both = [Server::Standfast, Server::Qemu].map(|server| {
            let rates = rates(standfastd, cpus[0], *setting, server, time);
            rates.with_context(|| format!("{} on {}", setting.name, server.name()))
        });
        match both {
            [Ok(ours), Ok(theirs)] => found.extend(setting.found(&ours, &theirs)),
            [Err(error), _] | [_, Err(error)] => {
                result = Err(error);
                break;
            }
        }
    }
    process::allow_cpus(&before)?;
    result.map(|()| found)
}

/// Requests per second: in the burst, if there is one, and then.
fn rates(
    standfastd: &Path,
    cpu: usize,
    setting: Setting,
    server: Server,
    time: Duration,
) -> Result<Vec<f64>> {
    let mut setup = Setup::new(server, "driver=null-co,node-name=null0,size=1073741824");
    let throttle = "driver=throttle,node-name=disk,file=null0,throttle-group=group0";
    setup.blockdevs.push(throttle.to_owned());
    let group = format!("throttle-group,id=group0,{}", setting.limits);
    setup.more = vec!["--object".to_owned(), group];
    setup.cpu = Some(cpu);
    let running = setup.start(standfastd)?;
    let load = Load {
        pattern: Pattern {
            read: true,
            random: true,
            bytes: setting.bytes,
        },
        depth: 16,
        queues: 1,
        poll: true,
        indirect: true,
    };
    let mut disk = Loaded::connect(&running.socket(), load)?;
    let mut rate = |warm_up, time| {
        let outcome = disk.run(warm_up, time, None)?;
        ensure!(outcome.errors == 0, "{} reads failed", outcome.errors);
        let requests = u32::try_from(outcome.requests)?;
        Ok(f64::from(requests) / outcome.elapsed.as_secs_f64())
    };
    let mut rates = Vec::new();
    let mut begun = BEGUN;
    if setting.burst.is_some() {
        rates.push(rate(BEGUN, time.min(Duration::from_secs(2)))?);
        begun = BURST_OVER;
    }
    rates.push(rate(begun, time)?);
    drop(disk);
    running.finish()?;
    Ok(rates)
}

impl Setting {
    /// In the order of [`rates`].
    fn found(self, ours: &[f64], theirs: &[f64]) -> Vec<Throttled> {
        let parts = match self.burst {
            None => vec![(self.name.to_owned(), self.rate)],
            Some(burst) => vec![
                (format!("{}, {burst} iops", self.name), burst),
                (format!("{}, then {} iops", self.name, self.rate), self.rate),
            ],
        };
        let both = ours.iter().zip(theirs);
        let found = parts.into_iter().zip(both);
        found
            .map(|((name, allowed), (&ours, &theirs))| Throttled {
                name,
                allowed,
                ours,
                theirs,
            })
            .collect()
    }
}

impl Throttled {
    /// How far a rate is from what is allowed, in percent.
    pub fn deviation(&self, rate: f64) -> f64 {
        (rate / self.allowed - 1.0) * 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose() {
        assert_eq!(chosen(&[]).len(), SETTINGS.len());
        let all = |word: &str| chosen(&[word.to_owned()]).len();
        assert_eq!((all("throttle"), all("burst"), all("null-co")), (4, 1, 0));
    }

    #[test]
    fn a_burst_is_two_figures() {
        let found = BURST.found(&[2010.0, 490.0], &[2000.0, 500.0]);
        let deviations: Vec<_> = found.iter().map(|one| one.deviation(one.ours)).collect();
        assert!((deviations[0] - 0.5).abs() < 1e-9);
        assert!((deviations[1] + 2.0).abs() < 1e-9);
    }
}
