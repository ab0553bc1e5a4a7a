//! `BITFIELD`: a string as an array of integers of any width up to 64 bits, at any bit.

use super::bitmaps::{ACCESS, BAD_OFFSET, check_offset, edit_grown};
use crate::command::{Args, Category, Command, Ctx, Error, Flags, Handler, KeySpec, Outcome, Use};
use crate::resp::number::parse_i64;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("bitfield", -2, Handler::Keys(bitfield))
        .flags(Flags::WRITE.or(Flags::DENYOOM))
        .categories(Category::BITMAP)
        .keys(&[KeySpec::one(1, Use::ReadWrite, &["access", "update", "variable_flags"])])
        .doc(
            "bitmap",
            "3.2.0",
            "Reads and changes integers of any width in a string.",
            "O(1) for each subcommand",
        ),
    Command::new("bitfield_ro", -2, Handler::Keys(bitfield_ro))
        .flags(Flags::READONLY.or(Flags::FAST))
        .categories(Category::BITMAP)
        .keys(ACCESS)
        .doc("bitmap", "6.0.0", "Reads integers of any width in a string.", "O(1) for each subcommand"),
];

/// What becomes of a number that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overflow {
    Wrap,
    Saturate,
    Fail,
}

/// An integer's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Width {
    signed: bool,
    /// 1 to 64; unsigned at most 63, because replies are signed.
    bits: u32,
}

impl Width {
    fn parse(text: &[u8]) -> Option<Self> {
        let (signed, digits) = match text {
            [b'i', digits @ ..] => (true, digits),
            [b'u', digits @ ..] => (false, digits),
            _ => return None,
        };
        let bits = u32::try_from(parse_i64(digits)?).ok()?;
        (1..=if signed { 64 } else { 63 }).contains(&bits).then_some(Self { signed, bits })
    }

    fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// The number that these bits, the low ones of `raw`, are.
    fn decode(self, raw: u64) -> i64 {
        let unused = 64 - self.bits;
        if self.signed { (raw << unused).cast_signed() >> unused } else { (raw & self.mask()).cast_signed() }
    }

    fn range(self) -> (i128, i128) {
        if self.signed {
            (-(1i128 << (self.bits - 1)), (1i128 << (self.bits - 1)) - 1)
        } else {
            (0, (1i128 << self.bits) - 1)
        }
    }

