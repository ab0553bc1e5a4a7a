//! Sorted set: a listpack of members and scores while it is small, a [`ScoredSet`] when it has grown.
//!
//! The large encoding is a tree; `OBJECT ENCODING` calls it "skiplist" all the same, because clients compare that name.

use super::bounds::{LexRange, ScoreRange};
use super::listpack::{self, Element, Listpack, Needle};
use super::members::{self, Misfit};
use super::num::{format_f64, parse_f64};
use super::scored::{self, ScoredSet};
use super::{Limits, free_steps};
use std::ops::Range;

/// A sorted set.
#[derive(Clone, Debug)]
pub struct ZSet {
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// Member, score, member, score ... in order.
    Packed(Listpack),
    Tree(Box<ScoredSet>),
}

/// The sorted set as it is stored, for writing it out.
#[derive(Clone, Copy)]
pub enum ZSetRef<'a> {
    Packed(&'a Listpack),
    Tree(&'a ScoredSet),
}

/// Conditions and variants of `ZADD`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddFlags {
    /// NX: only add.
    pub only_new: bool,
    /// XX: only change.
    pub only_existing: bool,
    /// GT: change only to a greater score.
    pub only_greater: bool,
    /// LT: change only to a smaller score.
    pub only_less: bool,
    /// INCR: the score is an increment.
    pub increment: bool,
}

/// What [`ZSet::add`] did; with the member's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Added {
    /// The member is new.
    New(f64),
    /// Its score changed.
    Changed(f64),
    /// It had that score already.
    Same(f64),
    /// A flag forbade it.
    Refused,
}

/// The sum of an increment is not a number ("resulting score is not a number (NaN)").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANumber;

/// The score in an element of a listpack. Checked when it came in, so it is never NaN.
fn score_in(element: Element) -> f64 {
    match element {
        Element::Int(value) => value as f64,
        Element::Str(text) => parse_f64(text).expect("a stored score is a number"),
    }
}

/// A score as a listpack stores it: an integer if it is one, else the text that Redis prints.
enum StoredScore {
    Int(i64),
    Text(Vec<u8>),
}

impl StoredScore {
    fn of(score: f64) -> Self {
        // Half of i64's range, as Redis: within it the casts are exact for whole numbers.
        const WHOLE_LIMIT: f64 = (i64::MAX / 2) as f64;
        if score.abs() <= WHOLE_LIMIT && score.fract() == 0.0 {
            StoredScore::Int(score as i64)
        } else {
            StoredScore::Text(format_f64(score))
        }
    }
}

impl Default for ZSet {
    fn default() -> Self {
        ZSet::new()
    }
}

impl ZSet {
    pub fn new() -> Self {
        ZSet { form: Form::Packed(Listpack::new()) }
    }

    /// An empty set in the encoding for `count` members of up to `longest_bytes`.
    pub fn with_hint(count: usize, longest_bytes: usize, limits: &Limits) -> Self {
        let small = count <= limits.zset_max_listpack_entries
            && longest_bytes <= limits.zset_max_listpack_value_bytes
            // Zero switches the compact encoding off.
            && limits.zset_max_listpack_entries > 0;
        ZSet { form: if small { Form::Packed(Listpack::new()) } else { Form::Tree(Box::default()) } }
    }

    /// Takes a listpack from outside.
    pub fn from_listpack(pack: Listpack, limits: &Limits) -> Result<Self, Misfit> {
        if pack.is_empty() {
            return Err(Misfit::Empty);
        }
        if !pack.len().is_multiple_of(2) {
            return Err(Misfit::Odd);
        }
        if members::has_duplicates(&pack, 2) {
            return Err(Misfit::Duplicate);
        }
        let is_number = |element| match element {
            Element::Int(_) => true,
            Element::Str(text) => parse_f64(text).is_some(),
        };
        if !pack.iter().skip(1).step_by(2).all(is_number) {
            return Err(Misfit::Number);
        }
        let zset = ZSet { form: Form::Packed(pack) };
        let in_order = |a: &(Element, f64), b: &(Element, f64)| {
            scored::compare(a.1, b.1).then_with(|| a.0.to_vec().cmp(&b.0.to_vec())).is_lt()
        };
        if !zset.iter().is_sorted_by(in_order) {
            return Err(Misfit::Order);
        }
        let longest = zset.iter().map(|(member, _)| member.len_bytes()).max().unwrap_or(0);
        let too_big =
            zset.len() > limits.zset_max_listpack_entries || longest > limits.zset_max_listpack_value_bytes;
        Ok(if too_big { ZSet { form: Form::Tree(Box::new(zset.to_tree())) } } else { zset })
    }

