//! List: one listpack while it is small, a [`Quicklist`] when it has grown.
//!
//! It turns into a quicklist when an addition would pass `list-max-listpack-size`, and back when a removal leaves one
//! listpack of at most half of that, as Redis 7.2 and later do.

use super::listpack::{self, Element, Listpack, Needle};
use super::quicklist::{self, NodeLimit, NodeRef, Quicklist, remove_matching_in};
use super::{Limits, free_steps};

/// One of a list's two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Front,
    Back,
}

/// A list of byte strings.
#[derive(Clone, Debug)]
pub struct List {
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Packed(Listpack),
    Quick(Box<Quicklist>),
}

impl Default for List {
    fn default() -> Self {
        List::new()
    }
}

impl List {
    pub fn new() -> Self {
        List { form: Form::Packed(Listpack::new()) }
    }

    /// A list of the nodes that an RDB file holds, in the encoding that fits them.
    pub fn from_quicklist(quick: Quicklist, limits: &Limits) -> Self {
        let mut list = List { form: Form::Quick(Box::new(quick)) };
        if let Form::Quick(quick) = &mut list.form {
            let limit = limits.list_node();
            let small = |pack: &Listpack| !limit.is_exceeded(pack.len_bytes(), pack.len());
            if quick.as_single_pack().is_some_and(small)
                && let Some(pack) = quick.take_single_pack()
            {
                list.form = Form::Packed(pack);
            }
        }
        list
    }

