//! All metrics of a process, and their text.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family as InnerFamily;
use prometheus_client::registry::{Metric as Registered, Registry, Unit as InnerUnit};

use crate::family::{Family, Labels, Make, Metric};
use crate::names::{NameError, Unit, check};

/// What all names begin with.
const PREFIX: &str = "standfast";

/// The longest text, in bytes.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;

/// There are too many metrics for one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the metrics have more than {ANSWER_BYTES_MAX} bytes")]
pub struct TooLong;

#[derive(Debug)]
struct Inner {
    registry: Registry,
    names: BTreeSet<String>,
}

/// Says whether a process is well, or why it is not.
type Health = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// All metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Mutex<Inner>>,
    health: Arc<OnceLock<Health>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let inner = Inner {
            registry: Registry::with_prefix(PREFIX),
            names: BTreeSet::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            health: Arc::default(),
        }
    }
}

impl Metrics {
    /// From now on `/healthz` is served, too: 200 as long as `check` finds nothing, else 503 with what it
    /// has found. It must ask nobody who may hang. The first one counts.
    pub fn health(&self, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        let _ = self.health.set(Box::new(check));
    }

    /// What is wrong with the process. None: nobody knows.
    pub(crate) fn check_health(&self) -> Option<Result<(), String>> {
        self.health.get().map(|check| check())
    }

    /// Adds a metric without labels, and returns it. `name` is without prefix, unit and `_total`.
    ///
    /// # Errors
    /// [`NameError`], which is a mistake of the code.
    pub fn add<M: Metric>(
        &self,
        name: &str,
        help: &str,
        unit: Unit,
        metric: M,
    ) -> Result<M, NameError> {
        self.register(name, help, unit, metric.clone())?;
        Ok(metric)
    }

    /// Adds metrics with labels, of which there is none yet. `make` makes one.
    ///
    /// # Errors
    /// [`NameError`], which is a mistake of the code.
    pub fn family<L: Labels, M: Metric>(
        &self,
        name: &str,
        help: &str,
        unit: Unit,
        make: fn() -> M,
    ) -> Result<Family<L, M>, NameError> {
        let inner = InnerFamily::new_with_constructor(Make(make));
        self.register(name, help, unit, inner.clone())?;
        Ok(Family::new(inner))
    }

    /// Adds what is asked for its metrics when somebody wants to know. It must ask nobody who may hang
    /// (see the [crate]), and keeps to the conventions by itself; `standfast_` is added.
    pub fn collector(&self, collector: impl Collector) {
        let mut inner = self.inner.lock();
        inner.registry.register_collector(Box::new(collector));
    }

    fn register(
        &self,
        name: &str,
        help: &str,
        unit: Unit,
        metric: impl Registered,
    ) -> Result<(), NameError> {
        check(name, help)?;
        let mut inner = self.inner.lock();
        let full = match unit.name() {
            Some(unit) => format!("{name}_{unit}"),
            None => name.to_owned(),
        };
        if !inner.names.insert(full) {
            return Err(NameError::Taken(name.to_owned()));
        }
        match unit.name() {
            Some(unit) => {
                let unit = InnerUnit::Other(unit.to_owned());
                inner.registry.register_with_unit(name, help, unit, metric);
            }
            None => inner.registry.register(name, help, metric),
        }
        Ok(())
    }

    /// All of them, in the text format of OpenMetrics 1.0.
    ///
    /// # Errors
    /// If that is longer than [`ANSWER_BYTES_MAX`], or a collector has failed.
    pub fn text(&self) -> Result<String, TooLong> {
        let mut text = Bounded(String::new());
        let inner = self.inner.lock();
        encode(&mut text, &inner.registry).map_err(|fmt::Error| TooLong)?;
        Ok(text.0)
    }
}

