//! Which processors a shard's thread may run on.
//!
//! A shard has a processor of its own, where its caches stay warm. Where others want that one too, such as clients or a
//! replica on the same machine, it waits for its turn there even while another processor has nothing to do. A shard that
//! notices this may run on any of the process's processors for a while, and then tries its own again. While all of them
//! are busy it stays: moving would gain no time, and cost warm caches.

use crate::startup::cpus;
use crate::{log_notice, log_verbose};
use braid_shards::ShardId;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Time between two looks; two in a row decide.
const WINDOW: Duration = Duration::from_millis(250);
/// The same while all processors are busy: the more often that was so, the longer.
const WINDOW_MAX: Duration = Duration::from_secs(2);
/// A shard that waited for less than this part of a window has its processor for itself, and another processor that idled
/// for less has no room for it.
const PART: u32 = 20;
/// How long a shard roams at first, and at most when it had to again and again.
const ROAM_MIN: Duration = Duration::from_secs(10);
const ROAM_MAX: Duration = Duration::from_secs(80);

/// What the system knows of the calling thread and its processors, since some moment in the past.
pub trait Times {
    /// How long the thread could have run and did not, because its processor ran others.
    fn waited(&mut self) -> Option<Duration>;
    /// How long each of the other processors that it may use had nothing to do.
    fn idle(&mut self) -> Option<Vec<Duration>>;
}

#[derive(Debug, PartialEq, Eq)]
pub enum Move {
    /// To any processor of the process.
    Anywhere,
    /// To the shard's own.
    Home,
}

enum State {
    /// On its own processor. `idle` is there if it waited in the window before.
    Home {
        looked: Instant,
        waited: Duration,
        idle: Option<Vec<Duration>>,
    },
    Roaming,
}

/// When to move. See the module.
pub struct Roaming {
    state: State,
    /// How long it roams, or did last; until when.
    span: Duration,
    until: Option<Instant>,
    window: Duration,
    next_look: Instant,
    is_crowded: bool,
}

impl Roaming {
    /// The thread is on its own processor. None if the system does not tell what is needed to know when to move.
    pub fn new(now: Instant, times: &mut impl Times) -> Option<Self> {
        times.idle()?;
        Some(Self {
            state: Self::at_home(now, times)?,
            span: ROAM_MIN,
            until: None,
            window: WINDOW,
            next_look: now + WINDOW,
            is_crowded: false,
        })
    }

    fn at_home(now: Instant, times: &mut impl Times) -> Option<State> {
        Some(State::Home { looked: now, waited: times.waited()?, idle: None })
    }

    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.next_look
    }

    /// To be called when a look [is due](Self::is_due).
    pub fn look(&mut self, now: Instant, times: &mut impl Times) -> Option<Move> {
        // Whatever comes of it: what the system does not tell any more is not to be asked for in every round.
        self.next_look = now + WINDOW;
        let State::Home { looked, waited, idle } = &mut self.state else {
            self.state = Self::at_home(now, times)?;
            self.window = WINDOW;
            return Some(Move::Home);
        };
        let time = now.duration_since(std::mem::replace(looked, now));
        let waits = times.waited()?;
        let waited = waits.saturating_sub(std::mem::replace(waited, waits));
        self.is_crowded = waited >= time / PART;
        if !self.is_crowded {
            *idle = None;
            self.window = WINDOW;
            return None;
        }
        let idles = times.idle()?;
        let before = idle.replace(idles.clone());
        self.next_look = now + self.window;
        let free = idles.iter().zip(before?).map(|(now, before)| now.saturating_sub(before)).max()?;
        if free < time / PART {
            self.window = (self.window * 2).min(WINDOW_MAX);
            return None;
        }
        let again = self.until.is_some_and(|until| now.saturating_duration_since(until) < self.span);
        self.span = if again { (self.span * 2).min(ROAM_MAX) } else { ROAM_MIN };
        self.until = Some(now + self.span);
        self.next_look = now + self.span;
        self.state = State::Roaming;
        Some(Move::Anywhere)
    }
}

/// The times of the calling thread, from the proc file system.
struct Proc {
    /// All but the thread's own.
    others: Vec<usize>,
    /// `run_delay` is its second number, in nanoseconds; 0 for ever where the kernel does not count it.
    schedstat: File,
    stat: File,
    text: Vec<u8>,
}

impl Proc {
    /// # Errors
    /// Those of opening the files: there may be no such file system.
    fn open(others: Vec<usize>) -> io::Result<Self> {
        Ok(Self {
            others,
            schedstat: File::open("/proc/thread-self/schedstat")?,
            stat: File::open("/proc/stat")?,
            text: Vec::new(),
        })
    }
}

/// The time in /proc/stat that each of these processors idled, waiting for input or not, in ticks. None if one is missing.
fn idle_ticks(stat: &str, cpus: &[usize]) -> Option<Vec<u64>> {
    let lines = stat.lines().filter_map(|line| {
        let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
        let cpu: usize = words.next()?.parse().ok()?;
        let mut times = words.skip(3).map_while(|word| word.parse::<u64>().ok());
        cpus.contains(&cpu).then_some(times.next()? + times.next()?)
    });
    Some(lines.collect()).filter(|ticks: &Vec<u64>| ticks.len() == cpus.len())
}

