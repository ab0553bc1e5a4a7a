//! What all processes of a run have in common: chance, time, and the list of what the clients did.

use crate::workload::{Op, Scenario, Tags};

/// See the module.
pub struct Env {
    pub scenario: Scenario,
    pub rng: fastrand::Rng,
    pub now_us: u64,
    /// Moments of sends and replies.
    pub clock: u64,
    pub ops: Vec<Op>,
    pub tags: Tags,
    pub keys: usize,
    /// How deep the step under way interrupts another.
    pub depth: usize,
    /// Clients so far, of all processes.
    pub clients: usize,
    /// Connections that ended in the midst of something.
    pub closed: u64,
    /// One in so many times that a client could send something it does.
    pub lull: u32,
    /// Tell what happens.
    pub is_loud: bool,
}

impl Env {
    pub fn new(scenario: Scenario, mut rng: fastrand::Rng, is_loud: bool) -> Self {
        Self {
            scenario,
            now_us: 1_000_000_000,
            clock: 0,
            ops: Vec::new(),
            tags: Tags::default(),
            keys: rng.usize(2..10),
            depth: 0,
            clients: 0,
            closed: 0,
            lull: 1,
            is_loud,
            rng,
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.now_us / 1000
    }

    /// The moment of a send or a reply.
    pub fn next_moment(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}
