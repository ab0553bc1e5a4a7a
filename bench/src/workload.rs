//! What a load consists of: which commands, on which keys, with which values.

use std::fmt;
use std::io;
use std::str::FromStr;

use fastrand::Rng;

use crate::resp;

/// Keys of one `MSET`.
const MSET_KEYS: u64 = 10;
/// Fields of a hash and members of a set or zset are drawn from this many.
const MEMBERS: u64 = 1000;

/// A command that a load can contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Get,
    Set,
    Incr,
    Lpush,
    Sadd,
    Hset,
    Zadd,
    Mset,
    Ping,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 9] =
        [Op::Get, Op::Set, Op::Incr, Op::Lpush, Op::Sadd, Op::Hset, Op::Zadd, Op::Mset, Op::Ping];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Op::Get => "get",
            Op::Set => "set",
            Op::Incr => "incr",
            Op::Lpush => "lpush",
            Op::Sadd => "sadd",
            Op::Hset => "hset",
            Op::Zadd => "zadd",
            Op::Mset => "mset",
            Op::Ping => "ping",
        }
    }

    /// Types have keys of their own, so that no command meets a key of another type.
    fn key_prefix(self) -> &'static str {
        match self {
            Op::Get | Op::Set | Op::Mset | Op::Ping => "key:",
            Op::Incr => "counter:",
            Op::Lpush => "list:",
            Op::Sadd => "set:",
            Op::Hset => "hash:",
            Op::Zadd => "zset:",
        }
    }
}

/// Commands with their weights: `get=9,set=1`; a name alone weighs 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    parts: Vec<(Op, u32)>,
    total: u32,
}

impl Mix {
    /// The commands, in the order given.
    pub fn ops(&self) -> impl ExactSizeIterator<Item = Op> + '_ {
        self.parts.iter().map(|(op, _)| *op)
    }

    /// Draws one command, as its index among [`Mix::ops`].
    pub fn draw(&self, random: &mut Rng) -> usize {
        let mut left = random.u32(..self.total);
        self.parts
            .iter()
            .position(|(_, weight)| {
                let hit = left < *weight;
                left = left.saturating_sub(*weight);
                hit
            })
            .expect("the weights sum up to the total")
    }

    /// One command only.
    pub fn only(op: Op) -> Mix {
        Mix { parts: vec![(op, 1)], total: 1 }
    }

    /// `ratio` of reads (`get`), the rest writes (`set`).
    ///
    /// # Errors
    /// When the ratio is not within 0 and 1.
    pub fn read_ratio(ratio: f64) -> io::Result<Mix> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(io::Error::other(format!("a read ratio is within 0 and 1, not {ratio}")));
        }
        let reads = (ratio * 10_000.0).round() as u32;
        Mix::new(vec![(Op::Get, reads), (Op::Set, 10_000 - reads)]).map_err(io::Error::other)
    }

    fn new(parts: Vec<(Op, u32)>) -> Result<Mix, String> {
        let parts: Vec<_> = parts.into_iter().filter(|(_, weight)| *weight > 0).collect();
        let total = parts.iter().try_fold(0u32, |sum, (_, weight)| sum.checked_add(*weight));
        match total {
            Some(total) if total > 0 => Ok(Mix { parts, total }),
            _ => Err("the weights of a mix sum up to 1 at least, 2^32 at most".into()),
        }
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let mut parts: Vec<(Op, u32)> = Vec::new();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let op = Op::ALL.into_iter().find(|op| op.name() == name.trim()).ok_or_else(|| {
                let names: Vec<_> = Op::ALL.iter().map(|op| op.name()).collect();
                format!("no operation is called {name:?}: {}", names.join(", "))
            })?;
            if parts.iter().any(|(other, _)| *other == op) {
                return Err(format!("{name} is in the mix twice"));
            }
            let weight = weight.trim().parse().map_err(|_| format!("{weight:?} is no weight"))?;
            parts.push((op, weight));
        }
        Mix::new(parts)
    }
}

