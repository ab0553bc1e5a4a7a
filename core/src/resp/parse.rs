//! The request parser: multi-bulk and inline commands, resumable at any byte.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

/// Longest inline command, and longest line that announces a length (Redis's `PROTO_INLINE_MAX_SIZE`).
pub const INLINE_MAX_LEN_BYTES: usize = 64 * 1024;
/// Most arguments of one command (Redis allows `INT_MAX`; this many arguments of one byte are already 16 GB of input).
pub const MAX_ARGS: i64 = i32::MAX as i64;
/// A bulk at least this long that has not arrived whole is assembled in a buffer of its own, which then becomes the
/// stored value without another copy.
pub const BIG_BULK_LEN_BYTES: usize = 64 * 1024;
/// Such a buffer has room for the whole bulk from the start, unless more than this was announced.
const BUFFER_MAX_BYTES: usize = 512 << 20;
/// Limits for a connection that has yet to authenticate, as Redis sets them.
const UNAUTHENTICATED_MAX_ARGS: i64 = 10;
const UNAUTHENTICATED_MAX_BULK_LEN_BYTES: i64 = 16384;

/// What a malformed request is answered with before its connection is closed. `Display` gives Redis's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtocolError {
    TooBigInline,
    TooBigMultiBulkCount,
    TooBigBulkCount,
    InvalidMultiBulkLength,
    UnauthenticatedMultiBulkLength,
    InvalidBulkLength,
    UnauthenticatedBulkLength,
    ExpectedDollar(u8),
    UnbalancedQuotes,
}

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Protocol error: ")?;
        match self {
            Self::TooBigInline => f.write_str("too big inline request"),
            Self::TooBigMultiBulkCount => f.write_str("too big mbulk count string"),
            Self::TooBigBulkCount => f.write_str("too big bulk count string"),
            Self::InvalidMultiBulkLength => f.write_str("invalid multibulk length"),
            Self::UnauthenticatedMultiBulkLength => f.write_str("unauthenticated multibulk length"),
            Self::InvalidBulkLength => f.write_str("invalid bulk length"),
            Self::UnauthenticatedBulkLength => f.write_str("unauthenticated bulk length"),
            Self::ExpectedDollar(got) => write!(f, "expected '$', got '{}'", char::from(*got)),
            Self::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
        }
    }
}

/// Limits a connection's requests are held to.
#[derive(Debug, Clone, Copy)]
pub struct ParseLimits {
    /// `proto-max-bulk-len`.
    pub max_bulk_len_bytes: u64,
    /// Stricter limits hold until the client has authenticated.
    pub authenticated: bool,
}

/// One argument: where it lies in the input (relative to the command's first byte), or, for a big one, itself.
#[derive(Debug, Clone)]
pub enum Arg {
    Range { start: u32, len: u32 },
    Big(Bytes),
}

impl Arg {
    /// The argument itself, if it is a big one.
    pub fn into_big(self) -> Option<Bytes> {
        match self {
            Self::Big(value) => Some(value),
            Self::Range { .. } => None,
        }
    }
}

/// Outcome of [`Parser::parse`].
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The input ends within a command. The caller keeps what it has and calls again with more appended.
    Incomplete,
    /// A big bulk begins at `keep` and its first `taken` bytes were moved into a buffer of its own: the caller cuts
    /// those out of its input and goes on. What arrives next is offered to [`Parser::feed_big`] first.
    Assembling { keep: usize, taken: usize },
    /// A command of `len` bytes; its arguments are in [`Parser::args`]. No arguments: an empty line, to be skipped.
    Command { len: usize },
}

struct Assembly {
    buffer: BytesMut,
    missing: usize,
}

/// Resumable parser of one connection. Costs nothing per call where it left off: a long command that arrives in many
/// pieces is scanned once.
#[derive(Default)]
pub struct Parser {
    /// Bulk strings still to come; -1 once the command is known to be inline, 0 at the start of a command.
    bulks_left: i64,
    /// Length announced for the bulk under way.
    bulk_len: Option<usize>,
    /// Next byte to look at, relative to the command's first byte.
    pos: usize,
    args: SmallVec<[Arg; 8]>,
    big: Option<Box<Assembly>>,
    /// Bytes of the big bulks in `args`.
    assembled_bytes: usize,
    /// Inline arguments after unquoting, which need not appear in the input as they are.
    inline: Vec<u8>,
    is_inline: bool,
}

