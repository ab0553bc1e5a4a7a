//! Expiries of keys: set, asked for, removed.

use super::expiry::{Timing, parse_deadline_ms};
use super::generic::inspect;
use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use};

const READ: &[KeySpec] = &[KeySpec::one(1, Use::Read, &["access"])];
const UPDATE: &[KeySpec] = &[KeySpec::one(1, Use::ReadWrite, &["update"])];

type Run = fn(&mut Ctx<'_>, Args<'_>) -> Outcome;

const fn setter(name: &'static str, run: Run, since: &'static str, summary: &'static str) -> Command {
    Command::new(name, -3, Handler::Keys(run))
        .flags(Flags::WRITE.or(Flags::FAST))
        .categories(Category::KEYSPACE)
        .keys(UPDATE)
        .doc("generic", since, summary, "O(1)")
}

const fn getter(name: &'static str, run: Run, since: &'static str, summary: &'static str) -> Command {
    Command::new(name, 2, Handler::Keys(run))
        .flags(Flags::READONLY.or(Flags::FAST))
        .categories(Category::KEYSPACE)
        .keys(READ)
        .doc("generic", since, summary, "O(1)")
}

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    setter("expire", expire, "1.0.0", "Lets a key expire after some seconds."),
    setter("pexpire", pexpire, "2.6.0", "Lets a key expire after some milliseconds."),
    setter("expireat", expireat, "1.2.0", "Lets a key expire at a Unix time in seconds."),
    setter("pexpireat", pexpireat, "2.6.0", "Lets a key expire at a Unix time in milliseconds."),
    getter("ttl", ttl, "1.0.0", "Tells how many seconds a key has left."),
    getter("pttl", pttl, "2.6.0", "Tells how many milliseconds a key has left."),
    getter("expiretime", expiretime, "7.0.0", "Tells the Unix time in seconds at which a key expires."),
    getter(
        "pexpiretime",
        pexpiretime,
        "7.0.0",
        "Tells the Unix time in milliseconds at which a key expires.",
    ),
    Command::new("persist", 2, Handler::Keys(persist))
        .flags(Flags::WRITE.or(Flags::FAST))
        .categories(Category::KEYSPACE)
        .keys(UPDATE)
        .doc("generic", "2.2.0", "Removes a key's expiry.", "O(1)"),
];

/// When a new expiry may replace what the key has.
#[derive(Default)]
pub(super) struct Condition {
    only_without: bool,
    only_with: bool,
    only_later: bool,
    only_sooner: bool,
}

impl Condition {
    fn parse(args: Args<'_>) -> Result<Self, Error> {
        let mut condition = Self::default();
        for (at, word) in args.iter().enumerate().skip(3) {
            if !condition.add(args, at) {
                return Err(Error::owned(format!(
                    "ERR Unsupported option {}",
                    String::from_utf8_lossy(word)
                )));
            }
        }
        let Self { only_without, only_with, only_later, only_sooner } = condition;
        if only_without && (only_with || only_later || only_sooner) {
            let error = "ERR NX and XX, GT or LT options at the same time are not compatible";
            return Err(Error::text(error));
        }
        if only_later && only_sooner {
            return Err(Error::text("ERR GT and LT options at the same time are not compatible"));
        }
        Ok(condition)
    }

    /// Takes the word at `at`; false if it is no condition.
    pub(super) fn add(&mut self, args: Args<'_>, at: usize) -> bool {
        let flags = [
            ("NX", &mut self.only_without),
            ("XX", &mut self.only_with),
            ("GT", &mut self.only_later),
            ("LT", &mut self.only_sooner),
        ];
        let found = flags.into_iter().find(|(word, _)| args.is(at, word));
        found.map(|(_, flag)| *flag = true).is_some()
    }

    /// Whether what expires at `current_ms` may expire at `new_ms` instead. None is later than any time.
    pub(super) fn allows(&self, current_ms: Option<u64>, new_ms: i64) -> bool {
        let (current, new) = (current_ms.map_or(i128::MAX, i128::from), i128::from(new_ms));
        !(self.only_without && current_ms.is_some()
            || self.only_with && current_ms.is_none()
            || self.only_later && new <= current
            || self.only_sooner && new >= current)
    }
}

fn expire(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    set_deadline(c, args, Timing::EX, "expire")
}

fn pexpire(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    set_deadline(c, args, Timing::PX, "pexpire")
}

