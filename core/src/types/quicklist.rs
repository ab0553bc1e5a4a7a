//! Quicklist: a sequence of listpacks, for lists too long for one.
//!
//! A node holds elements up to a limit in bytes or in count; an element above the limit is a node of its own, stored
//! plainly. Both ends are reached in constant time. An index is found by walking counts: of chunks of nodes ([`chunks`]),
//! of the nodes of one chunk, then through the node.

mod chunks;
mod iter;
mod node;

use super::free_steps;
use super::list::End;
use super::listpack::{Element, Listpack, Needle};
use chunks::{Nodes, Place};
pub use iter::Iter;
pub(super) use node::remove_matching_in;
use node::{Content, Node};
pub use node::{NodeLimit, NodeRef};

/// The scalable list. All operations that add take the limit, which may change between calls.
#[derive(Clone, Debug, Default)]
pub struct Quicklist {
    nodes: Nodes,
}

impl Quicklist {
    pub fn new() -> Self {
        Quicklist::default()
    }

    pub fn len(&self) -> usize {
        self.nodes.elements()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
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
        self.nodes.iter_from(index).map(Node::as_ref)
    }

    /// Appends a listpack as a node; an empty one adds nothing.
    pub fn push_back_pack(&mut self, pack: Listpack) {
        if !pack.is_empty() {
            self.nodes.push_back(Node::packed(pack));
        }
    }

    /// Appends a big element as a plain node.
    pub fn push_back_plain(&mut self, text: &[u8]) {
        self.nodes.push_back(Node::plain(text));
    }

    /// The only node's listpack, if there is just one node and it is a listpack.
    pub fn as_single_pack(&self) -> Option<&Listpack> {
        match &self.nodes.get(self.nodes.first().filter(|_| self.nodes.len() == 1)?).content {
            Content::Packed(pack) => Some(pack),
            Content::Plain(_) => None,
        }
    }

    /// Takes the only node's listpack out, leaving the list empty. `None` as for [`Quicklist::as_single_pack`].
    pub fn take_single_pack(&mut self) -> Option<Listpack> {
        self.as_single_pack()?;
        let (node, _) = self.nodes.remove(self.nodes.first()?);
        match node.content {
            Content::Packed(pack) => Some(pack),
            Content::Plain(_) => None,
        }
    }

    pub fn push_back(&mut self, text: &[u8], limit: NodeLimit) {
        if !self.push_into(self.nodes.last(), End::Back, text, limit) {
            self.nodes.push_back(Node::of(text, limit));
        }
    }

    pub fn push_front(&mut self, text: &[u8], limit: NodeLimit) {
        if !self.push_into(self.nodes.first(), End::Front, text, limit) {
            self.nodes.push_front(Node::of(text, limit));
        }
    }

    /// Adds to a node if it has room; if it has not it will not grow any more.
    #[inline]
    fn push_into(&mut self, place: Option<Place>, end: End, text: &[u8], limit: NodeLimit) -> bool {
        let Some(place) = place else { return false };
        self.nodes.update(place, |node| {
            let is_pushed = node.push(end, text, limit);
            if !is_pushed {
                node.seal();
            }
            is_pushed
        })
    }

    /// Removes the first element after showing it to `with`.
    pub fn pop_front<R>(&mut self, with: impl FnOnce(Element) -> R) -> Option<R> {
        let place = self.nodes.first()?;
        let result = with(self.nodes.get(place).get(0)?);
        self.remove_in_node(place, 0, 1);
        Some(result)
    }

    /// Removes the last element after showing it to `with`.
    pub fn pop_back<R>(&mut self, with: impl FnOnce(Element) -> R) -> Option<R> {
        let place = self.nodes.last()?;
        let node = self.nodes.get(place);
        let last = node.count() - 1;
        let result = with(node.get(last)?);
        self.remove_in_node(place, last, 1);
        Some(result)
    }

