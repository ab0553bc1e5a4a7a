//! A node of a quicklist: a listpack, or one big element.

use super::super::list::End;
use super::super::listpack::{Element, Listpack, MAX_OVERHEAD_BYTES, Needle};

/// Bytes that a node limited by count may hold, as Redis: a count alone does not bound memory.
const COUNTED_NODE_MAX_BYTES: usize = 8192;
/// Redis's estimate of what one more element costs beyond its own bytes.
pub(super) const ESTIMATED_OVERHEAD_BYTES: usize = 8;
const _: () = assert!(ESTIMATED_OVERHEAD_BYTES <= MAX_OVERHEAD_BYTES);

/// How much a node may hold: the meaning of `list-max-listpack-size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeLimit {
    Bytes(usize),
    Elements(usize),
}

impl NodeLimit {
    /// Reads the directive's number: -1 to -5 are 4 to 64 KiB (less means 64 KiB), others count elements.
    pub fn from_directive(size: i32) -> Self {
        match size {
            ..=-1 => NodeLimit::Bytes(2048 << size.unsigned_abs().min(5)),
            0.. => NodeLimit::Elements(size.clamp(1, 32767) as usize),
        }
    }

    /// Whether a node of that size would be too big.
    pub fn is_exceeded(self, bytes: usize, elements: usize) -> bool {
        match self {
            NodeLimit::Bytes(limit) => bytes > limit,
            NodeLimit::Elements(limit) => bytes > COUNTED_NODE_MAX_BYTES || elements > limit,
        }
    }

    /// Whether an element must be a plain node of its own.
    pub(super) fn is_large(self, bytes: usize) -> bool {
        match self {
            NodeLimit::Bytes(limit) => bytes > limit,
            NodeLimit::Elements(_) => bytes > COUNTED_NODE_MAX_BYTES,
        }
    }

    /// Whether a list of that size may become compact again: well below the limit, so that it does not flap.
    pub fn allows_shrinking(self, bytes: usize, elements: usize) -> bool {
        match self {
            NodeLimit::Bytes(limit) => bytes <= limit / 2,
            NodeLimit::Elements(limit) => elements <= limit / 2,
        }
    }
}

/// A node as RDB stores it.
#[derive(Clone, Copy, Debug)]
pub enum NodeRef<'a> {
    /// One big element.
    Plain(&'a [u8]),
    Packed(&'a Listpack),
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Plain(Box<[u8]>),
    Packed(Listpack),
}

/// Invariant: not empty; `count` is the number of elements in `content`.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub content: Content,
    count: u32,
}

impl Node {
    pub fn plain(text: &[u8]) -> Self {
        Node { content: Content::Plain(text.into()), count: 1 }
    }

    pub fn packed(pack: Listpack) -> Self {
        let count = u32::try_from(pack.len()).expect("a listpack has fewer than 2^30 elements");
        assert!(count > 0, "a node is never empty");
        Node { content: Content::Packed(pack), count }
    }

    pub fn of(text: &[u8], limit: NodeLimit) -> Self {
        if limit.is_large(text.len()) {
            return Node::plain(text);
        }
        let mut pack = Listpack::with_capacity(text.len() + ESTIMATED_OVERHEAD_BYTES);
        pack.push_back(text);
        Node { content: Content::Packed(pack), count: 1 }
    }

    pub fn count(&self) -> usize {
        self.count as usize
    }

    pub fn len_bytes(&self) -> usize {
        match &self.content {
            Content::Plain(text) => text.len(),
            Content::Packed(pack) => pack.len_bytes(),
        }
    }

    pub fn heap_bytes(&self) -> usize {
        match &self.content {
            Content::Plain(text) => text.len(),
            Content::Packed(pack) => pack.heap_bytes(),
        }
    }

    /// Adds an element at one end, if there is room; else the node is full.
    pub fn push(&mut self, end: End, text: &[u8], limit: NodeLimit) -> bool {
        let Some(pack) = self.pack_with_room(text.len(), limit) else { return false };
        match end {
            End::Front => pack.push_front(text),
            End::Back => pack.push_back(text),
        }
        self.count += 1;
        true
    }

    /// Adds an element before the one of that index, if there is room.
    pub fn insert(&mut self, inner: usize, text: &[u8], limit: NodeLimit) -> bool {
        let Some(pack) = self.pack_with_room(text.len(), limit) else { return false };
        let position = pack.seek(inner).expect("the index lies in this node");
        pack.insert(position, text);
        self.count += 1;
        true
    }

