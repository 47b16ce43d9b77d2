//! Compiles the emulated driver, with the engine's kernels in it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let variable = |name| std::env::var(name).unwrap_or_default();
    // Elsewhere the crate is empty: threads of a block are switched in x86-64's assembler.
    if variable("CARGO_CFG_TARGET_OS") != "linux" || variable("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        return;
    }
    let kernels = Path::new("../engine/kernels");
    for folder in [Path::new("driver"), kernels] {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let library = out.join("libcuda.so.1");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let status = Command::new(&compiler)
        .args(["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread"])
        .args(["-Wl,-soname,libcuda.so.1", "-Idriver"])
        .arg(format!("-I{}", kernels.display()))
        .args(["driver/driver.cpp", "driver/fibers.cpp", "-o"])
        .arg(&library)
        .status()
        .unwrap_or_else(|e| panic!("the C++ compiler {compiler} cannot be started: {e}"));
    assert!(status.success(), "{compiler} failed: the emulated driver is C++17");
    println!("cargo:rustc-env=EMULATED_CUDA_FOLDER={}", out.display());
}