/// How keys are chosen from the key space.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keys {
    Uniform,
    /// The first key is the most frequent; the exponent says how much so.
    Zipf(f64),
    /// Each key once, in order; then again from the first.
    Sequential,
}

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Keys, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("uniform", "") => Ok(Keys::Uniform),
            ("sequential", "") => Ok(Keys::Sequential),
            ("zipf", "") => Ok(Keys::Zipf(0.99)),
            ("zipf", exponent) => match exponent.parse() {
                Ok(exponent) if (0.01..=10.0).contains(&exponent) => Ok(Keys::Zipf(exponent)),
                _ => Err(format!("{exponent:?} is no exponent between 0.01 and 10")),
            },
            _ => {
                Err(format!("no distribution is called {text:?}: uniform, zipf, zipf:EXPONENT or sequential"))
            }
        }
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keys::Uniform => f.write_str("uniform"),
            Keys::Zipf(exponent) => write!(f, "zipf:{exponent}"),
            Keys::Sequential => f.write_str("sequential"),
        }
    }
}

/// Zipf-distributed ranks `1..=n` in constant time and space: W. Hörmann, G. Derflinger, "Rejection-inversion to
/// generate variates from monotone discrete distributions", ACM TOMACS 6.3 (1996).
#[derive(Clone, Debug)]
struct Zipf {
    n: f64,
    exponent: f64,
    h_x1: f64,
    h_n: f64,
    shortcut: f64,
}

impl Zipf {
    fn new(n: u64, exponent: f64) -> Zipf {
        let mut zipf = Zipf { n: n as f64, exponent, h_x1: 0.0, h_n: 0.0, shortcut: 0.0 };
        zipf.h_x1 = zipf.h_integral(1.5) - 1.0;
        zipf.h_n = zipf.h_integral(n as f64 + 0.5);
        zipf.shortcut = 2.0 - zipf.h_integral_inverse(zipf.h_integral(2.5) - zipf.h(2.0));
        zipf
    }

    fn h(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// The integral of `h`; written with `expm1` so that it stays exact as the exponent approaches 1.
    fn h_integral(&self, x: f64) -> f64 {
        let log_x = x.ln();
        let t = (1.0 - self.exponent) * log_x;
        if t.abs() > 1e-8 { t.exp_m1() / t * log_x } else { log_x * (1.0 + t / 2.0) }
    }

    fn h_integral_inverse(&self, x: f64) -> f64 {
        let t = (x * (1.0 - self.exponent)).max(-1.0);
        let log = if t.abs() > 1e-8 { t.ln_1p() / t * x } else { x * (1.0 - t / 2.0) };
        log.exp()
    }

    fn draw(&self, random: &mut Rng) -> u64 {
        loop {
            let u = self.h_n + random.f64() * (self.h_x1 - self.h_n);
            let x = self.h_integral_inverse(u);
            let rank = x.round().clamp(1.0, self.n);
            if rank - x <= self.shortcut || u >= self.h_integral(rank + 0.5) - self.h(rank) {
                return rank as u64;
            }
        }
    }
}

/// Sizes of values in bytes, used in turn: `64` or `16,64,1024`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(Vec<usize>);

impl Sizes {
    /// No value may be larger.
    pub const MAX_BYTES: usize = 64 << 20;

    /// The mean in bytes.
    pub fn mean_bytes(&self) -> f64 {
        self.0.iter().sum::<usize>() as f64 / self.0.len() as f64
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        text.split(',')
            .map(|size| match size.trim().parse() {
                Ok(size) if size <= Sizes::MAX_BYTES => Ok(size),
                _ => Err(format!("{size:?} is no size in bytes up to {}", Sizes::MAX_BYTES)),
            })
            .collect::<Result<_, _>>()
            .map(Sizes)
    }
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Workload {
    pub mix: Mix,
    pub keys: Keys,
    /// Keys are `prefix:000000000000` up to this many.
    pub key_space: u64,
    pub sizes: Sizes,
}

/// Makes the commands of one thread. Equal seeds make equal commands.
pub struct Generator {
    mix: Mix,
    ops: Vec<Op>,
    keys: Keys,
    key_space: u64,
    zipf: Option<Zipf>,
    sizes: Vec<usize>,
    /// As long as the largest value.
    filler: Vec<u8>,
    random: Rng,
    made: u64,
    /// Of sequential keys this thread takes `first`, `first + step`, …
    first: u64,
    step: u64,
    scratch: Vec<u8>,
}

impl Generator {
    /// The generator of thread `index` out of `count`.
    ///
    /// # Panics
    /// When the key space is empty.
    pub fn new(workload: &Workload, seed: u64, index: u64, count: u64) -> Generator {
        assert!(workload.key_space > 0 && index < count);
        let mut random = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index));
        let longest = workload.sizes.0.iter().copied().max().unwrap_or(0);
        Generator {
            mix: workload.mix.clone(),
            ops: workload.mix.ops().collect(),
            keys: workload.keys,
            key_space: workload.key_space,
            zipf: match workload.keys {
                Keys::Zipf(exponent) => Some(Zipf::new(workload.key_space, exponent)),
                Keys::Uniform | Keys::Sequential => None,
            },
            sizes: workload.sizes.0.clone(),
            filler: (0..longest).map(|_| random.alphanumeric() as u8).collect(),
            random,
            made: 0,
            first: index,
            step: count,
            scratch: Vec::with_capacity(64),
        }
    }

