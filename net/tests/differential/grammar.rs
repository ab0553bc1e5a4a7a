//! Random commands from templates written like Redis's own synopses: `SET k v [NX|XX] [GET]`.
//!
//! Words in lower case are arguments (see [`Kind`]), all others stand for themselves. `[a]` may be left out,
//! `(a|b)` is one of both, `a...` stands one to four times.

use fastrand::Rng;

/// A command: name and arguments.
pub type Words = Vec<Vec<u8>>;

/// What an argument may be.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A key, mostly one that the family uses.
    Key,
    /// A string value.
    Value,
    /// A member of a set or sorted set, a field of a hash, an element of a list: few, so that they meet.
    Member,
    /// Any 64-bit integer, the boundaries often.
    Int,
    /// A position: small, of either sign.
    Index,
    /// A small positive number.
    Count,
    /// How many elements to draw: no more than Redis has memory for when it draws with repetition.
    Draws,
    /// A client's name. Redis takes it to end at a zero byte, so none is in it.
    Name,
    /// An offset in bits, not so large that it makes strings of many megabytes.
    BitOffset,
    /// A type of `BITFIELD`: `u7`.
    BitType,
    Float,
    /// Seconds, milliseconds from now. Far enough that nothing expires while a test runs, or past already.
    Seconds,
    Millis,
    /// The same as Unix times.
    UnixSeconds,
    UnixMillis,
    Pattern,
    Database,
    /// A bound of a range of scores, or of members.
    Score,
    Lex,
    /// What `DUMP` returns, mostly.
    Payload,
}

const KINDS: &[(&str, Kind)] = &[
    ("k", Kind::Key),
    ("v", Kind::Value),
    ("m", Kind::Member),
    ("int", Kind::Int),
    ("i", Kind::Index),
    ("n", Kind::Count),
    ("draws", Kind::Draws),
    ("name", Kind::Name),
    ("bit", Kind::BitOffset),
    ("bittype", Kind::BitType),
    ("f", Kind::Float),
    ("s", Kind::Seconds),
    ("ms", Kind::Millis),
    ("at", Kind::UnixSeconds),
    ("atms", Kind::UnixMillis),
    ("pat", Kind::Pattern),
    ("db", Kind::Database),
    ("score", Kind::Score),
    ("lex", Kind::Lex),
    ("payload", Kind::Payload),
];

#[derive(Clone, Debug)]
enum Node {
    Literal(String),
    Argument(Kind),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Optional(Box<Node>),
    Repeated(Box<Node>),
}

/// A command's template.
#[derive(Clone, Debug)]
pub struct Template {
    node: Node,
    pub name: String,
}

impl Template {
    /// Reads a template.
    ///
    /// # Panics
    /// For one that is malformed.
    pub fn parse(text: &str) -> Template {
        let mut spaced = String::new();
        for c in text.chars() {
            match c {
                '(' | ')' | '[' | ']' | '|' => spaced.extend([' ', c, ' ']),
                c => spaced.push(c),
            }
        }
        let spaced = spaced.replace("...", " ... ");
        let tokens: Vec<&str> = spaced.split_whitespace().collect();
        let mut at = 0;
        let node = parse_choice(&tokens, &mut at);
        assert_eq!(at, tokens.len(), "{text}");
        Template { node, name: tokens[0].to_owned() }
    }

    /// A command, or something close to one.
    pub fn generate(&self, rng: &mut Rng, keys: &Keys) -> Words {
        loop {
            let words = self.attempt(rng, keys);
            if !expires_soon(&words) {
                return words;
            }
        }
    }

    fn attempt(&self, rng: &mut Rng, keys: &Keys) -> Words {
        let mut words = Words::new();
        expand(&self.node, rng, keys, &mut words);
        if rng.u8(..) < 20 {
            distort(&mut words, keys.exclusive, rng);
            if ["HELLO", "CLIENT"].contains(&self.name.as_str()) {
                // See Kind::Name.
                words.retain(|word| !word.contains(&0));
            }
        }
        if rng.u8(..) < 30 {
            let at = rng.usize(..words.len());
            words[at].make_ascii_lowercase();
        }
        words
    }
}

