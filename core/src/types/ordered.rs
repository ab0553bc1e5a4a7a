//! A counted B+ tree: a long sequence of small items that finds the n-th item, and the rank of an item, in O(log n).
//!
//! Sorted sets keep their members' order in it. The tree does not know what its items mean: a search is given a test
//! that is true for a prefix of the sequence (`precedes`), so order by score, by bytes or by both is the caller's.
//!
//! Leaves hold up to 64 items in a row; an inner node knows the first item and the number of items below each child.
//! A split at either end of the sequence leaves the full node full, so that sorted input packs the leaves tightly, and
//! a leaf's capacity grows in steps of eight, so that the others waste little.

use smallvec::SmallVec;
use std::ops::Range;

/// Items in a leaf.
const LEAF_MAX: usize = 64;
/// Children of an inner node.
const FANOUT_MAX: usize = 32;
/// Below a quarter of these a node is joined with its neighbour.
const MIN_FRACTION: usize = 4;
/// A tree of 2^64 items of nodes a quarter full is not deeper.
const TYPICAL_DEPTH: usize = 6;

/// The tree. Items are small values, cheap to copy.
#[derive(Debug)]
pub struct CountedTree<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Debug)]
enum Node<T> {
    Leaf(Vec<T>),
    /// Boxed so that a leaf's vector alone decides the size of a node.
    #[expect(clippy::box_collection, reason = "keeps Node at the size of one vector")]
    Inner(Box<Vec<Child<T>>>),
}

/// Invariant: `first` is the first item below `node`, `count` the number of items below it, and it is not 0.
#[derive(Debug)]
struct Child<T> {
    first: T,
    count: usize,
    node: Node<T>,
}

/// Whether a node lies on the left or right edge of the tree.
#[derive(Clone, Copy)]
struct Edges {
    left: bool,
    right: bool,
}

impl<T: Copy> Default for CountedTree<T> {
    fn default() -> Self {
        CountedTree::new()
    }
}

impl<T: Copy> CountedTree<T> {
    pub fn new() -> Self {
        CountedTree { root: Node::Leaf(Vec::new()), len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Inserts behind all items that `precedes` holds for. `precedes` must be true for a prefix of the sequence.
    pub fn insert(&mut self, item: T, mut precedes: impl FnMut(&T) -> bool) {
        let edges = Edges { left: true, right: true };
        if let Some(right) = self.root.insert(item, &mut precedes, edges) {
            let left = std::mem::replace(&mut self.root, Node::Leaf(Vec::new()));
            self.root = Node::Inner(Box::new(vec![Child::new(left), right]));
        }
        self.len += 1;
    }

    /// Number of items that `precedes` holds for, which must be a prefix of the sequence: the rank of the first other.
    pub fn partition_point(&self, mut precedes: impl FnMut(&T) -> bool) -> usize {
        let mut node = &self.root;
        let mut rank = 0;
        loop {
            match node {
                Node::Leaf(items) => return rank + items.partition_point(&mut precedes),
                Node::Inner(children) => {
                    let at = child_for(children, &mut precedes);
                    rank += children[..at].iter().map(|child| child.count).sum::<usize>();
                    node = &children[at].node;
                }
            }
        }
    }

    /// The item of that rank.
    pub fn get(&self, mut rank: usize) -> Option<T> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(items) => return items.get(rank).copied(),
                Node::Inner(children) => {
                    let (at, inside) = locate(children, rank)?;
                    rank = inside;
                    node = &children[at].node;
                }
            }
        }
    }

    /// Removes the item of that rank.
    pub fn remove_at(&mut self, rank: usize) -> Option<T> {
        if rank >= self.len {
            return None;
        }
        let item = self.root.remove(rank);
        self.len -= 1;
        while let Node::Inner(children) = &mut self.root {
            if children.len() > 1 {
                break;
            }
            let only = children.pop().expect("an inner node has children");
            self.root = only.node;
        }
        Some(item)
    }

    /// The items of those ranks, from either side; a range beyond the end is cut.
    pub fn range(&self, ranks: Range<usize>) -> Iter<'_, T> {
        let end = ranks.end.min(self.len);
        Iter { root: &self.root, start: ranks.start.min(end), end, front: None, back: None }
    }

    /// Bytes allocated. Walks the inner nodes, of which there is one for some hundred items.
    pub fn heap_bytes(&self) -> usize {
        self.root.heap_bytes()
    }

    /// Number of allocations, about.
    pub fn node_count(&self) -> usize {
        self.len.div_ceil(LEAF_MAX / 2)
    }

    /// Frees up to `max_nodes` leaves from the back; true once none is left. The tree must not be used for anything
    /// else from the first call on.
    pub fn free_some(&mut self, max_nodes: usize) -> bool {
        self.len = 0;
        for _ in 0..max_nodes {
            if self.root.free_last_leaf() {
                self.root = Node::Leaf(Vec::new());
                return true;
            }
        }
        false
    }
}

