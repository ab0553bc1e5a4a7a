//! The part of the replication stream that is on disk for slow replicas, on the home shard: hands the log's steps to the
//! thread that carries them out ([`crate::disk::segments`]), and the log what came of them.

use super::Front;
use super::replicas::HOME;
use crate::disk::segments::Segments;
use crate::log_warning;
use crate::session::control::Order;
use braid_replication::log::spill::{Step, Told};
use std::path::PathBuf;
use std::sync::Arc;

impl Front {
    /// Has done what the log asks for. To be called when it was trimmed.
    pub(super) fn spill(&mut self) {
        let Some(home) = &mut self.home else { return };
        for step in home.log().take_steps() {
            if let Step::Warn(line) = step {
                log_warning!("{line}");
                continue;
            }
            if let Err((step, why)) = self.carry_out_step(step) {
                let told = match step {
                    Step::Write { .. } => Told::Written(Err(why)),
                    Step::Read { read, .. } => Told::Read { read, outcome: Err(why) },
                    Step::Delete { .. } | Step::Warn(_) => continue,
                };
                // As the thread would have told it: in a later round.
                self.node.order(HOME, Order::Spilled(told));
            }
        }
    }

    fn carry_out_step(&mut self, step: Step) -> Result<(), (Step, String)> {
        let segments = match self.segments.take() {
            Some(segments) => segments,
            None => {
                let node = Arc::clone(&self.node);
                // The process is in the folder that `dir` names.
                match Segments::start(PathBuf::from("."), move |told| node.order(HOME, Order::Spilled(told)))
                {
                    Ok(segments) => segments,
                    Err(error) => return Err((step, error.to_string())),
                }
            }
        };
        segments.carry_out(step).map_err(|step| (step, "its thread has ended".to_owned()))?;
        self.segments = Some(segments);
        Ok(())
    }

    /// The thread told something.
    pub(super) fn spilled(&mut self, told: Told) {
        let now_ms = self.now_ms();
        self.home.as_mut().expect("it tells the home").log().told(told, now_ms);
    }
}
