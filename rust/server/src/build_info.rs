//! What was built, when and from which commit.

use serde_json::{Value, json};

/// What vergen writes where it could not find out.
const VERGEN_PLACEHOLDER: &str = "VERGEN_IDEMPOTENT_OUTPUT";

/// The build's facts under the names Kyutai's server uses for them, and our version.
pub fn build_info() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "build_timestamp": known(env!("VERGEN_BUILD_TIMESTAMP")),
        "build_date": known(env!("VERGEN_BUILD_DATE")),
        "git_branch": known(env!("VERGEN_GIT_BRANCH")),
        "git_timestamp": known(env!("VERGEN_GIT_COMMIT_TIMESTAMP")),
        "git_date": known(env!("VERGEN_GIT_COMMIT_DATE")),
        "git_hash": known(env!("VERGEN_GIT_SHA")),
        "git_describe": known(env!("VERGEN_GIT_DESCRIBE")),
        "rustc_host_triple": known(env!("VERGEN_RUSTC_HOST_TRIPLE")),
        "rustc_version": known(env!("VERGEN_RUSTC_SEMVER")),
        "cargo_target_triple": known(env!("VERGEN_CARGO_TARGET_TRIPLE")),
    })
}

fn known(value: &'static str) -> &'static str {
    if value == VERGEN_PLACEHOLDER { "unknown (built outside git)" } else { value }
}
