//! A snapshot in parts: a full sync between two Braids over several connections, each of which carries an RDB stream of its
//! own, so that the shards of both sides work side by side.
//!
//! ```text
//! replica                                    master
//! REPLCONF capa sync-parts:N  ------------->             how many connections it would open
//! PSYNC …                     ------------->
//!                             <-------------  +SYNCPARTS token n
//! on n new connections, each (after AUTH):
//! REPLCONF sync-part token index i  ------->
//!                             <-------------  +OK
//! on the first connection, when the snapshot is cut:
//!                             <-------------  +FULLRESYNC id offset
//!                             <-------------  $PARTS:mark, an RDB stream without keys, mark
//! on each of the others:      <-------------  $EOF:mark, an RDB stream, mark
//! on the first, when all of that is sent:
//!                             <-------------  +ENDPARTS bytes bytes … (of each RDB stream, in the order of the indices)
//! ```
//! From there on everything is as after any full sync. Who does not get the connections together in time, or shares the
//! snapshot with somebody who cannot take it in parts, gets it on the first connection. The number of connections is the
//! replica's wish and says nothing about shards; which keys come on which is the master's affair.

pub mod outlet;
pub mod rendezvous;

use crate::framing::{EOF_MARK_BYTES, EofMark};
use crate::hex::Hex;
use bytes::Bytes;

/// Connections that a snapshot comes on at most.
pub const PARTS_MAX: usize = 16;
/// What [`Replica::replconf`](crate::psync::Replica::replconf) knows the capability by; the wished number follows.
pub const CAPABILITY: &str = "sync-parts:";

const OFFER: &str = "+SYNCPARTS ";
const HEADER: &str = "$PARTS:";
const END: &str = "+ENDPARTS ";

/// By which a master knows the connections of one full sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(Hex);

impl Token {
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        Token(Hex::random(rng))
    }

    /// From the wire.
    pub fn parse(text: &[u8]) -> Option<Self> {
        Hex::parse(text).map(Token)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// The number of connections that a capability asks for; fewer than two are none.
pub fn parse_capability(word: &[u8]) -> Option<usize> {
    let word = std::str::from_utf8(word).ok()?.to_ascii_lowercase();
    let count: usize = word.strip_prefix(CAPABILITY)?.parse().ok()?;
    (count > 1).then_some(count.min(PARTS_MAX))
}

/// A master's offer, with the line's end.
pub fn offer(token: Token, count: usize) -> Bytes {
    format!("{OFFER}{} {count}\r\n", token.as_str()).into()
}

/// Reads an offer; None: the line is something else, or no offer that can be taken.
pub fn parse_offer(line: &str) -> Option<(Token, usize)> {
    let (token, count) = line.strip_prefix(OFFER)?.split_once(' ')?;
    let count = count.parse().ok().filter(|count| (2..=PARTS_MAX).contains(count))?;
    Some((Token::parse(token.as_bytes())?, count))
}

/// Announces on the first connection what its snapshot consists of.
pub fn header(mark: &EofMark) -> Bytes {
    format!("{HEADER}{}\r\n", mark.as_str()).into()
}

/// Reads that; None: the line is something else.
pub fn parse_header(line: &str) -> Option<[u8; EOF_MARK_BYTES]> {
    line.strip_prefix(HEADER)?.as_bytes().try_into().ok()
}

/// Says that all parts are sent, and how long the RDB stream of each is.
pub fn end(lens_bytes: &[u64]) -> Bytes {
    let lens: Vec<String> = lens_bytes.iter().map(u64::to_string).collect();
    format!("{END}{}\r\n", lens.join(" ")).into()
}

/// Reads that; None: the line is something else.
pub fn parse_end(line: &str) -> Option<Vec<u64>> {
    line.strip_prefix(END)?.split(' ').map(|len| len.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap().strip_suffix("\r\n").unwrap()
    }

    #[test]
    fn what_one_side_says_the_other_understands() {
        let mut rng = fastrand::Rng::with_seed(1);
        let token = Token::random(&mut rng);
        assert_eq!(parse_offer(line(&offer(token, 5))), Some((token, 5)));
        for wrong in [1, 17] {
            assert_eq!(parse_offer(line(&offer(token, wrong))), None);
        }
        assert_eq!(parse_offer("+SYNCPARTS xyz 5"), None);
        assert_eq!(parse_offer("+FULLRESYNC a 5"), None);
        let mark = EofMark::random(&mut rng);
        assert_eq!(parse_header(line(&header(&mark))).unwrap(), mark.trailer()[..]);
        assert_eq!(parse_header("$EOF:0123456789"), None);
        assert_eq!(parse_end(line(&end(&[3, 0, u64::MAX]))), Some(vec![3, 0, u64::MAX]));
        for wrong in ["+ENDPARTS ", "+ENDPARTS 3  4", "+ENDPARTS -3", "+OK"] {
            assert_eq!(parse_end(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wish_is_a_number_of_connections_within_bounds() {
        for (word, count) in
            [("sync-parts:2", Some(2)), ("SYNC-parts:16", Some(16)), ("sync-parts:99", Some(16))]
        {
            assert_eq!(parse_capability(word.as_bytes()), count);
        }
        for none in ["sync-parts:0", "sync-parts:1", "sync-parts:", "sync-parts:-3", "sync-parts", "eof"] {
            assert_eq!(parse_capability(none.as_bytes()), None, "{none}");
        }
    }
}
