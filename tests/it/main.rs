//! Everything that is tested from outside the modules: one binary, real sockets, real servers where there are any.

mod auth;
mod capture;
mod cloudwatch;
mod config;
mod gate;
mod mlflow;
mod numeric;
mod quota;
mod server;
mod support;
mod tidy;