impl Times for Proc {
    fn waited(&mut self) -> Option<Duration> {
        let mut buffer = [0; 96];
        let len = self.schedstat.read_at(&mut buffer, 0).ok()?;
        let text = str::from_utf8(&buffer[..len]).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    }

    fn idle(&mut self) -> Option<Vec<Duration>> {
        // The processors stand at the beginning, a line of less than 256 bytes each.
        let last = self.others.last().map_or(0, |last| last + 1);
        self.text.resize(256 * (last + 2), 0);
        let mut len = 0;
        while len < self.text.len() {
            match self.stat.read_at(&mut self.text[len..], len as u64).ok()? {
                0 => break,
                more => len += more,
            }
        }
        let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
        let ticks = idle_ticks(&String::from_utf8_lossy(&self.text[..len]), &self.others)?;
        Some(ticks.into_iter().map(|ticks| Duration::from_secs(ticks) / per_second).collect())
    }
}

/// A shard's thread and its processors.
pub struct Berth {
    shard: ShardId,
    own: [usize; 1],
    all: Vec<usize>,
    /// Where it was sent last, of which the system may have left some out.
    current: Vec<usize>,
    roaming: Roaming,
    times: Proc,
}

impl Berth {
    /// For the calling thread, which is pinned to `own`. None if there is nowhere else to go, or the system does not tell what
    /// is needed to know when.
    pub fn new(shard: ShardId, own: usize, all: &[usize]) -> Option<Self> {
        let others: Vec<usize> = all.iter().copied().filter(|cpu| *cpu != own).collect();
        let mut times = Proc::open(others).ok().filter(|times| !times.others.is_empty())?;
        let roaming = Roaming::new(Instant::now(), &mut times)?;
        Some(Self { shard, own: [own], all: all.to_vec(), current: vec![own], roaming, times })
    }

    /// Others want the shard's own processor, too, or did when that was last looked at.
    pub fn is_crowded(&self) -> bool {
        self.roaming.is_crowded
    }

