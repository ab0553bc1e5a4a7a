//! How much a thread insists on its processor, where others want it, too.
//!
//! Loading a dataset takes all that a processor can give. A thread that does so steps back for whoever answers clients on
//! the same processor, as the master of a replica on the same machine may. To come back takes a privilege: without it,
//! nothing is changed.

use rustix::process::{getpriority_process, setpriority_process};
use std::sync::OnceLock;
use std::thread;

/// Half of the weight of others: enough for them to go first, and not so much that a busy neighbour stops a full sync.
const STEP: i32 = 3;
/// The least urgent there is.
const LAST: i32 = 19;

/// The niceness that the process was started with, if its threads may come back to it.
static USUAL: OnceLock<Option<i32>> = OnceLock::new();

/// Finds out whether threads may step back, by trying it. To be called before the shards start.
pub fn learn() {
    // Niceness is a thread's own on Linux, so a thread tries it that nobody needs.
    let tried = thread::spawn(|| {
        let usual = getpriority_process(None).ok()?;
        setpriority_process(None, (usual + STEP).min(LAST)).ok()?;
        setpriority_process(None, usual).ok().map(|()| usual)
    });
    USUAL.get_or_init(|| tried.join().ok().flatten());
}

fn usual() -> Option<i32> {
    USUAL.get().copied().flatten()
}

/// The calling thread steps back.
pub fn step_back() {
    if let Some(usual) = usual() {
        // It worked when it was tried, and where it does not any more, nothing is lost.
        let _ = setpriority_process(None, (usual + STEP).min(LAST));
    }
}

/// The calling thread insists as the process did when it was started.
pub fn come_back() {
    if let Some(usual) = usual() {
        let _ = setpriority_process(None, usual);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_steps_back_comes_back() {
        learn();
        thread::spawn(|| {
            let before = getpriority_process(None).unwrap();
            step_back();
            let back = getpriority_process(None).unwrap();
            assert_eq!(back, usual().map_or(before, |usual| (usual + STEP).min(LAST)));
            come_back();
            assert_eq!(getpriority_process(None).unwrap(), before);
        })
        .join()
        .unwrap();
    }
}
