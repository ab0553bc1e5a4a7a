//! Whether two replies to one command are the same, where they need not be so byte by byte.

use super::grammar::Words;
use braid_bench::client::Value;
use braid_bench::resp::Decoder;
use std::collections::VecDeque;

/// How far apart two times may be that both servers computed from their clocks. Nothing in a test is so near to its
/// expiry, nor are two expiries of a test so near to each other.
const CLOCK_TOLERANCE_MS: i64 = 20_000;

/// What must be the same of two replies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// Every byte.
    Bytes,
    /// Every byte but the sign of zero: while a sorted set is small Redis forgets it, and it is small for how long its
    /// members come.
    Scores,
    /// The elements, in any order.
    AnyOrder,
    /// The pairs of a map, in any order.
    AnyOrderOfPairs,
    /// Times in milliseconds (in seconds: 1000) close to each other; what is negative is the same.
    Times { unit_ms: i64 },
    /// Types and lengths: the elements are picked at random.
    Shape,
    /// Errors. What else is answered says how a server stores its data.
    Errors,
    /// Encodings: in Redis 8.2 the length of the key decides with that of the value between `embstr` and `raw`.
    Encoding,
    /// What `HELLO` tells, but for the connection's number, the server's version and its modules.
    Greeting,
}

fn rule(command: &Words) -> Rule {
    let word = |at: usize| command.get(at).map(|word| word.to_ascii_uppercase()).unwrap_or_default();
    let has = |option: &[u8]| command.iter().skip(2).any(|word| word.eq_ignore_ascii_case(option));
    match word(0).as_slice() {
        b"KEYS" | b"SMEMBERS" | b"SINTER" | b"SUNION" | b"SDIFF" | b"HKEYS" | b"HVALS" => Rule::AnyOrder,
        b"HGETALL" => Rule::AnyOrderOfPairs,
        b"TTL" | b"EXPIRETIME" | b"HTTL" | b"HEXPIRETIME" => Rule::Times { unit_ms: 1000 },
        b"PTTL" | b"PEXPIRETIME" | b"HPTTL" | b"HPEXPIRETIME" => Rule::Times { unit_ms: 1 },
        b"OBJECT" if word(1) == b"IDLETIME" => Rule::Times { unit_ms: 1000 },
        // The same value can be written in several ways.
        b"DUMP" | b"RANDOMKEY" | b"SPOP" | b"SRANDMEMBER" | b"HRANDFIELD" | b"ZRANDMEMBER" => Rule::Shape,
        b"SCAN" | b"SSCAN" | b"HSCAN" | b"ZSCAN" => Rule::Errors,
        b"HELLO" => Rule::Greeting,
        b"OBJECT" if word(1) == b"ENCODING" => Rule::Encoding,
        // Redis counts itself while it propagates.
        b"OBJECT" if word(1) == b"REFCOUNT" => Rule::Shape,
        // Redis counts keys that have expired and were not touched since.
        b"DBSIZE" => Rule::Shape,
        // Braid's help is in words of its own.
        _ if word(1) == b"HELP" && command.len() == 2 => Rule::Errors,
        // With NOSORT, an order of the set's own.
        b"SORT" | b"SORT_RO" if has(b"BY") => Rule::AnyOrder,
        name if name.starts_with(b"Z") => Rule::Scores,
        _ => Rule::Bytes,
    }
}