fn parse_choice(tokens: &[&str], at: &mut usize) -> Node {
    let mut choices = vec![parse_sequence(tokens, at)];
    while tokens.get(*at) == Some(&"|") {
        *at += 1;
        choices.push(parse_sequence(tokens, at));
    }
    if choices.len() == 1 { choices.remove(0) } else { Node::Choice(choices) }
}

fn parse_sequence(tokens: &[&str], at: &mut usize) -> Node {
    let mut nodes = Vec::new();
    while let Some(&token) = tokens.get(*at) {
        let node = match token {
            ")" | "]" | "|" => break,
            "(" | "[" => {
                *at += 1;
                let inner = parse_choice(tokens, at);
                assert_eq!(tokens.get(*at), Some(if token == "(" { &")" } else { &"]" }), "{tokens:?}");
                if token == "(" { inner } else { Node::Optional(Box::new(inner)) }
            }
            "..." => {
                let last = nodes.pop().expect("something stands before the dots");
                *at += 1;
                nodes.push(Node::Repeated(Box::new(last)));
                continue;
            }
            word => match KINDS.iter().find(|(name, _)| *name == word) {
                Some((_, kind)) => Node::Argument(*kind),
                None => {
                    assert!(!word.starts_with(|c: char| c.is_ascii_lowercase()), "no kind is called {word}");
                    Node::Literal(word.to_owned())
                }
            },
        };
        *at += 1;
        nodes.push(node);
    }
    Node::Sequence(nodes)
}

fn expand(node: &Node, rng: &mut Rng, keys: &Keys, words: &mut Words) {
    match node {
        Node::Literal(word) => words.push(word.clone().into_bytes()),
        Node::Argument(kind) => words.push(argument(*kind, rng, keys)),
        Node::Sequence(nodes) => nodes.iter().for_each(|node| expand(node, rng, keys, words)),
        Node::Choice(nodes) => expand(&nodes[rng.usize(..nodes.len())], rng, keys, words),
        Node::Optional(node) => {
            if rng.u8(..) < 90 {
                expand(node, rng, keys, words);
            }
        }
        Node::Repeated(node) => {
            let times = if rng.u8(..) < 8 { rng.usize(8..40) } else { rng.usize(1..5) };
            (0..times).for_each(|_| expand(node, rng, keys, words));
        }
    }
}

/// Longer than a round takes, and its reduction.
const SOON_S: i64 = 600;

/// What users get wrong: too few or too many arguments, options in another order, nonsense. `gently`: the arguments
/// that stay keep their places and meanings.
fn distort(words: &mut Words, gently: bool, rng: &mut Rng) {
    let kinds = if gently { 2 } else { 5 };
    match rng.u8(..kinds) {
        0 if words.len() > 1 => {
            words.pop();
        }
        1 => words.push(NONSENSE[rng.usize(..NONSENSE.len())].to_vec()),
        2 if words.len() > 2 => rng.shuffle(&mut words[2..]),
        3 if words.len() > 1 => {
            let at = rng.usize(1..words.len());
            words[at] = NONSENSE[rng.usize(..NONSENSE.len())].to_vec();
        }
        4 if words.len() > 1 => {
            let (from, to) = (rng.usize(1..words.len()), rng.usize(1..=words.len()));
            words.insert(to, words[from].clone());
        }
        _ => {}
    }
}

