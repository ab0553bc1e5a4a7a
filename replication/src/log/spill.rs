//! What of the log is on disk: which bytes are in which segment file, what is being written, and when a file goes.
//!
//! The files themselves are the layer's around: what has to be done with them comes out as [`Step`]s, to be done in order;
//! what came of it is [`Told`]. A write or read that fails is told as such, and nothing that memory still has to keep is let
//! go before its write was told to be done.

use bytes::Bytes;
use std::collections::VecDeque;

/// How much is written, read and kept at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Every write is a multiple of this: what direct I/O wants.
    pub chunk_bytes: u64,
    /// Longest write.
    pub write_bytes: u64,
    /// Longest read.
    pub read_bytes: u64,
    /// Largest segment file.
    pub segment_bytes: u64,
    /// How far beyond the backlog somebody has to be behind before anything is written.
    pub slack_bytes: u64,
    /// How much of what was sent a broken connection may have swallowed. As long as it is not acknowledged it stays in
    /// memory, up to so much beyond the backlog, and can be sent again.
    pub unacked_bytes: u64,
}

impl Sizes {
    /// Those of a server.
    pub const USUAL: Self = Self {
        chunk_bytes: 1 << 20,
        write_bytes: 4 << 20,
        read_bytes: 1 << 20,
        segment_bytes: 64 << 20,
        slack_bytes: 4 << 20,
        // What the sockets of both ends hold at most as Linux is set up.
        unacked_bytes: 16 << 20,
    };
}

/// What has to be done with segment files, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Append these to the segment; its first write makes it. All together are a multiple of [`Sizes::chunk_bytes`].
    Write { segment: u64, bytes: Vec<Bytes> },
    /// Read from the segment.
    Read { read: u64, segment: u64, at_bytes: u64, len_bytes: u64 },
    /// Nobody needs the segment any more.
    Delete { segment: u64 },
    /// A line for the server's log.
    Warn(String),
}

/// What came of a [`Step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Written(Result<(), String>),
    Read { read: u64, outcome: Result<Bytes, String> },
}

struct Segment {
    id: u64,
    /// Offset before its first byte.
    start: u64,
    /// Written for sure.
    len_bytes: u64,
    /// Nothing more is written to it.
    is_sealed: bool,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start + self.len_bytes
    }
}

struct Writing {
    segment: u64,
    len_bytes: u64,
}

/// Where a range of the stream lies.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) at_bytes: u64,
    pub(super) len_bytes: u64,
}

/// A range of the stream in segment files, without a gap: `start..end`, which may be empty.
pub(super) struct Range {
    segments: VecDeque<Segment>,
    end: u64,
    /// One write at a time bounds what is under way.
    writing: Option<Writing>,
    next_segment: u64,
    steps: Vec<Step>,
}

impl Range {
    pub(super) fn new() -> Self {
        Self { segments: VecDeque::new(), end: 0, writing: None, next_segment: 0, steps: Vec::new() }
    }

    pub(super) fn start(&self) -> u64 {
        self.segments.front().map_or(self.end, |segment| segment.start)
    }

    /// What is written for sure ends here.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes on disk, and on their way to it.
    pub(super) fn disk_bytes(&self) -> u64 {
        let written: u64 = self.segments.iter().map(|segment| segment.len_bytes).sum();
        written + self.writing.as_ref().map_or(0, |writing| writing.len_bytes)
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Gives everything up. The next write begins at `offset`.
    pub(super) fn restart(&mut self, offset: u64) {
        for segment in self.segments.drain(..) {
            self.steps.push(Step::Delete { segment: segment.id });
        }
        self.end = offset;
    }

    /// Gives up whole segments before `offset`.
    pub(super) fn release(&mut self, offset: u64) {
        while let Some(segment) = self.segments.front()
            && segment.end() <= offset
            && self.writing.as_ref().is_none_or(|writing| writing.segment != segment.id)
        {
            self.drop_oldest();
        }
    }

    /// Gives up the oldest segment. False: there is none.
    ///
    /// # Panics
    /// If it is being written to.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let Some(segment) = self.segments.pop_front() else { return false };
        assert!(self.writing.as_ref().is_none_or(|writing| writing.segment != segment.id));
        self.steps.push(Step::Delete { segment: segment.id });
        true
    }

    /// How much of `len_bytes` the next write may carry.
    pub(super) fn room(&self, len_bytes: u64, segment_bytes: u64, sizes: &Sizes) -> u64 {
        let left = match self.segments.back() {
            Some(segment) if !segment.is_sealed && segment.len_bytes < segment_bytes => {
                segment_bytes - segment.len_bytes
            }
            _ => segment_bytes,
        };
        let len_bytes = len_bytes.min(sizes.write_bytes).min(left);
        len_bytes - len_bytes % sizes.chunk_bytes
    }

