//! Quicklist: a deque of listpacks, for lists too long for one.
//!
//! A node holds elements up to a limit in bytes or in count; an element above the limit is a node of its own, stored
//! plainly. Both ends are reached in constant time. An index is found by walking the counts, which lie side by side in
//! the deque: a list of ten million short elements has about ten thousand nodes, a few microseconds' walk.
//!
//! The deque doubles when it is full. At a hundred thousand nodes of 32 bytes (some 800 MB of elements) that copies
//! 3 MB, a fraction of a millisecond; growing in pieces would make every index two steps and is not worth it below that.

use super::listpack::{Element, Listpack, MAX_OVERHEAD_BYTES, Needle};
use std::collections::VecDeque;

/// Bytes that a node limited by count may hold, as Redis: a count alone does not bound memory.
const COUNTED_NODE_MAX_BYTES: usize = 8192;
/// Redis's estimate of what one more element costs beyond its own bytes.
const ESTIMATED_OVERHEAD_BYTES: usize = 8;
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
    fn is_large(self, bytes: usize) -> bool {
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
enum Content {
    Plain(Box<[u8]>),
    Packed(Listpack),
}

/// Invariant: not empty; `count` is the number of elements in `content`.
#[derive(Clone, Debug)]
struct Node {
    content: Content,
    count: u32,
}

impl Node {
    fn plain(text: &[u8]) -> Self {
        Node { content: Content::Plain(text.into()), count: 1 }
    }

    fn packed(pack: Listpack) -> Self {
        let count = u32::try_from(pack.len()).expect("a listpack has fewer than 2^30 elements");
        assert!(count > 0, "a node is never empty");
        Node { content: Content::Packed(pack), count }
    }

    fn of(text: &[u8], limit: NodeLimit) -> Self {
        if limit.is_large(text.len()) {
            return Node::plain(text);
        }
        let mut pack = Listpack::with_capacity(text.len() + ESTIMATED_OVERHEAD_BYTES);
        pack.push_back(text);
        Node { content: Content::Packed(pack), count: 1 }
    }

    fn count(&self) -> usize {
        self.count as usize
    }

    fn len_bytes(&self) -> usize {
        match &self.content {
            Content::Plain(text) => text.len(),
            Content::Packed(pack) => pack.len_bytes(),
        }
    }

    fn heap_bytes(&self) -> usize {
        match &self.content {
            Content::Plain(text) => text.len(),
            Content::Packed(pack) => pack.heap_bytes(),
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

    fn get(&self, index: usize) -> Option<Element<'_>> {
        match &self.content {
            Content::Plain(text) => (index == 0).then_some(Element::Str(text)),
            Content::Packed(pack) => pack.nth(index),
        }
    }
}

/// The scalable list. All operations that add take the limit, which may change between calls.
#[derive(Clone, Debug, Default)]
pub struct Quicklist {
    nodes: VecDeque<Node>,
    len: usize,
}

impl Quicklist {
    pub fn new() -> Self {
        Quicklist::default()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes in order, as RDB stores them.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = NodeRef<'_>> {
        self.nodes_from(0)
    }

    /// The nodes from the one of that index on.
    pub fn nodes_from(&self, index: usize) -> impl ExactSizeIterator<Item = NodeRef<'_>> {
        self.nodes.range(index..).map(|node| match &node.content {
            Content::Plain(text) => NodeRef::Plain(text),
            Content::Packed(pack) => NodeRef::Packed(pack),
        })
    }

    /// Appends a listpack as a node; an empty one adds nothing.
    pub fn push_back_pack(&mut self, pack: Listpack) {
        if !pack.is_empty() {
            self.insert_node(self.nodes.len(), Node::packed(pack));
        }
    }

    /// Appends a big element as a plain node.
    pub fn push_back_plain(&mut self, text: &[u8]) {
        self.insert_node(self.nodes.len(), Node::plain(text));
    }

    /// The only node's listpack, if there is just one node and it is a listpack.
    pub fn as_single_pack(&self) -> Option<&Listpack> {
        match self.nodes.front().map(|node| &node.content) {
            Some(Content::Packed(pack)) if self.nodes.len() == 1 => Some(pack),
            _ => None,
        }
    }

    /// Takes the only node's listpack out, leaving the list empty. `None` as for [`Quicklist::as_single_pack`].
    pub fn take_single_pack(&mut self) -> Option<Listpack> {
        self.as_single_pack()?;
        self.len = 0;
        match self.nodes.pop_front()?.content {
            Content::Packed(pack) => Some(pack),
            Content::Plain(_) => None,
        }
    }

    pub fn push_back(&mut self, text: &[u8], limit: NodeLimit) {
        if let Some(node) = self.nodes.back_mut() {
            if let Some(pack) = node.pack_with_room(text.len(), limit) {
                pack.push_back(text);
                node.count += 1;
                self.len += 1;
                return;
            }
            seal(node);
        }
        self.insert_node(self.nodes.len(), Node::of(text, limit));
    }

    pub fn push_front(&mut self, text: &[u8], limit: NodeLimit) {
        if let Some(node) = self.nodes.front_mut() {
            if let Some(pack) = node.pack_with_room(text.len(), limit) {
                pack.push_front(text);
                node.count += 1;
                self.len += 1;
                return;
            }
            seal(node);
        }
        self.insert_node(0, Node::of(text, limit));
    }

    /// Removes the first element after showing it to `with`.
    pub fn pop_front<R>(&mut self, with: impl FnOnce(Element) -> R) -> Option<R> {
        let result = with(self.nodes.front()?.get(0)?);
        self.remove_in_node(0, 0, 1);
        Some(result)
    }

    /// Removes the last element after showing it to `with`.
    pub fn pop_back<R>(&mut self, with: impl FnOnce(Element) -> R) -> Option<R> {
        let node = self.nodes.back()?;
        let last = node.count() - 1;
        let result = with(node.get(last)?);
        self.remove_in_node(self.nodes.len() - 1, last, 1);
        Some(result)
    }

    pub fn get(&self, index: usize) -> Option<Element<'_>> {
        let (node, inner) = self.locate(index)?;
        self.nodes[node].get(inner)
    }

    /// Replaces the element of that index; false if there is none.
    pub fn set(&mut self, index: usize, text: &[u8], limit: NodeLimit) -> bool {
        let Some((at, inner)) = self.locate(index) else { return false };
        let node = &mut self.nodes[at];
        if let Content::Packed(pack) = &mut node.content
            && !limit.is_large(text.len())
        {
            let position = pack.seek(inner).expect("the index lies in this node");
            let old_bytes = pack.next(position) - position;
            let bytes = pack.len_bytes() - old_bytes + text.len() + ESTIMATED_OVERHEAD_BYTES;
            if !limit.is_exceeded(bytes, node.count as usize) {
                pack.replace(position, text);
                return true;
            }
        }
        if node.count == 1 {
            *node = Node::of(text, limit);
        } else {
            self.remove_in_node(at, inner, 1);
            self.insert(index, text, limit);
        }
        true
    }

    /// Inserts before the element of that index; an index of [`Quicklist::len`] appends. Panics beyond it.
    pub fn insert(&mut self, index: usize, text: &[u8], limit: NodeLimit) {
        assert!(index <= self.len);
        let Some((at, inner)) = self.locate(index) else { return self.push_back(text, limit) };
        let node = &mut self.nodes[at];
        if let Some(pack) = node.pack_with_room(text.len(), limit) {
            let position = pack.seek(inner).expect("the index lies in this node");
            pack.insert(position, text);
            node.count += 1;
            self.len += 1;
            return;
        }
        if inner == 0 {
            if let Some(before) = at.checked_sub(1)
                && let Some(pack) = self.nodes[before].pack_with_room(text.len(), limit)
            {
                pack.push_back(text);
                self.nodes[before].count += 1;
                self.len += 1;
            } else {
                self.insert_node(at, Node::of(text, limit));
            }
            return;
        }
        self.split_node(at, inner);
        self.insert_node(at + 1, Node::of(text, limit));
        self.merge_around(at + 1, limit);
    }

    /// Removes `count` elements from `start` on (fewer if the list ends) and returns them as a list of their own as
    /// far as they filled whole nodes, so that the caller can free many of them bit by bit.
    pub fn remove_range(&mut self, start: usize, count: usize) -> Quicklist {
        let mut left = count.min(self.len.saturating_sub(start));
        let mut removed = Quicklist::new();
        let Some((mut at, inner)) = self.locate(start).filter(|_| left > 0) else { return removed };
        if inner > 0 {
            let here = left.min(self.nodes[at].count() - inner);
            self.remove_in_node(at, inner, here);
            left -= here;
            at += 1;
        }
        let mut whole = 0;
        while let Some(node) = self.nodes.get(at + whole).filter(|node| node.count() <= left && left > 0) {
            left -= node.count();
            removed.len += node.count();
            whole += 1;
        }
        self.len -= removed.len;
        removed.nodes = self.nodes.drain(at..at + whole).collect();
        if left > 0 {
            self.remove_in_node(at, 0, left);
        }
        self.release_slack();
        removed
    }

    /// Adds another list's nodes, to be freed together. Best called on the one with more nodes.
    pub fn with_garbage(mut self, other: Quicklist) -> Quicklist {
        self.len += other.len;
        self.nodes.extend(other.nodes);
        self
    }

    /// Removes up to `count` elements equal to `text`, from the front or from the back. Returns how many.
    pub fn remove_matching(&mut self, text: &[u8], count: usize, from_back: bool, limit: NodeLimit) -> usize {
        let needle = Needle::new(text);
        let (mut removed, mut visited, node_count) = (0, 0, self.nodes.len());
        // The index of the node under way, counted from the side we started at.
        let mut distance = 0;
        while removed < count && visited < node_count {
            let at = if from_back { self.nodes.len() - 1 - distance } else { distance };
            let here = self.nodes[at].remove_matching(&needle, count - removed, from_back);
            removed += here;
            self.len -= here;
            if self.nodes[at].count == 0 {
                self.nodes.remove(at);
            } else {
                distance += 1;
            }
            visited += 1;
        }
        if removed > 0 {
            self.merge_small_neighbours(limit);
        }
        removed
    }

    pub fn iter(&self) -> Iter<'_> {
        self.range(0, self.len)
    }

    /// The elements from index `start` up to index `end`, which must not exceed [`Quicklist::len`].
    pub fn range(&self, start: usize, end: usize) -> Iter<'_> {
        assert!(start <= end && end <= self.len);
        let empty = Cursor { node: 0, inner: 0, position: 0 };
        if start == end {
            return Iter { list: self, front: empty, back: empty, left: 0 };
        }
        let (node, inner) = self.locate(start).expect("start lies in the list");
        let front = Cursor { node, inner, position: self.position(node, inner) };
        // The back cursor stands behind the last element of the range.
        let (node, inner) = self.locate(end - 1).expect("end lies in the list");
        let position = match &self.nodes[node].content {
            Content::Plain(_) => 1,
            Content::Packed(pack) => pack.next(self.position(node, inner)),
        };
        Iter { list: self, front, back: Cursor { node, inner: inner + 1, position }, left: end - start }
    }

    /// Bytes allocated.
    pub fn heap_bytes(&self) -> usize {
        // A few nodes tell enough about all of them; a walk over a huge list would stall.
        const SAMPLES: usize = 32;
        let deque = self.nodes.capacity() * size_of::<Node>();
        let step = self.nodes.len().div_ceil(SAMPLES).max(1);
        let sampled = self.nodes.iter().step_by(step);
        let (bytes, count) =
            sampled.fold((0, 0), |(bytes, count), node| (bytes + node.heap_bytes(), count + 1));
        deque + (bytes * self.nodes.len()).checked_div(count).unwrap_or(0)
    }

    /// Frees up to `max_nodes` nodes from the back; true once nothing is left.
    pub fn free_some(&mut self, max_nodes: usize) -> bool {
        for _ in 0..max_nodes {
            match self.nodes.pop_back() {
                Some(node) => self.len -= node.count(),
                None => break,
            }
        }
        self.nodes.is_empty()
    }

    /// The node that holds the element of that index, and its index inside.
    fn locate(&self, index: usize) -> Option<(usize, usize)> {
        if index >= self.len {
            return None;
        }
        if index <= self.len / 2 {
            let mut inner = index;
            for (at, node) in self.nodes.iter().enumerate() {
                if inner < node.count() {
                    return Some((at, inner));
                }
                inner -= node.count();
            }
        } else {
            let mut from_end = self.len - index;
            for (at, node) in self.nodes.iter().enumerate().rev() {
                if from_end <= node.count() {
                    return Some((at, node.count() - from_end));
                }
                from_end -= node.count();
            }
        }
        unreachable!("the nodes' counts add up to the length")
    }

    /// Byte position in its node of an element's entry; a plain node's only position is 0.
    fn position(&self, node: usize, inner: usize) -> usize {
        match &self.nodes[node].content {
            Content::Plain(_) => 0,
            Content::Packed(pack) => pack.seek(inner).expect("the index lies in this node"),
        }
    }

    fn insert_node(&mut self, at: usize, node: Node) {
        self.len += node.count();
        self.nodes.insert(at, node);
    }

    /// Removes `count` elements of one node, and the node with its last element.
    fn remove_in_node(&mut self, at: usize, inner: usize, count: usize) {
        let node = &mut self.nodes[at];
        assert!(inner + count <= node.count());
        self.len -= count;
        if count == node.count() {
            self.nodes.remove(at);
            self.release_slack();
            return;
        }
        node.count -= count as u32;
        if let Content::Packed(pack) = &mut node.content {
            let position = pack.seek(inner).expect("the index lies in this node");
            let removed = pack.remove_run(position, count);
            assert_eq!(removed, count);
        }
    }

    /// Splits a node so that its elements from `inner` on follow in a node of their own.
    fn split_node(&mut self, at: usize, inner: usize) {
        let node = &mut self.nodes[at];
        assert!(inner > 0 && inner < node.count());
        let Content::Packed(pack) = &mut node.content else { unreachable!("a plain node has one element") };
        let tail = pack.split_off(pack.seek(inner).expect("the index lies in this node"));
        node.count = inner as u32;
        self.nodes.insert(at + 1, Node::packed(tail));
    }

    /// Joins the node with its neighbours as far as the limit allows.
    fn merge_around(&mut self, at: usize, limit: NodeLimit) {
        if at + 1 < self.nodes.len() {
            self.try_merge(at, limit);
        }
        if at > 0 {
            self.try_merge(at - 1, limit);
        }
    }

    /// Joins all neighbours that together fill at most half a node: after removals from the middle.
    fn merge_small_neighbours(&mut self, limit: NodeLimit) {
        let halved = match limit {
            NodeLimit::Bytes(bytes) => NodeLimit::Bytes(bytes / 2),
            NodeLimit::Elements(elements) => NodeLimit::Elements(elements / 2),
        };
        let mut merged: VecDeque<Node> = VecDeque::new();
        let fits = |a: &Node, b: &Node| halved.fits_together(a, b);
        if self.nodes.iter().zip(self.nodes.iter().skip(1)).all(|(a, b)| !fits(a, b)) {
            return;
        }
        for node in self.nodes.drain(..) {
            match merged.back_mut() {
                Some(last) if halved.fits_together(last, &node) => last.absorb(node),
                _ => merged.push_back(node),
            }
        }
        self.nodes = merged;
    }

    /// Joins the node with the next one if both are listpacks and the limit allows.
    fn try_merge(&mut self, at: usize, limit: NodeLimit) {
        if limit.fits_together(&self.nodes[at], &self.nodes[at + 1])
            && let Some(next) = self.nodes.remove(at + 1)
        {
            self.nodes[at].absorb(next);
        }
    }

    /// Gives the deque's memory back once most of it is unused.
    fn release_slack(&mut self) {
        if self.nodes.capacity() > 64 && self.nodes.len() < self.nodes.capacity() / 8 {
            self.nodes.shrink_to(self.nodes.len() * 2);
        }
    }
}