impl Parser {
    pub fn new() -> Self {
        Self::default()
    }

    /// The arguments of the command last returned.
    pub fn args(&self) -> &[Arg] {
        &self.args
    }

    /// The bytes that ranges of [`Parser::args`] refer to, given the command's own bytes.
    pub fn base<'a>(&'a self, command: &'a [u8]) -> &'a [u8] {
        if self.is_inline { &self.inline } else { command }
    }

    /// Whether the command last returned was inline; then ranges refer to [`Parser::inline_bytes`].
    pub fn is_inline(&self) -> bool {
        self.is_inline
    }

    /// The unquoted arguments of an inline command.
    pub fn inline_bytes(&self) -> &[u8] {
        &self.inline
    }

    /// Moves the arguments of the command last returned out.
    pub fn take_args(&mut self) -> impl Iterator<Item = Arg> + '_ {
        self.args.drain(..)
    }

    /// Forgets the command last returned; to be called before parsing the next.
    pub fn reset(&mut self) {
        self.bulks_left = 0;
        self.bulk_len = None;
        self.pos = 0;
        self.args.clear();
        self.assembled_bytes = 0;
        self.is_inline = false;
        if self.inline.capacity() > 1024 {
            self.inline = Vec::new();
        }
    }

    /// Bytes held for big bulks of the command under way, or last returned, that are or were assembled (they count towards
    /// the query buffer limit).
    pub fn held_bytes(&self) -> usize {
        self.assembled_bytes + self.big.as_ref().map_or(0, |big| big.buffer.len())
    }

    /// While a big bulk is under assembly: moves what belongs to it out of `input`, returning how many bytes were
    /// taken. 0 when nothing is under assembly.
    pub fn feed_big(&mut self, input: &[u8]) -> usize {
        let Some(big) = &mut self.big else { return 0 };
        let taken = big.missing.min(input.len());
        big.buffer.extend_from_slice(&input[..taken]);
        big.missing -= taken;
        taken
    }

    /// Looks for one command at the start of `input`, which must begin with the same bytes as in the call before as
    /// long as no command was returned.
    pub fn parse(&mut self, input: &[u8], limits: &ParseLimits) -> Result<Parsed, ProtocolError> {
        if self.bulks_left == 0 {
            match input.first() {
                None => return Ok(Parsed::Incomplete),
                Some(b'*') => {
                    let Some((count, next)) = read_length(input, 1, ProtocolError::TooBigMultiBulkCount)?
                    else {
                        return Ok(Parsed::Incomplete);
                    };
                    let count = count.ok_or(ProtocolError::InvalidMultiBulkLength)?;
                    if count > MAX_ARGS {
                        return Err(ProtocolError::InvalidMultiBulkLength);
                    }
                    if count > UNAUTHENTICATED_MAX_ARGS && !limits.authenticated {
                        return Err(ProtocolError::UnauthenticatedMultiBulkLength);
                    }
                    self.pos = next;
                    if count <= 0 {
                        return Ok(Parsed::Command { len: next });
                    }
                    self.bulks_left = count;
                }
                Some(_) => return self.parse_inline(input),
            }
        }
        self.parse_bulks(input, limits)
    }

    fn parse_bulks(&mut self, input: &[u8], limits: &ParseLimits) -> Result<Parsed, ProtocolError> {
        while self.bulks_left > 0 {
            let len = match self.bulk_len {
                Some(len) => len,
                None => {
                    match input.get(self.pos) {
                        None => return Ok(Parsed::Incomplete),
                        Some(b'$') => {}
                        Some(&other) => return Err(ProtocolError::ExpectedDollar(other)),
                    }
                    let Some((len, next)) = read_length(input, self.pos + 1, ProtocolError::TooBigBulkCount)?
                    else {
                        return Ok(Parsed::Incomplete);
                    };
                    let len = len
                        .filter(|&len| len >= 0 && len as u64 <= limits.max_bulk_len_bytes)
                        .ok_or(ProtocolError::InvalidBulkLength)?;
                    if len > UNAUTHENTICATED_MAX_BULK_LEN_BYTES && !limits.authenticated {
                        return Err(ProtocolError::UnauthenticatedBulkLength);
                    }
                    self.pos = next;
                    self.bulk_len = Some(len as usize);
                    len as usize
                }
            };
            if let Some(big) = &self.big {
                // Behind the bulk only the line end that closes it is still looked for in the input.
                if big.missing > 0 || input.len() < self.pos + 2 {
                    return Ok(Parsed::Incomplete);
                }
                let big = self.big.take().expect("checked above");
                self.assembled_bytes += big.buffer.len();
                self.args.push(Arg::Big(big.buffer.freeze()));
                self.pos += 2;
            } else if input.len() >= self.pos + len + 2 {
                self.args.push(Arg::Range { start: self.pos as u32, len: len as u32 });
                self.pos += len + 2;
            } else if len >= BIG_BULK_LEN_BYTES {
                let mut buffer = BytesMut::with_capacity(len.min(BUFFER_MAX_BYTES));
                let taken = (input.len() - self.pos).min(len);
                buffer.extend_from_slice(&input[self.pos..self.pos + taken]);
                self.big = Some(Box::new(Assembly { buffer, missing: len - taken }));
                return Ok(Parsed::Assembling { keep: self.pos, taken });
            } else {
                return Ok(Parsed::Incomplete);
            }
            self.bulk_len = None;
            self.bulks_left -= 1;
        }
        Ok(Parsed::Command { len: self.pos })
    }

    fn parse_inline(&mut self, input: &[u8]) -> Result<Parsed, ProtocolError> {
        let Some(newline) = memchr::memchr(b'\n', input) else {
            return if input.len() > INLINE_MAX_LEN_BYTES {
                Err(ProtocolError::TooBigInline)
            } else {
                Ok(Parsed::Incomplete)
            };
        };
        let line = input[..newline].strip_suffix(b"\r").unwrap_or(&input[..newline]);
        self.inline.clear();
        self.is_inline = true;
        split_inline(line, &mut self.inline, &mut self.args)?;
        Ok(Parsed::Command { len: newline + 1 })
    }
}

