//! Where a command's keys are and what is done to them: Redis's key specifications (`COMMAND INFO`, since 7.0).

use super::Args;
use smallvec::SmallVec;

/// Where to begin looking.
#[derive(Debug, Clone, Copy)]
pub enum Begin {
    /// At an argument's index (the name is 0).
    Index(u16),
    /// Behind a keyword, searched from this index on (negative: backwards from the end).
    Keyword(&'static str, i16),
}

/// How keys follow from there.
#[derive(Debug, Clone, Copy)]
pub enum Find {
    /// `last`: relative to the beginning (0: one key); negative: counted from the end of the arguments (-1: the last).
    /// `limit`: with -1 as `last`, only the first 1/limit of them (0 and 1: all).
    Range { last: i16, step: u16, limit: u16 },
    /// An argument tells how many: its position, that of the first key (both relative to the beginning), the step.
    KeyNum { at: u16, first: u16, step: u16 },
}

/// What is done to a key. Read-only access takes no exclusive ownership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Reads the value, or what is known of the key.
    Read,
    /// Reads and changes it.
    ReadWrite,
    /// Replaces it unseen.
    Overwrite,
    /// Deletes it unseen.
    Remove,
}

impl Use {
    /// Redis's flag for it.
    pub fn name(self) -> &'static str {
        match self {
            Use::Read => "RO",
            Use::ReadWrite => "RW",
            Use::Overwrite => "OW",
            Use::Remove => "RM",
        }
    }
}

/// One group of keys of a command.
#[derive(Debug, Clone, Copy)]
pub struct KeySpec {
    pub begin: Begin,
    pub find: Find,
    pub usage: Use,
    /// Redis's further flags: `access`, `update`, `insert`, `delete`, `not_key`, `incomplete`, `variable_flags`.
    pub more: &'static [&'static str],
}

impl KeySpec {
    /// One key at `index`.
    pub const fn one(index: u16, usage: Use, more: &'static [&'static str]) -> Self {
        Self { begin: Begin::Index(index), find: Find::Range { last: 0, step: 1, limit: 0 }, usage, more }
    }

    /// Every `step`th argument from `index` to the last.
    pub const fn all(index: u16, step: u16, usage: Use, more: &'static [&'static str]) -> Self {
        Self { begin: Begin::Index(index), find: Find::Range { last: -1, step, limit: 0 }, usage, more }
    }

    /// As many keys as the argument at `index` says, right behind it.
    pub const fn counted(index: u16, usage: Use, more: &'static [&'static str]) -> Self {
        Self { begin: Begin::Index(index), find: Find::KeyNum { at: 0, first: 1, step: 1 }, usage, more }
    }

    /// As `counted`, with `step` arguments to a key.
    pub const fn counted_step(index: u16, step: u16, usage: Use, more: &'static [&'static str]) -> Self {
        Self { begin: Begin::Index(index), find: Find::KeyNum { at: 0, first: 1, step }, usage, more }
    }

    /// The index of the only key, where it does not depend on the arguments.
    #[inline]
    pub fn single_index(&self) -> Option<usize> {
        match (self.begin, self.find) {
            (Begin::Index(index), Find::Range { last: 0, .. }) => Some(usize::from(index)),
            _ => None,
        }
    }

    /// Finds the keys of this spec. None: the arguments do not fit it (a count that is no number or exceeds them).
    fn find(&self, args: &[&[u8]], keys: &mut SmallVec<[KeyRef; 4]>) -> Option<()> {
        let begin = match self.begin {
            Begin::Index(index) => usize::from(index),
            Begin::Keyword(word, from) => {
                let found = if from >= 0 {
                    (from as usize..args.len()).find(|&i| args[i].eq_ignore_ascii_case(word.as_bytes()))
                } else {
                    let start = (args.len() as i64 + i64::from(from)).max(0) as usize;
                    (0..=start.min(args.len() - 1))
                        .rev()
                        .find(|&i| args[i].eq_ignore_ascii_case(word.as_bytes()))
                };
                match found {
                    Some(index) => index + 1,
                    None => return Some(()),
                }
            }
        };
        if begin >= args.len() {
            return None;
        }
        let (first, last, step) = match self.find {
            Find::Range { last, step, limit } => {
                let last = if last >= 0 {
                    begin + last as usize
                } else if limit > 1 {
                    begin + (args.len() - begin) / usize::from(limit) - 1
                } else {
                    (args.len() as i64 + i64::from(last)) as usize
                };
                (begin, last, usize::from(step))
            }
            Find::KeyNum { at, first, step } => {
                let count = crate::resp::number::parse_i64(args.get(begin + usize::from(at))?)?;
                let count = usize::try_from(count).ok().filter(|&count| count <= args.len())?;
                if count == 0 {
                    return Some(());
                }
                let first = begin + usize::from(first);
                (first, first + (count - 1) * usize::from(step), usize::from(step))
            }
        };
        if last >= args.len() {
            return None;
        }
        keys.extend((first..=last).step_by(step).map(|index| KeyRef { index, spec: *self }));
        Some(())
    }
}