    fn key_number(&mut self, nth: u64) -> u64 {
        match self.keys {
            Keys::Uniform => self.random.u64(..self.key_space),
            Keys::Zipf(_) => {
                self.zipf.as_ref().expect("made with the distribution").draw(&mut self.random) - 1
            }
            Keys::Sequential => nth.wrapping_mul(self.step).wrapping_add(self.first) % self.key_space,
        }
    }

    fn put_key(&mut self, out: &mut Vec<u8>, prefix: &str, nth: u64) {
        let number = self.key_number(nth);
        self.put_numbered(out, prefix, number);
    }

    /// A bulk string of `prefix` and twelve digits.
    fn put_numbered(&mut self, out: &mut Vec<u8>, prefix: &str, number: u64) {
        self.scratch.clear();
        resp::encode_decimal(&mut self.scratch, number);
        let zeros = 12usize.saturating_sub(self.scratch.len());
        resp::encode_header(out, b'$', prefix.len() + zeros + self.scratch.len());
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(&b"000000000000"[..zeros]);
        out.extend_from_slice(&self.scratch);
        out.extend_from_slice(b"\r\n");
    }

    fn put_value(&mut self, out: &mut Vec<u8>) {
        let len = self.sizes[(self.made % self.sizes.len() as u64) as usize];
        resp::encode_bulk(out, &self.filler[..len]);
    }

    /// Appends the next command to `out`; returns which operation of the mix it is.
    pub fn next(&mut self, out: &mut Vec<u8>) -> usize {
        let index = if self.ops.len() == 1 { 0 } else { self.mix.draw(&mut self.random) };
        let op = self.ops[index];
        let nth = self.made;
        let head = |out: &mut Vec<u8>, arguments: usize| {
            resp::encode_header(out, b'*', arguments);
            resp::encode_bulk(out, op.name().as_bytes());
        };
        match op {
            Op::Ping => head(out, 1),
            Op::Get | Op::Incr => {
                head(out, 2);
                self.put_key(out, op.key_prefix(), nth);
            }
            Op::Set | Op::Lpush => {
                head(out, 3);
                self.put_key(out, op.key_prefix(), nth);
                self.put_value(out);
            }
            Op::Sadd => {
                head(out, 3);
                self.put_key(out, op.key_prefix(), nth);
                let member = self.random.u64(..MEMBERS);
                self.put_numbered(out, "member:", member);
            }
            Op::Hset => {
                head(out, 4);
                self.put_key(out, op.key_prefix(), nth);
                let field = self.random.u64(..MEMBERS);
                self.put_numbered(out, "field:", field);
                self.put_value(out);
            }
            Op::Zadd => {
                head(out, 4);
                self.put_key(out, op.key_prefix(), nth);
                let (score, member) = (self.random.u64(..1_000_000), self.random.u64(..MEMBERS));
                self.put_numbered(out, "", score);
                self.put_numbered(out, "member:", member);
            }
            Op::Mset => {
                head(out, 1 + 2 * MSET_KEYS as usize);
                for part in 0..MSET_KEYS {
                    self.put_key(out, op.key_prefix(), nth.wrapping_mul(MSET_KEYS).wrapping_add(part));
                    self.put_value(out);
                }
            }
        }
        self.made += 1;
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Decoder;
    use crate::value::Value;

    fn workload(mix: &str, keys: Keys, key_space: u64) -> Workload {
        Workload { mix: mix.parse().unwrap(), keys, key_space, sizes: "3,5".parse().unwrap() }
    }

    fn commands(generator: &mut Generator, count: usize) -> Vec<Vec<String>> {
        let mut wire = Vec::new();
        (0..count).for_each(|_| {
            generator.next(&mut wire);
        });
        let mut decoder = Decoder::new(wire.as_slice());
        let commands = (0..count)
            .map(|_| decoder.value().unwrap().items().unwrap().iter().map(Value::text).collect())
            .collect();
        assert!(decoder.value().is_err(), "nothing follows the last command");
        commands
    }

    #[test]
    fn a_mix_is_drawn_by_its_weights() {
        let mix: Mix = "get=90, set=9,incr".parse().unwrap();
        let mut random = Rng::with_seed(1);
        let mut drawn = [0u32; 3];
        (0..100_000).for_each(|_| drawn[mix.draw(&mut random)] += 1);
        for (count, expected) in drawn.iter().zip([90_000, 9_000, 1_000]) {
            assert!(count.abs_diff(expected) < expected / 5, "{drawn:?}");
        }
        assert_eq!(Mix::read_ratio(0.9).unwrap().ops().collect::<Vec<_>>(), [Op::Get, Op::Set]);
        assert_eq!(Mix::read_ratio(1.0).unwrap().ops().collect::<Vec<_>>(), [Op::Get]);
        for bad in ["", "del", "get=x", "get=0", "get,get", "get=4294967295,set=1"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad}");
        }
        assert!(Mix::read_ratio(1.1).is_err());
    }