    /// `OBJECT ENCODING`.
    pub fn encoding(&self) -> &'static str {
        match &self.form {
            Form::Packed(_) => "listpack",
            Form::Quick(_) => "quicklist",
        }
    }

    pub fn len(&self) -> usize {
        match &self.form {
            Form::Packed(pack) => pack.len(),
            Form::Quick(quick) => quick.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        match &self.form {
            Form::Packed(pack) => pack.is_empty(),
            Form::Quick(quick) => quick.is_empty(),
        }
    }

    /// The nodes to write to an RDB file; a compact list is one.
    pub fn nodes(&self) -> impl Iterator<Item = NodeRef<'_>> {
        self.nodes_from(0)
    }

    /// [`List::nodes`] from the one of that index on, which takes a walk over some of them to find.
    pub fn nodes_from(&self, index: usize) -> impl Iterator<Item = NodeRef<'_>> {
        let (pack, quick) = match &self.form {
            Form::Packed(pack) => ((index == 0).then_some(NodeRef::Packed(pack)), None),
            Form::Quick(quick) => (None, Some(quick.nodes_from(index))),
        };
        pack.into_iter().chain(quick.into_iter().flatten())
    }

    /// Number of [`List::nodes`].
    pub fn node_count(&self) -> usize {
        match &self.form {
            Form::Packed(_) => 1,
            Form::Quick(quick) => quick.node_count(),
        }
    }

    /// Makes ready for `added_len` more elements of `added_bytes` in all: a list that will pass the limit is converted
    /// before, not between. Calling it before many pushes is optional.
    pub fn prepare(&mut self, added_len: usize, added_bytes: usize, limits: &Limits) {
        if let Form::Packed(pack) = &mut self.form {
            // Counting a listpack costs next to nothing, and limits by bytes do not look at it.
            let elements = pack.len() + added_len;
            if limits.list_node().is_exceeded(pack.len_bytes() + added_bytes, elements) {
                let mut quick = Quicklist::new();
                quick.push_back_pack(std::mem::take(pack));
                self.form = Form::Quick(Box::new(quick));
            }
        }
    }

    pub fn push(&mut self, end: End, text: &[u8], limits: &Limits) {
        self.prepare(1, text.len(), limits);
        match (&mut self.form, end) {
            (Form::Packed(pack), End::Front) => pack.push_front(text),
            (Form::Packed(pack), End::Back) => pack.push_back(text),
            (Form::Quick(quick), End::Front) => quick.push_front(text, limits.list_node()),
            (Form::Quick(quick), End::Back) => quick.push_back(text, limits.list_node()),
        }
    }

    pub fn push_front(&mut self, text: &[u8], limits: &Limits) {
        self.push(End::Front, text, limits);
    }

    pub fn push_back(&mut self, text: &[u8], limits: &Limits) {
        self.push(End::Back, text, limits);
    }

    /// Removes the element at one end after showing it to `with`.
    pub fn pop_with<R>(&mut self, end: End, limits: &Limits, with: impl FnOnce(Element) -> R) -> Option<R> {
        let result = match (&mut self.form, end) {
            (Form::Packed(pack), _) => {
                let at = if end == End::Front { pack.start() } else { pack.last()? };
                if at == pack.end() {
                    return None;
                }
                let result = with(pack.get(at));
                pack.remove(at);
                Some(result)
            }
            (Form::Quick(quick), End::Front) => quick.pop_front(with),
            (Form::Quick(quick), End::Back) => quick.pop_back(with),
        };
        self.shrink(limits);
        result
    }

    pub fn pop(&mut self, end: End, limits: &Limits) -> Option<Vec<u8>> {
        self.pop_with(end, limits, |element| element.to_vec())
    }

    pub fn pop_front(&mut self, limits: &Limits) -> Option<Vec<u8>> {
        self.pop(End::Front, limits)
    }

    pub fn pop_back(&mut self, limits: &Limits) -> Option<Vec<u8>> {
        self.pop(End::Back, limits)
    }

    pub fn get(&self, index: usize) -> Option<Element<'_>> {
        match &self.form {
            Form::Packed(pack) => pack.nth(index),
            Form::Quick(quick) => quick.get(index),
        }
    }

    /// Replaces the element of that index; false if there is none.
    pub fn set(&mut self, index: usize, text: &[u8], limits: &Limits) -> bool {
        self.prepare(1, text.len(), limits);
        let done = match &mut self.form {
            Form::Packed(pack) => match pack.seek(index) {
                Some(at) => {
                    pack.replace(at, text);
                    true
                }
                None => false,
            },
            Form::Quick(quick) => quick.set(index, text, limits.list_node()),
        };
        self.shrink(limits);
        done
    }

    /// Inserts before the element of that index; an index of [`List::len`] appends. Panics beyond it.
    pub fn insert(&mut self, index: usize, text: &[u8], limits: &Limits) {
        self.prepare(1, text.len(), limits);
        match &mut self.form {
            Form::Packed(pack) => {
                let at = pack.seek(index).unwrap_or_else(|| {
                    assert_eq!(index, pack.len());
                    pack.end()
                });
                pack.insert(at, text);
            }
            Form::Quick(quick) => quick.insert(index, text, limits.list_node()),
        }
    }

    /// Index of the first element equal to `text`.
    pub fn find(&self, text: &[u8]) -> Option<usize> {
        let needle = Needle::new(text);
        self.iter().position(|element| needle.matches(element))
    }

    /// Removes up to `count` elements equal to `text`, starting from one end. Returns how many.
    pub fn remove_matching(&mut self, text: &[u8], count: usize, from: End, limits: &Limits) -> usize {
        let from_back = from == End::Back;
        let removed = match &mut self.form {
            Form::Packed(pack) => remove_matching_in(pack, &Needle::new(text), count, from_back),
            Form::Quick(quick) => quick.remove_matching(text, count, from_back, limits.list_node()),
        };
        self.shrink(limits);
        removed
    }

    /// Keeps the elements from index `start` up to index `end`. Returns what should be freed bit by bit, if there is
    /// much of it.
    pub fn trim(&mut self, start: usize, end: usize, limits: &Limits) -> Option<List> {
        let len = self.len();
        let (start, end) = (start.min(len), end.clamp(start.min(len), len));
        let mut garbage = Quicklist::new();
        match &mut self.form {
            Form::Packed(pack) => {
                if let Some(at) = pack.seek(end) {
                    pack.remove_run(at, len - end);
                }
                pack.remove_run(pack.start(), start);
            }
            Form::Quick(quick) => {
                garbage = quick.remove_range(end, len - end);
                let head = quick.remove_range(0, start);
                garbage = if head.node_count() > garbage.node_count() {
                    head.with_garbage(garbage)
                } else {
                    garbage.with_garbage(head)
                };
            }
        }
        self.shrink(limits);
        const MANY_NODES: usize = 64;
        (garbage.node_count() > MANY_NODES).then(|| List { form: Form::Quick(Box::new(garbage)) })
    }

    pub fn iter(&self) -> Iter<'_> {
        self.range(0, self.len())
    }

    /// The elements from index `start` up to index `end`, which is cut to the length. Both directions.
    pub fn range(&self, start: usize, end: usize) -> Iter<'_> {
        let len = self.len();
        let (start, end) = (start.min(len), end.clamp(start.min(len), len));
        match &self.form {
            Form::Packed(pack) => {
                let at = pack.seek(start).unwrap_or(pack.end());
                let end = pack.seek(end).unwrap_or(pack.end());
                Iter::Packed(pack.iter_between(at, end))
            }
            Form::Quick(quick) => Iter::Quick(quick.range(start, end)),
        }
    }

    /// Bytes allocated, sampled for big lists.
    pub fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(pack) => pack.heap_bytes(),
            Form::Quick(quick) => size_of::<Quicklist>() + quick.heap_bytes(),
        }
    }

    /// Steps that freeing the list takes, about.
    pub fn free_effort(&self) -> usize {
        match &self.form {
            Form::Packed(pack) => free_steps(pack.heap_bytes()),
            Form::Quick(quick) => quick.free_effort(),
        }
    }

    /// Frees for up to about `max_steps`; true once nothing but the value itself is left to drop. The list holds
    /// fewer and fewer elements meanwhile and must not be read.
    pub fn free_some(&mut self, max_steps: usize) -> bool {
        match &mut self.form {
            Form::Packed(_) => true,
            Form::Quick(quick) => quick.free_some(max_steps),
        }
    }

    /// Back to one listpack if little is left.
    fn shrink(&mut self, limits: &Limits) {
        if let Form::Quick(quick) = &mut self.form {
            let small = |pack: &Listpack| limits.list_node().allows_shrinking(pack.len_bytes(), pack.len());
            if quick.as_single_pack().is_some_and(small)
                && let Some(pack) = quick.take_single_pack()
            {
                self.form = Form::Packed(pack);
            }
        }
    }
}