fn expireat(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    set_deadline(c, args, Timing::EXAT, "expireat")
}

fn pexpireat(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    set_deadline(c, args, Timing::PXAT, "pexpireat")
}

fn set_deadline(c: &mut Ctx<'_>, args: Args<'_>, timing: Timing, command: &'static str) -> Outcome {
    let key = args[1];
    let condition = Condition::parse(args)?;
    let deadline_ms = parse_deadline_ms(args[2], timing, c.now_ms(), command)?;
    let current = c.keys.write(key).map(|entry| entry.expiry_ms());
    let Some(current_ms) = current.filter(|current_ms| condition.allows(*current_ms, deadline_ms)) else {
        c.out.int(0);
        return Ok(());
    };
    // A replica leaves it to its master to remove keys, whatever the time.
    let is_over = deadline_ms <= c.now_ms() as i64 && !c.keys.replica;
    if is_over {
        let verb = c.settings().expire_verb();
        c.keys.remove(key);
        c.keys.replicate(&[verb, key]);
    } else {
        let deadline_ms = u64::try_from(deadline_ms).unwrap_or(0);
        if current_ms != Some(deadline_ms) {
            c.keys.set_expiry(key, Some(deadline_ms));
        }
        let mut digits = itoa::Buffer::new();
        c.keys.replicate(&[b"PEXPIREAT", key, digits.format(deadline_ms).as_bytes()]);
    }
    c.keys.changed(key);
    c.out.int(1);
    Ok(())
}

fn ttl(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let now_ms = c.now_ms();
    reply_time(c, args, |at_ms| (at_ms.saturating_sub(now_ms) + 500) / 1000)
}

fn pttl(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let now_ms = c.now_ms();
    reply_time(c, args, |at_ms| at_ms.saturating_sub(now_ms))
}

fn expiretime(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    reply_time(c, args, |at_ms| (at_ms + 500) / 1000)
}

fn pexpiretime(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    reply_time(c, args, |at_ms| at_ms)
}

/// Replies what `of` makes of the key's expiry; -1 if it has none, -2 if there is no key.
fn reply_time(c: &mut Ctx<'_>, args: Args<'_>, of: impl FnOnce(u64) -> u64) -> Outcome {
    let time = match inspect(c, args[1], |entry| entry.map(|entry| entry.expiry_ms())) {
        None => -2,
        Some(None) => -1,
        // Deadlines are read as signed numbers, so they fit.
        Some(Some(at_ms)) => of(at_ms).cast_signed(),
    };
    c.out.int(time);
    Ok(())
}