/// Reads `<digits>\r\n` at `start`: the number (None where it is malformed) and the position behind the line end.
#[inline]
fn read_length(
    input: &[u8],
    start: usize,
    too_long: ProtocolError,
) -> Result<Option<(Option<i64>, usize)>, ProtocolError> {
    // The short form first: one to four digits, as in nearly every request.
    let mut value: i64 = 0;
    for at in start..(start + 5).min(input.len()) {
        match input[at] {
            // A zero before other digits is for the long form to refuse.
            digit @ b'0'..=b'9' if at == start || value != 0 => value = value * 10 + i64::from(digit - b'0'),
            b'\r' if at > start && input.len() > at + 1 => return Ok(Some((Some(value), at + 2))),
            _ => break,
        }
    }
    let rest = input.get(start..).unwrap_or(&[]);
    let Some(end) = memchr::memchr(b'\r', rest) else {
        return if rest.len() > INLINE_MAX_LEN_BYTES { Err(too_long) } else { Ok(None) };
    };
    if rest.len() < end + 2 {
        return Ok(None);
    }
    Ok(Some((super::number::parse_i64(&rest[..end]), start + end + 2)))
}

/// Splits an inline command into arguments as Redis's `sdssplitargs` does: blanks separate, double quotes know
/// `\xHH` and C escapes, single quotes know `\'`.
fn split_inline(line: &[u8], out: &mut Vec<u8>, args: &mut SmallVec<[Arg; 8]>) -> Result<(), ProtocolError> {
    let is_space = |byte: u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c);
    let mut at = 0;
    loop {
        while at < line.len() && is_space(line[at]) {
            at += 1;
        }
        if at == line.len() {
            return Ok(());
        }
        let start = out.len();
        while at < line.len() && !is_space(line[at]) {
            match line[at] {
                quote @ (b'"' | b'\'') => {
                    at = unquote(line, at + 1, quote, out)?;
                    if at < line.len() && !is_space(line[at]) {
                        return Err(ProtocolError::UnbalancedQuotes);
                    }
                }
                // As in C strings, a NUL ends what Redis sees of the line.
                0 => return Ok(()),
                byte => {
                    out.push(byte);
                    at += 1;
                }
            }
        }
        args.push(Arg::Range { start: start as u32, len: (out.len() - start) as u32 });
    }
}