/// Whether something would expire while a test runs, which the two servers need not notice at the same step. What is meant
/// as a time is far away (see [`Kind::Seconds`]), but what is distorted may have another number in its place.
fn expires_soon(words: &Words) -> bool {
    let is_near = |at: usize, per_second: i64| {
        words.get(at).and_then(|word| std::str::from_utf8(word).ok()).is_some_and(|text| {
            // Only what the servers read as a number.
            text.parse().is_ok_and(|number: i64| is_soon(number, per_second) && number.to_string() == text)
        })
    };
    let after = |option: &[u8], per_second: i64| {
        words
            .iter()
            .enumerate()
            .any(|(at, word)| word.eq_ignore_ascii_case(option) && is_near(at + 1, per_second))
    };
    match words[0].to_ascii_uppercase().as_slice() {
        b"EXPIRE" | b"HEXPIRE" | b"SETEX" => is_near(2, 1),
        b"PEXPIRE" | b"HPEXPIRE" | b"PSETEX" | b"RESTORE" => is_near(2, 1000),
        b"SET" | b"GETEX" | b"HGETEX" | b"HSETEX" => after(b"EX", 1) || after(b"PX", 1000),
        _ => false,
    }
}

const NONSENSE: &[&[u8]] = &[
    b"",
    b"x",
    b"-1",
    b"0",
    b"1.5",
    b"nan",
    b"abc",
    b"NX",
    b"GET",
    b"\x00\xff",
    b" 1",
    b"1 ",
    b"+1",
    b"01",
    b"1e3",
    b"18446744073709551616",
    b"(",
    b"*",
    b"LIMIT",
    b"WITHSCORES",
    b"COUNT",
];

/// The keys of a run: a few for each type, so that commands meet values of their type mostly, and others sometimes.
pub struct Keys {
    own: Vec<Vec<u8>>,
    all: Vec<Vec<u8>>,
    /// No other family uses them, and this one no others.
    exclusive: bool,
}

impl Keys {
    /// Prefixes of the keys of each type.
    const PREFIXES: &str = "slhtz";

    /// The keys for commands on the type with this prefix; a space stands for commands on any type. A prefix that is
    /// of no type is that of exclusive keys.
    pub fn of(prefix: char) -> Keys {
        let all: Vec<Vec<u8>> = Self::PREFIXES.chars().flat_map(Self::named).collect();
        let own = if prefix == ' ' { all.clone() } else { Self::named(prefix).collect() };
        Keys { own, all, exclusive: prefix != ' ' && !Self::PREFIXES.contains(prefix) }
    }

    fn named(prefix: char) -> impl Iterator<Item = Vec<u8>> {
        let prefix = prefix as u8;
        let plain = (b'0'..b'4').map(move |digit| vec![prefix, digit]);
        // One that is binary, and two on one shard by their tag.
        let odd: [&[u8]; 3] = [b"\x00\xff\r\n", b"1{tag}", b"2{tag}"];
        plain.chain(odd.into_iter().map(move |rest| [&[prefix], rest].concat()))
    }

    fn pick(&self, rng: &mut Rng) -> Vec<u8> {
        if self.exclusive {
            return self.own[rng.usize(..self.own.len())].clone();
        }
        let from = if rng.u8(..) < 225 { &self.own } else { &self.all };
        match rng.u8(..) {
            0 => Vec::new(),
            1 => b"missing".to_vec(),
            _ => from[rng.usize(..from.len())].clone(),
        }
    }
}

fn text(number: impl ToString) -> Vec<u8> {
    number.to_string().into_bytes()
}

fn pick(rng: &mut Rng, from: &[&str]) -> Vec<u8> {
    from[rng.usize(..from.len())].as_bytes().to_vec()
}

