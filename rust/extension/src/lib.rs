//! The private Python module of moshi-ctl.