/// Index of the child in which the boundary of `precedes` lies.
fn child_for<T>(children: &[Child<T>], precedes: &mut impl FnMut(&T) -> bool) -> usize {
    children.partition_point(|child| precedes(&child.first)).saturating_sub(1)
}

/// The child that holds the item of that rank, and the item's rank inside.
fn locate<T>(children: &[Child<T>], mut rank: usize) -> Option<(usize, usize)> {
    for (at, child) in children.iter().enumerate() {
        if rank < child.count {
            return Some((at, rank));
        }
        rank -= child.count;
    }
    None
}

/// Inserts into a full row by splitting it: returns the new right half. At an edge of the tree the full row stays
/// whole and the newcomer starts a row of its own.
fn split_insert<E>(row: &mut Vec<E>, at: usize, element: E, edges: Edges) -> Vec<E> {
    let full = row.len();
    if at == full && edges.right {
        return vec![element];
    }
    if at == 0 && edges.left {
        return std::mem::replace(row, vec![element]);
    }
    let mut right = row.split_off(full / 2);
    row.shrink_to_fit();
    if at <= row.len() {
        row.insert(at, element)
    } else {
        right.insert(at - row.len(), element)
    }
    right
}

impl<T: Copy> Child<T> {
    fn new(node: Node<T>) -> Self {
        let first = node.first().expect("a child is not empty");
        Child { first, count: node.count(), node }
    }

    /// Works `first` and `count` out again.
    fn refresh(&mut self) {
        self.first = self.node.first().expect("a child is not empty");
        self.count = self.node.count();
    }
}

impl<T: Copy> Node<T> {
    fn first(&self) -> Option<T> {
        match self {
            Node::Leaf(items) => items.first().copied(),
            Node::Inner(children) => children.first().map(|child| child.first),
        }
    }

    fn count(&self) -> usize {
        match self {
            Node::Leaf(items) => items.len(),
            Node::Inner(children) => children.iter().map(|child| child.count).sum(),
        }
    }

    /// Items of a leaf or children of an inner node, as a share of what it may hold at least.
    fn is_underfull(&self) -> bool {
        match self {
            Node::Leaf(items) => items.len() < LEAF_MAX / MIN_FRACTION,
            Node::Inner(children) => children.len() < FANOUT_MAX / MIN_FRACTION,
        }
    }

    /// Returns the right half if the node had to be split.
    fn insert(&mut self, item: T, precedes: &mut impl FnMut(&T) -> bool, edges: Edges) -> Option<Child<T>> {
        match self {
            Node::Leaf(items) => {
                let at = items.partition_point(&mut *precedes);
                if items.len() == LEAF_MAX {
                    return Some(Child::new(Node::Leaf(split_insert(items, at, item, edges))));
                }
                if items.len() == items.capacity() {
                    items.reserve_exact(8.min(LEAF_MAX - items.len()));
                }
                items.insert(at, item);
                None
            }
            Node::Inner(children) => {
                let at = child_for(children, precedes);
                let below =
                    Edges { left: edges.left && at == 0, right: edges.right && at + 1 == children.len() };
                let child = &mut children[at];
                let Some(right) = child.node.insert(item, precedes, below) else {
                    child.count += 1;
                    child.first = child.node.first().expect("an item was inserted");
                    return None;
                };
                child.refresh();
                if children.len() < FANOUT_MAX {
                    children.insert(at + 1, right);
                    return None;
                }
                let half = split_insert(children, at + 1, right, edges);
                Some(Child::new(Node::Inner(Box::new(half))))
            }
        }
    }