impl NodeLimit {
    /// Whether one node may hold the elements of both.
    fn fits_together(self, a: &Node, b: &Node) -> bool {
        matches!((&a.content, &b.content), (Content::Packed(_), Content::Packed(_)))
            && !self.is_exceeded(a.len_bytes() + b.len_bytes(), a.count() + b.count())
    }
}

impl Node {
    /// Appends the elements of the node that follows this one; both are listpacks.
    fn absorb(&mut self, next: Node) {
        let (Content::Packed(pack), Content::Packed(other)) = (&mut self.content, &next.content) else {
            unreachable!("only listpacks are merged")
        };
        pack.append(other);
        self.count += next.count;
    }

    /// Removes up to `max` matching elements; the node may be empty afterwards.
    fn remove_matching(&mut self, needle: &Needle, max: usize, from_back: bool) -> usize {
        let removed = match &mut self.content {
            Content::Plain(text) => usize::from(max > 0 && needle.matches(Element::Str(text))),
            Content::Packed(pack) => remove_matching_in(pack, needle, max, from_back),
        };
        self.count -= removed as u32;
        removed
    }
}

/// A node that no end touches any more needs no room to grow.
fn seal(node: &mut Node) {
    if let Content::Packed(pack) = &mut node.content {
        pack.shrink_to_fit();
    }
}

