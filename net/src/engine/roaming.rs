//! Which processors a shard's thread may run on.
//!
//! A shard has a processor of its own, where its caches stay warm. Where others want that one too, such as clients or a
//! replica on the same machine, it waits for its turn there even while another processor has nothing to do. A shard that
//! notices this may run on any of the process's processors for a while, and then tries its own again. While all of them
//! are busy it stays: moving would gain no time, and cost warm caches.

use crate::log_verbose;
use crate::startup::cpus;
use braid_shards::ShardId;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Time between two looks; two in a row decide.
const WINDOW: Duration = Duration::from_millis(250);
/// A shard that waited for less than this part of a window has its processor for itself.
const WAITED: u32 = 20;
/// How long a shard roams at first, and at most when it had to again and again.
const ROAM_MIN: Duration = Duration::from_secs(10);
const ROAM_MAX: Duration = Duration::from_secs(640);

/// What the system knows of the calling thread and its processors, since some moment in the past.
pub trait Times {
    /// How long the thread could have run and did not, because its processor ran others.
    fn waited(&mut self) -> Option<Duration>;
    /// How long the processors that it may use had nothing to do, together.
    fn idle(&mut self) -> Option<Duration>;
}

#[derive(Debug, PartialEq, Eq)]
pub enum Move {
    /// To any processor of the process.
    Anywhere,
    /// To the shard's own.
    Home,
}

enum State {
    /// On its own processor, since then. `idle` is there if it waited in the window before.
    Home {
        since: Instant,
        looked: Instant,
        waited: Duration,
        idle: Option<Duration>,
    },
    Roaming {
        until: Instant,
    },
    /// The system does not tell.
    Unknown,
}

/// When to move. See the module.
pub struct Roaming {
    state: State,
    span: Duration,
    next_look: Instant,
}

impl Roaming {
    /// The thread is on its own processor.
    pub fn new(now: Instant, times: &mut impl Times) -> Self {
        let mut roaming = Self { state: State::Unknown, span: ROAM_MIN, next_look: now };
        roaming.come_home(now, times);
        roaming
    }

    fn come_home(&mut self, now: Instant, times: &mut impl Times) {
        self.next_look = now + WINDOW;
        self.state = times.waited().map_or(State::Unknown, |waited| State::Home {
            since: now,
            looked: now,
            waited,
            idle: None,
        });
    }

    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.next_look
    }

    /// To be called when a look [is due](Self::is_due).
    pub fn look(&mut self, now: Instant, times: &mut impl Times) -> Option<Move> {
        self.next_look = now + WINDOW;
        match &mut self.state {
            State::Unknown => None,
            State::Roaming { until } if now < *until => None,
            State::Roaming { .. } => {
                self.come_home(now, times);
                Some(Move::Home)
            }
            State::Home { since, looked, waited, idle } => {
                let window = now.duration_since(std::mem::replace(looked, now));
                let waits = times.waited()?;
                let waited = waits.saturating_sub(std::mem::replace(waited, waits));
                if waited < window / WAITED {
                    *idle = None;
                    return None;
                }
                let idles = times.idle()?;
                let free = idles.saturating_sub(idle.replace(idles)?);
                if free < waited / 2 {
                    return None;
                }
                let again = now.duration_since(*since) < self.span;
                self.span = if again { (self.span * 2).min(ROAM_MAX) } else { ROAM_MIN };
                self.state = State::Roaming { until: now + self.span };
                Some(Move::Anywhere)
            }
        }
    }
}

/// The times of the calling thread, from the proc file system.
struct Proc {
    cpus: Vec<usize>,
    /// `run_delay` is its second number, in nanoseconds; 0 for ever where the kernel does not count it.
    schedstat: File,
    stat: File,
    text: Vec<u8>,
}

impl Proc {
    /// # Errors
    /// Those of opening the files: there may be no such file system.
    fn open(cpus: &[usize]) -> io::Result<Self> {
        Ok(Self {
            cpus: cpus.to_vec(),
            schedstat: File::open("/proc/thread-self/schedstat")?,
            stat: File::open("/proc/stat")?,
            text: Vec::new(),
        })
    }
}

