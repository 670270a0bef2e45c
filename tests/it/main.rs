//! Everything that is tested from outside the modules: one binary, real sockets, real servers where there are any.

#![expect(clippy::unwrap_used, reason = "what a test cannot unwrap has failed it")]

mod admission;
mod auth;
mod canary;
mod capture;
mod cloudwatch;
mod config;
mod dashboard;
mod drift;
mod emf;
mod gate;
mod keys;
mod keys_figures;
mod metrics_figures;
mod mlflow;
mod numeric;
mod otlp;
mod process;
mod quota;
mod replay;
mod rollout;
mod server;
mod shared_quota;
mod support;
mod tidy;