    pub fn get(&self, index: usize) -> Option<Element<'_>> {
        let (place, inner) = self.nodes.locate(index)?;
        self.nodes.get(place).get(inner)
    }

    /// Replaces the element of that index; false if there is none.
    pub fn set(&mut self, index: usize, text: &[u8], limit: NodeLimit) -> bool {
        let Some((place, inner)) = self.nodes.locate(index) else { return false };
        let is_replaced = self.nodes.update(place, |node| {
            let is_replaced = node.replace(inner, text, limit);
            if !is_replaced && node.count() == 1 {
                *node = Node::of(text, limit);
                return true;
            }
            is_replaced
        });
        if !is_replaced {
            self.remove_in_node(place, inner, 1);
            self.insert(index, text, limit);
        }
        true
    }

    /// Inserts before the element of that index; an index of [`Quicklist::len`] appends. Panics beyond it.
    pub fn insert(&mut self, index: usize, text: &[u8], limit: NodeLimit) {
        assert!(index <= self.len());
        let Some((place, inner)) = self.nodes.locate(index) else { return self.push_back(text, limit) };
        if self.nodes.update(place, |node| node.insert(inner, text, limit)) {
            return;
        }
        if inner == 0 {
            let before = self.nodes.prev(place);
            let joins = |before| self.nodes.update(before, |node| node.push(End::Back, text, limit));
            if !before.is_some_and(joins) {
                self.nodes.insert_before(place, Node::of(text, limit));
            }
            return;
        }
        let tail = self.nodes.update(place, |node| node.split_off(inner));
        let tail = self.nodes.insert_behind(place, tail);
        let new = self.nodes.insert_before(tail, Node::of(text, limit));
        self.merge_around(new, limit);
    }

    /// Removes `count` elements from `start` on (fewer if the list ends) and returns them as a list of their own as
    /// far as they filled whole nodes, so that the caller can free many of them bit by bit.
    pub fn remove_range(&mut self, start: usize, count: usize) -> Quicklist {
        let mut left = count.min(self.len().saturating_sub(start));
        if let Some((place, inner)) = self.nodes.locate(start).filter(|(_, inner)| *inner > 0 && left > 0) {
            let here = left.min(self.nodes.get(place).count() - inner);
            self.remove_in_node(place, inner, here);
            left -= here;
        }
        // From here on the range begins with a node.
        let Some((first, 0)) = self.nodes.locate(start).filter(|_| left > 0) else { return Quicklist::new() };
        let end = self.nodes.locate(start + left);
        let removed = match end {
            Some((end, _)) if end == first => Nodes::default(),
            Some((end, inner)) => {
                let behind = self.nodes.split_off(end);
                let removed = self.nodes.split_off(first);
                self.nodes.append(behind);
                left = inner;
                removed
            }
            None => {
                left = 0;
                self.nodes.split_off(first)
            }
        };
        if left > 0 {
            let (place, _) = self.nodes.locate(start).expect("the range ends within a node");
            self.remove_in_node(place, 0, left);
        }
        Quicklist { nodes: removed }
    }

    /// Adds another list's nodes, to be freed together. Best called on the one with more nodes.
    pub fn with_garbage(mut self, other: Quicklist) -> Quicklist {
        self.nodes.append(other.nodes);
        self
    }

    /// Removes up to `count` elements equal to `text`, from the front or from the back. Returns how many.
    pub fn remove_matching(&mut self, text: &[u8], count: usize, from_back: bool, limit: NodeLimit) -> usize {
        let needle = Needle::new(text);
        let mut removed = 0;
        let mut at = if from_back { self.nodes.last() } else { self.nodes.first() };
        while let Some(place) = at.filter(|_| removed < count) {
            removed +=
                self.nodes.update(place, |node| node.remove_matching(&needle, count - removed, from_back));
            let is_emptied = self.nodes.get(place).count() == 0;
            // What lies before a node stays where it is when that is removed.
            let before = self.nodes.prev(place);
            let behind = if is_emptied { self.nodes.remove(place).1 } else { self.nodes.next(place) };
            at = if from_back { before } else { behind };
        }
        if removed > 0 {
            self.merge_small_neighbours(limit);
        }
        removed
    }

    /// Bytes allocated.
    pub fn heap_bytes(&self) -> usize {
        self.nodes.heap_bytes()
    }

    /// Steps that freeing the list takes, about.
    pub fn free_effort(&self) -> usize {
        // Long nodes are looked for where few would be freed at once.
        const FEW: usize = 64;
        if self.node_count() > FEW {
            return self.node_count();
        }
        self.nodes.iter_from(0).map(|node| free_steps(node.heap_bytes())).sum()
    }

    /// Frees nodes from the back for up to about `max_steps`; true once nothing is left.
    pub fn free_some(&mut self, max_steps: usize) -> bool {
        let mut left = max_steps;
        while left > 0
            && let Some(last) = self.nodes.last()
        {
            let (node, _) = self.nodes.remove(last);
            left -= free_steps(node.heap_bytes()).min(left);
        }
        self.nodes.is_empty()
    }

    /// Removes `count` elements of one node, and the node with its last element.
    fn remove_in_node(&mut self, place: Place, inner: usize, count: usize) {
        if count == self.nodes.get(place).count() {
            self.nodes.remove(place);
        } else {
            self.nodes.update(place, |node| node.remove(inner, count));
        }
    }

    /// Joins the node with its neighbours as far as the limit allows.
    fn merge_around(&mut self, place: Place, limit: NodeLimit) {
        self.try_merge(place, limit);
        if let Some(before) = self.nodes.prev(place) {
            self.try_merge(before, limit);
        }
    }

    /// Joins all neighbours that together fill at most half a node: after removals from the middle.
    fn merge_small_neighbours(&mut self, limit: NodeLimit) {
        let halved = match limit {
            NodeLimit::Bytes(bytes) => NodeLimit::Bytes(bytes / 2),
            NodeLimit::Elements(elements) => NodeLimit::Elements(elements / 2),
        };
        let mut at = self.nodes.first();
        while let Some(place) = at {
            if !self.try_merge(place, halved) {
                at = self.nodes.next(place);
            }
        }
        self.nodes.join_chunks();
    }

    /// Joins the node with the next one if both are listpacks and the limit allows.
    fn try_merge(&mut self, place: Place, limit: NodeLimit) -> bool {
        let Some(next) = self.nodes.next(place) else { return false };
        if !limit.fits_together(self.nodes.get(place), self.nodes.get(next)) {
            return false;
        }
        let (next, _) = self.nodes.remove(next);
        self.nodes.update(place, |node| node.absorb(next));
        true
    }
}
