//! Commands parsed ahead of their execution, so that the memory they will touch can be fetched while others run.

use super::parse::{Arg, ParseLimits, Parsed, Parser, ProtocolError};
use crate::command::ArgList;

/// Commands parsed at a time: enough for their cache misses to overlap, few enough to stay in the cache meanwhile.
pub const BATCH_MAX_COMMANDS: usize = 32;

struct Entry {
    start: usize,
    first_arg: u32,
    end_arg: u32,
    is_inline: bool,
}

/// The commands at the front of a connection's input. Positions are relative to that input.
#[derive(Default)]
pub struct Batch {
    args: Vec<Arg>,
    /// Unquoted arguments of inline commands.
    inline: Vec<u8>,
    commands: Vec<Entry>,
    next: usize,
    parsed_to: usize,
    error: Option<ProtocolError>,
}

impl Batch {
    /// Every parsed command has been executed.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.next == self.commands.len()
    }

    /// What was wrong with the input behind the parsed commands.
    pub fn error(&self) -> Option<&ProtocolError> {
        self.error.as_ref()
    }

    /// Where the first command begins that has not been executed.
    pub fn executed_to(&self) -> usize {
        self.commands.get(self.next).map_or(self.parsed_to, |entry| entry.start)
    }

    /// Parses commands from `input` on behind those already executed. Returns what to cut out of the input, as
    /// (position, length), where a big bulk began; nothing more can be parsed before that is done.
    pub fn fill(
        &mut self,
        parser: &mut Parser,
        input: &[u8],
        limits: &ParseLimits,
        max: usize,
    ) -> Option<(usize, usize)> {
        assert!(self.is_done() && self.error.is_none());
        self.args.clear();
        self.inline.clear();
        self.commands.clear();
        self.next = 0;
        while self.commands.len() < max {
            match parser.parse(&input[self.parsed_to..], limits) {
                Ok(Parsed::Incomplete) => break,
                Ok(Parsed::Assembling { keep, taken }) => return Some((self.parsed_to + keep, taken)),
                Ok(Parsed::Command { len }) => {
                    self.take(parser);
                    self.parsed_to += len;
                }
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
        }
        None
    }

    fn take(&mut self, parser: &mut Parser) {
        let is_inline = parser.is_inline();
        let base = if is_inline { self.inline.len() } else { self.parsed_to } as u32;
        let first_arg = self.args.len() as u32;
        self.args.extend(parser.take_args().map(|arg| match arg {
            Arg::Range { start, len } => Arg::Range { start: base + start, len },
            big => big,
        }));
        if is_inline {
            self.inline.extend_from_slice(parser.inline_bytes());
        }
        parser.reset();
        let end_arg = self.args.len() as u32;
        // An empty line is no command.
        if end_arg > first_arg {
            self.commands.push(Entry { start: self.parsed_to, first_arg, end_arg, is_inline });
        }
    }

    fn arg<'a>(&'a self, entry: &Entry, arg: &'a Arg, input: &'a [u8]) -> &'a [u8] {
        match arg {
            Arg::Range { start, len } => {
                let base = if entry.is_inline { &self.inline } else { input };
                &base[*start as usize..(*start + *len) as usize]
            }
            Arg::Big(value) => value,
        }
    }

    /// Adds the arguments of the next command to execute to `list`. False: there is none.
    #[inline]
    pub fn peek<'a>(&'a self, input: &'a [u8], list: &mut ArgList<'a>) -> bool {
        let Some(entry) = self.commands.get(self.next) else { return false };
        for arg in &self.args[entry.first_arg as usize..entry.end_arg as usize] {
            let bytes = self.arg(entry, arg, input);
            match arg {
                Arg::Big(value) => list.push_shared(bytes, value.clone()),
                Arg::Range { .. } => list.push(bytes),
            }
        }
        true
    }

    /// The command that [`Batch::peek`] showed has been executed.
    #[inline]
    pub fn advance(&mut self) {
        self.next += 1;
    }

    /// The first argument behind the name of each command still to be executed: the key, for most.
    pub fn likely_keys<'a>(&'a self, input: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.commands[self.next..]
            .iter()
            .filter(|entry| entry.end_arg > entry.first_arg + 1)
            .map(move |entry| self.arg(entry, &self.args[entry.first_arg as usize + 1], input))
    }

    /// The input lost its first `len` bytes, all of which have been executed.
    pub fn shift(&mut self, len: usize) {
        assert!(len <= self.executed_to());
        self.parsed_to -= len;
        let next = self.next;
        for entry in &mut self.commands[next..] {
            entry.start -= len;
            if !entry.is_inline {
                for arg in &mut self.args[entry.first_arg as usize..entry.end_arg as usize] {
                    if let Arg::Range { start, .. } = arg {
                        *start -= len as u32;
                    }
                }
            }
        }
    }

    /// Makes it ready for another connection.
    pub fn reset(&mut self) {
        self.args.clear();
        self.inline.clear();
        self.commands.clear();
        self.next = 0;
        self.parsed_to = 0;
        self.error = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ParseLimits = ParseLimits { max_bulk_len_bytes: 512 << 20, authenticated: true };

    fn next(batch: &Batch, input: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut list = ArgList::default();
        let is_some = batch.peek(input, &mut list);
        is_some.then(|| list.args().iter().map(|arg| arg.to_vec()).collect())
    }

    #[test]
    fn commands_are_executed_later_and_from_a_shorter_input() {
        let mut input =
            b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n\r\nset 'k 1' v\r\n*2\r\n$3\r\nGET\r\n$1\r\nb\r\n*2\r\n$3\r\nGE"
                .to_vec();
        let (mut batch, mut parser) = (Batch::default(), Parser::new());
        assert_eq!(batch.fill(&mut parser, &input, &LIMITS, 32), None);
        assert_eq!(batch.likely_keys(&input).collect::<Vec<_>>(), [&b"a"[..], b"k 1", b"b"]);
        assert_eq!(next(&batch, &input).unwrap(), [&b"GET"[..], b"a"]);
        batch.advance();
        let executed = batch.executed_to();
        input.drain(..executed);
        batch.shift(executed);
        assert_eq!(next(&batch, &input).unwrap(), [&b"set"[..], b"k 1", b"v"]);
        batch.advance();
        assert_eq!(next(&batch, &input).unwrap(), [&b"GET"[..], b"b"]);
        batch.advance();
        assert!(batch.is_done() && next(&batch, &input).is_none());
        input.extend_from_slice(b"T\r\n$1\r\nc\r\n");
        batch.fill(&mut parser, &input, &LIMITS, 32);
        assert_eq!(next(&batch, &input).unwrap(), [&b"GET"[..], b"c"]);
    }

    #[test]
    fn what_precedes_an_error_is_executed_first() {
        let input = b"PING\r\n*1\r\n+x\r\n";
        let (mut batch, mut parser) = (Batch::default(), Parser::new());
        batch.fill(&mut parser, input, &LIMITS, 32);
        assert!(next(&batch, input).is_some());
        assert_eq!(batch.error(), Some(&ProtocolError::ExpectedDollar(b'+')));
    }
}
