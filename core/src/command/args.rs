//! A command's arguments.

use bytes::Bytes;
use smallvec::SmallVec;

/// The arguments of one command, its name first. Long ones that arrived in a buffer of their own can be kept without
/// a copy.
#[derive(Clone, Copy)]
pub struct Args<'a> {
    list: &'a [&'a [u8]],
    /// (index, value) of the arguments that are buffers of their own, ascending.
    shared: &'a [(u32, Bytes)],
}

impl<'a> Args<'a> {
    pub fn new(list: &'a [&'a [u8]], shared: &'a [(u32, Bytes)]) -> Self {
        debug_assert!(shared.iter().all(|(index, value)| list[*index as usize].len() == value.len()));
        Self { list, shared }
    }

    pub fn list(&self) -> &'a [&'a [u8]] {
        self.list
    }

    /// The argument as a value to keep: shared where it can be, else copied.
    pub fn value(&self, index: usize) -> Bytes {
        match self.shared(index) {
            Some(value) => value,
            None => Bytes::copy_from_slice(self.list[index]),
        }
    }

    /// The argument's own buffer, when it has one.
    pub fn shared(&self, index: usize) -> Option<Bytes> {
        self.shared.iter().find(|(at, _)| *at as usize == index).map(|(_, value)| value.clone())
    }

    /// All buffers of their own.
    pub fn all_shared(&self) -> &'a [(u32, Bytes)] {
        self.shared
    }

    /// Whether the argument is `word`, in any case.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.list.get(index).is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()))
    }
}

impl<'a> std::ops::Deref for Args<'a> {
    type Target = [&'a [u8]];
    fn deref(&self) -> &Self::Target {
        self.list
    }
}

/// Arguments as they are put together, one after the other. It is filled where it stands: moving one costs more than most
/// commands do, as a copy in long strides has to wait for the short writes before it.
#[derive(Default)]
pub struct ArgList<'a> {
    list: SmallVec<[&'a [u8]; 8]>,
    shared: SmallVec<[(u32, Bytes); 1]>,
}

impl<'a> ArgList<'a> {
    pub fn args(&self) -> Args<'_> {
        Args::new(&self.list, &self.shared)
    }

    #[inline]
    pub fn push(&mut self, arg: &'a [u8]) {
        self.list.push(arg);
    }

    /// Adds one that is `value`, or has the same bytes; the value can be kept without a copy.
    pub fn push_shared(&mut self, arg: &'a [u8], value: Bytes) {
        self.shared.push((self.list.len() as u32, value));
        self.list.push(arg);
    }

    #[inline]
    pub fn clear(&mut self) {
        self.list.clear();
        self.shared.clear();
    }
}