    /// The number that is stored for `number`. `None`: it does not fit, and that is a failure.
    fn fit(self, number: i128, overflow: Overflow) -> Option<i64> {
        let (min, max) = self.range();
        if (min..=max).contains(&number) {
            return Some(number as i64);
        }
        match overflow {
            Overflow::Wrap => Some(self.decode(number as u64)),
            Overflow::Saturate => Some(number.clamp(min, max) as i64),
            Overflow::Fail => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Get,
    Set(i64, Overflow),
    Add(i64, Overflow),
}

/// One subcommand.
#[derive(Debug, Clone, Copy)]
struct Step {
    action: Action,
    width: Width,
    /// Of its first bit.
    offset: u64,
}

/// Nine bytes from `at` on as one number, the first byte highest; zeros behind the end.
fn window(bytes: &[u8], at: usize) -> u128 {
    (0..9).fold(0, |window, index| window << 8 | u128::from(bytes.get(at + index).copied().unwrap_or(0)))
}

impl Step {
    /// First byte, and how far up in the window from there the field stands.
    fn place(self) -> (usize, u32) {
        ((self.offset >> 3) as usize, 72 - self.width.bits - (self.offset & 7) as u32)
    }

    /// Bytes that a string needs for the field.
    fn end_bytes(self) -> usize {
        (self.offset + u64::from(self.width.bits)).div_ceil(8) as usize
    }

    fn read(self, bytes: &[u8]) -> i64 {
        let (at, shift) = self.place();
        self.width.decode((window(bytes, at) >> shift) as u64)
    }

    /// Stores a number; true if that changed anything.
    fn store(self, bytes: &mut [u8], number: i64) -> bool {
        let (at, shift) = self.place();
        let mask = u128::from(self.width.mask()) << shift;
        let old = window(bytes, at);
        let new = old & !mask | u128::from(number.cast_unsigned()) << shift & mask;
        for (index, byte) in bytes[at..].iter_mut().take(9).enumerate() {
            *byte = (new >> (64 - 8 * index)) as u8;
        }
        old != new
    }

    /// The number that `SET value` means, which may not fit the field.
    fn number_to_set(self, value: i64, overflow: Overflow) -> i128 {
        let number = if self.width.signed {
            i128::from(value)
        } else {
            // An unsigned field takes a negative number for the huge one of the same bits.
            i128::from(value.cast_unsigned())
        };
        // Redis and Valkey compute the distance to the greatest number in 64 bits. If it does not fit there they take
        // a number far below the range for one above it. Replicas repeat the command, so all must agree.
        let (_, max) = self.width.range();
        let wraps = self.width.bits < 64 && max - number > i128::from(i64::MAX);
        if wraps && overflow == Overflow::Saturate { max + 1 } else { number }
    }

    /// Runs a step that writes: its reply (`None` for a failed overflow), and whether it changed anything.
    fn run(self, bytes: &mut [u8]) -> (Option<i64>, bool) {
        let old = self.read(bytes);
        let (number, overflow) = match self.action {
            Action::Get => return (Some(old), false),
            Action::Set(value, overflow) => (self.number_to_set(value, overflow), overflow),
            Action::Add(amount, overflow) => (i128::from(old) + i128::from(amount), overflow),
        };
        let Some(new) = self.width.fit(number, overflow) else { return (None, false) };
        let changed = self.store(bytes, new);
        (Some(if matches!(self.action, Action::Set(..)) { old } else { new }), changed)
    }
}

fn parse_steps(c: &Ctx<'_>, args: Args<'_>) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    let mut overflow = Overflow::Wrap;
    let mut at = 2;
    while at < args.len() {
        let left = args.len() - at - 1;
        let word = |name: &str| args.is(at, name);
        if word("OVERFLOW") && left >= 1 {
            overflow = match () {
                () if args.is(at + 1, "WRAP") => Overflow::Wrap,
                () if args.is(at + 1, "SAT") => Overflow::Saturate,
                () if args.is(at + 1, "FAIL") => Overflow::Fail,
                () => return Err(Error::text("ERR Invalid OVERFLOW type specified")),
            };
            at += 2;
            continue;
        }
        let get = word("GET") && left >= 2;
        let set = word("SET") && left >= 3;
        let add = word("INCRBY") && left >= 3;
        if !(get || set || add) {
            return Err(Error::Syntax);
        }
        let width = Width::parse(args[at + 1]).ok_or(Error::text(
            "ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is.",
        ))?;
        let offset = parse_offset(c, args[at + 2], width)?;
        let action = match () {
            () if get => Action::Get,
            () if set => Action::Set(parse_i64(args[at + 3]).ok_or(Error::NotInteger)?, overflow),
            () => Action::Add(parse_i64(args[at + 3]).ok_or(Error::NotInteger)?, overflow),
        };
        steps.push(Step { action, width, offset });
        at += if get { 3 } else { 4 };
    }
    Ok(steps)
}

/// A position in bits, or behind `#` in fields of this width.
fn parse_offset(c: &Ctx<'_>, text: &[u8], width: Width) -> Result<u64, Error> {
    let offset = match text {
        [b'#', index @ ..] => {
            let index = parse_i64(index).ok_or(BAD_OFFSET)?;
            index.checked_mul(i64::from(width.bits))
        }
        _ => parse_i64(text),
    };
    check_offset(c, offset)
}

fn bitfield(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let steps = parse_steps(c, args)?;
    let writes = |step: &&Step| !matches!(step.action, Action::Get);
    let Some(len_bytes) = steps.iter().filter(writes).map(|step| step.end_bytes()).max() else {
        return read_all(c, args[1], &steps);
    };
    let mut replies = Vec::with_capacity(steps.len());
    let (changed, grew) = edit_grown(c, args[1], len_bytes, |bytes| {
        let mut any = false;
        for step in &steps {
            let (reply, changed) = step.run(bytes);
            replies.push(reply);
            any |= changed;
        }
        any
    })?;
    if changed || grew {
        c.keys.changed(args[1]);
        c.keys.replicate_as_is(args);
    }
    c.out.array(replies.len());
    for reply in replies {
        match reply {
            Some(number) => c.out.int(number),
            None => c.out.null(),
        }
    }
    Ok(())
}

fn bitfield_ro(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let steps = parse_steps(c, args)?;
    if steps.iter().any(|step| !matches!(step.action, Action::Get)) {
        return Err(Error::text("ERR BITFIELD_RO only supports the GET subcommand"));
    }
    read_all(c, args[1], &steps)
}

fn read_all(c: &mut Ctx<'_>, key: &[u8], steps: &[Step]) -> Outcome {
    let (keys, out) = (&mut c.keys, &mut *c.out);
    let value = keys.string(key)?;
    out.array(steps.len());
    let mut reply = |bytes: &[u8]| steps.iter().for_each(|step| out.int(step.read(bytes)));
    match value {
        Some(value) => value.with(reply),
        None => reply(b""),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::Node;

    #[test]
    fn subcommands() {
        let mut node = Node::new();
        for (line, reply, effects) in [
            ("BITFIELD k", "*0\r\n", ""),
            ("BITFIELD k GET u8 0", "*1\r\n:0\r\n", ""),
            (
                "BITFIELD k SET u8 #1 255 GET u8 #1",
                "*2\r\n:0\r\n:255\r\n",
                "BITFIELD k SET u8 #1 255 GET u8 #1",
            ),
            ("BITFIELD k SET u8 8 255", "*1\r\n:255\r\n", ""),
            ("BITFIELD k GET i8 8 GET u4 10 GET i64 0", "*3\r\n:-1\r\n:15\r\n:71776119061217280\r\n", ""),
            ("BITFIELD k INCRBY u8 8 2", "*1\r\n:1\r\n", "BITFIELD k INCRBY u8 8 2"),
            (
                "BITFIELD k OVERFLOW SAT INCRBY u8 8 300 OVERFLOW FAIL INCRBY u8 8 1",
                "*2\r\n:255\r\n$-1\r\n",
                "BITFIELD k OVERFLOW SAT INCRBY u8 8 300 OVERFLOW FAIL INCRBY u8 8 1",
            ),
            ("BITFIELD k OVERFLOW FAIL INCRBY u8 8 1", "*1\r\n$-1\r\n", ""),
            ("BITFIELD_RO k GET u8 8", "*1\r\n:255\r\n", ""),
            ("BITFIELD_RO k SET u8 8 1", "-ERR BITFIELD_RO only supports the GET subcommand\r\n", ""),
            ("BITFIELD k OVERFLOW x", "-ERR Invalid OVERFLOW type specified\r\n", ""),
            ("BITFIELD k GET u8", "-ERR syntax error\r\n", ""),
            ("BITFIELD k GET u8 -1", "-ERR bit offset is not an integer or out of range\r\n", ""),
            ("BITFIELD k GET u8 #x", "-ERR bit offset is not an integer or out of range\r\n", ""),
        ] {
            assert_eq!(node.run(line), reply, "{line}");
            assert_eq!(node.effects(), effects, "{line}");
        }
        assert_eq!(node.run3("BITFIELD k OVERFLOW FAIL INCRBY u8 8 1"), "*1\r\n_\r\n");
        for bad in ["u64", "i65", "u0", "x8", "8", "u"] {
            let reply = node.run(&format!("BITFIELD k GET {bad} 0"));
            assert!(reply.starts_with("-ERR Invalid bitfield type. Use something like i16 u8."), "{bad}");
        }
    }

    /// Expected replies are Redis 8.2's and Valkey 9.1's.
    #[test]
    fn a_number_far_below_the_range_saturates_at_the_top() {
        let mut node = Node::new();
        for (width, value, stored) in [
            ("i63", "-7582100786677185611", "4611686018427387903"),
            ("i63", "-4611686018427387905", "4611686018427387903"),
            ("i62", "-2305843009213693953", "-2305843009213693952"),
        ] {
            let line = format!("BITFIELD k OVERFLOW SAT SET {width} 0 {value} GET {width} 0");
            assert!(node.run(&line).ends_with(&format!("\r\n:{stored}\r\n")), "{value}");
        }
    }

    /// Every field, stored and read back bit by bit.
    #[test]
    fn fields_stand_where_they_belong() {
        let mut rng = fastrand::Rng::with_seed(17);
        for _ in 0..5_000 {
            let signed = rng.bool();
            let width = Width { signed, bits: rng.u32(1..=if signed { 64 } else { 63 }) };
            let step = Step { action: Action::Get, width, offset: rng.u64(..100) };
            let mut bytes: Vec<u8> = (0..step.end_bytes() + rng.usize(..3)).map(|_| rng.u8(..)).collect();
            let before = bytes.clone();
            let number = width.decode(rng.u64(..));
            let changed = step.store(&mut bytes, number);
            assert_eq!(step.read(&bytes), number);
            assert_eq!(changed, before != bytes);
            let field = step.offset..step.offset + u64::from(width.bits);
            for at in (0..bytes.len() as u64 * 8).rev() {
                let bit = |bytes: &[u8]| bytes[at as usize / 8] >> (7 - at % 8) & 1;
                if field.contains(&at) {
                    let from_end = field.end - 1 - at;
                    assert_eq!(u64::from(bit(&bytes)), number.cast_unsigned() >> from_end & 1);
                } else {
                    assert_eq!(bit(&bytes), bit(&before));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit() {
        let byte = Width { signed: false, bits: 8 };
        let small = Width { signed: true, bits: 8 };
        let wide = Width { signed: true, bits: 64 };
        let beyond = i128::from(i64::MAX) + 1;
        for (width, number, wrapped, saturated) in [
            (byte, 256, 0, 255),
            (byte, -1, 255, 0),
            (small, 128, -128, 127),
            (small, -129, 127, -128),
            (wide, beyond, i64::MIN, i64::MAX),
        ] {
            assert_eq!(width.fit(number, Overflow::Wrap), Some(wrapped));
            assert_eq!(width.fit(number, Overflow::Saturate), Some(saturated));
            assert_eq!(width.fit(number, Overflow::Fail), None);
        }
        assert_eq!(small.fit(-128, Overflow::Fail), Some(-128));
    }
}
