//! Who is behind what memory keeps, and how the disk serves them.
//!
//! Nothing is written while everybody is in step. The log spills once somebody is more than a little behind the backlog:
//! a reader, or a replica that went away and is expected back. From then on whatever leaves the backlog goes to disk first;
//! a reader whose bytes are not in memory any more has them read, two reads ahead at most. When nobody is behind any more
//! what is on disk is given up. So a replica that never comes back costs one `repl-backlog-disk-size` of writes, and then
//! it is forgotten.
//!
//! **What a replica needs** begins with what it has not acknowledged: what was sent may have been in a socket's buffer when
//! the connection broke. Memory keeps of that beyond the backlog what sockets may hold, the disk all of it.
//!
//! **When the disk fails** writes pause, and memory keeps what is not written as if there were no disk: until the readers'
//! limits are exceeded. Who needs bytes that cannot be read is cut off.

use super::spill::{Place, Range, Sizes, Step, Told};
use super::{Exceeded, Log, Reader, ReaderId};

/// Replicas that are expected back, at most.
const ABSENT_MAX: usize = 64;
/// How long nothing is written after a write failed.
const PAUSE_MS: u64 = 10_000;
/// The smallest budget, in chunks.
const BUDGET_MIN_CHUNKS: u64 = 8;
/// Reads kept ready for a reader, the one being sent among them.
const FETCHED_MAX: usize = 2;

/// A replica that went away.
struct Absent {
    who: String,
    /// Bytes of the stream that it has for sure.
    position: u64,
}

struct UnderWay {
    read: u64,
    reader: ReaderId,
    start: u64,
    len_bytes: u64,
}

/// The log's state for this file.
pub(super) struct Spill {
    sizes: Sizes,
    /// `repl-backlog-disk-size`; 0: everything stays in memory.
    budget_bytes: u64,
    range: Range,
    /// Somebody is behind.
    is_on: bool,
    /// A write failed: the next is tried then.
    paused_until_ms: Option<u64>,
    reads: Vec<UnderWay>,
    next_read: u64,
    absent: Vec<Absent>,
}

impl Spill {
    pub(super) fn new() -> Self {
        Self {
            sizes: Sizes::USUAL,
            budget_bytes: 0,
            range: Range::new(),
            is_on: false,
            paused_until_ms: None,
            reads: Vec::new(),
            next_read: 0,
            absent: Vec::new(),
        }
    }

    /// The history ends.
    pub(super) fn reset(&mut self, offset: u64) {
        self.is_on = false;
        self.absent.clear();
        self.range.restart(offset);
    }

    fn segment_bytes(&self) -> u64 {
        let chunk_bytes = self.sizes.chunk_bytes;
        let share_bytes = self.budget_bytes / BUDGET_MIN_CHUNKS / chunk_bytes * chunk_bytes;
        share_bytes.clamp(chunk_bytes, self.sizes.segment_bytes)
    }
}

impl Reader {
    /// What it may ask for again begins here.
    fn need(&self) -> u64 {
        self.acked.map_or(self.position, |acked| acked.min(self.position))
    }

    /// The same, as far as sockets may hold it. It acknowledges once a second, which at full speed is far behind what it has.
    fn likely_need(&self, sizes: &Sizes) -> u64 {
        self.need().max(self.position.saturating_sub(sizes.unacked_bytes))
    }

    fn fetched_bytes(&self) -> u64 {
        self.fetched.iter().map(|bytes| bytes.len() as u64).sum()
    }
}

impl Log {
    /// `repl-backlog-disk-size`, at once. 0 keeps everything in memory; other sizes are raised to what can be managed.
    pub fn set_disk_bytes(&mut self, disk_bytes: u64) {
        let min_bytes = self.spill.sizes.chunk_bytes * BUDGET_MIN_CHUNKS;
        self.spill.budget_bytes = if disk_bytes == 0 { 0 } else { disk_bytes.max(min_bytes) };
        self.trim();
    }

    /// For tests with little data: other sizes than [`Sizes::USUAL`].
    #[cfg(test)]
    pub(super) fn set_sizes(&mut self, sizes: Sizes) {
        self.spill.sizes = sizes;
    }

    /// `repl_backlog_disk_bytes`.
    pub fn disk_bytes(&self) -> u64 {
        self.spill.range.disk_bytes()
    }