    /// Replaces an element in its place, if there is room.
    pub fn replace(&mut self, inner: usize, text: &[u8], limit: NodeLimit) -> bool {
        let Content::Packed(pack) = &mut self.content else { return false };
        if limit.is_large(text.len()) {
            return false;
        }
        let position = pack.seek(inner).expect("the index lies in this node");
        let old_bytes = pack.next(position) - position;
        let bytes = pack.len_bytes() - old_bytes + text.len() + ESTIMATED_OVERHEAD_BYTES;
        if limit.is_exceeded(bytes, self.count as usize) {
            return false;
        }
        pack.replace(position, text);
        true
    }

    /// Removes some elements, not all.
    pub fn remove(&mut self, inner: usize, count: usize) {
        assert!(inner + count <= self.count() && count < self.count());
        self.count -= count as u32;
        if let Content::Packed(pack) = &mut self.content {
            let position = pack.seek(inner).expect("the index lies in this node");
            let removed = pack.remove_run(position, count);
            assert_eq!(removed, count);
        }
    }

    /// Splits off its elements from `inner` on.
    pub fn split_off(&mut self, inner: usize) -> Node {
        assert!(inner > 0 && inner < self.count());
        let Content::Packed(pack) = &mut self.content else { unreachable!("a plain node has one element") };
        let tail = pack.split_off(pack.seek(inner).expect("the index lies in this node"));
        self.count = inner as u32;
        Node::packed(tail)
    }

    /// Byte position of an element's entry; a plain node's only position is 0.
    pub fn position(&self, inner: usize) -> usize {
        match &self.content {
            Content::Plain(_) => 0,
            Content::Packed(pack) => pack.seek(inner).expect("the index lies in this node"),
        }
    }

    /// Byte position behind its last element.
    pub fn end(&self) -> usize {
        match &self.content {
            Content::Plain(_) => 1,
            Content::Packed(pack) => pack.end(),
        }
    }

    /// As RDB stores it.
    pub fn as_ref(&self) -> NodeRef<'_> {
        match &self.content {
            Content::Plain(text) => NodeRef::Plain(text),
            Content::Packed(pack) => NodeRef::Packed(pack),
        }
    }

    /// The listpack, if one more element of `text_len` bytes may join it.
    fn pack_with_room(&mut self, text_len: usize, limit: NodeLimit) -> Option<&mut Listpack> {
        match &mut self.content {
            Content::Packed(pack) if !limit.is_large(text_len) => {
                let bytes = pack.len_bytes() + text_len + ESTIMATED_OVERHEAD_BYTES;
                (!limit.is_exceeded(bytes, self.count as usize + 1)).then_some(pack)
            }
            _ => None,
        }
    }

    pub fn get(&self, index: usize) -> Option<Element<'_>> {
        match &self.content {
            Content::Plain(text) => (index == 0).then_some(Element::Str(text)),
            Content::Packed(pack) => pack.nth(index),
        }
    }
}

impl NodeLimit {
    /// Whether one node may hold the elements of both.
    pub(super) fn fits_together(self, a: &Node, b: &Node) -> bool {
        matches!((&a.content, &b.content), (Content::Packed(_), Content::Packed(_)))
            && !self.is_exceeded(a.len_bytes() + b.len_bytes(), a.count() + b.count())
    }
}

impl Node {
    /// No end touches it any more: it needs no room to grow.
    pub fn seal(&mut self) {
        if let Content::Packed(pack) = &mut self.content {
            pack.shrink_to_fit();
        }
    }

    /// Appends the elements of the node that follows this one; both are listpacks.
    pub fn absorb(&mut self, next: Node) {
        let (Content::Packed(pack), Content::Packed(other)) = (&mut self.content, &next.content) else {
            unreachable!("only listpacks are merged")
        };
        pack.append(other);
        self.count += next.count;
    }

    /// Removes up to `max` matching elements; the node may be empty afterwards.
    pub fn remove_matching(&mut self, needle: &Needle, max: usize, from_back: bool) -> usize {
        let removed = match &mut self.content {
            Content::Plain(text) => usize::from(max > 0 && needle.matches(Element::Str(text))),
            Content::Packed(pack) => remove_matching_in(pack, needle, max, from_back),
        };
        self.count -= removed as u32;
        removed
    }
}

/// Removes up to `max` elements equal to `needle` from a listpack, from the front or from the back.
pub(in crate::types) fn remove_matching_in(
    pack: &mut Listpack,
    needle: &Needle,
    max: usize,
    from_back: bool,
) -> usize {
    let mut removed = 0;
    let mut at = if from_back { pack.last() } else { Some(pack.start()) };
    while removed < max
        && let Some(position) = at.filter(|&position| position < pack.end())
    {
        let matches = needle.matches(pack.get(position));
        if matches {
            pack.remove(position);
            removed += 1;
        }
        at = match (from_back, matches) {
            (true, _) => pack.prev(position),
            (false, true) => Some(position),
            (false, false) => Some(pack.next(position)),
        };
    }
    removed
}
