//! Metrics for Prometheus: a registry ([`Metrics`]), and a small HTTP listener ([`Server`]) that serves it to
//! this machine alone. There is no listener unless somebody starts one.
//!
//! # Names
//!
//! As Prometheus wants them: `standfast_` in front, base units (seconds, bytes) behind, `_total` at the end
//! of what only grows. The registry adds the first and the last and refuses what does not fit
//! ([`NameError`]). Labels say which one of several things is meant, and never grow with time: a
//! device, an operation; not a request.
//!
//! # What is collected
//!
//! Values are atomics that their owners change ([`Counter`], [`Gauge`], [`Histogram`]), or are
//! read from their owners when somebody asks ([`Collector`]). **A collector must ask nobody who may hang**:
//! no lock that is held over I/O, no system call that asks storage. All metrics and all clients wait for
//! it.
//!
//! # Health
//!
//! [`Metrics::health`] adds `/healthz`, for whoever decides by that whether a process has to be started again.
//!
//! # Limits
//!
//! An answer has 4 MiB at most, beyond which it is an error. 16 connections are served, and the oldest one
//! makes room for a new one, so that no number of idle clients keeps the others out. A head has 16 KiB at
//! most and comes within 5 s; a connection ends after 15 s, whatever its client has not read by then. So all
//! of it takes 64 MiB at most, and usually some KiB. Everything runs on a thread of its own: clients delay
//! each other at worst.
//!
//! # Why these crates
//!
//! `prometheus-client` is the one of the Prometheus project, needs no global state, and lets values be
//! read when they are asked for. HTTP is hyper's, which the links to VMMs use as well; with one path to
//! serve a framework would add nothing.

mod address;
mod family;
mod names;
mod registry;
mod respond;
mod server;

pub use prometheus_client::collector::Collector;
pub use prometheus_client::encoding;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

pub use address::{Address, AddressError};
pub use family::{Family, Labels, Metric, Series};
pub use names::{NameError, Unit};
pub use registry::{ANSWER_BYTES_MAX, Metrics, TooLong};
pub use server::{Server, ServerError};
