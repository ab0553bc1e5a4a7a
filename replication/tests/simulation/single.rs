//! One process whose clients read and write while stock replicas come and go.

use crate::env::Env;
use crate::hub::Hub;
use crate::model::State;
use crate::process::{Plan, Process};
use crate::rules::{follower_rules, rules};
use crate::workload::Scenario;

/// Steps within which a run must come to rest: far more than any takes.
const QUIET_STEPS_MAX: usize = 200_000;

/// See the module.
pub struct World {
    pub env: Env,
    pub process: Process,
    /// Offsets at which everything was at rest, and the dataset then.
    pub rests: Vec<(u64, State)>,
}

impl World {
    pub fn new(seed: u64, scenario: Scenario) -> Self {
        let mut env = Env::new(scenario, fastrand::Rng::with_seed(seed), false);
        let plan = Plan {
            incarnation: 0,
            rules: rules(),
            follower_rules: follower_rules(0),
            clients: env.rng.usize(2..7),
            ops: env.rng.usize(5..40),
            master: None,
            file: None,
        };
        let process = Process::new(&mut env, plan);
        Self { env, process, rests: Vec::new() }
    }

    /// From the first command to the last reply.
    pub fn run(&mut self) {
        let starts_followed = self.env.rng.u8(..4) > 0;
        if starts_followed {
            self.attach();
            self.rest();
        }
        let mut attaches_left = 3;
        let mut steps = 0;
        while !self.process.is_done() {
            self.process.step(&mut self.env);
            steps += 1;
            assert!(steps < QUIET_STEPS_MAX, "law 3: clients do not get on");
            if self.env.rng.u16(..300) == 0 && attaches_left > 0 {
                attaches_left -= 1;
                self.attach();
            }
            if self.env.rng.u16(..600) == 0 {
                self.detach();
            }
            if self.env.rng.u16(..500) == 0 {
                self.rest();
            }
        }
        self.rest();
        if self.hub().activated.is_none() {
            self.attach();
            self.rest();
        }
    }

    pub fn hub(&mut self) -> &mut Hub {
        self.process.hub()
    }

    fn attach(&mut self) {
        let now_ms = self.env.now_ms();
        self.hub().attach_stock(now_ms);
    }

    /// A replica but the first is lost, in whatever state it is.
    fn detach(&mut self) {
        let links = self.hub().links.len();
        if links > 1 {
            let index = self.env.rng.usize(1..links);
            if !self.hub().links[index].is_closed {
                self.hub().detach_stock(index);
            }
        }
    }

    /// Nobody sends anything; all that is under way comes to its end.
    fn rest(&mut self) {
        let mut steps = 0;
        while !(self.process.is_at_rest() && self.hub().is_quiet()) {
            let id = self.env.rng.usize(..self.process.shards());
            self.process.step_thread(id, &mut self.env);
            self.env.now_us += self.env.rng.u64(..20);
            steps += 1;
            if steps == QUIET_STEPS_MAX {
                self.explain_unrest();
            }
        }
        let tickets = self.process.counters.sequencer.next_ticket();
        assert_eq!(tickets, self.hub().home.next_ticket(), "law 4: a ticket without its effects");
        self.process.check_rest();
        if self.hub().activated.is_some() {
            let state = self.process.whole().expect("at rest");
            let end = self.hub().home.end_offset();
            self.rests.push((end, state));
        }
    }

    fn explain_unrest(&mut self) -> ! {
        self.process.explain();
        let end = self.hub().home.end_offset();
        for link in &self.hub().links {
            eprintln!("end {end}, {}", link.explain());
        }
        panic!("law 3: something is never finished");
    }
}
