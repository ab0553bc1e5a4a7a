//! `SLOWLOG`: the commands that took longest, as of late.

use super::table::{Call, subcommand_syntax};
use braid_core::command::Error;
use braid_core::commands::object::help;
use braid_core::resp::Reply;
use braid_core::resp::number::parse_i64;
use std::collections::VecDeque;

/// Arguments of a command that are kept, and bytes of each.
const MAX_ARGS: usize = 32;
const MAX_ARG_LEN_BYTES: usize = 128;

/// One slow command.
pub struct Entry {
    id: u64,
    /// When it ended, seconds since the Unix epoch.
    unix_s: u64,
    duration_us: u64,
    args: Vec<Box<[u8]>>,
    peer: String,
    name: Box<str>,
}

/// The latest slow commands, newest first.
#[derive(Default)]
pub struct SlowLog {
    entries: VecDeque<Entry>,
    next_id: u64,
}

impl SlowLog {
    /// Adds a command and drops the oldest beyond `max_len`.
    pub fn add(
        &mut self,
        max_len: u64,
        unix_s: u64,
        duration_us: u64,
        args: &[&[u8]],
        peer: String,
        name: Box<str>,
    ) {
        let entry = Entry { id: self.next_id, unix_s, duration_us, args: clip(args), peer, name };
        self.next_id += 1;
        self.entries.push_front(entry);
        self.trim(max_len);
    }

    /// Drops the oldest entries beyond `max_len`.
    pub fn trim(&mut self, max_len: u64) {
        let max_len = usize::try_from(max_len).unwrap_or(usize::MAX);
        self.entries.truncate(max_len);
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn reply(&self, count: usize, out: &mut Reply) {
        out.array(count.min(self.entries.len()));
        for entry in self.entries.iter().take(count) {
            out.array(6);
            out.int(entry.id as i64);
            out.int(entry.unix_s as i64);
            out.int(entry.duration_us as i64);
            out.array(entry.args.len());
            entry.args.iter().for_each(|arg| out.bulk(arg));
            out.bulk(entry.peer.as_bytes());
            out.bulk(entry.name.as_bytes());
        }
    }
}

/// Shortens arguments as Redis does: the first 31 and a note of how many more, the first 128 bytes of each and a note of
/// how many more. Secrets are left out.
fn clip(args: &[&[u8]]) -> Vec<Box<[u8]>> {
    let shown = if args.len() > MAX_ARGS { MAX_ARGS - 1 } else { args.len() };
    let mut clipped: Vec<Box<[u8]>> = Vec::with_capacity(shown + 1);
    for (index, arg) in args[..shown].iter().enumerate() {
        if is_secret(args, index) {
            clipped.push(b"(redacted)".as_slice().into());
        } else if arg.len() > MAX_ARG_LEN_BYTES {
            let mut short = arg[..MAX_ARG_LEN_BYTES].to_vec();
            short.extend_from_slice(format!("... ({} more bytes)", arg.len() - MAX_ARG_LEN_BYTES).as_bytes());
            clipped.push(short.into());
        } else {
            clipped.push((*arg).into());
        }
    }
    if args.len() > shown {
        clipped.push(format!("... ({} more arguments)", args.len() - shown).into_bytes().into());
    }
    clipped
}

/// Whether an argument is a password: of `AUTH`, of `HELLO … AUTH user password`, of `CONFIG SET requirepass`.
fn is_secret(args: &[&[u8]], index: usize) -> bool {
    let is = |at: usize, word: &[u8]| args.get(at).is_some_and(|arg| arg.eq_ignore_ascii_case(word));
    let before = |steps: usize, word: &[u8]| index >= steps && is(index - steps, word);
    match () {
        () if is(0, b"auth") => index > 0,
        () if is(0, b"hello") => index > 2 && (before(1, b"auth") || before(2, b"auth")),
        () if is(0, b"config") && is(1, b"set") => {
            index > 2 && (before(1, b"requirepass") || before(1, b"masterauth") || before(1, b"primaryauth"))
        }
        () => false,
    }
}

/// Entries that `SLOWLOG GET` shows unless told.
const DEFAULT_COUNT: i64 = 10;

/// `SLOWLOG GET|LEN|RESET|HELP`
pub fn slowlog(call: &mut Call<'_>) -> Result<(), Error> {
    let Call { front, args, out, .. } = call;
    let mut log = front.node.slowlog();
    match () {
        () if args.is(1, "get") && args.len() > 3 => return Err(subcommand_syntax("SLOWLOG", args[1])),
        () if args.is(1, "get") => {
            let count = match args.get(2) {
                None => DEFAULT_COUNT,
                Some(text) => parse_i64(text)
                    .filter(|count| *count >= -1)
                    .ok_or(Error::text("ERR count should be greater than or equal to -1"))?,
            };
            log.reply(usize::try_from(count).unwrap_or(usize::MAX), out);
        }
        () if args.is(1, "len") => out.int(log.len() as i64),
        () if args.is(1, "reset") => {
            log.trim(0);
            out.ok();
        }
        () => help(
            out,
            "SLOWLOG",
            &[
                (
                    "GET [<count>]",
                    "The latest <count> slow commands (default: 10, all: -1): id, time, microseconds, arguments, client \
                     address and name.",
                ),
                ("LEN", "How many slow commands are kept."),
                ("RESET", "Forget them."),
            ],
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(args: &[&[u8]]) -> Vec<String> {
        clip(args).iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
    }

    #[test]
    fn arguments_are_shortened_as_redis_does() {
        let long = vec![b'x'; 200];
        let many: Vec<&[u8]> = vec![b"a"; 40];
        assert_eq!(texts(&[b"SET", &long])[1], format!("{}... (72 more bytes)", "x".repeat(128)));
        let clipped = texts(&many);
        assert_eq!((clipped.len(), clipped[31].as_str()), (32, "... (9 more arguments)"));
        assert_eq!(texts(&many[..32]).len(), 32);
        assert_eq!(texts(&many[..32])[31], "a");
    }

    #[test]
    fn secrets_are_left_out() {
        let line = |text: &str| texts(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>()).join(" ");
        assert_eq!(line("AUTH user pw"), "AUTH (redacted) (redacted)");
        assert_eq!(line("HELLO 3 AUTH user pw SETNAME x"), "HELLO 3 AUTH (redacted) (redacted) SETNAME x");
        assert_eq!(line("config set requirepass pw hz 10"), "config set requirepass (redacted) hz 10");
        assert_eq!(line("SET auth pw"), "SET auth pw");
    }

    #[test]
    fn the_newest_come_first_and_ids_go_on() {
        let mut log = SlowLog::default();
        for i in 0..5 {
            log.add(3, 100 + i, 10 * i, &[b"GET", b"k"], "1.2.3.4:5".into(), "".into());
        }
        assert_eq!(log.len(), 3);
        let mut out = Reply::default();
        log.reply(1, &mut out);
        let text = String::from_utf8(out.buf).unwrap();
        assert_eq!(
            text,
            "*1\r\n*6\r\n:4\r\n:104\r\n:40\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n$9\r\n1.2.3.4:5\r\n$0\r\n\r\n"
        );
        log.trim(0);
        log.add(3, 1, 1, &[], String::new(), "".into());
        assert_eq!((log.len(), log.entries[0].id), (1, 5));
    }
}
