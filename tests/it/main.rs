//! Everything that is tested from outside the modules: one binary, real sockets, real servers where there are any.

#![expect(clippy::unwrap_used, reason = "what a test cannot unwrap has failed it")]

mod admission;
mod auth;
mod canary;
mod canary_suite;
mod capture;
mod cloudwatch;
mod config;
mod conformance;
mod dashboard;
mod drift;
mod errors;
mod gate;
mod keys;
mod keys_figures;
mod keys_load;
mod mlflow;
mod numeric;
mod process;
mod quota;
mod replay;
mod rollout;
mod server;
mod shared_quota;
mod support;
mod tidy;