    /// Removes the item of that rank, which must lie below this node.
    fn remove(&mut self, rank: usize) -> T {
        match self {
            Node::Leaf(items) => {
                let item = items.remove(rank);
                if items.capacity() > items.len() + LEAF_MAX / 4 {
                    items.shrink_to(items.len() + 8);
                }
                item
            }
            Node::Inner(children) => {
                let (at, inside) = locate(children, rank).expect("the rank lies below this node");
                let child = &mut children[at];
                let item = child.node.remove(inside);
                child.count -= 1;
                if child.count == 0 {
                    children.remove(at);
                } else {
                    child.first = child.node.first().expect("the child still has items");
                    if child.node.is_underfull() && children.len() > 1 {
                        rebalance(children, at.min(children.len() - 2));
                    }
                }
                item
            }
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Node::Leaf(items) => items.capacity() * size_of::<T>(),
            Node::Inner(children) => {
                let own = size_of::<Vec<Child<T>>>() + children.capacity() * size_of::<Child<T>>();
                own + children.iter().map(|child| child.node.heap_bytes()).sum::<usize>()
            }
        }
    }

    /// Frees the last leaf and the inner nodes that it leaves empty; true if this node is then empty.
    fn free_last_leaf(&mut self) -> bool {
        match self {
            Node::Leaf(_) => true,
            Node::Inner(children) => {
                if children.last_mut().is_none_or(|last| last.node.free_last_leaf()) {
                    children.pop();
                }
                children.is_empty()
            }
        }
    }
}

/// Joins the child with the next one, or spreads their contents evenly if they are too many for one node.
fn rebalance<T: Copy>(children: &mut Vec<Child<T>>, at: usize) {
    /// True if `right` is empty afterwards.
    fn join<E>(left: &mut Vec<E>, right: &mut Vec<E>, max: usize) -> bool {
        left.append(right);
        // Joining to the brim would split again at the next insertion.
        if left.len() <= max / 4 * 3 {
            return true;
        }
        *right = left.split_off(left.len() / 2);
        left.shrink_to_fit();
        false
    }
    let (head, tail) = children.split_at_mut(at + 1);
    let (left, right) = (&mut head[at], &mut tail[0]);
    let joined = match (&mut left.node, &mut right.node) {
        (Node::Leaf(left), Node::Leaf(right)) => join(left, right, LEAF_MAX),
        (Node::Inner(left), Node::Inner(right)) => join(left, right, FANOUT_MAX),
        _ => unreachable!("all leaves lie equally deep"),
    };
    left.refresh();
    if joined {
        children.remove(at + 1);
    } else {
        right.refresh();
    }
}

/// Splits the first or the last element off a slice.
type TakeEnd<E> = fn(&[E]) -> Option<(&E, &[E])>;

/// Where an iteration stands: what is left of the leaf, and of each inner node above it.
#[derive(Clone)]
struct Path<'a, T> {
    above: SmallVec<[&'a [Child<T>]; TYPICAL_DEPTH]>,
    items: &'a [T],
}

impl<'a, T: Copy> Path<'a, T> {
    /// Goes down to the item of that rank, keeping of each node the part that `keep` cuts out around the child's or
    /// item's index: what an iteration in its direction has still to visit.
    fn seek(root: &'a Node<T>, mut rank: usize, keep_after: bool) -> Self {
        let mut path = Path { above: SmallVec::new(), items: &[] };
        let mut node = root;
        loop {
            match node {
                Node::Leaf(items) => {
                    path.items = if keep_after { &items[rank..] } else { &items[..=rank] };
                    return path;
                }
                Node::Inner(children) => {
                    let (at, inside) = locate(children, rank).expect("the rank lies below this node");
                    path.above.push(if keep_after { &children[at + 1..] } else { &children[..at] });
                    rank = inside;
                    node = &children[at].node;
                }
            }
        }
    }

