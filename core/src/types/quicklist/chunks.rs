//! The nodes of a quicklist, in chunks, so that nothing in proportion to the list is moved when it grows (law 8).
//!
//! A chunk is a small deque of nodes; the chunks are a deque too. Of a list of a million nodes the latter holds some
//! thousand headers, and only those are copied when it doubles. Chunks count their elements, so an index is found by
//! walking the chunks and then the nodes of one.

use super::node::Node;
use std::collections::VecDeque;

/// Nodes of a full chunk: what an insertion into the middle may move.
const CHUNK_MAX_NODES: usize = 256;

/// Invariant: not empty.
#[derive(Clone, Debug)]
struct Chunk {
    nodes: VecDeque<Node>,
    elements: usize,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    chunks: VecDeque<Chunk>,
    nodes: usize,
    elements: usize,
}

/// Where a node is, until nodes are added or removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    chunk: usize,
    node: usize,
}

impl Chunk {
    fn of(node: Node) -> Self {
        let elements = node.count();
        Self { nodes: VecDeque::from([node]), elements }
    }

    fn is_full(&self) -> bool {
        self.nodes.len() >= CHUNK_MAX_NODES
    }

    /// Splits off its nodes from `at` on.
    fn split_off(&mut self, at: usize) -> Self {
        let nodes = self.nodes.split_off(at);
        let elements = nodes.iter().map(Node::count).sum();
        self.elements -= elements;
        Self { nodes, elements }
    }
}

/// Gives a deque's memory back once most of it is unused.
fn release_slack<T>(deque: &mut VecDeque<T>) {
    if deque.capacity() > 64 && deque.len() < deque.capacity() / 8 {
        deque.shrink_to(deque.len() * 2);
    }
}

impl Nodes {
    pub fn len(&self) -> usize {
        self.nodes
    }

    pub fn is_empty(&self) -> bool {
        self.nodes == 0
    }

    /// Elements in all nodes.
    #[inline]
    pub fn elements(&self) -> usize {
        self.elements
    }

    #[inline]
    pub fn first(&self) -> Option<Place> {
        (!self.chunks.is_empty()).then_some(Place { chunk: 0, node: 0 })
    }

    #[inline]
    pub fn last(&self) -> Option<Place> {
        let last = self.chunks.back()?;
        Some(Place { chunk: self.chunks.len() - 1, node: last.nodes.len() - 1 })
    }

    pub fn next(&self, place: Place) -> Option<Place> {
        self.at_or_behind(Place { node: place.node + 1, ..place })
    }

    pub fn prev(&self, Place { chunk, node }: Place) -> Option<Place> {
        if node > 0 {
            return Some(Place { chunk, node: node - 1 });
        }
        let chunk = chunk.checked_sub(1)?;
        Some(Place { chunk, node: self.chunks[chunk].nodes.len() - 1 })
    }

    /// A place that may be just behind the end of its chunk: the first of the next one.
    fn at_or_behind(&self, place: Place) -> Option<Place> {
        if place.node < self.chunks.get(place.chunk)?.nodes.len() {
            return Some(place);
        }
        let chunk = place.chunk + 1;
        (chunk < self.chunks.len()).then_some(Place { chunk, node: 0 })
    }

    #[inline]
    pub fn get(&self, place: Place) -> &Node {
        &self.chunks[place.chunk].nodes[place.node]
    }

    /// Changes a node, and with it how many elements there are.
    #[inline]
    pub fn update<R>(&mut self, place: Place, change: impl FnOnce(&mut Node) -> R) -> R {
        let chunk = &mut self.chunks[place.chunk];
        let node = &mut chunk.nodes[place.node];
        let before = node.count();
        let result = change(node);
        let after = node.count();
        chunk.elements = chunk.elements - before + after;
        self.elements = self.elements - before + after;
        result
    }

    pub fn push_back(&mut self, node: Node) {
        self.counted(&node);
        match self.chunks.back_mut().filter(|last| !last.is_full()) {
            Some(last) => {
                last.elements += node.count();
                last.nodes.push_back(node);
            }
            None => self.chunks.push_back(Chunk::of(node)),
        }
    }

    pub fn push_front(&mut self, node: Node) {
        self.counted(&node);
        match self.chunks.front_mut().filter(|first| !first.is_full()) {
            Some(first) => {
                first.elements += node.count();
                first.nodes.push_front(node);
            }
            None => self.chunks.push_front(Chunk::of(node)),
        }
    }

    fn counted(&mut self, added: &Node) {
        self.nodes += 1;
        self.elements += added.count();
    }

    /// Inserts a node before that of a place. Gives the new one's place.
    pub fn insert_before(&mut self, mut place: Place, node: Node) -> Place {
        self.counted(&node);
        if self.chunks[place.chunk].is_full() {
            let half = CHUNK_MAX_NODES / 2;
            let tail = self.chunks[place.chunk].split_off(half);
            self.chunks.insert(place.chunk + 1, tail);
            if place.node > half {
                place = Place { chunk: place.chunk + 1, node: place.node - half };
            }
        }
        let chunk = &mut self.chunks[place.chunk];
        chunk.elements += node.count();
        chunk.nodes.insert(place.node, node);
        place
    }

    pub fn insert_behind(&mut self, place: Place, node: Node) -> Place {
        self.insert_before(Place { node: place.node + 1, ..place }, node)
    }

