//! Measures what this machine can do at most and prints one line of JSON.
//!
//!     moshi-ctl-roofline [THREADS [REPEATS]]
//!
//! THREADS: one per physical core unless given.

use moshi_ctl_reference::Result;
use moshi_ctl_reference::roofline::{Kernel, Rate, multiply_rate, read_bandwidth};
use serde_json::json;

const REPEATS: usize = 15;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| match arguments.get(index) {
        Some(text) => text.parse().ok().filter(|&n| n > 0).ok_or(format!("{text}: no number")),
        None => Ok(default),
    };
    let (threads, repeats) = (number(0, num_cpus::get_physical())?, number(1, REPEATS)?);
    let giga = |Rate { median, lowest, highest }| json!({"median": median / 1e9, "lowest": lowest / 1e9, "highest": highest / 1e9});
    let (int8, f32) = (Kernel::int8(), Kernel::f32());
    let line = json!({
        "threads": threads,
        "repeats": repeats,
        "read_gb_per_s": giga(read_bandwidth(threads, repeats)),
        "int8_instructions": int8.instructions,
        "int8_gop_per_s": giga(multiply_rate(&int8, threads, repeats)),
        "f32_instructions": f32.instructions,
        "f32_gflop_per_s": giga(multiply_rate(&f32, threads, repeats)),
    });
    println!("{line}");
    Ok(())
}