    /// What the stream costs in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.end - self.start + self.readers().map(Reader::fetched_bytes).sum::<u64>()
    }

    /// Offset before the first byte that is kept, in memory or on disk.
    pub(super) fn first_offset(&self) -> u64 {
        // What memory has of earlier bytes goes with the next trim, for nobody needs it.
        if self.spill.is_on { self.spill.range.start() } else { self.start }
    }

    /// The reader says that it has applied the stream up to `offset`.
    pub fn acked(&mut self, id: ReaderId, offset: u64) {
        let reader = self.reader_mut(id);
        reader.acked = reader.acked.max(Some(offset));
    }

    /// The reader goes away, and whoever it is may come back for the rest. To be called before it is removed.
    pub fn expect_back(&mut self, id: ReaderId, who: String) {
        let reader = self.reader(id);
        if self.spill.budget_bytes == 0 || reader.lost.is_some() || reader.acked.is_none() {
            return;
        }
        // It acknowledges now and then only, and has more most likely.
        let position = reader.need().max(self.first_offset());
        let absent = &mut self.spill.absent;
        if let Some(same) = absent.iter_mut().find(|absent| absent.who == who) {
            same.position = same.position.min(position);
            return;
        }
        if absent.len() == ABSENT_MAX {
            absent.remove(0);
        }
        absent.push(Absent { who, position });
    }

    /// It is back; what it needs, its reader says.
    pub fn is_back(&mut self, who: &str) {
        self.spill.absent.retain(|absent| absent.who != who);
    }

    /// Time passes: after a failure the disk is tried again.
    pub fn tick(&mut self, now_ms: u64) {
        self.spill.paused_until_ms.take_if(|until_ms| *until_ms <= now_ms);
    }

    /// When [`Log::tick`] has something to do. Trim the log afterwards.
    pub fn next_tick_ms(&self) -> Option<u64> {
        self.spill.paused_until_ms
    }

    /// What has to be done with segment files, in order. Each write and read is answered by [`Log::told`].
    pub fn take_steps(&mut self) -> Vec<Step> {
        self.spill.range.take_steps()
    }

    /// What came of a step. Trim the log afterwards.
    ///
    /// # Panics
    /// If nothing of the kind is under way.
    pub fn told(&mut self, told: Told, now_ms: u64) {
        match told {
            Told::Written(outcome) => {
                self.spill.range.written(outcome.is_ok());
                if let Err(why) = outcome {
                    self.spill.paused_until_ms = Some(now_ms + PAUSE_MS);
                    self.spill.range.warn(format!(
                        "The replication stream can't be written to disk: {why}. What slow replicas need stays in \
                         memory, up to client-output-buffer-limit"
                    ));
                }
            }
            Told::Read { read, outcome } => {
                let at = self.spill.reads.iter().position(|under_way| under_way.read == read);
                let read = self.spill.reads.swap_remove(at.expect("a read is under way"));
                let slot = &mut self.slots[read.reader.slot as usize];
                let is_same = slot.generation == read.reader.generation;
                let Some(reader) = slot.reader.as_mut().filter(|_| is_same) else { return };
                if reader.position + reader.fetched_bytes() != read.start {
                    // What was being sent when this was asked for has taken it past that.
                    return;
                }
                match outcome {
                    Ok(bytes) if bytes.len() as u64 == read.len_bytes => reader.fetched.push_back(bytes),
                    outcome => {
                        reader.lost = Some(Exceeded::Unreadable);
                        let why = outcome.err().unwrap_or_else(|| "it is too short".into());
                        self.spill
                            .range
                            .warn(format!("The replication stream can't be read from disk: {why}"));
                    }
                }
            }
        }
    }

    /// Where the backlog begins.
    fn window(&self) -> u64 {
        self.end.saturating_sub(self.backlog_bytes)
    }

    fn live_readers(&self) -> impl Iterator<Item = &Reader> {
        self.readers().filter(|reader| reader.lost.is_none())
    }

    fn absent_positions(&self) -> impl Iterator<Item = u64> {
        self.spill.absent.iter().map(|absent| absent.position)
    }

    /// What anybody may ask for begins here.
    fn need(&self) -> u64 {
        self.live_readers().map(Reader::need).chain(self.absent_positions()).fold(self.end, u64::min)
    }

    /// What anybody at or behind `from` will probably ask for.
    fn likely_need(&self, from: u64) -> u64 {
        let live = self.live_readers().filter(|reader| reader.position >= from);
        let absent = self.absent_positions().filter(|position| *position >= from);
        live.map(|reader| reader.likely_need(&self.spill.sizes)).chain(absent).fold(self.end, u64::min)
    }

    /// Where the last of them is.
    fn last_position(&self) -> u64 {
        self.live_readers()
            .map(|reader| reader.position)
            .chain(self.absent_positions())
            .fold(self.end, u64::min)
    }

    /// What memory has to keep begins here.
    pub(super) fn memory_floor(&self) -> u64 {
        let window = self.window();
        let positions = || self.live_readers().map(|reader| reader.position);
        if self.spill.budget_bytes == 0 {
            return positions().fold(window, u64::min);
        }
        let Sizes { slack_bytes, unacked_bytes, .. } = self.spill.sizes;
        // Who is further behind has all of it from disk.
        let unacked = self.likely_need(window.saturating_sub(slack_bytes));
        let floor = window.min(unacked.max(window.saturating_sub(unacked_bytes)));
        if self.spill.is_on { floor.min(self.spill.range.end()) } else { positions().fold(floor, u64::min) }
    }

    /// Bytes that only memory keeps for the reader.
    pub(super) fn pending_in_memory(&self, reader: &Reader) -> u64 {
        let from =
            if self.spill.is_on { reader.position.max(self.spill.range.end()) } else { reader.position };
        self.end - from.min(self.end)
    }

    /// How much may wait in memory for a reader before its limits matter; None: as they are.
    pub(super) fn pending_grace(&self) -> Option<u64> {
        let Sizes { slack_bytes, unacked_bytes, write_bytes, .. } = self.spill.sizes;
        (self.spill.budget_bytes > 0 && self.spill.paused_until_ms.is_none())
            .then_some(self.backlog_bytes + slack_bytes + unacked_bytes + write_bytes)
    }

    /// Decides what goes to disk and what there is given up.
    pub(super) fn spill(&mut self) {
        if self.spill.budget_bytes == 0 {
            self.stop_spilling();
            return;
        }
        if !self.spill.is_on {
            let last_position = self.last_position();
            if last_position + self.spill.sizes.slack_bytes >= self.window() {
                return;
            }
            self.spill.is_on = true;
            let start = self.need().max(self.start);
            self.spill.range.restart(start);
        }
        self.forget_absent_in_memory();
        loop {
            let close = self.window().saturating_sub(self.spill.sizes.slack_bytes / 2);
            if self.last_position() >= close && self.likely_need(0) >= self.start {
                self.stop_spilling();
                return;
            }
            let need = self.need();
            self.spill.range.release(need);
            if self.spill.range.is_writing() {
                return;
            }
            if need > self.spill.range.end() {
                self.spill.range.restart(need);
            }
            if self.spill.paused_until_ms.is_some() {
                return;
            }
            let segment_bytes = self.spill.segment_bytes();
            let left_bytes = self.window().saturating_sub(self.spill.range.end());
            let len_bytes = self.spill.range.room(left_bytes, segment_bytes, &self.spill.sizes);
            if len_bytes == 0 {
                return;
            }
            if self.spill.range.disk_bytes() + len_bytes > self.spill.budget_bytes {
                assert!(self.spill.range.drop_oldest(), "the budget has room for several segments");
                self.give_up_the_slowest();
                continue;
            }
            let mut bytes = Vec::new();
            let from = self.spill.range.end();
            let found_bytes = self.slices(from, len_bytes, usize::MAX, &mut bytes);
            assert_eq!(found_bytes, len_bytes, "what is not written is in memory");
            self.spill.range.write(bytes, len_bytes, segment_bytes);
            return;
        }
    }

    /// Nobody is behind any more, or nobody may be.
    fn stop_spilling(&mut self) {
        if self.spill.is_on {
            self.spill.is_on = false;
            self.spill.range.restart(self.end);
            self.give_up_the_slowest();
        }
    }

    /// Lets go of who needs what is not kept any more.
    fn give_up_the_slowest(&mut self) {
        let first = self.first_offset();
        self.spill.absent.retain(|absent| absent.position >= first);
        for reader in self.slots.iter_mut().filter_map(|slot| slot.reader.as_mut()) {
            if reader.position < first {
                reader.lost.get_or_insert(Exceeded::Disk);
                reader.fetched.clear();
            }
        }
    }

    /// A disk that cannot keep up must not fill the memory for replicas that are not even there.
    fn forget_absent_in_memory(&mut self) {
        let unwritten_bytes = self.window().saturating_sub(self.spill.range.end());
        if unwritten_bytes > 4 * self.spill.sizes.unacked_bytes {
            let window = self.window();
            self.spill.absent.retain(|absent| absent.position >= window);
        }
    }

    /// Has the next bytes read for whoever cannot have them from memory.
    pub(super) fn read_ahead(&mut self) {
        if !self.spill.is_on {
            return;
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(reader) = slot.reader.as_ref().filter(|reader| reader.lost.is_none()) else { continue };
            let id = ReaderId { slot: index as u32, generation: slot.generation };
            let next = reader.position + reader.fetched_bytes();
            let is_reading = self.spill.reads.iter().any(|read| read.reader == id);
            if next >= self.start || is_reading || reader.fetched.len() >= FETCHED_MAX {
                continue;
            }
            let place = self.spill.range.place(next, self.spill.sizes.read_bytes);
            let place: Place = place.expect("what is not in memory is on disk");
            let read = self.spill.next_read;
            self.spill.next_read += 1;
            self.spill.reads.push(UnderWay { read, reader: id, start: next, len_bytes: place.len_bytes });
            self.spill.range.read(read, place);
        }
    }
}

#[cfg(test)]
mod tests;