fn argument(kind: Kind, rng: &mut Rng, keys: &Keys) -> Vec<u8> {
    match kind {
        Kind::Key => keys.pick(rng),
        Kind::Value => value(rng),
        Kind::Member => member(rng),
        Kind::Int => int(rng),
        Kind::Index => match rng.u8(..40) {
            0 => int(rng),
            _ => text(rng.i32(-7..12)),
        },
        Kind::Count => match rng.u8(..40) {
            0 => int(rng),
            _ => text(rng.u32(0..9)),
        },
        Kind::Draws => match rng.u8(..40) {
            0 => pick(rng, &["9223372036854775807", "4611686018427387904", "-9223372036854775808", "x", ""]),
            _ => text(rng.i32(-9..12)),
        },
        Kind::Name => pick(rng, &["me", "a-b", "", "a b", "x\n", "\u{e9}", "~", "\u{7f}"]),
        Kind::BitOffset => match rng.u8(..40) {
            0 => pick(rng, &["-1", "4294967296", "x", "99999999999999999999", "#-1"]),
            1 => text(rng.u32(..100_000)),
            _ => text(rng.u32(..130)),
        },
        Kind::BitType => match rng.u8(..30) {
            0 => pick(rng, &["u64", "i65", "u0", "i0", "x8", "i", "U8"]),
            _ => format!("{}{}", if rng.bool() { 'i' } else { 'u' }, rng.u8(1..64)).into_bytes(),
        },
        Kind::Float => float(rng),
        Kind::Seconds => duration(rng, 1),
        Kind::Millis => duration(rng, 1000),
        Kind::UnixSeconds => unix_time(rng, 1),
        Kind::UnixMillis => unix_time(rng, 1000),
        Kind::Pattern => pick(
            rng,
            &[
                "*", "s*", "?0", "[lh]?", "[^s]*", "*[0-2]", "\\*", "", "*{tag}", "*\\\n", "s[", "[a-",
                "t?*", "missing",
            ],
        ),
        Kind::Database => match rng.u8(..20) {
            0 => pick(rng, &["-1", "16", "x", "", "1.0", "4294967297", "99999999999999999999", "015"]),
            1 => b"15".to_vec(),
            _ => text(rng.u8(..3)),
        },
        Kind::Score => match rng.u8(..10) {
            0 => pick(rng, &["-inf", "+inf", "inf", "(-inf", "((1", "(x", "nan", "(1.5", "-0"]),
            1 => float(rng),
            2..5 => text(format!("({}", rng.i8(-5..10))),
            _ => text(rng.i8(-5..10)),
        },
        Kind::Payload => payload(rng),
        Kind::Lex => match rng.u8(..8) {
            0 => pick(rng, &["-", "+", "(", "[", "a", "", "-x"]),
            1 => b"-".to_vec(),
            2 => b"+".to_vec(),
            n => [if n % 2 == 0 { b"[" } else { &b"("[..] }, &member(rng)].concat(),
        },
    }
}

fn payload(rng: &mut Rng) -> Vec<u8> {
    use braid_core::rdb::{Writer, WriterOptions, kind, seal_dump};
    let mut writer = Writer::new(WriterOptions { version: 10, compress: rng.bool(), checksum: false });
    let names =
        ["a", "b", "7", "a longer one that is worth a compression, and a longer one, and a longer one"];
    let kind = [kind::STRING, kind::LIST, kind::SET, kind::HASH, kind::ZSET_2][rng.usize(..5)];
    if kind == kind::STRING {
        writer.string(names[rng.usize(..names.len())].as_bytes());
    } else {
        let count = rng.usize(1..=names.len());
        writer.length(count as u64);
        for name in &names[..count] {
            writer.string(name.as_bytes());
            match kind {
                kind::HASH => writer.string(b"value"),
                kind::ZSET_2 => writer.double(f64::from(rng.i8(-3..3)) + 0.5),
                _ => {}
            }
        }
    }
    let mut bytes = vec![kind];
    bytes.append(&mut writer.take());
    match rng.u8(..12) {
        // Redis would read on in what stands behind the value, so nothing of it is left.
        0 => bytes.truncate(1),
        1 => bytes[0] = 100,
        _ => {}
    }
    seal_dump(10, &mut bytes);
    match rng.u8(..12) {
        0 => *bytes.last_mut().expect("a checksum") ^= 1,
        1 => bytes.truncate(rng.usize(..12)),
        _ => {}
    }
    bytes
}

