//! What is fuzzed: decoders of bytes from strangers. Each target panics if one of its claims does not hold. They are run
//! by `tests/fuzz.rs` with seeded mutations, and by libFuzzer (`scripts/fuzz`).

use braid_core::rdb::{self, Decoder, Event, FaultKind, Stop};
use braid_core::resp::parse::{Arg, ParseLimits};
use braid_core::resp::{Parsed, Parser};
use braid_core::types::Limits;
use braid_net::config::parse::{Loader, quote, split_words};

/// Longest argument that the targets' servers accept, so that what is announced and never sent is bounded.
const MAX_BULK_LEN_BYTES: u64 = 1 << 20;
/// Lines up to here are judged the same however they arrive.
const SHORT_LEN_BYTES: usize = 60_000;

/// The commands in `input` if it arrives in pieces of these sizes (the last one repeats), and the error that ends it.
fn requests(input: &[u8], pieces: impl Fn(usize) -> usize) -> (Vec<Vec<Vec<u8>>>, Option<String>) {
    let limits = ParseLimits { max_bulk_len_bytes: MAX_BULK_LEN_BYTES, authenticated: true };
    let mut parser = Parser::new();
    let (mut held, mut commands) = (Vec::new(), Vec::new());
    let (mut at, mut turn) = (0, 0);
    while at < input.len() {
        let len = pieces(turn).clamp(1, input.len() - at);
        turn += 1;
        let piece = &input[at..at + len];
        at += len;
        let fed = parser.feed_big(piece);
        held.extend_from_slice(&piece[fed..]);
        loop {
            match parser.parse(&held, &limits) {
                Ok(Parsed::Incomplete) => break,
                Ok(Parsed::Assembling { keep, taken }) => {
                    held.drain(keep..keep + taken);
                }
                Ok(Parsed::Command { len }) => {
                    assert!(len > 0 && len <= held.len(), "a command consumes what it is made of");
                    let base = parser.base(&held[..len]);
                    let args = parser.args().iter().map(|arg| match arg {
                        Arg::Range { start, len } => base[*start as usize..][..*len as usize].to_vec(),
                        Arg::Big(bytes) => bytes.to_vec(),
                    });
                    commands.push(args.collect());
                    parser.reset();
                    held.drain(..len);
                }
                Err(error) => return (commands, Some(error.to_string())),
            }
        }
    }
    (commands, None)
}

/// The request parser: the same commands and errors wherever the input is split.
pub fn resp(input: &[u8]) {
    let whole = requests(input, |_| usize::MAX);
    // Sizes that depend on the input, so that a failing one is the whole case.
    let seed =
        input.iter().fold(input.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    if input.len() <= SHORT_LEN_BYTES {
        assert_eq!(requests(input, |turn| 1 + (seed ^ turn.wrapping_mul(7919)) % 23), whole);
        if input.len() <= 2000 {
            assert_eq!(requests(input, |_| 1), whole);
        }
    } else {
        requests(input, |turn| 1 + (seed ^ turn.wrapping_mul(7919)) % 70_000);
    }
}

/// A snapshot that arrives in pieces of this size: how many keys were read, where it ended, or what is wrong with it.
pub fn snapshot(input: &[u8], piece: usize) -> (usize, Option<u64>, String) {
    let mut decoder = Decoder::new(rdb::Limits { string_bytes: MAX_BULK_LEN_BYTES }, false);
    let mut pieces = input.chunks(piece);
    let mut keys = 0;
    let mut value: Option<rdb::ValueLoader> = None;
    loop {
        let stop = if let Some(loader) = &mut value {
            let mut cursor = decoder.cursor();
            let read = loader.read(&mut cursor, &Limits::default());
            let used = cursor.used_bytes();
            decoder.consume(used);
            match read {
                Ok(_) => {
                    value = None;
                    keys += 1;
                    continue;
                }
                Err(stop) => stop,
            }
        } else {
            match decoder.next_event() {
                Ok(Event::End) => return (keys, Some(decoder.position()), String::new()),
                Ok(Event::Key(header)) => match rdb::ValueLoader::new(header.kind, decoder.version()) {
                    Ok(loader) => {
                        value = Some(loader);
                        continue;
                    }
                    Err(fault) => return (keys, None, format!("{fault:?}")),
                },
                Ok(_) => continue,
                Err(stop) => stop,
            }
        };
        match stop {
            Stop::NeedMore(_) => match pieces.next() {
                Some(piece) => decoder.feed(piece),
                None => decoder.finish(),
            },
            Stop::Fault(fault) => {
                let kind = if matches!(fault.kind, FaultKind::Truncated) {
                    "truncated".into()
                } else {
                    format!("{fault:?}")
                };
                return (keys, None, kind);
            }
        }
    }
}

/// The snapshot decoder and the values' loaders: the same result wherever the input is split.
pub fn rdb(input: &[u8]) {
    let whole = snapshot(input, usize::MAX);
    let split = snapshot(input, 1 + input.len() % 17);
    assert_eq!(whole, split);
    // As the payload of `RESTORE`.
    if let Some((version, kind, value)) = rdb::open_dump(input) {
        let mut cursor = rdb::Cursor::whole(value, rdb::Limits { string_bytes: MAX_BULK_LEN_BYTES });
        let _ = rdb::load_value(kind, version, &mut cursor, &Limits::default());
    }
}

/// The configuration parser: what was read can be written and is read the same.
pub fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for line in text.lines() {
        if let Ok(words) = split_words(line) {
            let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
            assert_eq!(
                split_words(&quoted.join(" ")).as_ref(),
                Ok(&words),
                "{line:?} was written as {quoted:?}"
            );
        }
    }
    // Files include each other without end, and none exists otherwise.
    let own = text.to_string();
    let mut include = |name: &str| match name {
        "other.conf" => Ok(vec![("other.conf".to_owned(), own.clone())]),
        _ => Err(format!("{name} does not exist")),
    };
    let mut loader = Loader::new(&mut include);
    if let Err(error) = loader.text("fuzz.conf", &text) {
        assert!(!error.message.is_empty() && error.line > 0, "{error}");
    }
    let _ = loader.finish();
}
