//! Ctrl-C: long work looks here between steps, saves what it has, and stops.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Makes the first Ctrl-C (or SIGTERM) a polite request and the second one an immediate exit.
pub fn install() {
    // A handler that cannot be installed leaves the system's default: the program just ends.
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        let line = "stopping after this step; press Ctrl-C again to stop at once";
        let _ = writeln!(std::io::stderr(), "{line}");
    });
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