    fn next(&mut self) -> Option<T> {
        self.step(<[_]>::split_first, <[_]>::split_first)
    }

    fn next_back(&mut self) -> Option<T> {
        self.step(<[_]>::split_last, <[_]>::split_last)
    }

    /// Takes an item with `take`; at the end of a leaf goes to the nearest one with `take_child`.
    fn step(&mut self, take: TakeEnd<T>, take_child: TakeEnd<Child<T>>) -> Option<T> {
        loop {
            if let Some((&item, rest)) = take(self.items) {
                self.items = rest;
                return Some(item);
            }
            let mut depth = self.above.len().checked_sub(1)?;
            while self.above[depth].is_empty() {
                depth = depth.checked_sub(1)?;
            }
            // Every level below the one with a child left is refilled on the way down.
            let levels = self.above.len();
            for level in depth..levels {
                let (child, rest) = take_child(self.above[level])?;
                self.above[level] = rest;
                match &child.node {
                    Node::Leaf(items) => self.items = items,
                    Node::Inner(children) => self.above[level + 1] = children,
                }
            }
        }
    }
}

/// Items of a range of ranks, from either side.
#[derive(Clone)]
pub struct Iter<'a, T> {
    root: &'a Node<T>,
    start: usize,
    end: usize,
    front: Option<Path<'a, T>>,
    back: Option<Path<'a, T>>,
}

impl<T: Copy> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.start == self.end {
            return None;
        }
        let path = self.front.get_or_insert_with(|| Path::seek(self.root, self.start, true));
        self.start += 1;
        path.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.start, Some(self.end - self.start))
    }
}

impl<T: Copy> DoubleEndedIterator for Iter<'_, T> {
    fn next_back(&mut self) -> Option<T> {
        if self.start == self.end {
            return None;
        }
        self.end -= 1;
        self.back.get_or_insert_with(|| Path::seek(self.root, self.end, false)).next_back()
    }
}