    /// `OBJECT ENCODING`.
    pub fn encoding(&self) -> &'static str {
        match &self.form {
            Form::Packed(_) => "listpack",
            Form::Tree(_) => "skiplist",
        }
    }

    pub fn stored(&self) -> ZSetRef<'_> {
        match &self.form {
            Form::Packed(pack) => ZSetRef::Packed(pack),
            Form::Tree(tree) => ZSetRef::Tree(tree),
        }
    }

    pub fn len(&self) -> usize {
        match &self.form {
            Form::Packed(pack) => pack.len() / 2,
            Form::Tree(tree) => tree.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn score(&self, member: &[u8]) -> Option<f64> {
        match &self.form {
            Form::Packed(pack) => {
                let at = pack.find(&Needle::new(member), pack.start(), 2)?;
                Some(score_in(pack.get(pack.next(at))))
            }
            Form::Tree(tree) => tree.score(member),
        }
    }

    /// Adds a member or changes its score, as `ZADD` with these flags. `score` must not be NaN.
    pub fn add(
        &mut self,
        member: &[u8],
        score: f64,
        flags: AddFlags,
        limits: &Limits,
    ) -> Result<Added, NotANumber> {
        assert!(!score.is_nan(), "the parser refuses NaN");
        let Some(old) = self.score(member) else {
            if flags.only_existing {
                return Ok(Added::Refused);
            }
            self.insert(member, score, limits);
            return Ok(Added::New(score));
        };
        if flags.only_new {
            return Ok(Added::Refused);
        }
        let new = if flags.increment { old + score } else { score };
        if new.is_nan() {
            return Err(NotANumber);
        }
        if flags.only_less && new >= old || flags.only_greater && new <= old {
            return Ok(Added::Refused);
        }
        if new == old {
            return Ok(Added::Same(new));
        }
        self.insert(member, new, limits);
        Ok(Added::Changed(new))
    }

    /// Adds a member or changes its score. Panics if `score` is NaN.
    pub fn insert(&mut self, member: &[u8], score: f64, limits: &Limits) {
        assert!(!score.is_nan(), "a score is never NaN");
        if let Form::Packed(pack) = &mut self.form {
            match pack.find(&Needle::new(member), pack.start(), 2) {
                Some(at) => {
                    pack.remove_run(at, 2);
                }
                None => {
                    let fits = pack.len() / 2 < limits.zset_max_listpack_entries
                        && member.len() <= limits.zset_max_listpack_value_bytes
                        && pack.has_room_for(member.len() + 2 * listpack::MAX_OVERHEAD_BYTES + 24);
                    if !fits {
                        self.form = Form::Tree(Box::new(self.to_tree()));
                    }
                }
            }
        }
        match &mut self.form {
            Form::Packed(pack) => {
                let at = place_in(pack, member, score);
                insert_pair(pack, at, member, score);
            }
            Form::Tree(tree) => {
                tree.insert(member, score);
            }
        }
    }

    /// Removes the member and returns its score.
    pub fn remove(&mut self, member: &[u8]) -> Option<f64> {
        match &mut self.form {
            Form::Packed(pack) => {
                let at = pack.find(&Needle::new(member), pack.start(), 2)?;
                let score = score_in(pack.get(pack.next(at)));
                pack.remove_run(at, 2);
                Some(score)
            }
            Form::Tree(tree) => tree.remove(member),
        }
    }

    /// The member of that rank, lowest first.
    pub fn get(&self, rank: usize) -> Option<(Element<'_>, f64)> {
        match &self.form {
            Form::Packed(pack) => {
                let at = pack.seek(rank * 2)?;
                Some((pack.get(at), score_in(pack.get(pack.next(at)))))
            }
            Form::Tree(tree) => tree.get(rank).map(|(member, score)| (Element::Str(member), score)),
        }
    }

    /// The member's rank, lowest first, and its score.
    pub fn rank(&self, member: &[u8]) -> Option<(usize, f64)> {
        match &self.form {
            Form::Packed(_) => {
                let needle = Needle::new(member);
                let found = self.iter().enumerate().find(|(_, (element, _))| needle.matches(*element));
                found.map(|(rank, (_, score))| (rank, score))
            }
            Form::Tree(tree) => tree.rank(member),
        }
    }

    /// Removes the member of that rank.
    pub fn remove_at(&mut self, rank: usize) -> Option<(Vec<u8>, f64)> {
        match &mut self.form {
            Form::Packed(pack) => {
                let at = pack.seek(rank * 2)?;
                let pair = (pack.get(at).to_vec(), score_in(pack.get(pack.next(at))));
                pack.remove_run(at, 2);
                Some(pair)
            }
            Form::Tree(tree) => tree.remove_at(rank, |member, score| (member.to_vec(), score)),
        }
    }

    /// Removes the members of those ranks; returns how many there were.
    pub fn remove_range(&mut self, ranks: Range<usize>) -> usize {
        let end = ranks.end.min(self.len());
        let count = end.saturating_sub(ranks.start);
        match &mut self.form {
            Form::Packed(pack) => {
                if let Some(at) = pack.seek(ranks.start * 2) {
                    pack.remove_run(at, count * 2);
                }
            }
            Form::Tree(tree) => {
                // From the back, so that the rest of a leaf need not move up each time.
                for rank in (ranks.start..end).rev() {
                    tree.remove_at(rank, |_, _| ());
                }
            }
        }
        count
    }

    /// The ranks of the members with a score in that range; an empty range where there are none.
    pub fn ranks_by_score(&self, range: &ScoreRange) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let (start, end) = match &self.form {
            Form::Packed(_) => {
                let rank = |precedes: &dyn Fn(f64) -> bool| {
                    self.iter().take_while(|&(_, score)| precedes(score)).count()
                };
                (rank(&|score| range.is_below(score)), rank(&|score| !range.is_above(score)))
            }
            Form::Tree(tree) => (
                tree.partition_point_by_score(|score| range.is_below(score)),
                tree.partition_point_by_score(|score| !range.is_above(score)),
            ),
        };
        start..end.max(start)
    }

    /// The ranks of the members in that range of texts. Meaningful only if all scores are the same.
    pub fn ranks_by_lex(&self, range: &LexRange) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let (start, end) = match &self.form {
            Form::Packed(_) => {
                let mut scratch = itoa::Buffer::new();
                let mut rank = |precedes: &dyn Fn(&[u8]) -> bool| {
                    self.iter().take_while(|(member, _)| precedes(member.bytes(&mut scratch))).count()
                };
                (rank(&|member| range.is_below(member)), rank(&|member| !range.is_above(member)))
            }
            Form::Tree(tree) => (
                tree.partition_point(|member, _| range.is_below(member)),
                tree.partition_point(|member, _| !range.is_above(member)),
            ),
        };
        start..end.max(start)
    }

    /// Members in order with their scores, from either side.
    pub fn iter(&self) -> Iter<'_> {
        self.range(0..self.len())
    }

    /// The members of those ranks, from either side; a range beyond the end is cut.
    pub fn range(&self, ranks: Range<usize>) -> Iter<'_> {
        match &self.form {
            Form::Packed(pack) => {
                let end = ranks.end.max(ranks.start);
                let at = pack.seek(ranks.start.saturating_mul(2)).unwrap_or(pack.end());
                let end = pack.seek(end.saturating_mul(2)).unwrap_or(pack.end());
                Iter::Packed(pack.iter_between(at, end))
            }
            Form::Tree(tree) => Iter::Tree(tree.range(ranks)),
        }
    }

    /// A member chosen at random.
    pub fn random(&self, rng: &mut fastrand::Rng) -> Option<(Element<'_>, f64)> {
        if self.is_empty() { None } else { self.get(rng.usize(..self.len())) }
    }

    /// `count` distinct members (all, if there are not more), chosen at random, in order.
    pub fn sample(&self, rng: &mut fastrand::Rng, count: usize) -> Vec<(Element<'_>, f64)> {
        let indices = members::sample_indices(self.len(), rng, count);
        match &self.form {
            Form::Packed(pack) => {
                let pairs = members::positions(pack, 2, &indices);
                pairs.map(|at| (pack.get(at), score_in(pack.get(pack.next(at))))).collect()
            }
            Form::Tree(_) => indices.into_iter().filter_map(|rank| self.get(rank)).collect(),
        }
    }

    /// Visits some `count` members from `cursor` on (0 to start); returns the cursor to go on with, 0 at the end. A
    /// compact set is visited whole.
    pub fn scan(&self, cursor: u64, count: usize, mut visit: impl FnMut(Element, f64)) -> u64 {
        match &self.form {
            Form::Tree(tree) => tree.scan(cursor, count, |member, score| visit(Element::Str(member), score)),
            Form::Packed(_) => {
                self.iter().for_each(|(member, score)| visit(member, score));
                0
            }
        }
    }

    /// Bytes allocated, sampled for a large set.
    pub fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(pack) => pack.heap_bytes(),
            Form::Tree(tree) => size_of::<ScoredSet>() + tree.heap_bytes(),
        }
    }

    /// Steps that freeing the set takes, about.
    pub fn free_effort(&self) -> usize {
        match &self.form {
            Form::Tree(tree) => tree.free_effort(),
            Form::Packed(pack) => free_steps(pack.heap_bytes()),
        }
    }

    /// Frees for up to about `max_steps`; true once nothing but the value itself is left to drop. Nothing else
    /// may be done with it from the first call on.
    pub fn free_some(&mut self, max_steps: usize) -> bool {
        match &mut self.form {
            Form::Packed(_) => true,
            Form::Tree(tree) => tree.free_some(max_steps),
        }
    }

    fn to_tree(&self) -> ScoredSet {
        let mut tree = ScoredSet::new();
        let mut scratch = itoa::Buffer::new();
        for (member, score) in self.iter() {
            tree.push_back(member.bytes(&mut scratch), score);
        }
        tree
    }
}