/// Removes up to `max` elements equal to `needle` from a listpack, from the front or from the back.
pub(super) fn remove_matching_in(pack: &mut Listpack, needle: &Needle, max: usize, from_back: bool) -> usize {
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

#[derive(Clone, Copy)]
struct Cursor {
    node: usize,
    inner: usize,
    position: usize,
}

/// Elements of a range, from either side.
#[derive(Clone)]
pub struct Iter<'a> {
    list: &'a Quicklist,
    front: Cursor,
    back: Cursor,
    left: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut node = &self.list.nodes[self.front.node];
        if self.front.inner == node.count() {
            self.front = Cursor { node: self.front.node + 1, inner: 0, position: 0 };
            node = &self.list.nodes[self.front.node];
            self.front.position = self.list.position(self.front.node, 0);
        }
        self.front.inner += 1;
        Some(match &node.content {
            Content::Plain(text) => Element::Str(text),
            Content::Packed(pack) => {
                let element = pack.get(self.front.position);
                self.front.position = pack.next(self.front.position);
                element
            }
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        if self.back.inner == 0 {
            let node = self.back.node - 1;
            let position = match &self.list.nodes[node].content {
                Content::Plain(_) => 1,
                Content::Packed(pack) => pack.end(),
            };
            self.back = Cursor { node, inner: self.list.nodes[node].count(), position };
        }
        self.back.inner -= 1;
        Some(match &self.list.nodes[self.back.node].content {
            Content::Plain(text) => Element::Str(text),
            Content::Packed(pack) => {
                self.back.position = pack.prev(self.back.position).expect("an element lies before");
                pack.get(self.back.position)
            }
        })
    }
}

impl ExactSizeIterator for Iter<'_> {}
