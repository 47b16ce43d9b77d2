//! Prints the folder of the emulated driver's library, for tests that are not in Rust.

fn main() {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    println!("{}", moshi_ctl_emulator::FOLDER);
}
