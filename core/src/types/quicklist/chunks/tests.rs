use super::super::{NodeLimit, Quicklist};
use super::*;
use crate::types::Element;

impl Nodes {
    fn check(&self) {
        let chunks = self.chunks.iter();
        let sums = chunks.fold((0, 0), |(nodes, elements), chunk| {
            assert!(!chunk.nodes.is_empty() && chunk.nodes.len() <= CHUNK_MAX_NODES);
            assert_eq!(chunk.elements, chunk.nodes.iter().map(Node::count).sum::<usize>());
            (nodes + chunk.nodes.len(), elements + chunk.elements)
        });
        assert_eq!(sums, (self.nodes, self.elements));
    }
}

fn text(element: Element<'_>) -> Vec<u8> {
    match element {
        Element::Str(text) => text.to_vec(),
        Element::Int(number) => number.to_string().into_bytes(),
    }
}

/// Random changes, with the same made to a vector.
fn agrees_with_a_vector(seed: u64, steps: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let limit = NodeLimit::Elements(rng.usize(1..4));
    let (mut list, mut model) = (Quicklist::new(), Vec::<Vec<u8>>::new());
    for step in 0..steps {
        let word = format!("{}", rng.u32(0..2000)).into_bytes();
        let index = rng.usize(0..=model.len());
        match rng.u32(0..100) {
            0..30 => {
                for _ in 0..rng.usize(0..40) {
                    list.push_back(&word, limit);
                    model.push(word.clone());
                }
            }
            30..45 => {
                list.push_front(&word, limit);
                model.insert(0, word);
            }
            45..70 => {
                list.insert(index, &word, limit);
                model.insert(index, word);
            }
            70..76 => {
                assert_eq!(list.pop_front(text), (!model.is_empty()).then(|| model.remove(0)));
            }
            76..82 => assert_eq!(list.pop_back(text), model.pop()),
            82..90 => {
                assert_eq!(list.set(index, &word, limit), index < model.len());
                if let Some(old) = model.get_mut(index) {
                    *old = word;
                }
            }
            90..96 => {
                let (count, from_back) = (rng.usize(1..5), rng.bool());
                let mut removed = 0;
                for _ in 0..count {
                    let is_it = |one: &Vec<u8>| *one == word;
                    let at =
                        if from_back { model.iter().rposition(is_it) } else { model.iter().position(is_it) };
                    if let Some(at) = at {
                        model.remove(at);
                        removed += 1;
                    }
                }
                assert_eq!(list.remove_matching(&word, count, from_back, limit), removed);
            }
            _ => {
                let count = [rng.usize(0..8), rng.usize(0..=model.len())][rng.usize(0..2)];
                let removed = list.remove_range(index, count);
                removed.nodes.check();
                let end = (index + count).min(model.len());
                assert!(removed.len() <= end - index);
                model.drain(index..end);
            }
        }
        list.nodes.check();
        assert_eq!(list.len(), model.len());
        assert_eq!(list.get(index).map(text), model.get(index).cloned());
        if step % 64 == 0 {
            assert!(list.iter().map(text).eq(model.iter().cloned()));
            let (one, other) = (rng.usize(0..=model.len()), rng.usize(0..=model.len()));
            let (start, end) = (one.min(other), one.max(other));
            assert!(list.range(start, end).rev().map(text).eq(model[start..end].iter().rev().cloned()));
            let number = rng.usize(0..=list.node_count());
            assert_eq!(list.nodes_from(number).count(), list.node_count() - number);
        }
    }
    while !list.free_some(100) {
        list.nodes.check();
    }
    assert!(list.is_empty());
}

#[test]
fn a_list_of_many_chunks_agrees_with_a_vector() {
    for seed in 0..8 {
        agrees_with_a_vector(seed, 3000);
    }
}

#[test]
fn what_is_left_of_chunks_after_removals_is_joined() {
    let limit = NodeLimit::Elements(1);
    let mut list = Quicklist::new();
    for number in 0..20_000 {
        list.push_back(if number % 100 == 0 { b"kept" } else { b"gone" }, limit);
    }
    assert_eq!(list.remove_matching(b"gone", usize::MAX, false, limit), 19_800);
    list.nodes.check();
    assert_eq!(list.nodes.len(), 200);
    assert!(list.nodes.chunks.len() < 20, "{} chunks", list.nodes.chunks.len());
    assert!(list.nodes.chunks.capacity() <= 64);
}