/// The time in /proc/stat that these processors idled, waiting for input or not, in ticks.
fn idle_ticks(stat: &str, cpus: &[usize]) -> Option<u64> {
    let lines = stat.lines().filter_map(|line| {
        let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
        let cpu: usize = words.next()?.parse().ok()?;
        let mut times = words.skip(3).map_while(|word| word.parse::<u64>().ok());
        cpus.contains(&cpu).then_some(times.next()? + times.next()?)
    });
    lines.reduce(|sum, idle| sum + idle)
}

impl Times for Proc {
    fn waited(&mut self) -> Option<Duration> {
        let mut buffer = [0; 96];
        let len = self.schedstat.read_at(&mut buffer, 0).ok()?;
        let text = str::from_utf8(&buffer[..len]).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    }

    fn idle(&mut self) -> Option<Duration> {
        // The processors stand at the beginning, a line of less than 256 bytes each.
        let last = self.cpus.last().map_or(0, |last| last + 1);
        self.text.resize(256 * (last + 2), 0);
        let mut len = 0;
        while len < self.text.len() {
            match self.stat.read_at(&mut self.text[len..], len as u64).ok()? {
                0 => break,
                more => len += more,
            }
        }
        let ticks = idle_ticks(&String::from_utf8_lossy(&self.text[..len]), &self.cpus)?;
        Some(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).ok()?)
    }
}

/// A shard's thread and its processors.
pub struct Berth {
    shard: ShardId,
    own: [usize; 1],
    all: Vec<usize>,
    is_home: bool,
    roaming: Roaming,
    times: Proc,
}

impl Berth {
    /// For the calling thread, which is pinned to `own`. None if there is nowhere else to go, or the system does not tell what
    /// is needed to know when.
    pub fn new(shard: ShardId, own: usize, all: &[usize]) -> Option<Self> {
        let mut times = Proc::open(all).ok().filter(|_| all.len() > 1)?;
        let roaming = Roaming::new(Instant::now(), &mut times);
        Some(Self { shard, own: [own], all: all.to_vec(), is_home: true, roaming, times })
    }