    /// Moves the thread if it is time to. False if somebody else has moved it, who will know why: then nothing is to be done
    /// any more.
    pub fn look(&mut self, now: Instant) -> bool {
        if !self.roaming.is_due(now) {
            return true;
        }
        let Some(to) = self.roaming.look(now, &mut self.times) else { return true };
        let to = if to == Move::Home { &self.own[..] } else { &self.all[..] };
        let moved = || {
            if cpus::allowed()? != self.current {
                return Err(io::Error::other("somebody else changed its affinity"));
            }
            cpus::run_on(to)?;
            cpus::allowed()
        };
        match moved() {
            Ok(current) => self.current = current,
            Err(error) => {
                log_notice!("Shard {} keeps the processors it may run on: {error}", self.shard);
                return false;
            }
        }
        log_verbose!("Shard {} may run on processors {:?}", self.shard, self.current);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time passes; the thread waits, and two other processors idle.
    struct World {
        now: Instant,
        home: bool,
        waited: Duration,
        idle: [Duration; 2],
        moves: Vec<Move>,
        idle_reads: u32,
        /// The system tells how long the thread waited, and how long the processors idled.
        tells: [bool; 2],
    }

    impl Times for World {
        fn waited(&mut self) -> Option<Duration> {
            self.tells[0].then_some(self.waited)
        }

        fn idle(&mut self) -> Option<Vec<Duration>> {
            self.idle_reads += 1;
            self.tells[1].then(|| self.idle.to_vec())
        }
    }

    impl World {
        fn new() -> (Self, Roaming) {
            let mut world = Self {
                now: Instant::now(),
                home: true,
                waited: Duration::from_secs(7),
                idle: [Duration::from_secs(5); 2],
                moves: Vec::new(),
                idle_reads: 0,
                tells: [true; 2],
            };
            let roaming = Roaming::new(world.now, &mut world).unwrap();
            (world, roaming)
        }

        /// In each of these seconds the thread waits for so many milliseconds if it is at home, and one of the other processors
        /// idles for so many. Returns for how many seconds it roamed.
        fn run(&mut self, roaming: &mut Roaming, seconds: u32, waits_ms: u32, idles_ms: u32) -> u32 {
            let mut roamed_ms = 0;
            for _ in 0..seconds * 100 {
                self.now += Duration::from_millis(10);
                // Who may run anywhere waits for nobody.
                self.waited += Duration::from_millis(10) * waits_ms * u32::from(self.home) / 1000;
                self.idle[1] += Duration::from_millis(10) * idles_ms / 1000;
                roamed_ms += 10 * u32::from(!self.home);
                self.look(roaming);
            }
            roamed_ms / 1000
        }

        fn look(&mut self, roaming: &mut Roaming) {
            if roaming.is_due(self.now)
                && let Some(to) = roaming.look(self.now, self)
            {
                self.home = to == Move::Home;
                self.moves.push(to);
            }
        }
    }

    #[test]
    fn a_shard_that_waits_while_others_idle_roams_and_comes_back() {
        let (mut world, mut roaming) = World::new();
        assert_eq!(world.run(&mut roaming, 100, 0, 1000), 0);
        assert!(world.run(&mut roaming, 10, 200, 200) >= 9);
        assert_eq!(world.moves, [Move::Anywhere]);
        assert!(roaming.is_crowded);
        world.run(&mut roaming, 1, 0, 1000);
        assert_eq!(world.run(&mut roaming, 100, 0, 1000), 0);
        assert!(!roaming.is_crowded);
        assert_eq!(world.moves, [Move::Anywhere, Move::Home]);
    }

    #[test]
    fn a_shard_stays_where_it_is_while_nobody_has_time() {
        let (mut world, mut roaming) = World::new();
        assert_eq!(world.run(&mut roaming, 100, 500, 40), 0);
        assert!(world.idle_reads < 60, "it looks less and less often: {}", world.idle_reads);
        let (mut world, mut roaming) = World::new();
        assert_eq!(world.run(&mut roaming, 100, 40, 1000), 0, "nor if it hardly waits");
    }

    #[test]
    fn it_tries_less_often_what_fails_again_and_again() {
        let (mut world, mut roaming) = World::new();
        assert!(world.run(&mut roaming, 3000, 300, 300) > 2950);
        assert!((30..90).contains(&world.moves.len()), "{}", world.moves.len());
        // Much later, it is new again, though it slept through the time to come home.
        world.now += Duration::from_secs(2000);
        world.look(&mut roaming);
        assert!(world.home);
        world.run(&mut roaming, 1, 300, 300);
        assert!(!world.home);
        world.run(&mut roaming, 10, 0, 1000);
        assert!(world.home);
    }

    #[test]
    fn what_the_system_tells_no_more_is_not_asked_for_all_the_time() {
        for (tells, roams) in [([false, true], false), ([true, false], false), ([false, true], true)] {
            let (mut world, mut roaming) = World::new();
            if roams {
                world.run(&mut roaming, 1, 300, 300);
                assert!(!world.home);
            }
            world.tells = tells;
            world.now += ROAM_MIN;
            world.waited += ROAM_MIN;
            world.look(&mut roaming);
            assert!(!roaming.is_due(world.now), "{tells:?} {roams}");
        }
    }

    #[test]
    fn waiting_is_compared_with_the_time_that_has_passed() {
        let (mut world, mut roaming) = World::new();
        for _ in 0..3 {
            world.waited += Duration::from_secs(1);
            world.idle[0] += Duration::from_secs(3600);
            world.now += Duration::from_secs(3600);
            world.look(&mut roaming);
        }
        assert_eq!(world.moves, []);
        for _ in 0..3 {
            world.waited += Duration::from_secs(1);
            world.idle[0] += Duration::from_secs(2);
            world.now += Duration::from_secs(2);
            world.look(&mut roaming);
        }
        assert_eq!(world.moves, [Move::Anywhere]);
    }

    #[test]
    fn idle_times_are_read_of_the_processors_asked_for() {
        let stat = "cpu  9 9 9 9999 999 9 9 9 9 9\ncpu0 1 2 3 40 5 6 7 8 9 0\ncpu1 1 2 3 400 50 6 7 8 9 0\n\
            cpu10 1 2 3 4000 500 6\nintr 123 0 0\nctxt 5\n";
        assert_eq!(idle_ticks(stat, &[0, 10]), Some(vec![45, 4500]));
        assert_eq!(idle_ticks(stat, &[1]), Some(vec![450]));
        assert_eq!(idle_ticks(stat, &[1, 2]), None);
        assert_eq!(idle_ticks("", &[0]), None);
    }

    #[test]
    fn a_thread_goes_where_it_may_and_comes_home() {
        let all = cpus::allowed().unwrap();
        let tested = std::thread::spawn(move || {
            cpus::run_on(&all[..1]).unwrap();
            let Some(mut berth) = Berth::new(0, all[0], &all) else { return assert_eq!(all.len(), 1) };
            assert!(berth.times.waited().is_some());
            assert_eq!(berth.times.idle().unwrap().len(), all.len() - 1);
            let now = Instant::now();
            // It waited for long, and the others idle.
            let free = |berth: &mut Berth| {
                let idle = Some(vec![Duration::ZERO; all.len() - 1]);
                berth.roaming.state = State::Home { looked: now, waited: Duration::ZERO, idle };
                berth.roaming.next_look = now;
            };
            free(&mut berth);
            // No time has passed.
            assert!(berth.look(now));
            assert_eq!(cpus::allowed().unwrap(), all);
            // The system takes one away, as another cpuset would.
            cpus::run_on(&all[..1]).unwrap();
            berth.current = all[..1].to_vec();
            assert!(berth.look(now + ROAM_MIN));
            assert_eq!(cpus::allowed().unwrap(), all[..1]);
            // Somebody else moves it.
            cpus::run_on(&all[1..]).unwrap();
            free(&mut berth);
            assert!(!berth.look(now));
            assert_eq!(cpus::allowed().unwrap(), all[1..]);
        });
        tested.join().unwrap();
    }
}
