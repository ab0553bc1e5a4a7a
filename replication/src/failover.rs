//! `FAILOVER`: a master steps down in favour of one of its replicas, without losing a write.
//!
//! ```text
//! Idle --FAILOVER--> WaitingForSync --the target has everything--> InProgress --it has taken over--> Idle
//!                      |                                             |
//!                      +--time is over, FAILOVER ABORT---> Idle <----+--refused, FAILOVER ABORT
//! ```
//! While it waits writes are paused, so that there is an end to catch up with. Then the node asks the target for the
//! stream with `PSYNC id offset FAILOVER`, which makes the target a master at that very offset, and follows it. When that
//! has begun, or cannot, writes go on: to be refused as a replica's, or as before.
//!
//! As everywhere, time and events come in as arguments, and what is to be done comes out of [`Failover::take_steps`].

use crate::acks::ReplicaId;
use crate::psync::State;

/// What `FAILOVER` was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Abort,
    Begin(Order),
}

/// How to fail over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// To this replica, by the address that `INFO replication` shows; else to the first that has caught up.
    pub target: Option<(String, u16)>,
    /// When the time is over go ahead with the target, though it has not caught up.
    pub force: bool,
    /// 0: wait for ever.
    pub timeout_ms: u64,
}

/// A replica of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: ReplicaId,
    /// Where clients reach it.
    pub host: String,
    pub port: u16,
    pub state: State,
    /// What it has applied.
    pub acked_offset: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Hold back all clients' writes, and send replicas nothing but what is in the stream already.
    PauseWrites,
    /// Put `GETACK` into the stream; its end is then told by [`Failover::asked`].
    AskForAcks,
    /// Become a replica of this node by `PSYNC … FAILOVER`. If the stream turns out to end beyond `offset`, or the node
    /// refuses, say so with [`Failover::refused`].
    Follow { host: String, port: u16, offset: u64 },
    /// Be a master as before: the link made by `Follow` is to be dropped.
    StayMaster,
    /// Let clients write again.
    ResumeWrites,
    /// A line for the log.
    Log(String),
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Idle,
    WaitingForSync {
        order: Order,
        deadline_ms: Option<u64>,
        /// What the target has to have applied, and where the stream ended behind the question for that.
        goal: Option<(u64, u64)>,
    },
    InProgress,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Failover {
    phase: Phase,
    steps: Vec<Step>,
}

impl Request {
    /// From the words behind `FAILOVER`.
    ///
    /// # Errors
    /// Redis's, each with its code.
    pub fn parse(words: &[&[u8]]) -> Result<Request, &'static str> {
        const SYNTAX: &str = "ERR syntax error";
        let number = |word: &[u8]| std::str::from_utf8(word).ok().and_then(|text| text.parse::<i64>().ok());
        let not_a_number = "ERR value is not an integer or out of range";
        let mut order = Order::default();
        let (mut has_timeout, mut aborts) = (false, false);
        let mut rest = words;
        while let [word, more @ ..] = rest {
            let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
            rest = match more {
                [value, more @ ..] if is("timeout") && !has_timeout => {
                    let timeout_ms = number(value).ok_or(not_a_number)?;
                    if timeout_ms <= 0 {
                        return Err("ERR FAILOVER timeout must be greater than 0");
                    }
                    (order.timeout_ms, has_timeout) = (timeout_ms as u64, true);
                    more
                }
                [host, port, more @ ..] if is("to") && order.target.is_none() => {
                    let port = number(port).ok_or(not_a_number)?;
                    // A port that does not exist is none of a replica.
                    let port = u16::try_from(port).unwrap_or(0);
                    order.target = Some((String::from_utf8_lossy(host).into_owned(), port));
                    more
                }
                more if is("force") && !order.force => {
                    order.force = true;
                    more
                }
                [] if is("abort") && words.len() == 1 => {
                    aborts = true;
                    &[]
                }
                _ => return Err(SYNTAX),
            };
        }
        Ok(if aborts { Request::Abort } else { Request::Begin(order) })
    }
}