    /// Writes these, which follow what is written: no more than [`Range::room`] says.
    ///
    /// # Panics
    /// If a write is under way.
    pub(super) fn write(&mut self, bytes: Vec<Bytes>, len_bytes: u64, segment_bytes: u64) {
        assert!(self.writing.is_none(), "one write at a time");
        let open = self.segments.back().filter(|last| !last.is_sealed && last.len_bytes < segment_bytes);
        let segment = open.map(|segment| segment.id).unwrap_or_else(|| {
            let id = self.next_segment;
            self.next_segment += 1;
            self.segments.push_back(Segment { id, start: self.end, len_bytes: 0, is_sealed: false });
            id
        });
        self.writing = Some(Writing { segment, len_bytes });
        self.steps.push(Step::Write { segment, bytes });
    }

    /// The write under way ended.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn written(&mut self, is_ok: bool) {
        let writing = self.writing.take().expect("a write is under way");
        // It may have been given up meanwhile.
        let Some(last) = self.segments.back_mut().filter(|last| last.id == writing.segment) else { return };
        if is_ok {
            last.len_bytes += writing.len_bytes;
            self.end += writing.len_bytes;
            return;
        }
        // What lies behind its good part is unknown: the next write goes to another.
        last.is_sealed = true;
        if last.len_bytes == 0 {
            let segment = last.id;
            self.segments.pop_back();
            self.steps.push(Step::Delete { segment });
        }
    }

    /// Where the bytes behind `offset` lie, up to `max_bytes`; None: not on disk.
    pub(super) fn place(&self, offset: u64, max_bytes: u64) -> Option<Place> {
        let at = self.segments.partition_point(|segment| segment.end() <= offset);
        let segment = self.segments.get(at).filter(|segment| segment.start <= offset)?;
        let at_bytes = offset - segment.start;
        let len_bytes = max_bytes.min(segment.len_bytes - at_bytes);
        Some(Place { segment: segment.id, at_bytes, len_bytes })
    }

    pub(super) fn read(&mut self, read: u64, place: Place) {
        let Place { segment, at_bytes, len_bytes } = place;
        self.steps.push(Step::Read { read, segment, at_bytes, len_bytes });
    }

    pub(super) fn warn(&mut self, line: String) {
        self.steps.push(Step::Warn(line));
    }

    pub(super) fn take_steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes {
        chunk_bytes: 10,
        write_bytes: 40,
        read_bytes: 15,
        segment_bytes: 60,
        slack_bytes: 0,
        unacked_bytes: 0,
    };

    fn write(range: &mut Range, len_bytes: u64) -> u64 {
        let room = range.room(len_bytes, SIZES.segment_bytes, &SIZES);
        range.write(vec![Bytes::from(vec![1; room as usize])], room, SIZES.segment_bytes);
        room
    }

    #[test]
    fn writes_are_whole_chunks_and_fill_segments() {
        let mut range = Range::new();
        range.restart(1000);
        assert_eq!(range.room(9, 60, &SIZES), 0);
        assert_eq!(write(&mut range, 100), 40);
        assert_eq!((range.end(), range.disk_bytes()), (1000, 40), "not written for sure yet");
        assert_eq!(range.place(1000, 5), None);
        range.written(true);
        assert_eq!(write(&mut range, 100), 20, "what the segment takes");
        range.written(true);
        assert_eq!(write(&mut range, 15), 10);
        range.written(true);
        assert_eq!((range.start(), range.end(), range.disk_bytes()), (1000, 1070, 70));
        assert_eq!(range.place(1055, 15), Some(Place { segment: 0, at_bytes: 55, len_bytes: 5 }));
        assert_eq!(range.place(1060, 15), Some(Place { segment: 1, at_bytes: 0, len_bytes: 10 }));
        assert_eq!((range.place(1070, 15), range.place(999, 15)), (None, None));
        range.release(1059);
        assert_eq!(range.start(), 1000);
        range.release(1060);
        assert_eq!(range.start(), 1060);
    }

    #[test]
    fn no_loss_behind_a_failed_write_goes_a_new_segment() {
        let mut range = Range::new();
        range.restart(0);
        write(&mut range, 20);
        range.written(true);
        write(&mut range, 20);
        range.written(false);
        assert_eq!((range.end(), range.disk_bytes()), (20, 20));
        write(&mut range, 10);
        range.written(false);
        write(&mut range, 10);
        range.written(true);
        assert_eq!(range.place(0, 99), Some(Place { segment: 0, at_bytes: 0, len_bytes: 20 }));
        assert_eq!(range.place(20, 99), Some(Place { segment: 2, at_bytes: 0, len_bytes: 10 }));
        assert!(range.take_steps().contains(&Step::Delete { segment: 1 }));
    }

    #[test]
    fn a_write_that_was_given_up_does_not_count() {
        let mut range = Range::new();
        range.restart(0);
        write(&mut range, 20);
        range.restart(500);
        assert!(range.is_writing());
        range.written(true);
        assert_eq!((range.start(), range.end(), range.disk_bytes()), (500, 500, 0));
    }
}
