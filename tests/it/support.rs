//! Fakes and handles of real servers, shared by the tests.

pub(crate) mod callers;
pub(crate) mod canary;
pub(crate) mod cloudwatch;
pub(crate) mod emf;
pub(crate) mod fixtures;
pub(crate) mod gate;
pub(crate) mod hostile_registry;
pub(crate) mod listener;
pub(crate) mod loans;
pub(crate) mod mlflow;
pub(crate) mod onnx;
pub(crate) mod otlp;
pub(crate) mod panel;
pub(crate) mod redis;
pub(crate) mod s3;
pub(crate) mod samples;
pub(crate) mod sink;
pub(crate) mod site;
