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
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<Vec<u8>, f64>;

    fn sorted(model: &Model) -> Vec<(Vec<u8>, f64)> {
        let mut order: Vec<_> = model.iter().map(|(member, &score)| (member.clone(), score)).collect();
        order.sort_by(|a, b| scored::compare(a.1, b.1).then_with(|| a.0.cmp(&b.0)));
        order
    }

    fn owned((member, score): (Element, f64)) -> (Vec<u8>, f64) {
        (member.to_vec(), score)
    }

    /// `ZADD` in a few lines.
    fn model_add(model: &mut Model, member: &[u8], score: f64, flags: AddFlags) -> Result<Added, NotANumber> {
        let old = model.get(member).copied();
        let new = if flags.increment { old.unwrap_or(0.0) + score } else { score };
        let allowed = match old {
            None => !flags.only_existing,
            Some(old) => {
                !(flags.only_new || flags.only_greater && new <= old || flags.only_less && new >= old)
            }
        };
        if old.is_some() && !flags.only_new && new.is_nan() {
            return Err(NotANumber);
        }
        if !allowed {
            return Ok(Added::Refused);
        }
        model.insert(member.to_vec(), new);
        Ok(match old {
            None => Added::New(new),
            Some(old) if old == new => Added::Same(new),
            Some(_) => Added::Changed(new),
        })
    }

    #[test]
    fn random_edits_match_a_sorted_map_in_both_encodings() {
        let mut rng = fastrand::Rng::with_seed(41);
        let mut seen = std::collections::HashSet::new();
        for round in 0..40 {
            let limits = Limits { zset_max_listpack_entries: [4, 25, 128][round % 3], ..Limits::default() };
            let (mut zset, mut model) = (ZSet::new(), Model::new());
            for _ in 0..300 {
                let member = match rng.u8(..40) {
                    0 => vec![b'm'; rng.usize(60..70)],
                    1..15 => rng.u8(..60).to_string().into_bytes(),
                    _ => format!("m{}", rng.u8(..60)).into_bytes(),
                };
                let score = [rng.i32(-9..9) as f64, rng.f64(), 1e300, f64::INFINITY, f64::NEG_INFINITY]
                    [rng.usize(..5)];
                match rng.u8(..12) {
                    0..8 => {
                        let flags = AddFlags {
                            only_new: rng.u8(..6) == 0,
                            only_existing: rng.u8(..6) == 0,
                            only_greater: rng.u8(..6) == 0,
                            only_less: rng.u8(..6) == 0,
                            increment: rng.u8(..3) == 0,
                        };
                        let expected = model_add(&mut model, &member, score, flags);
                        assert_eq!(zset.add(&member, score, flags, &limits), expected);
                    }
                    8 | 9 => assert_eq!(zset.remove(&member), model.remove(&member)),
                    10 => {
                        let order = sorted(&model);
                        let rank = if rng.bool() { 0 } else { order.len().saturating_sub(1) };
                        let (popped, expected) = (zset.remove_at(rank), order.get(rank));
                        assert_eq!(popped.as_ref(), expected);
                        expected.map(|(member, _)| model.remove(member));
                    }
                    _ if rng.u8(..6) == 0 => {
                        let start = rng.usize(..=model.len());
                        let ranks = start..start + rng.usize(..5);
                        let order = sorted(&model);
                        let doomed = &order[start..ranks.end.min(order.len())];
                        model.retain(|member, _| !doomed.iter().any(|(other, _)| other == member));
                        assert_eq!(zset.remove_range(ranks), doomed.len());
                    }
                    _ => {}
                }
                assert_eq!((zset.len(), zset.score(&member)), (model.len(), model.get(&member).copied()));
                seen.insert(zset.encoding());
            }
            check(&zset, &model, &mut rng);
            check(&zset.clone(), &model, &mut rng);
            if let ZSetRef::Packed(pack) = zset.stored() {
                let copy = ZSet::from_listpack(pack.clone(), &limits);
                assert!(model.is_empty() || copy.is_ok_and(|copy| copy.iter().eq(zset.iter())));
            }
        }
        assert_eq!(seen.len(), 2);
    }

    fn check(zset: &ZSet, model: &Model, rng: &mut fastrand::Rng) {
        let order = sorted(model);
        assert!(zset.iter().map(owned).eq(order.iter().cloned()));
        assert!(zset.iter().rev().map(owned).eq(order.iter().rev().cloned()));
        let start = rng.usize(..=order.len());
        let end = rng.usize(start..=order.len());
        assert!(
            zset.range(start..end + 9).map(owned).eq(order.iter().skip(start).take(end + 9 - start).cloned())
        );
        for (rank, (member, score)) in order.iter().enumerate() {
            assert_eq!(zset.rank(member), Some((rank, *score)));
            assert_eq!(zset.get(rank).map(owned).as_ref(), Some(&(member.clone(), *score)));
        }
        for _ in 0..20 {
            let [a, b] = [0; 2].map(|_| [rng.i32(-10..10) as f64, rng.f64(), f64::INFINITY][rng.usize(..3)]);
            let range = ScoreRange { min: a, max: b, min_open: rng.bool(), max_open: rng.bool() };
            let inside: Vec<_> = order
                .iter()
                .filter(|(_, s)| if range.min_open { *s > a } else { *s >= a })
                .filter(|(_, s)| if range.max_open { *s < b } else { *s <= b })
                .cloned()
                .collect();
            let ranks = zset.ranks_by_score(&range);
            assert_eq!(ranks.len(), inside.len());
            assert!(zset.range(ranks).map(owned).eq(inside));
        }
        let drawn = zset.sample(rng, 5);
        assert_eq!(drawn.len(), order.len().min(5));
        assert!(drawn.into_iter().map(owned).all(|(member, score)| model.get(&member) == Some(&score)));
        let mut scanned = Model::new();
        let mut cursor = 0;
        loop {
            cursor = zset.scan(cursor, 7, |member, score| scanned.extend([(member.to_vec(), score)]));
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(&scanned, model);
    }

    #[test]
    fn ranges_of_texts_match_a_filter() {
        let mut rng = fastrand::Rng::with_seed(43);
        for count in [0, 10, 300] {
            let members: std::collections::BTreeSet<Vec<u8>> =
                (0..count).map(|_| rng.u16(..2_000).to_string().into_bytes()).collect();
            let limits = Limits::default();
            let mut zset = ZSet::with_hint(count, 0, &limits);
            for member in &members {
                zset.insert(member, 0.0, &limits);
            }
            assert_eq!(zset.encoding(), if count > 128 { "skiplist" } else { "listpack" });
            for _ in 0..200 {
                let mut bound = |open_ended: &str| match rng.u8(..4) {
                    0 => open_ended.to_string(),
                    1 => format!("({}", rng.u16(..2_000)),
                    _ => format!("[{}", rng.u16(..2_000)),
                };
                let (min, max) = (bound("-"), bound("+"));
                let range = LexRange::parse(min.as_bytes(), max.as_bytes()).unwrap();
                let inside = members.iter().filter(|member| {
                    let (low, high) = (&min.as_bytes()[1..], &max.as_bytes()[1..]);
                    (match min.as_bytes()[0] {
                        b'-' => true,
                        b'(' => member[..] > *low,
                        _ => member[..] >= *low,
                    }) && match max.as_bytes()[0] {
                        b'+' => true,
                        b'(' => member[..] < *high,
                        _ => member[..] <= *high,
                    }
                });
                let found = zset.range(zset.ranks_by_lex(&range)).map(|(member, _)| member.to_vec());
                assert!(found.eq(inside.cloned()), "{min} {max}");
            }
        }
    }

    #[test]
    fn conversion_happens_where_redis_does_it() {
        let limits = Limits::default();
        let mut zset = ZSet::new();
        for i in 0..128 {
            zset.insert(format!("m{i}").as_bytes(), i as f64, &limits);
        }
        assert_eq!(zset.encoding(), "listpack");
        zset.insert(b"m5", 7.5, &limits);
        assert_eq!(zset.encoding(), "listpack");
        zset.insert(b"one more", 7.5, &limits);
        assert_eq!(zset.encoding(), "skiplist");
        for length in [64, 65] {
            let mut zset = ZSet::new();
            zset.insert(&vec![b'x'; length], 1.0, &limits);
            assert_eq!(zset.encoding(), if length == 64 { "listpack" } else { "skiplist" });
        }
    }

    /// The bytes that Redis 8.2 dumped for these members.
    #[test]
    fn the_bytes_are_those_of_redis() {
        let mut zset = ZSet::new();
        for (member, score) in [("a", 1.5), ("b", 2.0), ("c", 0.1), ("d", -0.0), ("e", 1e300)] {
            zset.insert(member.as_bytes(), score, &Limits::default());
        }
        let ZSetRef::Packed(pack) = zset.stored() else { panic!("five members are few") };
        let expected =
            b"\x2C\0\0\0\x0A\0\x81d\x02\0\x01\x81c\x02\x830.1\x04\x81a\x02\x831.5\x04\x81b\x02\x02\x01\
            \x81e\x02\x861e+300\x07\xff";
        assert_eq!(pack.as_bytes(), expected);
    }

    #[test]
    fn foreign_listpacks_are_checked() {
        let of = |texts: &[&str]| {
            let mut pack = Listpack::new();
            texts.iter().for_each(|text| pack.push_back(text.as_bytes()));
            ZSet::from_listpack(pack, &Limits::default()).map(|zset| zset.len())
        };
        assert_eq!(of(&["a", "1", "b", "1.5"]), Ok(2));
        assert_eq!(of(&["a", "1", "b"]), Err(Misfit::Odd));
        assert_eq!(of(&["a", "1", "a", "2"]), Err(Misfit::Duplicate));
        assert_eq!(of(&["a", "nan"]), Err(Misfit::Number));
        assert_eq!(of(&["a", "2", "b", "1"]), Err(Misfit::Order));
        assert_eq!(of(&["b", "1", "a", "1"]), Err(Misfit::Order));
    }
}
