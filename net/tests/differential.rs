//! The same random commands to Braid and to Redis 8: every reply and the whole dataset are the same.
//!
//! A round is a few hundred steps from one seed, over two connections that take turns, one of each protocol version.
//! A round that fails is cut down to a minimal one, and printed with its seed.
//!
//! - `BRAID_DIFF_SEED=n` runs the round with that seed only.
//! - `BRAID_DIFF_STEPS=n` runs so many steps per number of shards.

mod common;
#[path = "differential/compare.rs"]
mod compare;
#[path = "differential/families.rs"]
mod families;
#[path = "differential/grammar.rs"]
mod grammar;

use braid_bench::client::{Client, Value};
use braid_bench::cmd;
use braid_bench::peers::{Kind, Peer};
use common::{braid_builder, call, connect, number_from_env};
use compare::Judge;
use families::Family;
use fastrand::Rng;
use grammar::Words;
use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

const STEPS_PER_ROUND: u64 = 300;
const CONNECTIONS: usize = 2;
/// Databases that the dataset is compared in: those that commands can reach, see `Kind::Database`.
const DATABASES: [u32; 4] = [0, 1, 2, 15];
/// Failing rounds that are cut down and reported.
const FAILURES_MAX: usize = 6;
/// Attempts to leave steps out of a failing round, and how long they may take: each is dear when no reply comes.
const REDUCTIONS_MAX: usize = 400;
const REDUCTIONS_MAX_TIME: Duration = Duration::from_secs(30);

/// How long a reply may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Commands of one connection that are sent in one go.
#[derive(Clone, Debug)]
struct Step {
    connection: usize,
    commands: Vec<Words>,
}

/// Both servers.
struct Pair {
    redis: Peer,
    braid: Peer,
}

struct Mismatch {
    /// The step it showed at; the number of steps when the datasets differ.
    step: usize,
    text: String,
}

/// A connection to each server.
struct Both {
    redis: Client,
    braid: Client,
    judge: Judge,
}

impl Both {
    fn open(pair: &Pair) -> io::Result<Both> {
        let mut both =
            Both { redis: pair.redis.client()?, braid: pair.braid.client()?, judge: Judge::default() };
        for client in [&mut both.redis, &mut both.braid] {
            client.set_timeout(Some(REPLY_TIMEOUT))?;
        }
        Ok(both)
    }

    /// Sends commands to both and compares the answers, byte by byte where they must be.
    fn exchange(&mut self, commands: &[Words]) -> Result<Vec<Vec<u8>>, String> {
        let mut wire = Vec::new();
        for command in commands {
            braid_bench::resp::encode(&mut wire, command);
        }
        self.redis.send_raw(&wire).map_err(|error| format!("sending to Redis: {error}"))?;
        self.braid.send_raw(&wire).map_err(|error| format!("sending to Braid: {error}"))?;
        let mut replies = Vec::new();
        for command in commands {
            let frame = |client: &mut Client, name: &str| {
                client
                    .receive_frame()
                    .map_err(|error| format!("{}: no reply of {name}: {error}", shown(command)))
            };
            let model = frame(&mut self.redis, "Redis")?;
            let braid = frame(&mut self.braid, "Braid")?;
            if let Some(difference) = self.judge.compare(command, &model, &braid) {
                return Err(format!("{}\n{difference}", shown(command)));
            }
            replies.push(model);
        }
        Ok(replies)
    }
}

/// A command as one would type it.
fn shown(command: &Words) -> String {
    let words: Vec<String> = command
        .iter()
        .map(|word| {
            let plain = !word.is_empty() && word.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'"');
            let text = word.escape_ascii().to_string();
            if plain { text } else { format!("\"{text}\"") }
        })
        .collect();
    words.join(" ")
}