fn same(rule: Rule, left: &Value, right: &Value) -> bool {
    if let (Value::Error(left), Value::Error(right)) = (left, right) {
        return same_error(left, right);
    }
    if left.is_error() || right.is_error() {
        return false;
    }
    match rule {
        Rule::Bytes => identical(left, right),
        Rule::Scores => {
            let unsigned = |value: &Value| {
                let text = format!("{value:?};").replace("\"-0\"", "\"0\"");
                [",", "]", ";"]
                    .iter()
                    .fold(text, |text, end| text.replace(&format!(",-0{end}"), &format!(",0{end}")))
            };
            let doubles = |value| canonical_with(unsigned(value).as_bytes(), is_double_or_large);
            doubles(left) == doubles(right)
        }
        Rule::Errors => true,
        Rule::Encoding => {
            let raw = |value: &Value| value == "embstr" || value == "raw";
            left == right || (raw(left) && raw(right))
        }
        Rule::Greeting => {
            let fixed = |value: &Value| {
                let mut pairs = value.clone().into_pairs().unwrap_or_default();
                pairs.retain(|(name, _)| !["id", "version", "modules"].iter().any(|other| name == other));
                pairs
            };
            std::mem::discriminant(left) == std::mem::discriminant(right) && fixed(left) == fixed(right)
        }
        Rule::AnyOrder => match (left, right) {
            (Value::Array(left), Value::Array(right)) | (Value::Set(left), Value::Set(right)) => {
                sorted(left) == sorted(right)
            }
            _ => left == right,
        },
        Rule::AnyOrderOfPairs => {
            // A map is no array: only their elements are looked at in another order.
            if std::mem::discriminant(left) != std::mem::discriminant(right) {
                return false;
            }
            let pairs = |value: &Value| {
                value.clone().into_pairs().map(|pairs| {
                    let mut shown: Vec<String> = pairs.iter().map(|pair| format!("{pair:?}")).collect();
                    shown.sort_unstable();
                    shown
                })
            };
            pairs(left) == pairs(right)
        }
        Rule::Times { unit_ms } => match (left, right) {
            (Value::Int(left), Value::Int(right)) => {
                left == right
                    || (*left >= 0
                        && *right >= 0
                        && left.abs_diff(*right) <= (CLOCK_TOLERANCE_MS / unit_ms) as u64)
            }
            (Value::Array(left), Value::Array(right)) => {
                left.len() == right.len()
                    && left.iter().zip(right).all(|(left, right)| same(rule, left, right))
            }
            _ => left == right,
        },
        Rule::Shape => match (left, right) {
            (Value::Array(left), Value::Array(right)) | (Value::Set(left), Value::Set(right)) => {
                left.len() == right.len()
                    && left.iter().zip(right).all(|(left, right)| same(rule, left, right))
            }
            (Value::Map(left), Value::Map(right)) => left.len() == right.len(),
            _ => std::mem::discriminant(left) == std::mem::discriminant(right),
        },
    }
}

/// As `==`, but a NaN is itself, -0 is not 0, and digits of doubles are as [`canonical`].
fn identical(left: &Value, right: &Value) -> bool {
    canonical(format!("{left:?}").as_bytes()) == canonical(format!("{right:?}").as_bytes())
}

/// Doubles of many digits by their value: Redis's printer (Grisu2) gives one digit more than needed for one in a thousand.
fn canonical(text: &[u8]) -> Vec<u8> {
    canonical_with(text, |token| token.contains('.'))
}

/// Large scores are printed without a point, their last digits as zeros.
fn is_double_or_large(token: &str) -> bool {
    token.contains('.') || token.ends_with('0')
}

/// As [`canonical`], for what is said to be a double.
fn canonical_with(text: &[u8], is_double: impl Fn(&str) -> bool) -> Vec<u8> {
    const DIGITS_MIN: usize = 17;
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let len =
            rest.iter().take_while(|byte| byte.is_ascii_digit() || b"+-.e".contains(byte)).count().max(1);
        let (token, after) = rest.split_at(len);
        rest = after;
        let number =
            std::str::from_utf8(token).ok().filter(|token| token.len() >= DIGITS_MIN && is_double(token));
        match number.and_then(|token| token.parse::<f64>().ok()) {
            Some(number) => {
                // The length that was announced for it.
                if out.ends_with(b"\r\n")
                    && let Some(dollar) = out.iter().rposition(|byte| *byte == b'$')
                    && out.len() - dollar == b"$20\r\n".len()
                {
                    out.truncate(dollar);
                }
                out.extend_from_slice(format!("{number:?}").as_bytes());
            }
            None => out.extend_from_slice(token),
        }
    }
    out
}

