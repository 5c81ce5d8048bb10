//! What the system says of this process (Linux's /proc; nothing elsewhere).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Memory in bytes, as /proc/self/status has it.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Memory {
    /// Memory of the process's own, which the system cannot drop (RssAnon).
    pub anon_bytes: Option<u64>,
    /// Pages of mapped files, the program's own included, which the system can drop (RssFile).
    pub file_bytes: Option<u64>,
    /// The most that both ever were together (VmHWM).
    pub peak_bytes: Option<u64>,
}

impl Memory {
    pub fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
        };
        Self { anon_bytes: bytes("RssAnon"), file_bytes: bytes("RssFile"), peak_bytes: bytes("VmHWM") }
    }
}

/// Processor seconds of all threads so far, those that have ended included.
pub fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program stands in brackets and may hold spaces; the numbers follow it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    // Linux counts them in hundredths for every program, whatever its own clock does.
    Some((ticks()? + ticks()?) as f64 / 100.0)
}

/// Watches how much memory of its own the process has.
pub struct Watch {
    most: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Watch {
    /// From now on, a hundred times a second.
    pub fn start() -> Self {
        let watch = Self { most: Arc::default(), ended: Arc::default() };
        let (most, ended) = (Arc::clone(&watch.most), Arc::clone(&watch.ended));
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                most.fetch_max(Memory::now().anon_bytes.unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        watch
    }

    /// The most that was seen, in bytes; none where the system does not say.
    pub fn stop(self) -> Option<u64> {
        self.ended.store(true, Ordering::Relaxed);
        let last = Memory::now().anon_bytes?;
        Some(self.most.load(Ordering::Relaxed).max(last))
    }
}
