//! Elements of a range of a quicklist, from either side.

use super::super::listpack::Element;
use super::Quicklist;
use super::chunks::{Nodes, Place};
use super::node::{Content, Node};

#[derive(Clone, Copy)]
struct Cursor<'a> {
    place: Place,
    node: &'a Node,
    inner: usize,
    position: usize,
}

/// See the module.
#[derive(Clone)]
pub struct Iter<'a> {
    nodes: &'a Nodes,
    /// None: nothing is left.
    front: Option<Cursor<'a>>,
    /// Stands behind the last element of the range.
    back: Option<Cursor<'a>>,
    left: usize,
}

impl Quicklist {
    pub fn iter(&self) -> Iter<'_> {
        self.range(0, self.len())
    }

    /// The elements from index `start` up to index `end`, which must not exceed [`Quicklist::len`].
    pub fn range(&self, start: usize, end: usize) -> Iter<'_> {
        assert!(start <= end && end <= self.len());
        let nodes = &self.nodes;
        if start == end {
            return Iter { nodes, front: None, back: None, left: 0 };
        }
        let cursor = |index| {
            let (place, inner) = nodes.locate(index).expect("an index of the list");
            let node = nodes.get(place);
            Cursor { place, node, inner, position: node.position(inner) }
        };
        let last = cursor(end - 1);
        let position = match &last.node.content {
            Content::Plain(_) => 1,
            Content::Packed(pack) => pack.next(last.position),
        };
        let back = Cursor { inner: last.inner + 1, position, ..last };
        Iter { nodes, front: Some(cursor(start)), back: Some(back), left: end - start }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        self.left = self.left.checked_sub(1)?;
        let front = self.front.as_mut()?;
        if front.inner == front.node.count() {
            let place = self.nodes.next(front.place).expect("elements are left");
            let node = self.nodes.get(place);
            *front = Cursor { place, node, inner: 0, position: node.position(0) };
        }
        front.inner += 1;
        Some(match &front.node.content {
            Content::Plain(text) => Element::Str(text),
            Content::Packed(pack) => {
                let element = pack.get(front.position);
                front.position = pack.next(front.position);
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
        let back = self.back.as_mut()?;
        if back.inner == 0 {
            let place = self.nodes.prev(back.place).expect("elements are left");
            let node = self.nodes.get(place);
            *back = Cursor { place, node, inner: node.count(), position: node.end() };
        }
        back.inner -= 1;
        Some(match &back.node.content {
            Content::Plain(text) => Element::Str(text),
            Content::Packed(pack) => {
                back.position = pack.prev(back.position).expect("an element lies before");
                pack.get(back.position)
            }
        })
    }
}

impl ExactSizeIterator for Iter<'_> {}
