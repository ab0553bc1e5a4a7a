//! From hash to segment: extendible hashing in two levels.
//!
//! A group is a directory of 2^bits segment handles, indexed by hash bits; a segment of smaller depth fills several
//! neighbouring places. A table starts with one group and goes over to 256 (by the hash's top eight bits) when a group
//! would exceed `MAX_ROOT_BITS`. From then on a group is 1/256 of the whole: at 100 million entries it has 1024 to 2048
//! handles, and doubling it writes 16 KiB, a few microseconds; at a billion, some 30. No step touches all of it.

use super::segment::Segment;

const ROOT_BITS: u32 = 8;
/// Largest group while it is the only one: 16 KiB of handles.
const MAX_ROOT_BITS: u32 = 11;

pub(super) struct Group {
    words: Box<[Segment]>,
    bits: u32,
    /// Segments, each counted once.
    segments: u32,
    /// No entry of the group expires before this.
    pub min_expiry_ms: u64,
}

/// Without groups: the empty table, which owns no memory.
#[derive(Default)]
pub(super) struct Directory {
    groups: Box<[Group]>,
    root_bits: u32,
}

/// The top `bits` (0 to 63) of a hash.
#[inline]
fn top_bits(hash: u64, bits: u32) -> usize {
    ((hash >> 1) >> (63 - bits)) as usize
}

impl Group {
    #[inline]
    fn index(&self, hash: u64, root_bits: u32) -> usize {
        top_bits(hash << root_bits, self.bits)
    }

    /// The places that show the segment of `hash`, were its depth `depth`.
    fn places(&self, hash: u64, root_bits: u32, depth: u32) -> std::ops::Range<usize> {
        let span = 1 << (self.bits - (depth - root_bits));
        let start = self.index(hash, root_bits) & !(span - 1);
        start..start + span
    }

    fn double(&mut self) {
        self.words = self.words.iter().flat_map(|&segment| [segment, segment]).collect();
        self.bits += 1;
    }

    fn heap_bytes(&self) -> usize {
        size_of_val::<[Segment]>(&self.words)
    }
}

impl Directory {
    /// One segment for all hashes.
    pub fn with_segment(segment: Segment) -> Self {
        let min_expiry_ms = segment.min_expiry_ms();
        Directory {
            groups: Box::new([Group { words: Box::new([segment]), bits: 0, segments: 1, min_expiry_ms }]),
            root_bits: 0,
        }
    }

    /// The segment of `hash`; `None` only in an empty directory.
    #[inline]
    pub fn find(&self, hash: u64) -> Option<Segment> {
        let group = self.groups.get(top_bits(hash, self.root_bits))?;
        Some(group.words[group.index(hash, self.root_bits)])
    }

    #[inline]
    pub fn group_index(&self, hash: u64) -> usize {
        top_bits(hash, self.root_bits)
    }

    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Depth of segments that are alone in their group; none is shallower.
    pub fn root_bits(&self) -> u32 {
        self.root_bits
    }

    /// First hash position of a group.
    pub fn group_start(&self, index: usize) -> u64 {
        if index == 0 { 0 } else { (index as u64) << (64 - self.root_bits) }
    }

    /// Deepest place of the directory; no segment is deeper.
    pub fn max_depth(&self) -> u32 {
        self.root_bits + self.groups.iter().map(|group| group.bits).max().unwrap_or(0)
    }

    #[inline]
    pub fn group_mut(&mut self, hash: u64) -> &mut Group {
        &mut self.groups[top_bits(hash, self.root_bits)]
    }

    /// Lowers the group's bound to `ms`.
    #[inline]
    pub fn note_expiry(&mut self, hash: u64, ms: u64) {
        let group = self.group_mut(hash);
        group.min_expiry_ms = group.min_expiry_ms.min(ms);
    }

    /// Shows `segment` wherever its range lies. Its depth has room in the group.
    pub fn place(&mut self, hash: u64, segment: Segment) {
        let root_bits = self.root_bits;
        let group = self.group_mut(hash);
        let places = group.places(hash, root_bits, segment.depth());
        group.words[places].fill(segment);
    }

    /// Replaces the segment of `hash` by its two halves.
    pub fn place_halves(&mut self, hash: u64, low: Segment, high: Segment) {
        let depth = low.depth();
        debug_assert!(depth == high.depth());
        if depth > self.root_bits + self.group_mut(hash).bits {
            // Every segment must lie within one group; a mixed hash makes them all deep enough long before.
            let root = &self.groups[0];
            if self.root_bits == 0
                && root.bits >= MAX_ROOT_BITS
                && root.words.iter().all(|segment| segment.depth() >= ROOT_BITS)
            {
                self.split_root();
            }
            let root_bits = self.root_bits;
            let group = self.group_mut(hash);
            while depth > root_bits + group.bits {
                group.double();
            }
        }
        let half = 1 << (64 - depth);
        self.place(hash & !half, low);
        self.place(hash | half, high);
        self.group_mut(hash).segments += 1;
    }

    /// Replaces the segment of `hash` and its neighbour by `merged`, one less deep.
    pub fn place_merged(&mut self, hash: u64, merged: Segment) {
        self.place(hash, merged);
        let group = self.group_mut(hash);
        group.segments -= 1;
        // Halve while the group is far larger than needed, unless some segment still is as deep as its places.
        while group.bits > 0 && group.segments as usize * 4 <= group.words.len() {
            let pairs = group.words.chunks_exact(2);
            if !pairs.clone().all(|pair| pair[0] == pair[1]) {
                break;
            }
            group.words = pairs.map(|pair| pair[0]).collect();
            group.bits -= 1;
        }
    }

    /// From one group to 256.
    fn split_root(&mut self) {
        let group = &self.groups[0];
        let (bits, min_expiry_ms) = (group.bits - ROOT_BITS, group.min_expiry_ms);
        self.groups = group
            .words
            .chunks_exact(1 << bits)
            .map(|words| {
                let segments = 1 + words.windows(2).filter(|pair| pair[0] != pair[1]).count() as u32;
                // The whole's bound holds for each part; looking into the segments would take too long.
                Group { words: words.into(), bits, segments, min_expiry_ms }
            })
            .collect();
        self.root_bits = ROOT_BITS;
    }

    pub fn heap_bytes(&self) -> usize {
        size_of_val::<[Group]>(&self.groups) + self.groups.iter().map(Group::heap_bytes).sum::<usize>()
    }

    /// All segments in hash order; empties the directory.
    pub fn take_segments(&mut self) -> Segments {
        Segments { groups: std::mem::take(&mut self.groups).into_vec(), place: 0 }
    }
}

/// The segments of a former directory, last to first.
#[derive(Default)]
pub(super) struct Segments {
    groups: Vec<Group>,
    /// Places of the last group already handed out, from its end.
    place: usize,
}

impl Iterator for Segments {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        loop {
            let words = &self.groups.last()?.words;
            let left = words.len() - self.place;
            if left == 0 {
                self.groups.pop();
                self.place = 0;
                continue;
            }
            let segment = words[left - 1];
            self.place += words[..left].iter().rev().take_while(|&&other| other == segment).count();
            return Some(segment);
        }
    }
}
