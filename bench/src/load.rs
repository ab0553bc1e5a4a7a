//! Load on a server: closed loop (every connection sends its next batch when the last is answered) or a fixed rate
//! (operations are due by a schedule, and their latency counts from then).

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::client::{Address, Client, Stream};
use crate::report::{self, Row};
use crate::resp;
use crate::schedule::{NS_PER_S, Schedule};
use crate::sys::{self, Poller, Usage};
use crate::workload::{Generator, Op, Workload};

/// A thread looks up at least this often, to see whether it is to stop.
const LOOK_UP_NS: u64 = 100_000_000;
/// How long replies may take after the last command was sent.
const DRAIN_NS: u64 = 30 * NS_PER_S;
/// Between two calls of the progress function.
const TICK: Duration = Duration::from_secs(1);
/// Room offered to each read.
const READ_BYTES: usize = 64 * 1024;

/// Where to and as whom every connection goes.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: Address,
    pub password: Option<String>,
    pub database: u32,
}

impl Target {
    /// A connection that is ready for commands.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses the password or the database.
    pub fn client(&self) -> io::Result<Client> {
        let mut client = Client::connect_to(&self.address)?;
        if let Some(password) = &self.password {
            client.call(&["AUTH", password])?;
        }
        if self.database != 0 {
            client.call(&["SELECT", &self.database.to_string()])?;
        }
        Ok(client)
    }
}

/// A load.
#[derive(Clone, Debug)]
pub struct Plan {
    pub target: Target,
    pub workload: Workload,
    pub connections: usize,
    pub threads: usize,
    /// Commands in flight per connection: exactly so many in a closed loop, at most so many at a fixed rate.
    pub pipeline: usize,
    /// Operations per second over all connections; none is a closed loop.
    pub rate_per_s: Option<f64>,
    /// The load ends after this time or this many operations, whichever comes first.
    pub duration: Option<Duration>,
    pub requests: Option<u64>,
    pub seed: u64,
    /// CPUs for the load's threads; anywhere when empty.
    pub cpus: Vec<usize>,
    /// The server's process, to account for its CPU time and memory.
    pub server_pid: Option<u32>,
}

impl Plan {
    fn check(&self) -> io::Result<()> {
        let fail = |message: &str| Err(io::Error::other(message.to_owned()));
        if self.threads == 0 || self.connections < self.threads || self.connections > 60_000 {
            return fail("connections are between the number of threads, at least 1, and 60000");
        }
        if !(1..=100_000).contains(&self.pipeline) {
            return fail("a pipeline is between 1 and 100000 commands");
        }
        if self.rate_per_s.is_some_and(|rate| !(self.threads as f64..=1e9).contains(&rate)) {
            return fail("a rate is at least one operation a second per thread, at most 1e9");
        }
        if self.workload.key_space == 0 {
            return fail("the key space is at least one key");
        }
        if self.duration.is_some_and(|duration| duration.is_zero()) {
            return fail("a load takes some time");
        }
        if self.duration.is_none() && self.requests.is_none() {
            return fail("a load needs an end: a duration or a number of requests");
        }
        Ok(())
    }
}

/// What happened in the last second.
#[derive(Clone, Debug)]
pub struct Tick {
    pub elapsed: Duration,
    pub rate_per_s: f64,
    pub latencies_ns: Histogram<u64>,
    pub errors: u64,
    /// CPUs that the server kept busy, where its process is known.
    pub server_cpus: Option<f64>,
}

/// The outcome of a load.
#[derive(Clone, Debug)]
pub struct Summary {
    /// One per operation of the mix.
    pub rows: Vec<Row>,
    /// All operations together.
    pub all: Row,
    /// Error replies, and the first of them.
    pub errors: u64,
    pub first_error: Option<String>,
    /// Operations of a fixed rate that were due but never sent, because every connection was full.
    pub unsent: u64,
    /// The server's process before and after.
    pub server: Option<(Usage, Usage)>,
}

/// What a thread counted since it was last asked.
struct Counted {
    per_op: Vec<Histogram<u64>>,
    errors: u64,
    first_error: Option<String>,
}

impl Counted {
    fn new(ops: usize) -> Counted {
        Counted {
            per_op: (0..ops).map(|_| report::latency_histogram()).collect(),
            errors: 0,
            first_error: None,
        }
    }