    /// Moves the thread if it is time to. False if somebody else has moved it, who will know why: then nothing is to be done
    /// any more.
    pub fn look(&mut self, now: Instant) -> bool {
        if !self.roaming.is_due(now) {
            return true;
        }
        let Some(to) = self.roaming.look(now, &mut self.times) else { return true };
        let current = if self.is_home { &self.own[..] } else { &self.all[..] };
        if cpus::allowed().ok().as_deref() != Some(current) {
            return false;
        }
        self.is_home = to == Move::Home;
        let cpus = if self.is_home { &self.own[..] } else { &self.all[..] };
        log_verbose!("Shard {} may run on processors {cpus:?}", self.shard);
        cpus::run_on(cpus).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time passes; the thread waits, and the processors idle.
    struct World {
        now: Instant,
        home: bool,
        waited: Duration,
        idle: Duration,
        moves: Vec<Move>,
    }

    impl Times for World {
        fn waited(&mut self) -> Option<Duration> {
            Some(self.waited)
        }

        fn idle(&mut self) -> Option<Duration> {
            Some(self.idle)
        }
    }

    impl World {
        fn new() -> (Self, Roaming) {
            let now = Instant::now();
            let (waited, idle) = (Duration::from_secs(7), Duration::from_secs(5));
            let mut world = Self { now, home: true, waited, idle, moves: Vec::new() };
            let roaming = Roaming::new(now, &mut world);
            (world, roaming)
        }

        /// In each of these seconds the thread waits for so many milliseconds if it is at home, and the processors idle for
        /// so many. Returns for how many seconds it roamed.
        fn run(&mut self, roaming: &mut Roaming, seconds: u32, waits_ms: u32, idles_ms: u32) -> u32 {
            let mut roamed_ms = 0;
            for _ in 0..seconds * 100 {
                self.now += Duration::from_millis(10);
                // Who may run anywhere waits for nobody.
                self.waited += Duration::from_millis(10) * waits_ms * u32::from(self.home) / 1000;
                self.idle += Duration::from_millis(10) * idles_ms / 1000;
                roamed_ms += 10 * u32::from(!self.home);
                if roaming.is_due(self.now)
                    && let Some(to) = roaming.look(self.now, self)
                {
                    self.home = to == Move::Home;
                    self.moves.push(to);
                }
            }
            roamed_ms / 1000
        }
    }

    #[test]
    fn a_shard_that_waits_while_others_idle_roams_and_comes_back() {
        let (mut world, mut roaming) = World::new();
        assert_eq!(world.run(&mut roaming, 100, 0, 2000), 0);
        assert!(world.run(&mut roaming, 10, 200, 200) >= 9);
        assert_eq!(world.moves, [Move::Anywhere]);
        world.run(&mut roaming, 1, 0, 2000);
        assert_eq!(world.run(&mut roaming, 100, 0, 2000), 0);
        assert_eq!(world.moves, [Move::Anywhere, Move::Home]);
    }

    #[test]
    fn a_shard_stays_where_it_is_while_nobody_has_time() {
        let (mut world, mut roaming) = World::new();
        assert_eq!(world.run(&mut roaming, 100, 500, 100), 0);
        assert_eq!(world.run(&mut roaming, 100, 30, 2000), 0, "nor if it hardly waits");
    }

    #[test]
    fn it_tries_less_often_what_fails_again_and_again() {
        let (mut world, mut roaming) = World::new();
        assert!(world.run(&mut roaming, 3000, 300, 300) > 2990);
        assert!(world.moves.len() < 20, "{}", world.moves.len());
        // Much later, it is new again.
        world.run(&mut roaming, 2000, 0, 2000);
        assert!(world.home);
        world.run(&mut roaming, 1, 300, 300);
        assert!(!world.home);
        world.run(&mut roaming, 10, 0, 2000);
        assert!(world.home);
    }

    #[test]
    fn a_sleep_is_no_waiting() {
        let (mut world, mut roaming) = World::new();
        world.waited += Duration::from_secs(1);
        world.now += Duration::from_secs(3600);
        assert_eq!(roaming.look(world.now, &mut world), None);
        assert_eq!(world.run(&mut roaming, 100, 0, 2000), 0);
    }

    #[test]
    fn idle_times_are_read_of_the_processors_asked_for() {
        let stat = "cpu  9 9 9 9999 999 9 9 9 9 9\ncpu0 1 2 3 40 5 6 7 8 9 0\ncpu1 1 2 3 400 50 6 7 8 9 0\n\
            cpu10 1 2 3 4000 500 6\nintr 123 0 0\nctxt 5\n";
        assert_eq!(idle_ticks(stat, &[0, 10]), Some(4545));
        assert_eq!(idle_ticks(stat, &[1]), Some(450));
        assert_eq!(idle_ticks(stat, &[2]), None);
        assert_eq!(idle_ticks("", &[0]), None);
    }

    #[test]
    fn the_system_tells_times_and_a_thread_goes_where_it_may() {
        let all = cpus::allowed().unwrap();
        let tested = std::thread::spawn(move || {
            let mut proc = Proc::open(&all).unwrap();
            let before = (proc.waited().unwrap(), proc.idle().unwrap());
            std::thread::sleep(Duration::from_millis(1));
            assert!(proc.waited().unwrap() >= before.0 && proc.idle().unwrap() >= before.1);
            cpus::run_on(&all[..1]).unwrap();
            let Some(mut berth) = Berth::new(0, all[0], &all) else { return assert_eq!(all.len(), 1) };
            let now = Instant::now();
            berth.roaming.state = State::Roaming { until: now };
            (berth.is_home, berth.roaming.next_look) = (false, now);
            // It was not this that put it there.
            assert!(!berth.look(now));
            cpus::run_on(&all).unwrap();
            berth.roaming.state = State::Roaming { until: now };
            berth.roaming.next_look = now;
            assert!(berth.look(now));
            assert_eq!(cpus::allowed().unwrap(), all[..1]);
        });
        tested.join().unwrap();
    }
}