fn persist(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let key = args[1];
    let had_expiry = c.keys.write(key).is_some_and(|entry| entry.expiry_ms().is_some());
    if had_expiry {
        c.keys.set_expiry(key, None);
        c.keys.changed(key);
        c.keys.replicate_as_is(args);
    }
    c.out.int(i64::from(had_expiry));
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::{Node, OK, START_MS};

    fn node() -> Node {
        let mut node = Node::new();
        assert_eq!(node.run("SET k v"), OK);
        node.effects();
        node
    }

    #[test]
    fn every_setter_becomes_one_deadline() {
        let now_s = START_MS / 1000;
        for (line, at_ms) in [
            ("EXPIRE k 10".to_owned(), START_MS + 10_000),
            ("PEXPIRE k 10".to_owned(), START_MS + 10),
            (format!("EXPIREAT k {}", now_s + 7), START_MS + 7000),
            (format!("pexpireat k {}", START_MS + 7), START_MS + 7),
        ] {
            let mut node = node();
            assert_eq!(node.run(&line), ":1\r\n");
            assert_eq!(node.effects(), format!("PEXPIREAT k {at_ms}"));
            assert_eq!(node.dirty(), 2);
            assert_eq!(node.run("PEXPIRETIME k"), format!(":{at_ms}\r\n"));
            assert_eq!(node.run("EXPIRETIME k"), format!(":{}\r\n", (at_ms + 500) / 1000));
            assert_eq!(node.run("PTTL k"), format!(":{}\r\n", at_ms - START_MS));
            assert_eq!(node.run("TTL k"), format!(":{}\r\n", (at_ms - START_MS + 500) / 1000));
            assert_eq!(node.effects(), "");
        }
    }

    #[test]
    fn a_key_lives_to_the_end_of_its_last_millisecond() {
        let mut node = node();
        node.run("PEXPIRE k 10");
        node.effects();
        node.advance_ms(10);
        assert_eq!(node.run("PTTL k"), ":0\r\n");
        node.advance_ms(1);
        assert_eq!(node.run("PTTL k"), ":-2\r\n");
        assert_eq!(node.effects(), "UNLINK k");
        assert_eq!(node.run("EXPIRE k 10"), ":0\r\n");
        assert_eq!(node.effects(), "");
    }

    #[test]
    fn a_deadline_in_the_past_removes_the_key() {
        for line in ["EXPIRE k 0", "EXPIRE k -1", "PEXPIREAT k -5", "EXPIREAT k 1", "PEXPIRE k 0"] {
            let mut node = node();
            assert_eq!(node.run(line), ":1\r\n");
            assert_eq!(node.effects(), "UNLINK k");
            assert_eq!(node.run("TTL k"), ":-2\r\n");
            assert_eq!(node.dirty(), 2);
        }
        let mut node = node();
        node.settings.lazyfree_expire = false;
        node.run("EXPIRE k 0");
        assert_eq!(node.effects(), "DEL k");
    }

    #[test]
    fn a_replica_does_not_remove_what_its_master_lets_expire() {
        let mut node = node();
        (node.replica, node.from_master) = (true, true);
        assert_eq!(node.run("PEXPIREAT k 1"), ":1\r\n");
        assert_eq!(node.run("PEXPIRETIME k"), ":1\r\n");
        node.from_master = false;
        assert_eq!(node.run("PTTL k"), ":-2\r\n");
        assert_eq!(node.space.len(), 1);
    }

    #[test]
    fn conditions() {
        let mut node = node();
        for (line, want) in [
            ("EXPIRE k 10 XX", 0),
            ("EXPIRE k 10 GT", 0),
            ("EXPIRE k 10 XX GT", 0),
            ("EXPIRE k 100 lt", 1),
            ("EXPIRE k 10 NX", 0),
            ("EXPIRE k 100 GT", 0),
            ("EXPIRE k 100 LT", 0),
            ("EXPIRE k 101 GT XX", 1),
            ("EXPIRE k 50 LT XX", 1),
            ("EXPIRE k 60 XX XX", 1),
            ("PERSIST k", 1),
            ("PERSIST k", 0),
            ("PERSIST none", 0),
            ("EXPIRE k 10 XX LT", 0),
            ("EXPIRE k 10 nx", 1),
        ] {
            let was = node.run("PTTL k");
            assert_eq!(node.run(line), format!(":{want}\r\n"), "{line}");
            assert_eq!(node.run("PTTL k") != was, want == 1, "{line}");
            assert_eq!(node.effects().is_empty(), want == 0, "{line}");
        }
        assert_eq!(node.space.db(0).expires, 1);
    }

    #[test]
    fn bad_arguments() {
        let mut node = node();
        for (line, error) in [
            ("EXPIRE k x", "ERR value is not an integer or out of range"),
            ("EXPIRE none x", "ERR value is not an integer or out of range"),
            ("EXPIRE k x foo", "ERR Unsupported option foo"),
            ("EXPIRE k 1 NX GT", "ERR NX and XX, GT or LT options at the same time are not compatible"),
            ("EXPIRE k 1 GT LT", "ERR GT and LT options at the same time are not compatible"),
            ("EXPIRE k 9223372036854775807", "ERR invalid expire time in 'expire' command"),
            ("PEXPIRE k 9223372036854775807", "ERR invalid expire time in 'pexpire' command"),
        ] {
            assert_eq!(node.run(line), format!("-{error}\r\n"));
            assert_eq!(node.run("TTL k"), ":-1\r\n");
        }
        assert_eq!(node.effects(), "");
    }

    #[test]
    fn the_farthest_deadline_is_kept() {
        let mut node = node();
        assert_eq!(node.run("PEXPIREAT k 9223372036854775807"), ":1\r\n");
        assert_eq!(node.run("PEXPIRETIME k"), ":9223372036854775807\r\n");
        assert_eq!(node.run("EXPIRETIME k"), ":9223372036854776\r\n");
        assert_eq!(node.run("PERSIST k"), ":1\r\n");
        assert_eq!(node.run("TTL k"), ":-1\r\n");
    }
}