    /// Moves everything from `other` to here.
    fn take(&mut self, other: &mut Counted) {
        for (mine, theirs) in self.per_op.iter_mut().zip(&mut other.per_op) {
            mine.add(&*theirs).expect("all histograms have the same bounds");
            theirs.reset();
        }
        self.errors += std::mem::take(&mut other.errors);
        if let Some(error) = other.first_error.take() {
            self.first_error.get_or_insert(error);
        }
    }

    fn total(&self) -> Histogram<u64> {
        let mut all = report::latency_histogram();
        for histogram in &self.per_op {
            all.add(histogram).expect("all histograms have the same bounds");
        }
        all
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the load to its end. `progress` is called once a second.
///
/// # Errors
/// When the plan makes no sense, the server cannot be reached, or a connection fails under way.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(&Tick)) -> io::Result<Summary> {
    plan.check()?;
    let ops: Vec<Op> = plan.workload.mix.ops().collect();
    let mut streams: Vec<Vec<Stream>> = (0..plan.threads).map(|_| Vec::new()).collect();
    for index in 0..plan.connections {
        streams[index % plan.threads].push(plan.target.client()?.into_stream());
    }
    let counted: Vec<_> = (0..plan.threads).map(|_| Mutex::new(Counted::new(ops.len()))).collect();
    let stop = AtomicBool::new(false);
    let server = || plan.server_pid.map(sys::usage).transpose();
    let server_before = server()?;
    let start = Instant::now();

    let mut total = Counted::new(ops.len());
    let ended = std::thread::scope(|scope| -> io::Result<Vec<io::Result<Ended>>> {
        let mut workers = Vec::new();
        for (index, streams) in streams.into_iter().enumerate() {
            let (counted, stop) = (&counted[index], &stop);
            workers.push(scope.spawn(move || {
                let ended = Worker::new(plan, index, streams, start, counted, stop).and_then(Worker::run);
                if ended.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                ended
            }));
        }
        let mut last = (start, server_before);
        while !workers.iter().all(|worker| worker.is_finished()) {
            // Workers that end early unpark nobody: look often, report each second.
            std::thread::sleep(Duration::from_millis(20));
            let interval = last.0.elapsed();
            if interval < TICK {
                continue;
            }
            let now = Instant::now();
            let mut second = Counted::new(ops.len());
            counted.iter().for_each(|mine| second.take(&mut lock(mine)));
            // The server may end before its load does; the workers then say so better than /proc.
            let usage = server().unwrap_or(None);
            let latencies_ns = second.total();
            progress(&Tick {
                elapsed: now - start,
                rate_per_s: latencies_ns.len() as f64 / interval.as_secs_f64(),
                latencies_ns,
                errors: second.errors,
                server_cpus: usage.zip(last.1).map(|(now, before)| {
                    now.cpu.saturating_sub(before.cpu).as_secs_f64() / interval.as_secs_f64()
                }),
            });
            total.take(&mut second);
            last = (now, usage);
        }
        Ok(workers.into_iter().map(|worker| worker.join().expect("a load thread does not panic")).collect())
    })?;
    counted.iter().for_each(|mine| total.take(&mut lock(mine)));

    let answered: u64 = total.per_op.iter().map(Histogram::len).sum();
    let ended: Vec<Ended> = ended.into_iter().collect::<io::Result<_>>().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{} failed after {answered} replies: {error}", plan.target.address),
        )
    })?;
    let server = server_before.zip(server()?);
    let elapsed = Duration::from_nanos(ended.iter().map(|end| end.last_reply_ns).max().unwrap_or(0));
    let cpu_us = server.map(|(before, after)| {
        after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / answered.max(1) as f64
    });
    let row =
        |name: &str, latencies_ns| Row { name: name.into(), latencies_ns, elapsed, server_cpu_us: None };
    Ok(Summary {
        all: Row { server_cpu_us: cpu_us, ..row("all", total.total()) },
        rows: ops.iter().zip(total.per_op).map(|(op, latencies_ns)| row(op.name(), latencies_ns)).collect(),
        errors: total.errors,
        first_error: total.first_error,
        unsent: ended.iter().map(|end| end.unsent).sum(),
        server,
    })
}

/// How a worker ended.
struct Ended {
    /// Since the load's start.
    last_reply_ns: u64,
    unsent: u64,
}

