//! Everything that is tested from outside the modules: one binary, real sockets, real servers where there are any.

#![expect(clippy::unwrap_used, reason = "what a test cannot unwrap has failed it")]

mod admission;
mod artifacts;
mod auth;
mod canary;
mod canary_suite;
mod capture;
mod cloudwatch;
mod config;
mod conformance;
mod dashboard;
mod doctor;
mod drift;
mod drift_callers;
mod durability;
mod emf;
mod errors;
mod failed_capture;
mod feedback;
mod gate;
mod keys;
mod keys_figures;
mod keys_load;
mod mlflow;
mod numeric;
mod otlp;
mod process;
mod protect;
mod quota;
mod readers;
mod registry;
mod registry_away;
mod registry_tls;
mod replay;
mod rollout;
mod rollout_loads;
mod rollout_metrics;
mod rollout_pins;
mod server;
mod shared_quota;
mod support;
mod swap;
mod tidy;
mod usage;
mod webhook;