    #[test]
    fn zipf_ranks_have_the_frequencies_of_the_law() {
        for exponent in [0.5, 0.99, 1.0, 1.5] {
            let n = 100;
            let zipf = Zipf::new(n, exponent);
            let mut random = Rng::with_seed(7);
            let mut drawn = vec![0u32; n as usize];
            let draws = 400_000;
            (0..draws).for_each(|_| drawn[zipf.draw(&mut random) as usize - 1] += 1);
            let sum: f64 = (1..=n).map(|rank| (rank as f64).powf(-exponent)).sum();
            for rank in [1, 2, 3, 10, 100u64] {
                let expected = f64::from(draws) * (rank as f64).powf(-exponent) / sum;
                let got = f64::from(drawn[rank as usize - 1]);
                // Five standard deviations of the count.
                assert!(
                    (got - expected).abs() < 5.0 * expected.sqrt(),
                    "{exponent} {rank}: {got}, {expected}"
                );
            }
        }
        assert_eq!(Zipf::new(1, 0.99).draw(&mut Rng::with_seed(1)), 1);
    }

    #[test]
    fn commands_are_well_formed_and_types_keep_to_their_own_keys() {
        let all = Op::ALL.map(Op::name).join(",");
        let mut generator = Generator::new(&workload(&all, Keys::Uniform, 10), 1, 0, 1);
        for command in commands(&mut generator, 1000) {
            let op = Op::ALL.into_iter().find(|op| op.name() == command[0]).expect("a known command");
            let arguments = match op {
                Op::Ping => 1,
                Op::Get | Op::Incr => 2,
                Op::Set | Op::Lpush | Op::Sadd => 3,
                Op::Hset | Op::Zadd => 4,
                Op::Mset => 21,
            };
            assert_eq!(command.len(), arguments, "{command:?}");
            if op != Op::Ping {
                let number = command[1].strip_prefix(op.key_prefix()).expect("the type's prefix");
                assert!(number.len() == 12 && number.parse::<u64>().unwrap() < 10, "{command:?}");
            }
        }
    }

    #[test]
    fn sequential_threads_cover_every_key_once() {
        let mut keys: Vec<String> = (0..3)
            .flat_map(|thread| {
                let mut generator = Generator::new(&workload("set", Keys::Sequential, 30), 1, thread, 3);
                commands(&mut generator, 10).into_iter().map(|command| command[1].clone()).collect::<Vec<_>>()
            })
            .collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 30);
    }

    #[test]
    fn sizes_take_turns_and_equal_seeds_make_equal_commands() {
        let load = workload("set", Keys::Zipf(0.99), 1000);
        let first = commands(&mut Generator::new(&load, 5, 0, 2), 100);
        assert_eq!(first, commands(&mut Generator::new(&load, 5, 0, 2), 100));
        assert_ne!(first, commands(&mut Generator::new(&load, 5, 1, 2), 100));
        assert_ne!(first, commands(&mut Generator::new(&load, 6, 0, 2), 100));
        assert_eq!([first[0][2].len(), first[1][2].len(), first[2][2].len()], [3, 5, 3]);
        assert!("x".parse::<Sizes>().is_err() && "99999999999".parse::<Sizes>().is_err());
        assert!("normal".parse::<Keys>().is_err() && "zipf:0".parse::<Keys>().is_err());
    }
}
