//! Commands on their way to the shard that will run them: a flat encoding that is appended to a buffer shared by
//! everything that leaves in the same tick, so that a command costs no allocation of its own.

use braid_core::command::{ArgList, Args, CommandId};
use bytes::Bytes;

/// A stretch of encoded commands within a buffer and its shared values.
///
/// Per command: id `u16`, database `u16`, argument count `u32`, per argument a length `u32` (with [`SHARED`] set: an
/// index into the shared values), then the bytes of the arguments that are not shared. Native byte order: this never
/// leaves the process.
pub struct Commands<'a> {
    bytes: &'a [u8],
    shared: &'a [Bytes],
}

const SHARED: u32 = 1 << 31;

/// One command, ready to be executed.
#[derive(Clone, Copy)]
pub struct Invocation<'a> {
    pub id: CommandId,
    pub db: u16,
    pub args: Args<'a>,
}

/// One decoded command, borrowing from its buffer.
#[derive(Default)]
pub struct Decoded<'a> {
    pub id: CommandId,
    pub db: u16,
    list: ArgList<'a>,
}

impl Decoded<'_> {
    pub fn args(&self) -> Args<'_> {
        self.list.args()
    }

    #[inline]
    pub fn invocation(&self) -> Invocation<'_> {
        Invocation { id: self.id, db: self.db, args: self.args() }
    }
}

/// Appends one command.
pub fn encode(bytes: &mut Vec<u8>, shared: &mut Vec<Bytes>, command: Invocation<'_>) {
    let Invocation { id, db, args } = command;
    bytes.extend_from_slice(&id.to_ne_bytes());
    bytes.extend_from_slice(&db.to_ne_bytes());
    bytes.extend_from_slice(&(args.len() as u32).to_ne_bytes());
    for arg in args.iter() {
        bytes.extend_from_slice(&(arg.len() as u32).to_ne_bytes());
    }
    let lengths = bytes.len() - 4 * args.len();
    let mut next_shared = args.all_shared().iter().peekable();
    for (index, arg) in args.iter().enumerate() {
        match next_shared.next_if(|(at, _)| *at as usize == index) {
            Some((_, value)) => {
                let word = SHARED | shared.len() as u32;
                bytes[lengths + 4 * index..][..4].copy_from_slice(&word.to_ne_bytes());
                shared.push(value.clone());
            }
            None => bytes.extend_from_slice(arg),
        }
    }
}

impl<'a> Commands<'a> {
    pub fn new(bytes: &'a [u8], shared: &'a [Bytes]) -> Self {
        Self { bytes, shared }
    }

    /// What has not been decoded yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn shared(&self) -> &'a [Bytes] {
        self.shared
    }

    /// Goes back to where `rest` was what had not been decoded.
    pub fn rewind(&mut self, rest: &'a [u8]) {
        self.bytes = rest;
    }

    /// Copies what has not been decoded.
    pub fn into_unit(self) -> Unit {
        let mut unit = Unit::default();
        for command in self {
            unit.add(command.invocation());
        }
        unit
    }

    /// Puts the next command in the place of `command`. False: there is none.
    #[inline]
    pub fn decode(&mut self, command: &mut Decoded<'a>) -> bool {
        if self.bytes.is_empty() {
            return false;
        }
        (command.id, command.db) = (self.take_u16(), self.take_u16());
        let count = self.take_u32() as usize;
        command.list.clear();
        for len in self.take(4 * count).chunks_exact(4) {
            let len = u32::from_ne_bytes(len.try_into().expect("four bytes"));
            if len & SHARED != 0 {
                let value = &self.shared[(len & !SHARED) as usize];
                command.list.push_shared(value, value.clone());
            } else {
                command.list.push(self.take(len as usize));
            }
        }
        true
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.bytes.split_at(len);
        self.bytes = tail;
        head
    }

    fn take_u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take(2).try_into().expect("two bytes"))
    }

    fn take_u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take(4).try_into().expect("four bytes"))
    }
}

impl<'a> Iterator for Commands<'a> {
    type Item = Decoded<'a>;

    /// For where it need not be fast: what it returns is moved.
    fn next(&mut self) -> Option<Decoded<'a>> {
        let mut command = Decoded::default();
        self.decode(&mut command).then_some(command)
    }
}

/// The first argument behind the name of each encoded command: the key, for most. Shared values are skipped.
pub fn likely_keys(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        while let Some((head, tail)) = rest.split_at_checked(8) {
            let count = u32::from_ne_bytes(head[4..].try_into().expect("four bytes")) as usize;
            let (lengths, args) = tail.split_at(4 * count);
            let inline = |at: usize| {
                let len = u32::from_ne_bytes(lengths[4 * at..4 * at + 4].try_into().expect("four bytes"));
                if len & SHARED == 0 { len as usize } else { 0 }
            };
            rest = &args[(0..count).map(inline).sum()..];
            if count > 1 {
                return Some(&args[inline(0)..inline(0) + inline(1)]);
            }
        }
        None
    })
}

/// Commands that own their bytes: a transaction's queue, or commands that wait for a lock.
#[derive(Default, Clone)]
pub struct Unit {
    pub bytes: Vec<u8>,
    pub shared: Vec<Bytes>,
    pub count: u32,
}

impl Unit {
    pub fn push(&mut self, id: CommandId, db: u16, args: Args<'_>) {
        self.add(Invocation { id, db, args });
    }

    pub fn add(&mut self, command: Invocation<'_>) {
        encode(&mut self.bytes, &mut self.shared, command);
        self.count += 1;
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.shared.clear();
        self.count = 0;
    }

    pub fn commands(&self) -> Commands<'_> {
        Commands::new(&self.bytes, &self.shared)
    }

    /// Memory it holds, for the limits on queued commands.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len() + self.shared.iter().map(Bytes::len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_trip() {
        let big = Bytes::from(vec![7u8; 1000]);
        let mut unit = Unit::default();
        unit.push(3, 1, Args::new(&[b"SET", b"k", &big, b""], &[(2, big.clone())]));
        unit.push(65535, 0, Args::new(&[b"PING"], &[]));
        assert!(unit.bytes.len() < 100);
        assert_eq!(likely_keys(&unit.bytes).collect::<Vec<_>>(), [b"k"]);
        let mut commands = unit.commands();
        let first = commands.next().unwrap();
        assert_eq!((first.id, first.db), (3, 1));
        assert_eq!(first.args().list(), [&b"SET"[..], b"k", &big, b""]);
        assert_eq!(first.args().shared(2).unwrap().as_ptr(), big.as_ptr());
        let second = commands.next().unwrap();
        assert_eq!(second.args().list(), [&b"PING"[..]]);
        assert!(commands.next().is_none());
    }
}