impl<T: Copy> ExactSizeIterator for Iter<'_, T> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks counts, firsts, depth and fill; returns the depth.
    fn check<T: Copy + PartialEq + std::fmt::Debug>(node: &Node<T>, is_edge: bool) -> usize {
        match node {
            Node::Leaf(items) => {
                assert!(items.len() <= LEAF_MAX && (is_edge || !node.is_underfull()));
                0
            }
            Node::Inner(children) => {
                assert!(!children.is_empty() && children.len() <= FANOUT_MAX);
                assert!(is_edge || !node.is_underfull());
                let last = children.len() - 1;
                let depths = children.iter().enumerate().map(|(at, child)| {
                    assert_eq!(child.node.count(), child.count);
                    assert!(child.count > 0);
                    assert_eq!(child.node.first(), Some(child.first));
                    check(&child.node, is_edge && (at == 0 || at == last))
                });
                let depths = depths.collect::<std::collections::HashSet<_>>();
                assert_eq!(depths.len(), 1);
                depths.into_iter().next().unwrap() + 1
            }
        }
    }

    fn insert(tree: &mut CountedTree<u64>, item: u64) {
        tree.insert(item, |other| *other < item);
    }

    #[test]
    fn rank_and_select_match_a_sorted_vector_of_100_000() {
        let count: usize = 100_000;
        let mut rng = fastrand::Rng::with_seed(5);
        let (mut tree, mut model) = (CountedTree::new(), Vec::new());
        for _ in 0..count {
            let item = rng.u64(..count as u64 * 2);
            insert(&mut tree, item);
            model.push(item);
        }
        model.sort_unstable();
        check(&tree.root, true);
        assert!(tree.range(0..tree.len()).eq(model.iter().copied()));
        assert!(tree.range(0..tree.len()).rev().eq(model.iter().rev().copied()));
        for _ in 0..2_000.min(count) {
            let item = rng.u64(..count as u64 * 2);
            assert_eq!(tree.partition_point(|x| *x < item), model.partition_point(|x| *x < item));
            assert_eq!(tree.partition_point(|x| *x <= item), model.partition_point(|x| *x <= item));
            let start = rng.usize(..count);
            assert_eq!(tree.get(start), Some(model[start]));
            let end = rng.usize(start..count + 2);
            let expected = &model[start..end.min(count)];
            let range = tree.range(start..end);
            assert_eq!(range.len(), expected.len());
            assert!(range.clone().take(150).eq(expected.iter().take(150).copied()));
            assert!(range.rev().take(150).eq(expected.iter().rev().take(150).copied()));
        }
        assert_eq!((tree.get(count), tree.partition_point(|_| true)), (None, count));
        let bytes_each = tree.heap_bytes() as f64 / count as f64;
        assert!(bytes_each < 13.0, "{bytes_each} bytes for each item of 8");
    }

    #[test]
    fn random_edits_match_a_sorted_vector() {
        let mut rng = fastrand::Rng::with_seed(6);
        for round in 0..6 {
            let (mut tree, mut model) = (CountedTree::new(), Vec::<u64>::new());
            for step in 0..12_000 {
                let growing = step % 4_000 < 2_200;
                if rng.u8(..10) < if growing { 8 } else { 2 } {
                    // Some rounds insert at the edges, where splits are lopsided.
                    let item = match round % 3 {
                        0 => rng.u64(..5_000),
                        1 => 1_000_000 + step,
                        _ => 1_000_000 - step,
                    };
                    insert(&mut tree, item);
                    model.insert(model.partition_point(|x| *x < item), item);
                } else if !model.is_empty() {
                    let rank = rng.usize(..model.len());
                    assert_eq!(tree.remove_at(rank), Some(model.remove(rank)));
                }
                assert_eq!(tree.len(), model.len());
                if step % 500 == 0 {
                    check(&tree.root, true);
                    assert!(tree.range(0..tree.len()).eq(model.iter().copied()));
                }
            }
            while !model.is_empty() {
                let rank = rng.usize(..model.len());
                assert_eq!(tree.remove_at(rank), Some(model.remove(rank)));
            }
            assert!(
                tree.len() == 0 && tree.range(0..tree.len()).next().is_none() && tree.remove_at(0).is_none()
            );
        }
    }

    #[test]
    fn both_sides_of_an_iteration_meet() {
        let mut tree = CountedTree::new();
        (0..1_000).for_each(|item| insert(&mut tree, item));
        let mut rng = fastrand::Rng::with_seed(8);
        let mut iter = tree.range(0..tree.len());
        let (mut front, mut back) = (0, 1_000);
        while front < back {
            if rng.bool() {
                assert_eq!(iter.next(), Some(front));
                front += 1;
            } else {
                back -= 1;
                assert_eq!(iter.next_back(), Some(back));
            }
        }
        assert_eq!((iter.next(), iter.next_back()), (None, None));
    }

    #[test]
    fn sorted_input_fills_the_leaves() {
        for descending in [false, true] {
            let mut tree = CountedTree::new();
            for step in 0..10_000 {
                insert(&mut tree, if descending { 10_000 - step } else { step });
            }
            check(&tree.root, true);
            let bytes_each = tree.heap_bytes() as f64 / 10_000.0;
            assert!(bytes_each < 9.5, "{bytes_each} bytes for each item of 8");
        }
    }

    #[test]
    fn freeing_goes_in_slices() {
        let mut tree = CountedTree::new();
        (0..10_000).for_each(|item| insert(&mut tree, item));
        let slices = (1..).take_while(|_| !tree.free_some(10)).count() + 1;
        assert!((10..40).contains(&slices), "{slices}");
        assert!(tree.len() == 0 && tree.free_some(1));
    }
}
