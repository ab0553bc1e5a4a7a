//! Tasks beside the engine on a shard's executor: what reads and writes files.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

/// Counts the tasks of one shard's executor. While there are any, the engine sleeps through the executor and yields to
/// it; otherwise it has the thread to itself.
#[derive(Clone, Default)]
pub struct Tasks(Rc<Cell<usize>>);

/// Takes the task off the count however it ends.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Tasks {
    pub fn is_empty(&self) -> bool {
        self.0.get() == 0
    }

    /// Runs a task to its end. To be called on the shard's thread.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.set(self.0.get() + 1);
        let counted = Counted(Rc::clone(&self.0));
        glommio::spawn_local(async move {
            let _counted = counted;
            task.await;
        })
        .detach();
    }
}