    /// Takes a node out. What lies before it stays in its place. Gives the place of the node that followed it, too.
    pub fn remove(&mut self, place: Place) -> (Node, Option<Place>) {
        let chunk = &mut self.chunks[place.chunk];
        let node = chunk.nodes.remove(place.node).expect("a node's place");
        chunk.elements -= node.count();
        self.nodes -= 1;
        self.elements -= node.count();
        if chunk.nodes.is_empty() {
            self.chunks.remove(place.chunk);
            release_slack(&mut self.chunks);
        } else {
            release_slack(&mut chunk.nodes);
        }
        (node, self.at_or_behind(place))
    }

    /// Joins chunks that have few nodes left: after many were removed from the middle.
    pub fn join_chunks(&mut self) {
        let mut joined: VecDeque<Chunk> = VecDeque::new();
        for mut chunk in self.chunks.drain(..) {
            match joined.back_mut() {
                Some(last) if last.nodes.len() + chunk.nodes.len() <= CHUNK_MAX_NODES / 2 => {
                    last.nodes.append(&mut chunk.nodes);
                    last.elements += chunk.elements;
                }
                _ => joined.push_back(chunk),
            }
        }
        self.chunks = joined;
    }

    /// Splits off the nodes from a place on.
    pub fn split_off(&mut self, place: Place) -> Self {
        let mut chunks = self.chunks.split_off(place.chunk);
        if place.node > 0 {
            let tail = chunks[0].split_off(place.node);
            self.chunks.push_back(std::mem::replace(&mut chunks[0], tail));
        }
        let (nodes, elements) = chunks
            .iter()
            .fold((0, 0), |(nodes, elements), chunk| (nodes + chunk.nodes.len(), elements + chunk.elements));
        self.nodes -= nodes;
        self.elements -= elements;
        release_slack(&mut self.chunks);
        Self { chunks, nodes, elements }
    }

    pub fn append(&mut self, mut other: Self) {
        self.chunks.append(&mut other.chunks);
        self.nodes += other.nodes;
        self.elements += other.elements;
    }

    /// The node with the element of that index, and its index inside.
    pub fn locate(&self, index: usize) -> Option<(Place, usize)> {
        if index >= self.elements {
            return None;
        }
        let sizes = self.chunks.iter().map(|chunk| chunk.elements);
        let (chunk, index) = find(sizes, self.elements, index);
        let found = &self.chunks[chunk];
        let (node, inner) = find(found.nodes.iter().map(Node::count), found.elements, index);
        Some((Place { chunk, node }, inner))
    }

    /// The place of the node of that number; None behind the last.
    pub fn nth(&self, number: usize) -> Option<Place> {
        if number >= self.nodes {
            return None;
        }
        let (chunk, node) = find(self.chunks.iter().map(|chunk| chunk.nodes.len()), self.nodes, number);
        Some(Place { chunk, node })
    }

    /// The nodes from that number on.
    pub fn iter_from(&self, number: usize) -> NodesFrom<'_> {
        NodesFrom { nodes: self, place: self.nth(number), left: self.nodes.saturating_sub(number) }
    }

    /// Bytes of the chunks themselves, and about those of what is in the nodes.
    pub fn heap_bytes(&self) -> usize {
        // A few nodes tell enough about all of them; a walk over a huge list would stall.
        const SAMPLES: usize = 32;
        let chunk_step = self.chunks.len().div_ceil(SAMPLES).max(1);
        let of_chunk = self.nodes.min(SAMPLES).div_ceil(self.chunks.len().div_ceil(chunk_step).max(1)).max(1);
        let sampled = self.chunks.iter().step_by(chunk_step);
        let sampled = sampled.flat_map(|chunk| {
            let node_step = chunk.nodes.len().div_ceil(of_chunk).max(1);
            chunk.nodes.iter().step_by(node_step)
        });
        let (bytes, count) =
            sampled.fold((0, 0), |(bytes, count), node| (bytes + node.heap_bytes(), count + 1));
        let slots: usize = self.chunks.iter().map(|chunk| chunk.nodes.capacity()).sum();
        self.chunks.capacity() * size_of::<Chunk>()
            + slots * size_of::<Node>()
            + (bytes * self.nodes).checked_div(count).unwrap_or(0)
    }
}

/// Finds where, among parts of these sizes, which make `total`, the item of that index lies: its part, and its index
/// within. Walks from the nearer end.
fn find(
    sizes: impl DoubleEndedIterator<Item = usize> + ExactSizeIterator,
    total: usize,
    index: usize,
) -> (usize, usize) {
    if index <= total / 2 {
        let mut left = index;
        for (part, size) in sizes.enumerate() {
            if left < size {
                return (part, left);
            }
            left -= size;
        }
    } else {
        let mut from_end = total - index;
        for (part, size) in sizes.enumerate().rev() {
            if from_end <= size {
                return (part, size - from_end);
            }
            from_end -= size;
        }
    }
    unreachable!("the sizes add up to the total")
}

/// See [`Nodes::iter_from`].
pub(super) struct NodesFrom<'a> {
    nodes: &'a Nodes,
    place: Option<Place>,
    left: usize,
}

impl<'a> Iterator for NodesFrom<'a> {
    type Item = &'a Node;

    fn next(&mut self) -> Option<&'a Node> {
        let place = self.place?;
        self.place = self.nodes.next(place);
        self.left -= 1;
        Some(self.nodes.get(place))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for NodesFrom<'_> {}

#[cfg(test)]
mod tests;
