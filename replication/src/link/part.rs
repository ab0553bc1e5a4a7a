//! One connection that carries a part of a snapshot ([`crate::parts`]), as the replica's shard keeps it that reads it.
//!
//! ```text
//! Connecting --> [Auth] --> Introduced --> Header --> Payload --> Trailer --> Whole
//! ```
//! What is received waits until the load is begun that it is for ([`PartLink::begin_load`]). Whoever loads it sets the pace, as
//! with a [`Link`](super::Link). After a fault nothing more comes of it; the sync as a whole has failed then.

use super::frame::{Framing, take_line, take_mark};
use super::{INPUT_MAX_BYTES, LinkRules, command};
use crate::framing::EOF_MARK_BYTES;
use crate::parts::Token;
use bytes::{Buf, BytesMut};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    /// `AUTH` is sent.
    Auth,
    /// Who we are is sent.
    Introduced,
    /// The master waits for the others, or for its snapshot to begin.
    Header,
    Payload {
        mark: [u8; EOF_MARK_BYTES],
    },
    Trailer {
        mark: [u8; EOF_MARK_BYTES],
    },
    Whole,
    Failed,
}

/// See the module.
pub struct PartLink {
    token: Token,
    index: usize,
    rules: LinkRules,
    state: State,
    input: BytesMut,
    out: Vec<u8>,
    /// Bytes of the RDB stream that were loaded.
    read_bytes: u64,
    /// What is received may be loaded.
    is_loading: bool,
    last_io_ms: u64,
}