/// Position at which the pair belongs.
fn place_in(pack: &Listpack, member: &[u8], score: f64) -> usize {
    let mut scratch = itoa::Buffer::new();
    let mut at = pack.start();
    while at < pack.end() {
        let score_at = pack.next(at);
        let order = scored::compare(score_in(pack.get(score_at)), score)
            .then_with(|| pack.get(at).bytes(&mut scratch).cmp(member));
        if order.is_gt() {
            break;
        }
        at = pack.next(score_at);
    }
    at
}

fn insert_pair(pack: &mut Listpack, at: usize, member: &[u8], score: f64) {
    pack.insert(at, member);
    let at = pack.next(at);
    match StoredScore::of(score) {
        StoredScore::Int(value) => pack.insert_int(at, value),
        StoredScore::Text(text) => pack.insert(at, &text),
    }
}

/// Members of a range with their scores, from either side.
#[derive(Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack; a box would cost each range an allocation"
)]
pub enum Iter<'a> {
    Packed(listpack::Iter<'a>),
    Tree(scored::Iter<'a>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = (Element<'a>, f64);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Iter::Packed(iter) => {
                let member = iter.next()?;
                Some((member, score_in(iter.next()?)))
            }
            Iter::Tree(iter) => iter.next().map(|(member, score)| (Element::Str(member), score)),
        }
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Iter::Packed(iter) => {
                let score = score_in(iter.next_back()?);
                Some((iter.next_back()?, score))
            }
            Iter::Tree(iter) => iter.next_back().map(|(member, score)| (Element::Str(member), score)),
        }
    }
}

#[cfg(test)]
mod tests;
