//! Development only: the published moshi crate as oracle and baseline.