impl Failover {
    /// As in `INFO replication`.
    pub fn state_name(&self) -> &'static str {
        match self.phase {
            Phase::Idle => "no-failover",
            Phase::WaitingForSync { .. } => "waiting-for-sync",
            Phase::InProgress => "failover-in-progress",
        }
    }

    /// Whether one is under way: replicas that ask to be synchronized are told to ask later, and the stream gets no `PING`.
    pub fn is_under_way(&self) -> bool {
        !matches!(self.phase, Phase::Idle)
    }

    pub fn take_steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// When [`Failover::poll`] has something to do though nothing else happens.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        match self.phase {
            Phase::WaitingForSync { deadline_ms, .. } => deadline_ms,
            _ => None,
        }
    }

    /// `FAILOVER` of a master with these replicas.
    ///
    /// # Errors
    /// Redis's; nothing has changed then.
    pub fn begin(&mut self, order: Order, replicas: &[Candidate], now_ms: u64) -> Result<(), &'static str> {
        if self.is_under_way() {
            return Err("ERR FAILOVER already in progress.");
        }
        if replicas.is_empty() {
            return Err("ERR FAILOVER requires connected replicas.");
        }
        if order.force && (order.timeout_ms == 0 || order.target.is_none()) {
            return Err("ERR FAILOVER with force option requires both a timeout and target HOST and IP.");
        }
        if let Some(target) = &order.target {
            match replicas.iter().find(|replica| replica.is(target)) {
                None => return Err("ERR FAILOVER target HOST and PORT is not a replica."),
                Some(replica) if replica.state != State::Online => {
                    return Err("ERR FAILOVER target replica is not online.");
                }
                Some(_) => {}
            }
        }
        self.steps.push(Step::Log("FAILOVER requested.".into()));
        self.steps.push(Step::PauseWrites);
        let deadline_ms = (order.timeout_ms > 0).then(|| now_ms.saturating_add(order.timeout_ms));
        self.phase = Phase::WaitingForSync { order, deadline_ms, goal: None };
        Ok(())
    }

    /// The stream ended at `before` when replicas were asked for their offsets, and behind that question at `after`.
    pub fn asked(&mut self, before: u64, after: u64) {
        if let Phase::WaitingForSync { goal, .. } = &mut self.phase {
            *goal = Some((before, after));
        }
    }

    /// Looks whether it can go on. To be called when an acknowledgement came, when the stream has grown (by what was under
    /// way when writes were paused), when a replica came or went, and when time is over. `end_offset`: of the stream.
    pub fn poll(&mut self, end_offset: u64, replicas: &[Candidate], now_ms: u64) {
        let Phase::WaitingForSync { order, deadline_ms, goal } = &self.phase else { return };
        let wanted = |replica: &&Candidate| {
            replica.state == State::Online && order.target.as_ref().is_none_or(|target| replica.is(target))
        };
        // What came after the question is to be asked for again.
        let goal = goal.filter(|(_, after)| *after == end_offset);
        // Its answer tells what was applied before the question; that it is one shows that the question was read.
        let caught_up = goal.and_then(|(before, _)| {
            replicas.iter().filter(wanted).find(|replica| replica.acked_offset >= before)
        });
        if let Some(replica) = caught_up {
            let (host, port) = (replica.host.clone(), replica.port);
            self.steps.push(Step::Log(format!("Failover target is {host}:{port}, which has caught up.")));
            return self.follow(host, port, end_offset);
        }
        if deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms) {
            return match &order.target {
                Some((host, port)) if order.force => {
                    let (host, port) = (host.clone(), *port);
                    self.steps.push(Step::Log(format!(
                        "Failover to {host}:{port} time out exceeded, failing over."
                    )));
                    self.follow(host, port, end_offset)
                }
                _ => self.end("Failover aborted: no replica caught up before the timeout"),
            };
        }
        if goal.is_none() {
            self.steps.push(Step::AskForAcks);
        }
    }

    fn follow(&mut self, host: String, port: u16, offset: u64) {
        self.phase = Phase::InProgress;
        self.steps.push(Step::Follow { host, port, offset });
    }

    /// The target has taken over, and this node follows it.
    pub fn taken_over(&mut self) {
        if matches!(self.phase, Phase::InProgress) {
            self.phase = Phase::Idle;
            self.steps.push(Step::Log("Failover complete: this node is a replica now.".into()));
            self.steps.push(Step::ResumeWrites);
        }
    }

    /// The target does not take over, or cannot be asked to.
    pub fn refused(&mut self, why: &str) {
        if matches!(self.phase, Phase::InProgress) {
            self.end(&format!("Failover aborted: {why}"));
        }
    }

    /// `FAILOVER ABORT`.
    ///
    /// # Errors
    /// Redis's, if there is nothing to abort.
    pub fn abort(&mut self) -> Result<(), &'static str> {
        if !self.is_under_way() {
            return Err("ERR No failover in progress.");
        }
        self.end("Failover aborted: manually");
        Ok(())
    }

    fn end(&mut self, line: &str) {
        self.steps.push(Step::Log(line.into()));
        if matches!(self.phase, Phase::InProgress) {
            self.steps.push(Step::StayMaster);
        }
        self.phase = Phase::Idle;
        self.steps.push(Step::ResumeWrites);
    }
}

