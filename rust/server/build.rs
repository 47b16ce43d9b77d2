//! Records what was built and from which commit, for `/api/build_info`.

use vergen::EmitBuilder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Without git vergen emits placeholders and warnings; `build_info` turns those into words.
    EmitBuilder::builder()
        .quiet()
        .build_date()
        .build_timestamp()
        .cargo_target_triple()
        .git_branch()
        .git_commit_date()
        .git_commit_timestamp()
        .git_describe(false, false, None)
        .git_sha(false)
        .rustc_host_triple()
        .rustc_semver()
        .emit()?;
    Ok(())
}