impl PartLink {
    /// A connection that is being opened.
    pub fn new(token: Token, index: usize, rules: LinkRules, now_ms: u64) -> Self {
        Self {
            token,
            index,
            rules,
            state: State::Connecting,
            input: BytesMut::new(),
            out: Vec::new(),
            read_bytes: 0,
            is_loading: false,
            last_io_ms: now_ms,
        }
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// The connection stands.
    pub fn connected(&mut self, now_ms: u64) {
        assert_eq!(self.state, State::Connecting, "a connection stands once");
        self.last_io_ms = now_ms;
        let auth = self.rules.auth_words();
        if auth.is_empty() {
            return self.introduce();
        }
        command(&mut self.out, &auth);
        self.state = State::Auth;
    }

    fn introduce(&mut self) {
        let (token, index) = (self.token, self.index.to_string());
        let words = ["REPLCONF", "sync-part", token.as_str(), "index", &index].map(str::as_bytes);
        command(&mut self.out, &words);
        self.state = State::Introduced;
    }

    /// What is to be sent.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Bytes arrived. Afterwards see to [`PartLink::payload`].
    ///
    /// # Errors
    /// What makes the part unusable.
    pub fn received(&mut self, bytes: &[u8], now_ms: u64) -> Result<(), String> {
        self.last_io_ms = now_ms;
        self.input.extend_from_slice(bytes);
        let outcome = self.advance();
        self.end_on_fault(outcome)
    }

    fn end_on_fault<T>(&mut self, outcome: Result<T, String>) -> Result<T, String> {
        if outcome.is_err() {
            self.state = State::Failed;
        }
        outcome
    }

    fn advance(&mut self) -> Result<(), String> {
        loop {
            match self.state {
                State::Auth | State::Introduced | State::Header => {
                    let Some(line) = take_line(&mut self.input)? else { return Ok(()) };
                    // An empty one is a sign of life.
                    if !line.is_empty() {
                        self.line(&line)?;
                    }
                }
                State::Trailer { mark } => {
                    if !take_mark(&mut self.input, &mark)? {
                        return Ok(());
                    }
                    self.state = State::Whole;
                }
                State::Connecting if !self.input.is_empty() => {
                    return Err("the master speaks before its turn".into());
                }
                State::Whole if !self.input.is_empty() => {
                    return Err("the master sends more than the part".into());
                }
                State::Connecting | State::Payload { .. } | State::Whole | State::Failed => return Ok(()),
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        match self.state {
            State::Header => match Framing::parse(line) {
                Some(Framing::Mark(mark)) => self.state = State::Payload { mark },
                _ => return Err(format!("a part begins with '{line}'")),
            },
            _ if line.starts_with('-') => return Err(format!("the master refuses it: {line}")),
            State::Auth => self.introduce(),
            _ => self.state = State::Header,
        }
        Ok(())
    }

    /// The load that the part is for has begun.
    pub fn begin_load(&mut self, now_ms: u64) {
        self.is_loading = true;
        self.last_io_ms = now_ms;
    }

    /// Bytes that wait to be loaded. They may be more than the RDB stream's: whoever loads them knows where it ends.
    pub fn payload(&self) -> &[u8] {
        match self.state {
            State::Payload { .. } if self.is_loading => &self.input,
            _ => &[],
        }
    }

    /// So many bytes of the payload were loaded; `is_end`: with them the RDB stream is. If nothing was read meanwhile, that
    /// was not the master's silence.
    ///
    /// # Errors
    /// What makes the part unusable.
    pub fn consume_payload(&mut self, len: usize, is_end: bool, now_ms: u64) -> Result<(), String> {
        let State::Payload { mark } = self.state else { panic!("there is no payload") };
        self.last_io_ms = now_ms;
        self.input.advance(len);
        self.read_bytes += len as u64;
        if !is_end {
            return Ok(());
        }
        self.state = State::Trailer { mark };
        let outcome = self.advance();
        self.end_on_fault(outcome)
    }

    /// Length of the RDB stream, as far as it was loaded.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The RDB stream was loaded, and its mark is right.
    pub fn is_whole(&self) -> bool {
        self.state == State::Whole
    }

    /// So much waits to be loaded that nothing more should be received.
    pub fn is_full(&self) -> bool {
        self.input.len() > INPUT_MAX_BYTES
    }

    /// When the master's silence has lasted too long.
    pub fn timeout_at_ms(&self) -> Option<u64> {
        let awaits_master = match self.state {
            State::Connecting | State::Auth | State::Introduced => true,
            // Before, the master may have to wait for whom it likes; and when much waits here, it is not its fault.
            State::Header | State::Payload { .. } | State::Trailer { .. } => {
                self.is_loading && !self.is_full()
            }
            State::Whole | State::Failed => false,
        };
        awaits_master.then_some(self.last_io_ms + self.rules.timeout_ms + 1)
    }

    /// What is wrong when that time has come.
    pub fn timeout_text(&self) -> &'static str {
        match self.state {
            State::Connecting | State::Auth | State::Introduced => "timeout connecting to the master",
            _ => "timeout receiving bulk data from the master",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "0123456789012345678901234567890123456789";

    fn part(password: &str) -> PartLink {
        let token = Token::random(&mut fastrand::Rng::with_seed(1));
        let rules = LinkRules { timeout_ms: 1000, password: password.into(), ..LinkRules::default() };
        PartLink::new(token, 3, rules, 100)
    }

    fn output(part: &mut PartLink) -> String {
        String::from_utf8(part.take_output()).unwrap()
    }

    /// One that waits for its header.
    fn introduced() -> PartLink {
        let mut part = part("");
        part.connected(100);
        assert!(output(&mut part).contains("sync-part\r\n$40\r\n"));
        part.received(b"+OK\r\n", 100).unwrap();
        part
    }

    #[test]
    fn it_authenticates_introduces_itself_and_brings_the_stream_up_to_its_mark() {
        let mut part = part("secret");
        part.connected(100);
        assert_eq!(output(&mut part), "*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n");
        part.received(b"+O", 100).unwrap();
        part.received(b"K\r\n", 100).unwrap();
        assert!(output(&mut part).ends_with("$5\r\nindex\r\n$1\r\n3\r\n"));
        let rest = format!("\n$EOF:{MARK}\r\nrdb bytes{}", &MARK[..7]);
        part.received(b"+OK\r\n", 100).unwrap();
        part.received(rest.as_bytes(), 100).unwrap();
        assert_eq!(part.payload(), b"", "no load has begun");
        part.begin_load(100);
        assert_eq!(part.payload().len(), 16);
        part.consume_payload(4, false, 100).unwrap();
        part.consume_payload(5, true, 100).unwrap();
        assert!(!part.is_whole() && part.payload().is_empty());
        part.received(&MARK.as_bytes()[7..], 100).unwrap();
        assert!(part.is_whole());
        assert_eq!((part.read_bytes(), part.timeout_at_ms()), (9, None));
        assert!(part.received(b"x", 100).is_err(), "nothing comes behind it");
    }

    #[test]
    fn law9_what_is_wrong_at_any_moment_ends_it() {
        let refused = |part: &mut PartLink, bytes: &str| part.received(bytes.as_bytes(), 100).unwrap_err();
        let mut one = part("secret");
        one.connected(100);
        assert!(refused(&mut one, "-WRONGPASS no\r\n").contains("WRONGPASS"));
        assert_eq!(one.timeout_at_ms(), None);
        let mut one = part("");
        assert!(refused(&mut one, "+OK\r\n").contains("before its turn"));
        let mut one = part("");
        one.connected(100);
        assert!(refused(&mut one, "-ERR sync-part comes too late\r\n").contains("too late"));
        for header in ["$77\r\n", "+FULLRESYNC\r\n", "$EOF:short\r\n"] {
            assert!(refused(&mut introduced(), header).contains("a part begins with"));
        }
        assert!(refused(&mut introduced(), &"x".repeat(2000)).contains("too long"));
        let mut one = introduced();
        one.begin_load(100);
        one.received(format!("$EOF:{MARK}\r\nrdb").as_bytes(), 100).unwrap();
        one.consume_payload(3, true, 100).unwrap();
        assert!(refused(&mut one, "01x").contains("mark"));
        assert!(!one.is_whole());
    }

    #[test]
    fn silence_counts_while_the_master_is_to_speak() {
        let mut one = part("");
        assert_eq!(one.timeout_at_ms(), Some(1101));
        one.connected(200);
        assert_eq!(one.timeout_at_ms(), Some(1201));
        one.received(b"+OK\r\n", 300).unwrap();
        assert_eq!(one.timeout_at_ms(), None, "the others may be late");
        one.begin_load(400);
        assert_eq!(one.timeout_at_ms(), Some(1401));
        one.received(format!("$EOF:{MARK}\r\n").as_bytes(), 500).unwrap();
        assert_eq!(one.timeout_at_ms(), Some(1501));
        one.received(&vec![b'x'; 2 << 20], 600).unwrap();
        assert!(one.is_full() && one.timeout_at_ms().is_none());
        // Long afterwards: the master was not heard because nobody listened.
        one.consume_payload(2 << 20, false, 9000).unwrap();
        assert_eq!(one.timeout_at_ms(), Some(10_001));
    }
}