impl Candidate {
    fn is(&self, (host, port): &(String, u16)) -> bool {
        self.host.eq_ignore_ascii_case(host) && self.port == *port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(id: u64, acked_offset: u64) -> Candidate {
        let port = 7000 + id as u16;
        Candidate { id: ReplicaId(id), host: "10.0.0.1".into(), port, state: State::Online, acked_offset }
    }

    fn parse(line: &str) -> Result<Request, &'static str> {
        let words: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        Request::parse(&words)
    }

    fn order(line: &str) -> Order {
        match parse(line) {
            Ok(Request::Begin(order)) => order,
            other => panic!("{other:?}"),
        }
    }

    /// The steps but for what is logged.
    fn steps(failover: &mut Failover) -> Vec<Step> {
        failover.take_steps().into_iter().filter(|step| !matches!(step, Step::Log(_))).collect()
    }

    fn follow(port: u16, offset: u64) -> Step {
        Step::Follow { host: "10.0.0.1".into(), port, offset }
    }

    /// As redis-server 7.0 answers.
    #[test]
    fn words_are_read_as_redis_reads_them() {
        let syntax = "ERR syntax error";
        let number = "ERR value is not an integer or out of range";
        for (line, error) in [
            ("to", syntax),
            ("to h", syntax),
            ("to h x", number),
            ("foo", syntax),
            ("abort timeout 5", syntax),
            ("timeout 5 abort", syntax),
            ("to h 1 to h 2", syntax),
            ("force force", syntax),
            ("timeout x", number),
            ("timeout 0", "ERR FAILOVER timeout must be greater than 0"),
        ] {
            assert_eq!(parse(line), Err(error), "{line}");
        }
        assert_eq!(parse("ABORT"), Ok(Request::Abort));
        assert_eq!(order(""), Order::default());
        let full = Order { target: Some(("h".into(), 7)), force: true, timeout_ms: 9 };
        assert_eq!(order("timeout 9 TO h 7 force"), full);
    }

    #[test]
    fn what_cannot_begin_changes_nothing() {
        let mut failover = Failover::default();
        let loading = Candidate { state: State::SendBulk, ..replica(1, 0) };
        for (line, replicas, error) in [
            ("", vec![], "ERR FAILOVER requires connected replicas."),
            (
                "to 10.0.0.1 7001 force",
                vec![replica(1, 0)],
                "ERR FAILOVER with force option requires both a timeout and target HOST and IP.",
            ),
            ("to 10.0.0.1 7002", vec![replica(1, 0)], "ERR FAILOVER target HOST and PORT is not a replica."),
            ("to 10.0.0.1 7001", vec![loading], "ERR FAILOVER target replica is not online."),
        ] {
            assert_eq!(failover.begin(order(line), &replicas, 0), Err(error));
        }
        assert_eq!(failover.abort(), Err("ERR No failover in progress."));
        assert!(!failover.is_under_way() && failover.take_steps().is_empty());
        failover.begin(order(""), &[replica(1, 0)], 0).unwrap();
        let again = failover.begin(order(""), &[replica(1, 0)], 0);
        assert_eq!(again, Err("ERR FAILOVER already in progress."));
    }

