//! How a snapshot is wrapped on the wire: after its length, or until a mark.

use bytes::Bytes;

/// Keeps the replica's timeout from striking while its snapshot is prepared.
pub const KEEPALIVE: &[u8] = b"\n";
/// Bytes of the random mark that ends a snapshot of unknown length.
pub const EOF_MARK_BYTES: usize = 40;

/// Announces a snapshot of known length. Nothing follows it.
pub fn bulk_header(len_bytes: u64) -> Bytes {
    format!("${len_bytes}\r\n").into()
}

/// A random mark that ends a snapshot whose length nobody knows beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EofMark([u8; EOF_MARK_BYTES]);

/// Hex digits that nobody can guess by accident.
pub(crate) fn random_hex(rng: &mut fastrand::Rng) -> [u8; EOF_MARK_BYTES] {
    std::array::from_fn(|_| b"0123456789abcdef"[rng.usize(..16)])
}

impl EofMark {
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        EofMark(random_hex(rng))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hex digits")
    }

    /// Announces the snapshot.
    pub fn header(&self) -> Bytes {
        [b"$EOF:", &self.0[..], b"\r\n"].concat().into()
    }

    /// Follows the snapshot.
    pub fn trailer(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
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