impl Limits {
    fn list_node(&self) -> NodeLimit {
        NodeLimit::from_directive(self.list_max_listpack_size)
    }
}

/// Elements of a range, from either side.
#[derive(Clone)]
pub enum Iter<'a> {
    Packed(listpack::Iter<'a>),
    Quick(quicklist::Iter<'a>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        match self {
            Iter::Packed(iter) => iter.next(),
            Iter::Quick(iter) => iter.next(),
        }
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Iter::Packed(iter) => iter.next_back(),
            Iter::Quick(iter) => iter.next_back(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn text(rng: &mut fastrand::Rng, big: usize) -> Vec<u8> {
        match rng.u8(..12) {
            0 => vec![b'p'; rng.usize(..big)],
            1..=4 => rng.i64(-300..300).to_string().into_bytes(),
            _ => (0..rng.usize(..30)).map(|_| rng.u8(b'a'..=b'z')).collect(),
        }
    }

    fn check(list: &List, model: &VecDeque<Vec<u8>>) {
        assert_eq!(list.len(), model.len());
        assert_eq!(list.is_empty(), model.is_empty());
        assert!(list.iter().map(Element::to_vec).eq(model.iter().cloned()));
        assert!(list.iter().rev().map(Element::to_vec).eq(model.iter().rev().cloned()));
        let in_nodes: usize = list
            .nodes()
            .map(|node| match node {
                NodeRef::Plain(_) => 1,
                NodeRef::Packed(pack) => listpack::validate(pack.as_bytes()).unwrap(),
            })
            .sum();
        assert_eq!(in_nodes, model.len());
    }

    #[test]
    fn random_edits_match_a_deque_across_both_encodings() {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut seen = std::collections::HashSet::new();
        for round in 0..60 {
            let limits =
                Limits { list_max_listpack_size: [-1, -2, 3, 16, 0, 128][round % 6], ..Limits::default() };
            let (mut list, mut model) = (List::new(), VecDeque::<Vec<u8>>::new());
            for step in 0..600 {
                let value = text(&mut rng, 9000);
                let index = rng.usize(..=model.len());
                // Grow in the first half, shrink in the second.
                let op = if (rng.usize(..600) + 150) / 2 > step { rng.u8(..6) } else { rng.u8(4..12) };
                match op {
                    0 | 1 => {
                        list.push_back(&value, &limits);
                        model.push_back(value);
                    }
                    2 => {
                        list.push_front(&value, &limits);
                        model.push_front(value);
                    }
                    3 | 4 => {
                        list.insert(index, &value, &limits);
                        model.insert(index, value);
                    }
                    5 => {
                        let there = index < model.len();
                        assert_eq!(list.set(index, &value, &limits), there);
                        if there {
                            model[index] = value;
                        }
                    }
                    6 | 7 => assert_eq!(list.pop_front(&limits), model.pop_front()),
                    8 | 9 => assert_eq!(list.pop_back(&limits), model.pop_back()),
                    10 if rng.u8(..8) == 0 => {
                        let end = rng.usize(index..=model.len());
                        list.trim(index, end, &limits);
                        model.truncate(end);
                        model.drain(..index);
                    }
                    _ => {
                        let wanted = model.get(index).cloned().unwrap_or(value);
                        let max = rng.usize(1..4);
                        let from = if rng.bool() { End::Front } else { End::Back };
                        let removed = list.remove_matching(&wanted, max, from, &limits);
                        let mut left = removed;
                        while left > 0 {
                            let at = match from {
                                End::Front => model.iter().position(|v| *v == wanted),
                                End::Back => model.iter().rposition(|v| *v == wanted),
                            };
                            model.remove(at.unwrap());
                            left -= 1;
                        }
                        assert!(removed == max || !model.contains(&wanted));
                    }
                }
                if step % 7 == 0 {
                    check(&list, &model);
                    let index = rng.usize(..=model.len());
                    let end = rng.usize(index..=model.len() + 3);
                    assert_eq!(list.get(index).map(Element::to_vec), model.get(index).cloned());
                    let range = list.range(index, end).map(Element::to_vec);
                    assert!(range.eq(model.iter().take(end).skip(index).cloned()));
                }
                seen.insert((list.encoding(), op));
            }
            check(&list.clone(), &model);
        }
        assert!(seen.len() > 20, "every operation met both encodings: {seen:?}");
    }

    #[test]
    fn conversion_happens_where_redis_does_it() {
        let limits = Limits { list_max_listpack_size: 4, ..Limits::default() };
        let mut list = List::new();
        for i in 0..4 {
            list.push_back(format!("{i}").as_bytes(), &limits);
            assert_eq!(list.encoding(), "listpack");
        }
        list.push_back(b"4", &limits);
        assert_eq!(list.encoding(), "quicklist");
        for left in [4, 3] {
            list.pop_back(&limits);
            assert_eq!((list.len(), list.encoding()), (left, "quicklist"));
        }
        list.pop_back(&limits);
        assert_eq!(list.encoding(), "listpack");

        let limits = Limits::default();
        let mut list = List::new();
        list.push_back(&[b'x'; 8000], &limits);
        assert_eq!(list.encoding(), "listpack");
        list.push_back(&[b'y'; 9000], &limits);
        assert_eq!((list.encoding(), list.node_count()), ("quicklist", 2));
        list.push_back(b"z", &limits);
        assert_eq!(list.node_count(), 3);
        assert!(list.set(1, b"small", &limits));
        assert_eq!(list.get(1).map(Element::to_vec), Some(b"small".to_vec()));
    }

    #[test]
    fn a_million_elements_trim_into_slices_of_garbage() {
        let limits = Limits::default();
        let mut list = List::new();
        for i in 0..1_000_000 {
            list.push_back(format!("element {i}").as_bytes(), &limits);
        }
        assert_eq!(list.get(777_777).map(Element::to_vec), Some(b"element 777777".to_vec()));
        let mut garbage = list.trim(500_000, 500_003, &limits).expect("much was cut off");
        let left = list.iter().map(Element::to_vec).collect::<Vec<_>>();
        assert_eq!(left, [&b"element 500000"[..], b"element 500001", b"element 500002"]);
        assert_eq!(list.encoding(), "listpack");
        let effort = garbage.free_effort();
        let slices = (1..).take_while(|_| !garbage.free_some(100)).count() + 1;
        assert!(slices >= effort / 100 && garbage.is_empty(), "{slices} slices for {effort}");
    }
}
