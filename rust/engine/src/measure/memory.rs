//! What the process takes up.

use serde::Serialize;

/// Resident memory of this process; mapped file pages count while they are in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Now.
    pub resident_bytes: u64,
    /// The most so far, where the system keeps count.
    pub peak_resident_bytes: Option<u64>,
}

impl Memory {
    /// What the system says now; none where it does not.
    #[cfg(target_os = "linux")]
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    /// What the system says now; none where it does not.
    #[cfg(not(target_os = "linux"))]
    pub fn now() -> Option<Self> {
        let resident_bytes = memory_stats::memory_stats()?.physical_mem as u64;
        Some(Self { resident_bytes, peak_resident_bytes: None })
    }

    /// Reads proc_pid_status(5), whose kB are units of 1,024 bytes.
    #[cfg(target_os = "linux")]
    fn parse(status: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib: u64 = value?.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(1024 * kib)
        };
        Some(Self { resident_bytes: bytes("VmRSS")?, peak_resident_bytes: bytes("VmHWM") })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_status_file_is_understood() {
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t    1024 kB\nThreads:\t1\n";
        let memory = Memory { resident_bytes: 1 << 20, peak_resident_bytes: Some(2 << 20) };
        assert_eq!(Memory::parse(status), Some(memory));
        assert_eq!(Memory::parse("VmRSS: what"), None);
    }

    #[test]
    fn this_process_has_memory() {
        let memory = Memory::now().unwrap();
        assert!(memory.peak_resident_bytes.unwrap() >= memory.resident_bytes);
        assert!(memory.resident_bytes > 0);
    }
}
