//! What is known of a key's value beside the value: `OBJECT`, `MEMORY USAGE`, `DEBUG OBJECT`.

use super::generic::inspect;
use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use};
use crate::resp::Reply;
use crate::resp::number::parse_i64;
use crate::table::{EntryRef, ValueRef};
use crate::types::Object;

const KEY: &[KeySpec] = &[KeySpec::one(2, Use::Read, &[])];
const ANYTIME: Flags = Flags::LOADING.or(Flags::STALE);

type Run = fn(&mut Ctx<'_>, Args<'_>) -> Outcome;

const fn about_key(name: &'static str, run: Run, since: &'static str, summary: &'static str) -> Command {
    Command::new(name, 3, Handler::Keys(run))
        .flags(Flags::READONLY)
        .categories(Category::KEYSPACE)
        .keys(KEY)
        .doc("generic", since, summary, "O(1)")
}

const fn about_server(name: &'static str, summary: &'static str, complexity: &'static str) -> Command {
    Command::new(name, 2, Handler::Session).doc("server", "4.0.0", summary, complexity)
}

const fn debug(name: &'static str, arity: i16, summary: &'static str) -> Command {
    let flags = Flags::ADMIN.or(Flags::NOSCRIPT).or(ANYTIME);
    Command::new(name, arity, Handler::Session).flags(flags).doc("server", "1.0.0", summary, "O(1)")
}

/// The family's declarations. The containers themselves belong to the session, which runs those of their
/// subcommands that are not about a key.
pub const COMMANDS: &[Command] = &[
    Command::new("object", -2, Handler::Session)
        .doc("generic", "2.2.3", "Tells what is known of a key's value.", "Depends on the subcommand.")
        .subcommands(&[
            about_key("encoding", encoding_of, "2.2.3", "Tells how a key's value is stored."),
            about_key("freq", freq, "4.0.0", "Tells a key's access counter (LFU policies)."),
            about_key("idletime", idletime, "2.2.3", "Tells the seconds since a key was last accessed."),
            about_key("refcount", refcount, "2.2.3", "Tells the number of references to a key's value."),
            Command::new("help", 2, Handler::Keys(object_help))
                .flags(ANYTIME)
                .categories(Category::KEYSPACE)
                .doc("generic", "6.2.0", "Lists the subcommands.", "O(1)"),
        ]),
    Command::new("memory", -2, Handler::Session)
        .doc("server", "4.0.0", "Tells about the use of memory.", "Depends on the subcommand.")
        .subcommands(&[
            Command::new("usage", -3, Handler::Keys(memory_usage)).flags(Flags::READONLY).keys(KEY).doc(
                "server",
                "4.0.0",
                "Tells the bytes that a key and its value take.",
                "O(N) for N samples.",
            ),
            about_server("stats", "Tells where memory goes.", "O(1)"),
            about_server("doctor", "Reports problems with memory.", "O(1)"),
            about_server(
                "malloc-stats",
                "Tells the allocator's statistics.",
                "Depends on the memory in use.",
            ),
            about_server("purge", "Has the allocator give memory back.", "Depends on the memory in use."),
            Command::new("help", 2, Handler::Keys(memory_help)).flags(ANYTIME).doc(
                "server",
                "4.0.0",
                "Lists the subcommands.",
                "O(1)",
            ),
        ]),
    Command::new("debug", -2, Handler::Session)
        .flags(Flags::ADMIN.or(Flags::NOSCRIPT).or(ANYTIME))
        .doc("server", "1.0.0", "Tools for those who debug the server.", "Depends on the subcommand.")
        .subcommands(&[
            Command::new("object", 3, Handler::Keys(debug_object))
                .flags(Flags::ADMIN.or(Flags::NOSCRIPT).or(Flags::READONLY))
                .keys(KEY)
                .doc("server", "1.0.0", "Tells the internals of a key's value.", "O(1)"),
            debug("help", 2, "Lists the subcommands."),
            debug("set-active-expire", 3, "Switches the background removal of expired keys on or off."),
            debug("sleep", 3, "Stops the server for some time."),
        ]),
];

/// The longest string whose encoding Redis calls `embstr`: there it lies in one block with its object.
const EMBEDDED_MAX_LEN_BYTES: usize = 44;