/// Memory for one answer, and no more.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > ANSWER_BYTES_MAX {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, Gauge, Histogram};

    type Device = [(&'static str, String); 1];

    fn device(name: &str) -> Device {
        [("device", name.to_owned())]
    }

    fn histogram() -> Histogram {
        Histogram::new([0.1, 1.0])
    }

    #[test]
    fn the_text() {
        let metrics = Metrics::default();
        let requests = metrics.family("requests", "Requests", Unit::None, Counter::default);
        let requests: Family<Device, Counter> = requests.unwrap();
        let size = metrics
            .add("size", "Size", Unit::Bytes, Gauge::<i64>::default())
            .unwrap();
        let duration: Family<Device, _> = metrics
            .family("duration", "Duration", Unit::Seconds, histogram)
            .unwrap();
        size.set(-7);
        let vda = requests.series(device("v\"d\\a\n"));
        vda.inc_by(3);
        let slow = duration.series(device("b"));
        slow.observe(0.5);
        assert_eq!(
            metrics.text().unwrap(),
            "# HELP standfast_requests Requests.\n\
             # TYPE standfast_requests counter\n\
             standfast_requests_total{device=\"v\\\"d\\\\a\\n\"} 3\n\
             # HELP standfast_size_bytes Size.\n\
             # TYPE standfast_size_bytes gauge\n\
             # UNIT standfast_size_bytes bytes\n\
             standfast_size_bytes -7\n\
             # HELP standfast_duration_seconds Duration.\n\
             # TYPE standfast_duration_seconds histogram\n\
             # UNIT standfast_duration_seconds seconds\n\
             standfast_duration_seconds_sum{device=\"b\"} 0.5\n\
             standfast_duration_seconds_count{device=\"b\"} 1\n\
             standfast_duration_seconds_bucket{le=\"0.1\",device=\"b\"} 0\n\
             standfast_duration_seconds_bucket{le=\"1.0\",device=\"b\"} 1\n\
             standfast_duration_seconds_bucket{le=\"+Inf\",device=\"b\"} 1\n\
             # EOF\n"
        );
    }

    #[test]
    fn series_go_with_their_device() {
        let metrics = Metrics::default();
        let requests: Family<Device, Counter> = metrics
            .family("requests", "Requests", Unit::None, Counter::default)
            .unwrap();
        let shown = |name: &str| metrics.text().unwrap().contains(&format!("\"{name}\"}} "));
        let (a, b) = (requests.series(device("a")), requests.series(device("b")));
        a.inc();
        b.inc();
        // The successor of a device that has not gone yet.
        let again = requests.series(device("a"));
        drop(a);
        assert!(shown("a") && again.get() == 1);
        drop(again);
        assert!(!shown("a") && shown("b"));
        let fresh = requests.series(device("a"));
        assert_eq!(fresh.get(), 0);
        drop((fresh, b));
        // A thousand come and go, and leave nothing.
        let empty = metrics.text().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000).for_each(|n| drop(requests.series(device(&n.to_string()))))
                });
            }
        });
        assert_eq!(metrics.text().unwrap(), empty);
    }

    #[test]
    fn a_name_is_there_once() {
        let metrics = Metrics::default();
        let add = |name: &str, unit| metrics.add(name, "Help", unit, Gauge::<i64>::default());
        add("age", Unit::None).unwrap();
        add("age", Unit::Seconds).unwrap();
        let taken = add("age", Unit::Seconds).unwrap_err();
        assert_eq!(taken, NameError::Taken("age".to_owned()));
        assert!(add("age_total", Unit::None).is_err());
    }

    #[test]
    fn what_is_too_long_is_an_error_and_takes_no_memory() {
        let metrics = Metrics::default();
        let family: Family<Device, Counter> = metrics
            .family("requests", "Requests", Unit::None, Counter::default)
            .unwrap();
        let few = family.series(device("few"));
        let many: Vec<_> = (0..5)
            .map(|n| family.series(device(&format!("{n}{}", "x".repeat(1 << 20)))))
            .collect();
        assert_eq!(metrics.text(), Err(TooLong));
        drop(many);
        assert!(metrics.text().is_ok());
        drop(few);
    }
}