/// Appends the quoted text that begins at `at`; returns the position behind its closing quote.
fn unquote(line: &[u8], mut at: usize, quote: u8, out: &mut Vec<u8>) -> Result<usize, ProtocolError> {
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    while let Some(&byte) = line.get(at) {
        if byte == quote {
            return Ok(at + 1);
        }
        let next = line.get(at + 1).copied();
        match (byte, next) {
            (b'\\', Some(b'\'')) if quote == b'\'' => {
                out.push(b'\'');
                at += 2;
            }
            (b'\\', Some(escape)) if quote == b'"' => {
                let digits =
                    (line.get(at + 2).copied().and_then(hex), line.get(at + 3).copied().and_then(hex));
                if let (b'x', (Some(high), Some(low))) = (escape, digits) {
                    out.push(high << 4 | low);
                    at += 4;
                } else {
                    out.push(match escape {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 0x08,
                        b'a' => 0x07,
                        other => other,
                    });
                    at += 2;
                }
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Err(ProtocolError::UnbalancedQuotes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ParseLimits = ParseLimits { max_bulk_len_bytes: 512 << 20, authenticated: true };

    /// Feeds `input` in pieces of the given sizes (the last repeats), as a connection does; returns all commands.
    fn run(input: &[u8], piece: impl Fn(usize) -> usize) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
        let mut parser = Parser::new();
        let (mut held, mut commands) = (Vec::new(), Vec::new());
        let mut at = 0;
        let mut turn = 0;
        while at < input.len() {
            let len = piece(turn).clamp(1, input.len() - at);
            turn += 1;
            let chunk = &input[at..at + len];
            at += len;
            let fed = parser.feed_big(chunk);
            held.extend_from_slice(&chunk[fed..]);
            loop {
                match parser.parse(&held, &LIMITS)? {
                    Parsed::Incomplete => break,
                    Parsed::Assembling { keep, taken } => drop(held.drain(keep..keep + taken)),
                    Parsed::Command { len } => {
                        let base = parser.base(&held[..len]);
                        let args = parser.args().iter().map(|arg| match arg {
                            Arg::Range { start, len } => {
                                base[*start as usize..(*start + *len) as usize].to_vec()
                            }
                            Arg::Big(bytes) => bytes.to_vec(),
                        });
                        commands.push(args.collect());
                        parser.reset();
                        held.drain(..len);
                    }
                }
            }
        }
        Ok(commands)
    }

    fn encode(commands: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let mut out = Vec::new();
        for command in commands {
            out.extend(format!("*{}\r\n", command.len()).bytes());
            for arg in command {
                out.extend(format!("${}\r\n", arg.len()).bytes());
                out.extend(arg);
                out.extend(b"\r\n");
            }
        }
        out
    }

    #[test]
    fn any_split_gives_the_same_commands() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let commands: Vec<Vec<Vec<u8>>> = (0..rng.usize(1..6))
                .map(|_| {
                    (0..rng.usize(1..12))
                        .map(|_| {
                            let len = if rng.u8(..) == 0 {
                                BIG_BULK_LEN_BYTES + rng.usize(..9)
                            } else {
                                rng.usize(..300)
                            };
                            (0..len).map(|_| rng.u8(..)).collect()
                        })
                        .collect()
                })
                .collect();
            let input = encode(&commands);
            let size = rng.usize(1..5000);
            assert_eq!(run(&input, |_| size).unwrap(), commands);
            assert_eq!(run(&input, |turn| 1 + (turn * 7919) % 900).unwrap(), commands);
        }
    }

    /// What the limit of a connection's memory is compared with.
    #[test]
    fn finished_bulks_count_until_their_command_is_done() {
        let mut parser = Parser::new();
        let bulk = vec![b'v'; BIG_BULK_LEN_BYTES];
        let mut held = b"*4\r\n$4\r\nMSET\r\n".to_vec();
        for at in 1..4 {
            held.extend(format!("${}\r\n", bulk.len()).bytes());
            held.extend(&bulk[..7]);
            let Parsed::Assembling { keep, taken } = parser.parse(&held, &LIMITS).unwrap() else {
                panic!("it has not arrived whole")
            };
            held.drain(keep..keep + taken);
            assert_eq!(parser.held_bytes(), (at - 1) * bulk.len() + 7);
            parser.feed_big(&bulk[7..]);
            held.extend(b"\r\n");
            let parsed = parser.parse(&held, &LIMITS).unwrap();
            assert_eq!(matches!(parsed, Parsed::Command { .. }), at == 3);
            assert_eq!(parser.held_bytes(), at * bulk.len());
        }
        parser.reset();
        assert_eq!(parser.held_bytes(), 0);
    }

    #[test]
    fn a_big_bulk_is_assembled_at_any_split() {
        let command = vec![
            vec![b"SET".to_vec(), b"k".to_vec(), vec![b'v'; BIG_BULK_LEN_BYTES + 3]],
            vec![b"PING".to_vec()],
        ];
        let input = encode(&command);
        for first in (1..40).chain(BIG_BULK_LEN_BYTES - 5..BIG_BULK_LEN_BYTES + 60) {
            assert_eq!(
                run(&input, |turn| if turn == 0 { first } else { 1 << 20 }).unwrap(),
                command,
                "{first}"
            );
        }
    }

    #[test]
    fn inline_commands_are_split_like_a_shell() {
        let got = run(b"set a \"b\\x41\\n\" 'c d'\r\n\r\nPING\n", |_| 3).unwrap();
        assert_eq!(got[0], vec![b"set".to_vec(), b"a".to_vec(), b"bA\n".to_vec(), b"c d".to_vec()]);
        assert_eq!(got[1].len(), 0);
        assert_eq!(got[2], vec![b"PING".to_vec()]);
        assert_eq!(run(b"set \"a\r\n", |_| 99), Err(ProtocolError::UnbalancedQuotes));
    }

    #[test]
    fn malformed_requests_have_redis_texts() {
        for (input, text) in [
            (&b"*x\r\n"[..], "Protocol error: invalid multibulk length"),
            (b"*01\r\n", "Protocol error: invalid multibulk length"),
            (b"*00\r\n", "Protocol error: invalid multibulk length"),
            (b"*1\r\n$04\r\nPING\r\n", "Protocol error: invalid bulk length"),
            (b"*1\r\n+PING\r\n", "Protocol error: expected '$', got '+'"),
            (b"*1\r\n$-2\r\n", "Protocol error: invalid bulk length"),
            (b"*1\r\n$999999999999\r\n", "Protocol error: invalid bulk length"),
            (b"*3000000000\r\n", "Protocol error: invalid multibulk length"),
        ] {
            assert_eq!(run(input, |_| 99).unwrap_err().to_string(), text);
        }
        assert_eq!(run(&vec![b'a'; INLINE_MAX_LEN_BYTES + 2], |_| 1 << 20), Err(ProtocolError::TooBigInline));
    }

    #[test]
    fn an_unauthenticated_client_is_held_short() {
        let strict = ParseLimits { authenticated: false, ..LIMITS };
        let mut parser = Parser::new();
        assert_eq!(parser.parse(b"*11\r\n", &strict), Err(ProtocolError::UnauthenticatedMultiBulkLength));
        let mut parser = Parser::new();
        assert_eq!(parser.parse(b"*1\r\n$16385\r\n", &strict), Err(ProtocolError::UnauthenticatedBulkLength));
    }
}
