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
mod drift_callers;
mod failed_capture;
mod feedback;
mod gate;
mod keys;
mod keys_figures;
mod mlflow;
mod numeric;
mod process;
mod protect;
mod quota;
mod readers;
mod replay;
mod rollout;
mod server;
mod shared_quota;
mod support;
mod tidy;
