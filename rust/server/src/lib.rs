//! Protocol, sessions and scheduling over a streaming model.
