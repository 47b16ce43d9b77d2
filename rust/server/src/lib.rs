//! Protocol, sessions and scheduling over a streaming model.

mod build_info;
pub mod config;
mod routes;
mod secret;
pub mod worker;

pub use secret::ApiKey;