/// One key of a command: its argument's index and its spec.
#[derive(Debug, Clone, Copy)]
pub struct KeyRef {
    pub index: usize,
    pub spec: KeySpec,
}

/// All keys of a command, in the order of their specs. None: the arguments do not fit.
pub fn find_keys(specs: &[KeySpec], args: &[&[u8]]) -> Option<SmallVec<[KeyRef; 4]>> {
    let mut keys = SmallVec::new();
    for spec in specs {
        spec.find(args, &mut keys)?;
    }
    Some(keys)
}

impl super::Command {
    /// The command's keys. None: the arguments do not fit its key specs; the command itself will say why.
    pub fn find_keys(&self, args: Args<'_>) -> Option<SmallVec<[KeyRef; 4]>> {
        find_keys(self.keys, args.list())
    }

    /// First and last key and the step between, as `COMMAND INFO` reported them before key specs existed.
    pub fn legacy_key_range(&self) -> (i64, i64, i64) {
        let mut range: Option<(i64, i64, i64)> = None;
        for spec in self.keys {
            let Begin::Index(first) = spec.begin else { continue };
            let Find::Range { last, step, .. } = spec.find else { continue };
            let first = i64::from(first);
            let last = if last >= 0 { first + i64::from(last) } else { i64::from(last) };
            range = Some(match range {
                None => (first, last, i64::from(step)),
                Some((f, l, s)) if l >= 0 && first == l + 1 => (f, last, s),
                Some(known) => known,
            });
        }
        range.unwrap_or((0, 0, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices(specs: &[KeySpec], args: &str) -> Option<Vec<usize>> {
        let args: Vec<&[u8]> = args.split(' ').map(str::as_bytes).collect();
        find_keys(specs, &args).map(|keys| keys.iter().map(|key| key.index).collect())
    }

    #[test]
    fn keys_are_found_by_every_kind_of_spec() {
        let mset = [KeySpec::all(1, 2, Use::Overwrite, &[])];
        assert_eq!(indices(&mset, "mset a 1 b 2"), Some(vec![1, 3]));
        let counted = [KeySpec::one(1, Use::Overwrite, &[]), KeySpec::counted(2, Use::Read, &[])];
        assert_eq!(indices(&counted, "zunionstore d 2 a b WEIGHTS 1 2"), Some(vec![1, 3, 4]));
        assert_eq!(indices(&counted, "zunionstore d 3 a b"), None);
        assert_eq!(indices(&counted, "zunionstore d x a b"), None);
        let keyword = [KeySpec {
            begin: Begin::Keyword("STREAMS", 1),
            find: Find::Range { last: -1, step: 1, limit: 2 },
            usage: Use::Read,
            more: &[],
        }];
        assert_eq!(indices(&keyword, "xread COUNT 1 streams a b 0 0"), Some(vec![4, 5]));
    }
}
