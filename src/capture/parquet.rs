//! Segments as Parquet.
