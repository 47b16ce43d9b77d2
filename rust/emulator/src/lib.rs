//! A CUDA driver whose card is the processor: tests of the engine on a card that need none.
//!
//! The library has the name of NVIDIA's, `libcuda.so.1`, and is found in its place by a process that
//! starts with [`Emulated::command`]. It compiles nothing: its kernels are the engine's, compiled by
//! a C++ compiler. But it holds the engine to what a driver holds it to: kernels must be in the PTX
//! that is loaded, PTX must be for a card and a driver of its age, memory ends where it ends.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with the library.
pub const FOLDER: &str = env!("EMULATED_CUDA_FOLDER");

/// An emulated card.
#[derive(Debug, Clone)]
pub struct Emulated {
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Of the card.
    pub memory_mib: u64,
    /// The CUDA that the driver serves, as it says it: 12000 is 12.0.
    pub driver: u32,
    /// Whether the last thread of a block runs first, and the last block.
    pub backwards: bool,
}

impl Default for Emulated {
    /// An RTX 2070.
    fn default() -> Self {
        Self { compute_capability: (7, 5), memory_mib: 8 << 10, driver: 12_000, backwards: false }
    }
}

/// What a process did with an emulated card.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How often it did what.
    pub counts: BTreeMap<String, u64>,
    /// The kernels it looked up.
    pub lookups: Vec<String>,
}

impl Emulated {
    /// `program`, to be run where this card is; it reports to `report` when it ends.
    pub fn command(&self, program: impl AsRef<Path>, report: &Path) -> Command {
        let Self { compute_capability: (major, minor), memory_mib, driver, backwards } = self;
        let mut command = Command::new(program.as_ref());
        let mut path = vec![PathBuf::from(FOLDER)];
        path.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
        command
            .env("LD_LIBRARY_PATH", std::env::join_paths(path).expect("paths without colons"))
            .env("EMULATED_CUDA_CAPABILITY", format!("{major}.{minor}"))
            .env("EMULATED_CUDA_MEMORY_MB", memory_mib.to_string())
            .env("EMULATED_CUDA_DRIVER", driver.to_string())
            .env("EMULATED_CUDA_BACKWARDS", if *backwards { "1" } else { "0" })
            .env("EMULATED_CUDA_REPORT", report);
        command
    }
}

impl Report {
    /// What [`Emulated::command`]'s process has reported.
    ///
    /// # Errors
    /// When it has reported nothing.
    pub fn read(file: &Path) -> std::io::Result<Self> {
        let mut report = Self::default();
        for line in std::fs::read_to_string(file)?.lines() {
            match line.split_once(' ') {
                Some(("lookup", name)) => report.lookups.push(name.into()),
                Some((what, count)) => {
                    *report.counts.entry(what.into()).or_default() += count.parse().unwrap_or(0);
                }
                None => {}
            }
        }
        Ok(report)
    }
}
