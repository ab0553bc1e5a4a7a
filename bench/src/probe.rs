//! One request each interval while something else happens: the latency that a client sees meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::client::Client;
use crate::report;
use crate::schedule::{NS_PER_S, Schedule};
use crate::sys;

/// A probe under way, on a thread and a connection of its own. Latency counts from the time a request was due: one
/// stall of 100 ms at one request a millisecond yields a hundred bad latencies, not one.
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Histogram<u64>>>,
}

impl Probe {
    /// Sends `command` every `interval` through `client` until [`Probe::stop`].
    ///
    /// # Errors
    /// When the interval is not between a microsecond and a thousand seconds, or no thread can be started.
    pub fn start(mut client: Client, command: Vec<Vec<u8>>, interval: Duration) -> io::Result<Probe> {
        let rate_per_s = NS_PER_S as f64 / interval.as_nanos().max(1) as f64;
        if !(0.001..=1e6).contains(&rate_per_s) {
            return Err(io::Error::other(format!("no probe can be sent every {interval:?}")));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("probe".into()).spawn(move || {
            sys::make_timers_precise();
            let mut latencies_ns = report::latency_histogram();
            let start = Instant::now();
            let now_ns = || start.elapsed().as_nanos() as u64;
            let schedule = Schedule::new(rate_per_s, 0);
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                let intended_ns = schedule.intended_ns(sent);
                std::thread::sleep(Duration::from_nanos(intended_ns.saturating_sub(now_ns())));
                client.call(&command)?;
                report::record(&mut latencies_ns, now_ns() - intended_ns);
                sent += 1;
            }
            // What was due while the last reply was awaited would have waited until now at least.
            let end_ns = now_ns();
            for n in sent..schedule.due(end_ns) {
                report::record(&mut latencies_ns, end_ns - schedule.intended_ns(n));
            }
            Ok(latencies_ns)
        })?;
        Ok(Probe { stop, thread })
    }

    /// Whether the probe ended by itself: its connection failed, or its command was refused.
    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it; latencies are in nanoseconds.
    ///
    /// # Errors
    /// When the connection failed or the server refused the command.
    pub fn stop(self) -> io::Result<Histogram<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a probe does not panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd;
    use crate::peers::Kind;

    /// The server itself stalls, for a known time, in the middle of the probe.
    #[test]
    fn a_stall_is_seen_by_every_request_that_was_due_in_it() {
        let peer = Kind::Redis7.start().unwrap();
        let mut other = peer.client().unwrap();
        let probe = Probe::start(peer.client().unwrap(), cmd!["GET", "a"], Duration::from_millis(1)).unwrap();
        other.call(&["DEBUG", "SLEEP", "0.2"]).unwrap();
        let latencies_ns = probe.stop().unwrap();
        assert!(latencies_ns.max() >= 150_000_000, "max {} ns", latencies_ns.max());
        let slow = latencies_ns.count_between(100_000_000, u64::MAX);
        assert!(slow >= 50, "{slow} requests waited 100 ms or more of {}", latencies_ns.len());
    }

    #[test]
    fn a_refused_command_ends_the_probe_with_its_error() {
        let peer = Kind::Redis7.start().unwrap();
        let probe = Probe::start(peer.client().unwrap(), cmd!["NOSUCH"], Duration::from_millis(1)).unwrap();
        let error = probe.thread.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("NOSUCH: ERR unknown command"), "{error}");
        assert!(Probe::start(peer.client().unwrap(), cmd!["PING"], Duration::ZERO).is_err());
    }
}