/// The steps of a round: a function of its seed alone.
fn steps(families: &[Family], seed: u64) -> (&'static str, Vec<Step>) {
    let mut rng = Rng::with_seed(seed);
    let focus = rng.usize(..families.len());
    let mut in_multi = [0u32; CONNECTIONS];
    let steps = (0..STEPS_PER_ROUND)
        .map(|_| {
            let connection = rng.usize(..CONNECTIONS);
            let count = if rng.u8(..) < 40 { rng.usize(2..12) } else { 1 };
            let mut commands = Vec::new();
            for _ in 0..count {
                let open = &mut in_multi[connection];
                *open += u32::from(*open > 0);
                if *open > 12 {
                    *open = 0;
                    commands.push(cmd!["EXEC"]);
                    continue;
                }
                let family = families::choose(families, focus, &mut rng);
                let template = &family.templates[rng.usize(..family.templates.len())];
                let words = template.generate(&mut rng, &family.keys);
                *open = match template.name.as_str() {
                    "MULTI" => 1,
                    "EXEC" | "DISCARD" | "RESET" => 0,
                    _ => *open,
                };
                // Which elements go is up to the server. What is left must not be.
                let follow_up =
                    (template.name == "SPOP").then(|| words.get(1).map(|key| cmd!["DEL", key])).flatten();
                commands.push(words);
                commands.extend(follow_up);
            }
            Step { connection, commands }
        })
        .collect();
    (families[focus].name, steps)
}

/// Runs steps from an empty dataset on, then compares what both servers hold.
fn run(pair: &Pair, steps: &[Step]) -> Result<(), Mismatch> {
    let fail = |step: usize| move |text: String| Mismatch { step, text };
    let connection = |error: io::Error| Mismatch { step: 0, text: format!("connecting: {error}") };
    let mut connections: Vec<Both> =
        (0..CONNECTIONS).map(|_| Both::open(pair)).collect::<io::Result<_>>().map_err(connection)?;
    connections[0].exchange(&[cmd!["FLUSHALL"]]).map_err(fail(0))?;
    connections[1].exchange(&[cmd!["HELLO", 3]]).map_err(fail(0))?;
    for (at, step) in steps.iter().enumerate() {
        connections[step.connection].exchange(&step.commands).map_err(fail(at))?;
    }
    compare_datasets(pair).map_err(fail(steps.len()))
}

/// Asks both servers for all they hold: keys, types, encodings, expiries, values.
fn compare_datasets(pair: &Pair) -> Result<(), String> {
    let mut both = Both::open(pair).map_err(|error| error.to_string())?;
    for db in DATABASES {
        let replies = both.exchange(&[cmd!["SELECT", db], cmd!["KEYS", "*"]])?;
        let keys = braid_bench::resp::Decoder::new(replies[1].as_slice())
            .value()
            .map_err(|error| error.to_string())?;
        let keys = keys.into_items().unwrap_or_default();
        let counted = both.braid.command(&cmd!["DBSIZE"]).map_err(|error| error.to_string())?;
        if counted.as_int() != Some(keys.len() as i64) {
            return Err(format!(
                "DBSIZE: {counted:?} in database {db}, where KEYS shows {} keys",
                keys.len()
            ));
        }
        for key in keys {
            let Value::Bulk(key) = key else { return Err(format!("a key that is none: {key:?}")) };
            let about = [cmd!["TYPE", key], cmd!["PEXPIRETIME", key], cmd!["OBJECT", "ENCODING", key]];
            let replies = both.exchange(&about)?;
            let value = match replies[0].as_slice() {
                b"+string\r\n" => cmd!["GET", key],
                b"+list\r\n" => cmd!["LRANGE", key, 0, -1],
                b"+hash\r\n" => cmd!["HGETALL", key],
                b"+set\r\n" => cmd!["SMEMBERS", key],
                b"+zset\r\n" => cmd!["ZRANGE", key, 0, -1, "WITHSCORES"],
                _ => continue,
            };
            both.exchange(&[value]).map_err(|text| format!("the dataset, database {db}: {text}"))?;
        }
    }
    Ok(())
}

/// Leaves out of failing steps what is not needed to fail.
fn reduce(pair: &mut Pair, mut steps: Vec<Step>, mut mismatch: Mismatch) -> (Vec<Step>, Mismatch) {
    // Leaving steps out may show something else: that is another round's business.
    let signature = |mismatch: &Mismatch| {
        mismatch.text.split([' ', '\n']).next().unwrap_or_default().to_ascii_uppercase()
    };
    let wanted = signature(&mismatch);
    let started = Instant::now();
    let mut attempts = 0;
    let mut chunk = steps.len();
    let mut attempt = |pair: &mut Pair, steps: &[Step]| {
        attempts += 1;
        if pair.braid.client().is_err() {
            pair.braid.restart().expect("braid-server starts again");
        }
        (attempts <= REDUCTIONS_MAX && started.elapsed() < REDUCTIONS_MAX_TIME)
            .then(|| run(pair, steps).err().filter(|found| signature(found) == wanted))
    };
    steps.truncate(mismatch.step + 1);
    // Single commands first become steps of their own, where that still fails.
    let single: Vec<Step> = steps
        .iter()
        .flat_map(|step| {
            step.commands
                .iter()
                .map(|words| Step { connection: step.connection, commands: vec![words.clone()] })
        })
        .collect();
    if let Some(Some(found)) = attempt(pair, &single) {
        (steps, mismatch) = (single, found);
        steps.truncate(mismatch.step + 1);
    }
    while chunk > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(steps.len()));
            match attempt(pair, &fewer) {
                None => return (steps, mismatch),
                Some(Some(found)) => {
                    fewer.truncate(found.step + 1);
                    (steps, mismatch) = (fewer, found);
                }
                Some(None) => at += chunk,
            }
        }
        chunk /= 2;
    }
    (steps, mismatch)
}

