//! modelgate: one binary between apps and a model registry.
//!
//! The crate is two planes that meet in one value, the published [`model::ModelSet`]. The data plane
//! ([`server`], [`auth`], [`quota`], [`model`], [`metrics`], [`capture`]) answers requests and never names the
//! control plane ([`registry`], [`manager`]), which decides what is served. [`app`] builds both, [`config`] reads
//! what the user wrote. Who may name whom is written in ARCHITECTURE.md, and a test holds the code to it.

pub mod app;
pub mod auth;
pub mod capture;
pub mod clock;
pub mod config;
pub mod drift;
pub mod feedback;
pub mod manager;
pub mod metrics;
pub mod model;
pub mod quota;
pub mod registry;
pub mod server;
pub mod task;
pub mod telemetry;