/// The encoding of a value, by Redis's names.
pub fn encoding(value: ValueRef<'_, Object>) -> &'static str {
    match value {
        ValueRef::Int(_) => "int",
        ValueRef::Str(bytes) if bytes.len() <= EMBEDDED_MAX_LEN_BYTES => "embstr",
        ValueRef::Boxed(object) => object.encoding(),
        _ => "raw",
    }
}

/// Bytes that a key takes with its value and its slot in the table.
pub fn usage_bytes(entry: EntryRef<'_, Object>) -> usize {
    let value_bytes = match entry.value() {
        ValueRef::Boxed(object) => object.heap_bytes(),
        _ => 0,
    };
    size_of::<u64>() + entry.heap_bytes() + value_bytes
}

/// Writes the reply of a container's `HELP`: how it is called, then its subcommands with what they do.
pub fn help(out: &mut Reply, container: &str, subcommands: &[(&str, &str)]) {
    out.array(3 + 2 * subcommands.len());
    out.simple(&format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    for (usage, purpose) in subcommands.iter().chain(&[("HELP", "Print this help.")]) {
        out.simple(usage);
        out.simple(&format!("    {purpose}"));
    }
}

fn encoding_of(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    match inspect(c, args[2], |entry| entry.map(|entry| encoding(entry.value()))) {
        Some(name) => c.out.bulk(name.as_bytes()),
        None => c.out.null(),
    }
    Ok(())
}

fn freq(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let Some(clock) = inspect(c, args[2], |entry| entry.map(EntryRef::lru)) else {
        c.out.null();
        return Ok(());
    };
    let access_clock = c.settings().access_clock;
    if !access_clock.counts_accesses() {
        return Err(Error::text(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when \
             switching between policies at runtime LRU and LFU data will take some time to adjust.",
        ));
    }
    let frequency = access_clock.frequency(clock, c.now_ms());
    c.out.int(i64::from(frequency));
    Ok(())
}

fn idletime(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let Some(clock) = inspect(c, args[2], |entry| entry.map(EntryRef::lru)) else {
        c.out.null();
        return Ok(());
    };
    let access_clock = c.settings().access_clock;
    if access_clock.counts_accesses() {
        return Err(Error::text(
            "ERR An LFU maxmemory policy is selected, idle time not tracked. Please note that when switching \
             between policies at runtime LRU and LFU data will take some time to adjust.",
        ));
    }
    let idle_s = access_clock.idle_s(clock, c.now_ms());
    c.out.int(i64::from(idle_s));
    Ok(())
}

/// Values are never shared between keys: always 1.
fn refcount(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    if inspect(c, args[2], |entry| entry.is_some()) {
        c.out.int(1);
    } else {
        c.out.null();
    }
    Ok(())
}

fn object_help(c: &mut Ctx<'_>, _: Args<'_>) -> Outcome {
    help(
        c.out,
        "OBJECT",
        &[
            ("ENCODING <key>", "How the value of <key> is stored."),
            ("FREQ <key>", "The access counter of <key>, which grows with the logarithm of its accesses."),
            ("IDLETIME <key>", "Seconds since the last access to <key>."),
            ("REFCOUNT <key>", "References to the value of <key>."),
        ],
    );
    Ok(())
}

/// SAMPLES is accepted for its callers' sake: how much of a huge value is sampled is the value's own matter.
fn memory_usage(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    for option in args[3..].chunks(2) {
        match option {
            [word, samples] if word.eq_ignore_ascii_case(b"SAMPLES") => {
                if parse_i64(samples).ok_or(Error::NotInteger)? < 0 {
                    return Err(Error::Syntax);
                }
            }
            _ => return Err(Error::Syntax),
        }
    }
    match c.keys.peek(args[2]).map(usage_bytes) {
        Some(bytes) => c.out.int(bytes as i64),
        None => c.out.null(),
    }
    Ok(())
}

fn memory_help(c: &mut Ctx<'_>, _: Args<'_>) -> Outcome {
    help(
        c.out,
        "MEMORY",
        &[
            ("DOCTOR", "Problems with memory, if any."),
            ("MALLOC-STATS", "The allocator's own statistics."),
            ("PURGE", "Have the allocator give memory back to the system."),
            ("STATS", "Where memory goes."),
            ("USAGE <key> [SAMPLES <count>]", "Bytes that <key> takes with its value."),
        ],
    );
    Ok(())
}

fn debug_object(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let now_ms = c.now_ms();
    let access_clock = c.settings().access_clock;
    let entry = c.keys.peek(args[2]).ok_or(Error::NoSuchKey)?;
    let text = format!(
        "Value at:{:p} refcount:1 encoding:{} serializedlength:{} lru:{} lru_seconds_idle:{}",
        entry.key(),
        encoding(entry.value()),
        data_bytes(entry.value()),
        entry.lru(),
        access_clock.idle_s(entry.lru(), now_ms),
    );
    c.out.simple(&text);
    Ok(())
}

/// About the bytes of a value's data.
fn data_bytes(value: ValueRef<'_, Object>) -> usize {
    match value {
        ValueRef::Int(number) => itoa::Buffer::new().format(number).len(),
        ValueRef::Str(bytes) => bytes.len(),
        ValueRef::Boxed(object) => object.heap_bytes(),
        ValueRef::None | ValueRef::Score(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use crate::command::AccessClock;
    use crate::commands::testing::{NULL, Node, bulk};

    #[test]
    fn encodings_have_redis_names() {
        let mut node = Node::new();
        for (value, name) in [
            ("17".to_owned(), "int"),
            ("-9223372036854775808".to_owned(), "int"),
            ("9223372036854775808".to_owned(), "embstr"),
            ("x".repeat(44), "embstr"),
            ("x".repeat(45), "raw"),
            ("x".repeat(20_000), "raw"),
        ] {
            node.run(&format!("SET k {value}"));
            assert_eq!(node.run("object encoding k"), bulk(name));
        }
        assert_eq!(node.run("OBJECT REFCOUNT k"), ":1\r\n");
        for sub in ["ENCODING", "FREQ", "IDLETIME", "REFCOUNT"] {
            assert_eq!(node.run(&format!("OBJECT {sub} none")), NULL);
            assert_eq!(
                node.run(&format!("OBJECT {sub}")),
                format!("-ERR wrong number of arguments for 'object|{}' command\r\n", sub.to_lowercase())
            );
        }
        assert_eq!(node.run("DEBUG OBJECT none"), "-ERR no such key\r\n");
    }

    #[test]
    fn the_policy_decides_what_is_tracked() {
        let mut node = Node::new();
        node.run("SET k v");
        node.advance_ms(5500);
        assert!(matches!(node.run("OBJECT IDLETIME k").as_str(), ":5\r\n" | ":6\r\n"));
        assert!(node.run("OBJECT FREQ k").starts_with("-ERR An LFU maxmemory policy is not selected"));
        node.settings.access_clock = AccessClock::Lfu { log_factor: 10, decay_min: 1 };
        node.run("SET f v");
        assert_eq!(node.run("OBJECT FREQ f"), ":5\r\n");
        node.advance_ms(3 * 60_000);
        assert_eq!(node.run("OBJECT FREQ f"), ":2\r\n");
        assert!(node.run("OBJECT IDLETIME f").starts_with("-ERR An LFU maxmemory policy is selected"));
    }

    #[test]
    fn memory_usage_counts_key_value_and_slot() {
        let mut node = Node::new();
        node.run("SET k v");
        let small: usize = node.run("MEMORY USAGE k")[1..].trim_end().parse().unwrap();
        assert!((16..=64).contains(&small), "{small}");
        node.run(&format!("SET k {}", "x".repeat(20_000)));
        let large: usize = node.run("MEMORY USAGE k SAMPLES 0")[1..].trim_end().parse().unwrap();
        assert!((20_000..20_300).contains(&large), "{large}");
        assert_eq!(node.run("MEMORY USAGE none samples 5"), NULL);
        for (line, error) in [
            ("MEMORY USAGE k SAMPLES -1", "syntax error"),
            ("MEMORY USAGE k SAMPLES", "syntax error"),
            ("MEMORY USAGE k FOO 1", "syntax error"),
            ("MEMORY USAGE k SAMPLES x", "value is not an integer or out of range"),
        ] {
            assert_eq!(node.run(line), format!("-ERR {error}\r\n"));
        }
    }

    #[test]
    fn help_is_an_array_of_lines() {
        let mut node = Node::new();
        for (container, lines) in [("OBJECT", 11), ("MEMORY", 13)] {
            let reply = node.run(&format!("{container} HELP"));
            assert!(reply.starts_with(&format!("*{lines}\r\n+{container} <subcommand>")), "{reply}");
            assert_eq!(reply.lines().count(), lines + 1);
        }
    }
}