/// Commands that this server does not have.
fn unknown_names(client: &mut Client, families: &[Family]) -> BTreeSet<String> {
    let names: BTreeSet<String> = families
        .iter()
        .flat_map(|family| family.templates.iter().map(|template| template.name.clone()))
        .filter(|name| !["NOSUCH", "RESET", "QUIT", "EXEC", "MULTI"].contains(&name.as_str()))
        .collect();
    names
        .into_iter()
        .filter(|name| {
            let reply = client.command(&[name]).expect("an answer");
            reply.is_error() && reply.text().starts_with("ERR unknown command")
        })
        .collect()
}

fn differential(shards: usize) {
    let mut families = families::all();
    // Random offsets would make strings of gigabytes.
    let short_strings = ["--proto-max-bulk-len", "1mb"];
    let redis = Peer::builder(Kind::Redis8).args(short_strings).start().expect("Redis 8 starts");
    let braid = braid_builder(shards).args(short_strings).start().expect("braid-server starts");
    let mut pair = Pair { redis, braid };
    let unknown = unknown_names(&mut connect(&pair.braid), &families);
    let unknown_to_redis = unknown_names(&mut connect(&pair.redis), &families);
    assert!(unknown_to_redis.is_empty(), "the model itself does not know {unknown_to_redis:?}");
    families.retain_mut(|family| {
        let all = family.templates.len();
        family.templates.retain(|template| !unknown.contains(&template.name));
        // A family of which a few commands are there cannot be read back.
        family.templates.len() > all * 2 / 3
    });
    if !unknown.is_empty() {
        eprintln!("not compared, for Braid does not have them: {unknown:?}");
    }
    let rounds = number_from_env("BRAID_DIFF_STEPS", 9_000) / STEPS_PER_ROUND;
    let seeds = match std::env::var("BRAID_DIFF_SEED") {
        Ok(_) => {
            let seed = number_from_env("BRAID_DIFF_SEED", 0);
            seed..seed + 1
        }
        // Every number of shards sees other rounds.
        Err(_) => {
            let first = shards as u64 * 1_000_000;
            first..first + rounds
        }
    };
    let mut failures = Vec::new();
    for seed in seeds {
        let (focus, steps) = steps(&families, seed);
        let Err(mismatch) = run(&pair, &steps) else { continue };
        let first = mismatch.text.clone();
        eprintln!("seed {seed} ({focus}, {shards} shards) differs: {first}");
        let (steps, mismatch) = reduce(&mut pair, steps, mismatch);
        let mut report =
            format!("seed {seed} ({focus}, {shards} shards), after leaving out what is not needed:\n");
        for step in &steps {
            let commands: Vec<String> = step.commands.iter().map(shown).collect();
            report.push_str(&format!("  {}> {}\n", step.connection, commands.join("  |  ")));
        }
        report.push_str(&mismatch.text);
        if mismatch.text != first {
            report.push_str(&format!("\n(at first it was: {first})"));
        }
        failures.push(report);
        if failures.len() == FAILURES_MAX {
            break;
        }
    }
    assert!(
        failures.is_empty(),
        "{} rounds differ; BRAID_DIFF_SEED replays one:\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    let _ = call(&mut connect(&pair.braid), &["PING"]);
}

#[test]
fn one_shard_answers_as_redis() {
    differential(1);
}

#[test]
fn two_shards_answer_as_redis() {
    differential(2);
}

#[test]
fn three_shards_answer_as_redis() {
    differential(3);
}

#[test]
fn seven_shards_answer_as_redis() {
    differential(7);
}
