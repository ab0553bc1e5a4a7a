//! What stands around a snapshot on a connection: lines before it, and its length or the mark behind it.

use crate::framing::EOF_MARK_BYTES;
use bytes::{Buf, BytesMut};

/// Longest line of a master's reply.
const LINE_MAX_BYTES: usize = 1024;

/// Where a snapshot's bytes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many are left.
    Length { left: u64 },
    /// Behind them comes this.
    Mark([u8; EOF_MARK_BYTES]),
}

impl Framing {
    /// Reads the line before a snapshot.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix('$')?;
        match rest.strip_prefix("EOF:") {
            Some(mark) => mark.as_bytes().try_into().ok().map(Framing::Mark),
            None => rest.parse().ok().map(|left| Framing::Length { left }),
        }
    }

    /// How much of what was received can be the snapshot's.
    pub(super) fn payload<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        match self {
            Framing::Length { left } => {
                &input[..input.len().min(usize::try_from(*left).unwrap_or(usize::MAX))]
            }
            Framing::Mark(_) => input,
        }
    }
}

/// The next line of replies, without its end; None: it has not come whole.
///
/// # Errors
/// It is too long.
pub(super) fn take_line(input: &mut BytesMut) -> Result<Option<String>, &'static str> {
    match input.iter().position(|byte| *byte == b'\n') {
        Some(at) if at <= LINE_MAX_BYTES => {
            let line = input.split_to(at + 1);
            let line = line[..at].strip_suffix(b"\r").unwrap_or(&line[..at]);
            Ok(Some(String::from_utf8_lossy(line).into_owned()))
        }
        None if input.len() <= LINE_MAX_BYTES => Ok(None),
        _ => Err("The master sent a line that is too long"),
    }
}

/// Takes a snapshot's mark; false: it has not come whole.
///
/// # Errors
/// What stands there is something else.
pub(super) fn take_mark(input: &mut BytesMut, mark: &[u8; EOF_MARK_BYTES]) -> Result<bool, &'static str> {
    let compared = input.len().min(mark.len());
    if input[..compared] != mark[..compared] {
        return Err("The snapshot does not end with its mark");
    }
    let is_whole = compared == mark.len();
    if is_whole {
        input.advance(compared);
    }
    Ok(is_whole)
}
