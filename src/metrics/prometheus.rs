//! The text Prometheus reads.