    #[test]
    fn no_loss_the_target_is_followed_when_it_has_applied_what_was_written_before_the_pause() {
        let mut failover = Failover::default();
        let mut replicas = [replica(1, 90), replica(2, 95)];
        failover.begin(order(""), &replicas, 0).unwrap();
        assert_eq!(steps(&mut failover), [Step::PauseWrites]);
        failover.poll(100, &replicas, 1);
        assert_eq!(steps(&mut failover), [Step::AskForAcks]);
        failover.asked(100, 137);
        assert_eq!(failover.state_name(), "waiting-for-sync");
        failover.poll(137, &replicas, 2);
        replicas[1].acked_offset = 99;
        failover.poll(137, &replicas, 3);
        assert_eq!(steps(&mut failover), []);
        // A transaction that was under way ended meanwhile: it belongs to what has to be caught up with.
        replicas[1].acked_offset = 100;
        failover.poll(200, &replicas, 4);
        assert_eq!(steps(&mut failover), [Step::AskForAcks]);
        failover.asked(200, 237);
        failover.poll(237, &replicas, 5);
        assert_eq!(steps(&mut failover), []);
        replicas[1].acked_offset = 200;
        failover.poll(237, &replicas, 6);
        assert_eq!(steps(&mut failover), [follow(7002, 237)]);
        assert_eq!(failover.state_name(), "failover-in-progress");
        failover.poll(237, &replicas, 7);
        failover.taken_over();
        failover.taken_over();
        assert_eq!(steps(&mut failover), [Step::ResumeWrites]);
        assert_eq!(failover.state_name(), "no-failover");
    }

    #[test]
    fn only_the_target_that_was_named_is_waited_for() {
        let mut failover = Failover::default();
        let mut replicas = [replica(1, 0), replica(2, 100)];
        failover.begin(order("to 10.0.0.1 7001"), &replicas, 0).unwrap();
        failover.poll(100, &replicas, 0);
        failover.asked(100, 137);
        steps(&mut failover);
        failover.poll(137, &replicas, 1);
        assert_eq!(steps(&mut failover), []);
        // It goes and comes back.
        failover.poll(137, &replicas[1..], 2);
        replicas[0].acked_offset = 137;
        failover.poll(137, &replicas, 3);
        assert_eq!(steps(&mut failover), [follow(7001, 137)]);
        failover.refused("it said no");
        assert_eq!(steps(&mut failover), [Step::StayMaster, Step::ResumeWrites]);
        failover.refused("again");
        assert!(steps(&mut failover).is_empty());
    }

    #[test]
    fn when_time_is_over_it_is_given_up_or_forced() {
        let replicas = [replica(1, 0)];
        for (line, ends) in [
            ("timeout 50", vec![Step::ResumeWrites]),
            ("to 10.0.0.1 7001 timeout 50", vec![Step::ResumeWrites]),
            ("to 10.0.0.1 7001 timeout 50 force", vec![follow(7001, 137)]),
        ] {
            let mut failover = Failover::default();
            failover.begin(order(line), &replicas, 1000).unwrap();
            assert_eq!(failover.next_deadline_ms(), Some(1050));
            failover.poll(100, &replicas, 1000);
            failover.asked(100, 137);
            steps(&mut failover);
            failover.poll(137, &replicas, 1049);
            assert_eq!(steps(&mut failover), []);
            failover.poll(137, &replicas, 1050);
            assert_eq!(steps(&mut failover), ends, "{line}");
            assert_eq!(failover.next_deadline_ms(), None);
        }
    }

    #[test]
    fn an_operator_can_give_it_up_at_any_time() {
        let replicas = [replica(1, 100)];
        for in_progress in [false, true] {
            let mut failover = Failover::default();
            failover.begin(order(""), &replicas, 0).unwrap();
            if in_progress {
                failover.asked(100, 100);
                failover.poll(100, &replicas, 0);
            }
            steps(&mut failover);
            failover.abort().unwrap();
            let ends = steps(&mut failover);
            assert_eq!(ends.contains(&Step::StayMaster), in_progress);
            assert_eq!(ends.last(), Some(&Step::ResumeWrites));
            assert!(!failover.is_under_way());
        }
    }
}
