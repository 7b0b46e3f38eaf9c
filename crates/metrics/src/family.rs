//! Metrics of one name with labels, and what is left of them when what they are about has gone.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::family::{Family as Inner, MetricConstructor};

/// What labels can be: a type that derives [`EncodeLabelSet`] and these. Values may be any text.
pub trait Labels: EncodeLabelSet + Clone + Debug + Eq + Hash + Send + Sync + 'static {}

impl<L: EncodeLabelSet + Clone + Debug + Eq + Hash + Send + Sync + 'static> Labels for L {}

/// What metrics can be: a counter, a gauge, a histogram.
pub trait Metric: EncodeMetric + TypedMetric + Clone + Debug + Send + Sync + 'static {}

impl<M: EncodeMetric + TypedMetric + Clone + Debug + Send + Sync + 'static> Metric for M {}

/// How a metric of a family begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Make<M>(pub(crate) fn() -> M);

impl<M> MetricConstructor<M> for Make<M> {
    fn new_metric(&self) -> M {
        (self.0)()
    }
}

#[derive(Debug)]
struct Shared<L, M> {
    inner: Inner<L, M, Make<M>>,
    /// How many handles there are of each.
    users: Mutex<HashMap<L, usize>>,
}

/// Metrics of one name, one for each set of labels. Cheap to clone.
#[derive(Debug)]
pub struct Family<L: Labels, M: Metric> {
    shared: Arc<Shared<L, M>>,
}

impl<L: Labels, M: Metric> Clone for Family<L, M> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<L: Labels, M: Metric> Family<L, M> {
    pub(crate) fn new(inner: Inner<L, M, Make<M>>) -> Self {
        let users = Mutex::default();
        Self {
            shared: Arc::new(Shared { inner, users }),
        }
    }

    /// The metric with these labels. It is shown as long as somebody has it: what belongs to a device keeps
    /// its series, and they go when it goes. Who has it twice, for one thing because the device's successor
    /// comes before it goes, shares it.
    #[must_use = "the metric goes with its last handle"]
    pub fn series(&self, labels: L) -> Series<L, M> {
        let mut users = self.shared.users.lock();
        let metric = self.shared.inner.get_or_create_owned(&labels);
        *users.entry(labels.clone()).or_default() += 1;
        drop(users);
        Series {
            family: self.clone(),
            labels,
            metric,
        }
    }
}

/// A metric with labels. Dropping the last handle of those labels removes it.
#[derive(Debug)]
pub struct Series<L: Labels, M: Metric> {
    family: Family<L, M>,
    labels: L,
    metric: M,
}

impl<L: Labels, M: Metric> Deref for Series<L, M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.metric
    }
}

impl<L: Labels, M: Metric> Drop for Series<L, M> {
    fn drop(&mut self) {
        let mut users = self.family.shared.users.lock();
        let Some(count) = users.get_mut(&self.labels) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            users.remove(&self.labels);
            // Under the lock, or a handle made meanwhile would be of a metric that is not shown.
            self.family.shared.inner.remove(&self.labels);
        }
    }
}
