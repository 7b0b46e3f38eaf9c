//! Metrics.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use metrics::{
    Counter, Family, Gauge, Histogram, Metric, Metrics, NameError, Series, Unit,
    exponential_buckets,
};

use crate::core::record::{Cause, Extended, Record, What};

use super::fleet::Fleet;

type Label = [(&'static str, String); 1];

/// Series that are there from the beginning, by what they are of.
type Each<K, M> = Vec<(K, Series<Label, M>)>;

/// The metrics of the watcher.
#[derive(Debug)]
pub struct Figures {
    fleet: Arc<Fleet>,
    machines: Each<&'static str, Gauge>,
    open: Gauge,
    incidents: Each<Cause, Counter>,
    extensions: Each<Extended, Counter>,
    early: Counter,
    head_room: Gauge,
    extension_duration: Histogram,
    extended: Counter,
    paused: Counter<f64, AtomicU64>,
    gave_ups: Counter,
    reported: Counter,
    alerts: Counter,
}

fn duration() -> Histogram {
    // 10 ms to 80 s.
    Histogram::new(exponential_buckets(0.01, 2.0, 14))
}

fn each<K: Copy, M: Metric>(
    family: &Family<Label, M>,
    label: &'static str,
    names: &[(K, &'static str)],
) -> Each<K, M> {
    let series =
        |(of, name): &(K, &'static str)| (*of, family.series([(label, (*name).to_owned())]));
    names.iter().map(series).collect()
}

impl Figures {
    /// Registers them.
    ///
    /// # Errors
    /// [`NameError`], which is a mistake of the code.
    pub fn new(registry: &Metrics, fleet: Arc<Fleet>) -> Result<Self, NameError> {
        let machines = registry.family(
            "watch_machines",
            "Machines that are watched, by state",
            Unit::None,
            Gauge::default,
        )?;
        let states =
            ["running", "io-error", "paused", "unreachable", "taken"].map(|state| (state, state));
        let incidents = registry.family(
            "watch_incidents",
            "Incidents: a disk has stopped its machine, by cause",
            Unit::None,
            Counter::default,
        )?;
        let causes = [
            (Cause::Nospace, "nospace"),
            (Cause::Failed, "failed"),
            (Cause::Unknown, "unknown"),
        ];
        let extensions = registry.family(
            "watch_extensions",
            "Attempts to extend storage, by result",
            Unit::None,
            Counter::default,
        )?;
        let results = [
            (Extended::Grown, "grown"),
            (Extended::Failed, "failed"),
            (Extended::Refused, "refused"),
        ];
        Ok(Self {
            fleet,
            machines: each(&machines, "state", &states),
            open: registry.add(
                "watch_open_incidents",
                "Disks that have stopped their machine and wait now",
                Unit::None,
                Gauge::default(),
            )?,
            incidents: each(&incidents, "cause", &causes),
            extensions: each(&extensions, "result", &results),
            early: registry.add(
                "watch_early_extensions",
                "Extensions that succeeded before the storage was full",
                Unit::None,
                Counter::default(),
            )?,
            head_room: registry.add(
                "watch_head_room",
                "The most that is to be free now for a disk that is extended before its storage is full",
                Unit::Bytes,
                Gauge::default(),
            )?,
            extension_duration: registry.add(
                "watch_extension_duration",
                "How long extensions that succeeded took, verification included",
                Unit::Seconds,
                duration(),
            )?,
            extended: registry.add(
                "watch_extended",
                "By how much storage was extended",
                Unit::Bytes,
                Counter::default(),
            )?,
            paused: registry.add(
                "watch_paused",
                "How long machines did not go on because of their storage, summed over ended incidents",
                Unit::Seconds,
                Counter::default(),
            )?,
            gave_ups: registry.add(
                "watch_gave_ups",
                "Incidents that were given up",
                Unit::None,
                Counter::default(),
            )?,
            reported: registry.add(
                "watch_reported_errors",
                "Errors that guests were told of",
                Unit::None,
                Counter::default(),
            )?,
            alerts: registry.add(
                "watch_alerts",
                "How often somebody was to be woken",
                Unit::None,
                Counter::default(),
            )?,
        })
    }

    /// Counts what is told.
    pub fn count(&self, record: &Record) {
        if record.alert {
            self.alerts.inc();
        }
        match &record.what {
            What::IncidentBegan { cause, .. } => add_one(&self.incidents, *cause),
            What::Extension {
                result,
                grown,
                seconds,
                early,
                ..
            } => {
                add_one(&self.extensions, *result);
                if *result == Extended::Grown {
                    self.extended.inc_by(*grown);
                    if *early {
                        self.early.inc();
                    }
                    self.extension_duration.observe(*seconds);
                }
            }
            What::IncidentEnded { seconds_paused, .. } => drop(self.paused.inc_by(*seconds_paused)),
            What::GaveUp { .. } => drop(self.gave_ups.inc()),
            What::Reported { count, .. } => drop(self.reported.inc_by(*count)),
            _ => {}
        }
    }

    /// Takes over how the machines are.
    pub fn refresh(&self) {
        let (states, incidents, head_room) = self.fleet.counts();
        self.head_room.set(head_room);
        for (state, gauge) in &self.machines {
            gauge.set(states.get(state).copied().unwrap_or(0));
        }
        self.open.set(incidents);
    }
}

fn add_one<K: PartialEq>(series: &Each<K, Counter>, of: K) {
    if let Some((_, counter)) = series.iter().find(|(known, _)| *known == of) {
        counter.inc();
    }
}
