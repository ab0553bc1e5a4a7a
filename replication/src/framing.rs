//! How a snapshot is wrapped on the wire: after its length, or until a mark.

use crate::hex::{HEX_LEN, Hex};
use bytes::Bytes;

/// Keeps the replica's timeout from striking while its snapshot is prepared.
pub const KEEPALIVE: &[u8] = b"\n";
/// Bytes of the random mark that ends a snapshot of unknown length.
pub const EOF_MARK_BYTES: usize = HEX_LEN;

/// Announces a snapshot of known length. Nothing follows it.
pub fn bulk_header(len_bytes: u64) -> Bytes {
    format!("${len_bytes}\r\n").into()
}

/// A random mark that ends a snapshot whose length nobody knows beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EofMark(Hex);

impl EofMark {
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        EofMark(Hex::random(rng))
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Announces the snapshot.
    pub fn header(&self) -> Bytes {
        format!("$EOF:{}\r\n", self.as_str()).into()
    }

    /// Follows the snapshot.
    pub fn trailer(&self) -> Bytes {
        Bytes::copy_from_slice(self.as_str().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_framed_by_length_or_by_mark() {
        assert_eq!(bulk_header(1234), "$1234\r\n");
        let mark = EofMark::random(&mut fastrand::Rng::with_seed(4));
        let header = mark.header();
        assert_eq!(header.len(), 5 + 40 + 2);
        assert!(header.starts_with(b"$EOF:") && header.ends_with(b"\r\n"));
        assert_eq!(header[5..45], mark.trailer());
    }
}
