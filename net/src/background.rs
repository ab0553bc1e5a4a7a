//! Threads beside the shards, for what blocks: files, names, freeing.

use crate::niceness;
use crate::startup::cpus;
use std::io;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

/// Where they may run.
static CPUS: OnceLock<Vec<usize>> = OnceLock::new();

/// Says once, before the shards start, where these threads may run.
pub fn allow(cpus: Vec<usize>) {
    CPUS.set(cpus).expect("said once");
}

/// Starts one. Who starts it may be a shard, pinned to its processor, which the thread would inherit and take time from.
///
/// # Errors
/// No thread could be started.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        if let Some(cpus) = CPUS.get() {
            // It works on one processor as well.
            let _ = cpus::run_on(cpus);
        }
        // Who started it may have stepped back.
        niceness::come_back();
        work()
    })
}
