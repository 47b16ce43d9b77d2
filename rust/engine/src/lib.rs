//! Kyutai's streaming speech models for many independent lanes.