/// One connection: bytes to send, bytes received, and what is in flight.
struct Connection {
    stream: Stream,
    out: Vec<u8>,
    sent: usize,
    waits_to_write: bool,
    input: Vec<u8>,
    input_end: usize,
    /// Per command in flight: its index in the mix, and when its latency began.
    in_flight: VecDeque<(usize, u64)>,
}

struct Worker<'a> {
    pipeline: usize,
    start: Instant,
    deadline_ns: u64,
    /// Operations this thread may still send.
    budget: u64,
    schedule: Option<Schedule>,
    issued: u64,
    generator: Generator,
    connections: Vec<Connection>,
    /// At a fixed rate, the connection to try next.
    next_connection: usize,
    poller: Poller,
    last_sent_ns: u64,
    last_reply_ns: u64,
    in_flight: usize,
    counted: &'a Mutex<Counted>,
    stop: &'a AtomicBool,
}

impl<'a> Worker<'a> {
    fn new(
        plan: &Plan,
        index: usize,
        streams: Vec<Stream>,
        start: Instant,
        counted: &'a Mutex<Counted>,
        stop: &'a AtomicBool,
    ) -> io::Result<Worker<'a>> {
        sys::pin_current_thread(&plan.cpus)?;
        sys::make_timers_precise();
        let threads = plan.threads as u64;
        let poller = Poller::new(streams.len().min(1024))?;
        let share = streams.len() as f64 / plan.connections as f64;
        let mut connections = Vec::with_capacity(streams.len());
        for (token, stream) in streams.into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            poller.add(stream.as_raw_fd(), token as u64)?;
            connections.push(Connection {
                stream,
                out: Vec::new(),
                sent: 0,
                waits_to_write: false,
                input: vec![0; READ_BYTES],
                input_end: 0,
                in_flight: VecDeque::new(),
            });
        }
        Ok(Worker {
            pipeline: plan.pipeline,
            start,
            deadline_ns: plan.duration.map_or(u64::MAX, |duration| duration.as_nanos() as u64),
            budget: plan.requests.map_or(u64::MAX, |requests| {
                requests / threads + u64::from(requests % threads > index as u64)
            }),
            // Threads start one after the other within the first interval, so that their operations interleave.
            schedule: plan.rate_per_s.map(|rate| {
                let offset_ns = index as f64 * NS_PER_S as f64 / rate;
                Schedule::new(rate * share, offset_ns as u64)
            }),
            issued: 0,
            generator: Generator::new(&plan.workload, plan.seed, index as u64, threads),
            connections,
            next_connection: 0,
            poller,
            last_sent_ns: 0,
            last_reply_ns: 0,
            in_flight: 0,
            counted,
            stop,
        })
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn run(mut self) -> io::Result<Ended> {
        let mut sending = true;
        loop {
            let now_ns = self.now_ns();
            let stopping = self.stop.load(Ordering::Relaxed);
            let over = now_ns >= self.deadline_ns;
            let mut wait_ns = LOOK_UP_NS;
            if sending && !stopping && self.budget > 0 {
                match self.schedule {
                    Some(schedule) => {
                        // What is due before the end is sent even if we woke just after it.
                        let due = schedule.due(now_ns.min(self.deadline_ns - 1));
                        self.send_due(due, schedule)?;
                        // When connections are full, a reply wakes us.
                        if self.issued >= due {
                            wait_ns = wait_ns.min(schedule.intended_ns(self.issued).saturating_sub(now_ns));
                        }
                    }
                    None if over => {}
                    None => (0..self.connections.len()).try_for_each(|token| self.refill(token, now_ns))?,
                }
                sending = !over;
                wait_ns = wait_ns.min(self.deadline_ns.saturating_sub(now_ns));
            } else if self.in_flight == 0 || stopping {
                break;
            } else if now_ns > self.last_sent_ns.max(self.last_reply_ns) + DRAIN_NS {
                let message = format!("{} replies did not come", self.in_flight);
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            self.handle_events(wait_ns)?;
        }
        let unsent = self.schedule.map_or(0, |schedule| {
            let due = schedule.due((self.deadline_ns - 1).min(self.now_ns()));
            due.saturating_sub(self.issued).min(self.budget)
        });
        Ok(Ended { last_reply_ns: self.last_reply_ns, unsent })
    }

    /// Closed loop: the next batch, once the last one is answered.
    fn refill(&mut self, token: usize, now_ns: u64) -> io::Result<()> {
        if !self.connections[token].in_flight.is_empty() {
            return Ok(());
        }
        let batch = self.budget.min(self.pipeline as u64);
        (0..batch).for_each(|_| self.issue(token, now_ns));
        self.flush(token)
    }

    /// Fixed rate: everything that is due, as long as a connection has room.
    fn send_due(&mut self, due: u64, schedule: Schedule) -> io::Result<()> {
        let count = self.connections.len();
        let mut full = 0;
        while self.issued < due && self.budget > 0 && full < count {
            let token = self.next_connection;
            self.next_connection = (token + 1) % count;
            if self.connections[token].in_flight.len() >= self.pipeline {
                full += 1;
                continue;
            }
            full = 0;
            self.issue(token, schedule.intended_ns(self.issued));
            self.flush(token)?;
        }
        Ok(())
    }

    fn issue(&mut self, token: usize, began_ns: u64) {
        let connection = &mut self.connections[token];
        let op = self.generator.next(&mut connection.out);
        connection.in_flight.push_back((op, began_ns));
        self.last_sent_ns = self.last_sent_ns.max(began_ns);
        self.in_flight += 1;
        self.issued += 1;
        self.budget -= 1;
    }

    fn flush(&mut self, token: usize) -> io::Result<()> {
        let connection = &mut self.connections[token];
        while connection.sent < connection.out.len() {
            match connection.stream.write(&connection.out[connection.sent..]) {
                Ok(len) => connection.sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let blocked = connection.sent < connection.out.len();
        if !blocked {
            connection.out.clear();
            connection.sent = 0;
        }
        if blocked != connection.waits_to_write {
            connection.waits_to_write = blocked;
            self.poller.set_writing(connection.stream.as_raw_fd(), token as u64, blocked)?;
        }
        Ok(())
    }

    fn handle_events(&mut self, wait_ns: u64) -> io::Result<()> {
        let ready: Vec<_> = self.poller.wait(wait_ns)?.collect();
        for event in ready {
            let token = event.token as usize;
            if event.writable {
                self.flush(token)?;
            }
            if event.readable {
                self.receive(token)?;
            }
        }
        Ok(())
    }

    /// Reads once (epoll is level-triggered: what is left shows again) and accounts for all whole replies.
    fn receive(&mut self, token: usize) -> io::Result<()> {
        let connection = &mut self.connections[token];
        if connection.input.len() - connection.input_end < READ_BYTES / 2 {
            let grown = connection.input.len() * 2;
            connection.input.resize(grown, 0);
        }
        match connection.stream.read(&mut connection.input[connection.input_end..]) {
            Ok(0) => return Err(io::Error::other("the server closed the connection")),
            Ok(len) => connection.input_end += len,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let now_ns = self.start.elapsed().as_nanos() as u64;
        let mut at = 0;
        let mut counted = lock(self.counted);
        while let Some(len) = resp::frame_len(&connection.input[at..connection.input_end])? {
            let reply = &connection.input[at..at + len];
            at += len;
            let Some((op, began_ns)) = connection.in_flight.pop_front() else {
                let shown = reply[..len.min(100)].escape_ascii();
                return Err(io::Error::other(format!("a reply that nothing asked for: {shown}")));
            };
            self.in_flight -= 1;
            report::record(&mut counted.per_op[op], now_ns.saturating_sub(began_ns));
            if matches!(reply[0], b'-' | b'!') {
                counted.errors += 1;
                counted
                    .first_error
                    .get_or_insert_with(|| String::from_utf8_lossy(&reply[1..]).trim_end().to_owned());
            }
            self.last_reply_ns = now_ns;
        }
        drop(counted);
        connection.input.copy_within(at..connection.input_end, 0);
        connection.input_end -= at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{Kind, Peer};
    use crate::workload::Keys;

    fn plan(peer: &Peer, mix: &str) -> Plan {
        Plan {
            target: Target { address: peer.address(), password: None, database: 0 },
            workload: Workload {
                mix: mix.parse().unwrap(),
                keys: Keys::Uniform,
                key_space: 100,
                sizes: "10".parse().unwrap(),
            },
            connections: 5,
            threads: 2,
            pipeline: 4,
            rate_per_s: None,
            duration: None,
            requests: Some(10_001),
            seed: 1,
            cpus: vec![],
            server_pid: peer.pid(),
        }
    }

    fn calls(peer: &Peer, command: &str) -> u64 {
        let stats = peer.client().unwrap().info("commandstats").unwrap();
        let line = stats.get(&format!("cmdstat_{command}")).cloned().unwrap_or_default();
        let calls = line.split(',').find_map(|field| field.strip_prefix("calls="));
        calls.map_or(0, |calls| calls.parse().unwrap())
    }

    #[test]
    fn a_closed_loop_sends_exactly_what_it_reports() {
        let peer = Kind::Redis7.start().unwrap();
        let all = Op::ALL.map(Op::name).join(",");
        let summary = run(&plan(&peer, &all), &mut |_| {}).unwrap();
        assert_eq!((summary.all.ops(), summary.errors, summary.unsent), (10_001, 0, 0));
        for row in &summary.rows {
            // The peer was probed with PING until it answered.
            let probes = u64::from(row.name == "ping");
            assert!(calls(&peer, &row.name).abs_diff(row.ops()) <= probes, "{}", row.name);
            assert!(row.ops() > 500, "{}: {}", row.name, row.ops());
        }
        assert!(summary.server.unwrap().1.rss_bytes > 0);
        assert!(summary.all.latencies_ns.max() > 0 && summary.all.rate_per_s() > 0.0);
    }

    #[test]
    fn a_fixed_rate_is_kept() {
        let peer = Kind::Redis7.start().unwrap();
        let plan = Plan {
            rate_per_s: Some(2000.0),
            requests: None,
            duration: Some(Duration::from_millis(1500)),
            ..plan(&peer, "get,set")
        };
        let mut ticks = 0;
        let summary = run(&plan, &mut |_| ticks += 1).unwrap();
        // 1200 a second on the thread with three connections, 800 on the one with two.
        assert_eq!(summary.all.ops() + summary.unsent, 3000);
        assert!(ticks >= 1);
    }

    /// While the server is stopped operations stay due, and their latency counts from then.
    #[test]
    fn a_stall_is_accounted_for_at_a_fixed_rate() {
        let peer = Kind::Redis7.start().unwrap();
        let plan = Plan {
            rate_per_s: Some(1000.0),
            requests: Some(1000),
            connections: 2,
            pipeline: 1,
            ..plan(&peer, "get")
        };
        let summary = std::thread::scope(|scope| {
            let load = scope.spawn(|| run(&plan, &mut |_| {}));
            let mut other = peer.client().unwrap();
            // The stall begins when the load is under way.
            while calls(&peer, "get") < 100 {}
            other.call(&["DEBUG", "SLEEP", "0.3"]).unwrap();
            load.join().unwrap().unwrap()
        });
        assert_eq!(summary.all.ops(), 1000);
        // Only two requests were in flight, but about 200 were due in the first 200 ms of the stall.
        let slow = summary.all.latencies_ns.count_between(100_000_000, u64::MAX);
        assert!(slow >= 100, "{slow} operations waited 100 ms or more");
    }

    #[test]
    fn error_replies_are_counted_and_shown() {
        let peer = Peer::builder(Kind::Redis7).start().unwrap();
        peer.client().unwrap().call(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
        let summary = run(&plan(&peer, "set"), &mut |_| {}).unwrap();
        assert_eq!((summary.errors, summary.all.ops()), (10_001, 10_001));
        assert!(summary.first_error.unwrap().starts_with("OOM "));
    }

    #[test]
    fn what_cannot_work_is_an_error() {
        let mut peer = Kind::Redis7.start().unwrap();
        let good = plan(&peer, "get");
        for bad in [
            Plan { connections: 1, threads: 2, ..good.clone() },
            Plan { pipeline: 0, ..good.clone() },
            Plan { rate_per_s: Some(0.0), ..good.clone() },
            Plan { requests: None, duration: None, ..good.clone() },
            Plan { cpus: vec![1000], ..good.clone() },
            Plan { target: Target { password: Some("x".into()), ..good.target.clone() }, ..good.clone() },
        ] {
            assert!(run(&bad, &mut |_| {}).is_err(), "{bad:?}");
        }
        // The server dies under way.
        let endless = Plan { requests: None, duration: Some(Duration::from_secs(60)), ..good.clone() };
        let error = std::thread::scope(|scope| {
            let load = scope.spawn(|| run(&endless, &mut |_| {}));
            while calls(&peer, "get") < 100 {}
            peer.kill().unwrap();
            load.join().unwrap().unwrap_err()
        });
        assert!(error.to_string().contains(&format!("{} failed after", good.target.address)), "{error}");
        let error = run(&good, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("cannot"), "{error}");
    }
}