fn int(rng: &mut Rng) -> Vec<u8> {
    const BOUNDARIES: &[i128] = &[
        0,
        1,
        -1,
        127,
        128,
        255,
        256,
        32_767,
        -32_769,
        9_999,
        10_000,
        (1 << 31) - 1,
        1 << 31,
        1 << 32,
        i64::MAX as i128,
        i64::MAX as i128 - 1,
        i64::MIN as i128,
        i64::MIN as i128 + 1,
        i64::MAX as i128 + 1,
        i64::MIN as i128 - 1,
    ];
    match rng.u8(..3) {
        0 => text(BOUNDARIES[rng.usize(..BOUNDARIES.len())]),
        1 => text(rng.i64(..)),
        _ => text(rng.i16(-200..200)),
    }
}

fn float(rng: &mut Rng) -> Vec<u8> {
    match rng.u8(..4) {
        0 => pick(
            rng,
            &[
                "0",
                "-0",
                "inf",
                "-inf",
                "+inf",
                "nan",
                "1e308",
                "-1e308",
                "3.0e3",
                "1e-7",
                "5e-324",
                "0x10",
                "1e400",
                "1.",
                ".5",
                "1e",
                "9007199254740993",
                "1e17",
                "1e21",
                "123456789.123456789",
                "infinity",
                "+5",
            ],
        ),
        1 => text(rng.i32(-100..100)),
        2 => text(f64::from(rng.i32(-1000..1000)) / 8.0),
        _ => text((rng.f64() - 0.5) * 10f64.powi(rng.i32(-6..12))),
    }
}

fn value(rng: &mut Rng) -> Vec<u8> {
    match rng.u8(..10) {
        0..3 => int(rng),
        3 => float(rng),
        4 => member(rng),
        5 => pick(rng, &["", " ", "0", "00", "-0", "+1", " 1", "1 ", "\r\n", "foobar", "hello world"]),
        6 => {
            let len = [1, 20, 43, 44, 45, 63, 64, 65, 300, 4000][rng.usize(..10)];
            vec![b'a' + rng.u8(..26); len]
        }
        _ => (0..rng.usize(..12)).map(|_| rng.u8(..)).collect(),
    }
}

fn member(rng: &mut Rng) -> Vec<u8> {
    match rng.u8(..16) {
        0..6 => vec![b'a' + rng.u8(..6)],
        6..11 => text(rng.i8(-3..12)),
        11 => int(rng),
        12 => vec![b'x'; [63, 64, 65, 66, 200][rng.usize(..5)]],
        13 => pick(rng, &["", "A", "aa", "ab", "1.5", "01", "\u{ff}", "a\n"]),
        14 => text(rng.u16(..300)),
        _ => (0..rng.usize(..6)).map(|_| rng.u8(..)).collect(),
    }
}

fn duration(rng: &mut Rng, per_second: i64) -> Vec<u8> {
    match rng.u8(..10) {
        0 => int_unless_near(rng, per_second),
        1 => pick(
            rng,
            &[
                "0",
                "-1",
                "-100",
                "x",
                "1.5",
                "9223372036854775807",
                "9223372036854775",
                "-9223372036854775808",
            ],
        ),
        _ => text(rng.i64(1000..30_000_000) * per_second),
    }
}

fn unix_time(rng: &mut Rng, per_second: i64) -> Vec<u8> {
    match rng.u8(..10) {
        0 => pick(rng, &["0", "-1", "1", "1000", "x", "9223372036854775807", "9223372036854775"]),
        // Years ago, in seconds and in milliseconds.
        1 => text(1_000_000_000 * per_second),
        _ => text((4_000_000_000 + rng.i64(0..8)) * per_second),
    }
}

/// An integer, but none so small that a key with that time to live expires during the test.
fn int_unless_near(rng: &mut Rng, per_second: i64) -> Vec<u8> {
    let number = int(rng);
    match std::str::from_utf8(&number).ok().and_then(|text| text.parse::<i64>().ok()) {
        Some(near) if is_soon(near, per_second) => text(near + SOON_S * per_second),
        _ => number,
    }
}

/// Whether a time to live may end during a test.
fn is_soon(left: i64, per_second: i64) -> bool {
    (1..SOON_S * per_second).contains(&left)
}