fn sorted(items: &[Value]) -> Vec<String> {
    let mut shown: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
    shown.sort_unstable();
    shown
}

/// Where Braid differs by intention.
fn intended(command: &Words, model: &Value) -> bool {
    let name = command[0].to_ascii_uppercase();
    match name.as_slice() {
        // `BITCOUNT key start`: accepted, as Valkey does.
        b"BITCOUNT" => command.len() == 3 && model == "ERR syntax error",
        // Redis takes a cursor with a blank or a sign before it.
        b"SCAN" | b"HSCAN" | b"SSCAN" | b"ZSCAN" => {
            let cursor = command.get(if name == b"SCAN" { 1 } else { 2 });
            cursor.is_some_and(|word| {
                word.starts_with(b" ") || word.starts_with(b"+") || word.starts_with(b"-")
            })
        }
        // Redis reads the increment as one of ZADD's options first.
        b"ZINCRBY" => model == "ERR syntax error",
        _ => false,
    }
}

/// Errors quote arguments. Redis ends such a quote at a zero byte, Braid does not.
fn same_error(left: &str, right: &str) -> bool {
    left == right || {
        let start = left.bytes().zip(right.bytes()).take_while(|(left, right)| left == right).count();
        right.as_bytes().get(start) == Some(&0) && start > "ERR ".len()
    }
}

fn decode(frame: &[u8]) -> Value {
    Decoder::new(frame).value().expect("a whole reply")
}

/// Compares the replies on one connection. It has to know which commands `EXEC` answers.
#[derive(Default)]
pub struct Judge {
    queued: VecDeque<Words>,
}

impl Judge {
    /// What is wrong with the reply `braid` to `command`, if the other server answers `model`.
    pub fn compare(&mut self, command: &Words, model: &[u8], braid: &[u8]) -> Option<String> {
        let difference = self.differ(command, model, braid);
        let name = command.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
        if model == b"+QUEUED\r\n" {
            self.queued.push_back(command.clone());
        } else if matches!(name.as_slice(), b"EXEC" | b"DISCARD" | b"RESET") {
            self.queued.clear();
        }
        difference
    }

    fn differ(&self, command: &Words, model: &[u8], braid: &[u8]) -> Option<String> {
        if model == braid || canonical(model) == canonical(braid) {
            return None;
        }
        let (model_value, braid_value) = (decode(model), decode(braid));
        if intended(command, &model_value) {
            return None;
        }
        let is_exec = command.first().is_some_and(|name| name.eq_ignore_ascii_case(b"exec"));
        let equal = match (&model_value, &braid_value) {
            (Value::Array(left), Value::Array(right)) if is_exec => {
                left.len() == right.len()
                    && left.len() == self.queued.len()
                    && self.queued.iter().zip(left.iter().zip(right)).all(|(command, (left, right))| {
                        intended(command, left) || same(rule(command), left, right)
                    })
            }
            // An error quotes its argument: Braid's errors are UTF-8, as is the decoder's text of Redis's.
            (Value::Error(left), Value::Error(right)) => same_error(left, right),
            // What the decoder takes for the same need not be: `$-1` and `*-1`.
            (left, right) => {
                let rule = rule(command);
                rule != Rule::Bytes && same(rule, left, right) && (!left.is_null() || model == braid)
            }
        };
        (!equal).then(|| format!("Redis: {}\nBraid: {}", shown(model), shown(braid)))
    }
}

fn shown(frame: &[u8]) -> String {
    let text = frame.escape_ascii().to_string();
    match text.char_indices().nth(1000) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], frame.len()),
        None => text,
    }
}
