//! Lists.

use super::collection::*;
use crate::command::{Args, Category, Command, Ctx, Error, Handler, Outcome};
use crate::types::{End, Limits, List, Object};
use std::ops::Range;

const LIST: Category = Category::LIST;

/// The family's declarations.
pub const COMMANDS: &[Command] = &[
    Command::new("lpush", -3, Handler::Keys(lpush)).flags(GROW_FAST).categories(LIST).keys(INSERT).doc(
        "list",
        "1.0.0",
        "Adds elements at the head of a list, which is created if there is none.",
        "O(N) for N elements added.",
    ),
    Command::new("rpush", -3, Handler::Keys(rpush)).flags(GROW_FAST).categories(LIST).keys(INSERT).doc(
        "list",
        "1.0.0",
        "Adds elements at the tail of a list, which is created if there is none.",
        "O(N) for N elements added.",
    ),
    Command::new("lpop", -2, Handler::Keys(lpop)).flags(WRITE_FAST).categories(LIST).keys(ACCESS_DELETE).doc(
        "list",
        "1.0.0",
        "Removes and returns elements from the head of a list.",
        "O(N) for N elements returned.",
    ),
    Command::new("rpop", -2, Handler::Keys(rpop)).flags(WRITE_FAST).categories(LIST).keys(ACCESS_DELETE).doc(
        "list",
        "1.0.0",
        "Removes and returns elements from the tail of a list.",
        "O(N) for N elements returned.",
    ),
    Command::new("lrange", 4, Handler::Keys(lrange)).flags(READ).categories(LIST).keys(ACCESS).doc(
        "list",
        "1.0.0",
        "Returns the elements of a range of indexes.",
        "O(S+N) for N elements returned that begin S nodes from the nearer end.",
    ),
];

fn lpush(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    push(c, args, End::Front)
}

fn rpush(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    push(c, args, End::Back)
}

fn push(c: &mut Ctx<'_>, args: Args<'_>, end: End) -> Outcome {
    let limits = &c.keys.settings.limits;
    let len = c.keys.upsert(args[1], |list: &mut List| add(list, &args[2..], end, limits))?;
    pushed(c, args, len);
    Ok(())
}

/// Adds elements at one end, one by one; returns the length.
#[inline]
fn add(list: &mut List, elements: &[&[u8]], end: End, limits: &Limits) -> usize {
    if elements.len() > 1 {
        list.prepare(elements.len(), elements.iter().map(|element| element.len()).sum(), limits);
    }
    for element in elements {
        list.push(end, element, limits);
    }
    list.len()
}

fn pushed(c: &mut Ctx<'_>, args: Args<'_>, len: usize) {
    c.keys.changed(args[1]);
    c.keys.replicate(args.list());
    c.out.int(len as i64);
}

fn lpop(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    pop(c, args, End::Front, "lpop")
}

fn rpop(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    pop(c, args, End::Back, "rpop")
}

fn pop(c: &mut Ctx<'_>, args: Args<'_>, end: End, name: &'static str) -> Outcome {
    let limits = &c.keys.settings.limits;
    let key = args[1];
    let wanted = match args.len() {
        2 => None,
        3 => Some(count(args[2])?),
        _ => return Err(Error::WrongArity(name.into())),
    };
    let Some(list) = c.keys.get_mut::<List>(key)? else {
        match wanted {
            None => c.out.null(),
            Some(_) => c.out.null_array(),
        }
        return Ok(());
    };
    match wanted {
        None => {
            let popped = list.pop_with(end, limits, |element| bulk_element(c.out, element));
            popped.expect("no key holds an empty list");
            if list.is_empty() {
                c.keys.remove_found(key);
            }
        }
        Some(0) => {
            c.out.array(0);
            return Ok(());
        }
        Some(wanted) => {
            let len = list.len();
            let wanted = wanted.min(len);
            c.out.array(wanted);
            let kept = match end {
                End::Front => {
                    list.range(0, wanted).for_each(|element| bulk_element(c.out, element));
                    wanted..len
                }
                End::Back => {
                    list.range(len - wanted, len).rev().for_each(|element| bulk_element(c.out, element));
                    0..len - wanted
                }
            };
            keep(c, key, kept);
        }
    }
    c.keys.changed(key);
    c.keys.replicate(args.list());
    Ok(())
}

/// Cuts the list in a key down to a range of its elements, or removes it.
fn keep(c: &mut Ctx<'_>, key: &[u8], kept: Range<usize>) {
    if kept.is_empty() {
        c.keys.remove_found(key);
        return;
    }
    let limits = &c.keys.settings.limits;
    let list = c.keys.get_mut::<List>(key).ok().flatten().expect("found just before");
    if let Some(cut) = list.trim(kept.start, kept.end, limits) {
        c.keys.discard_cut(Object::List(cut));
    }
}

fn lrange(c: &mut Ctx<'_>, args: Args<'_>) -> Outcome {
    let (start, stop) = (integer(args[2])?, integer(args[3])?);
    let Some(list) = c.keys.get::<List>(args[1])? else {
        c.out.array(0);
        return Ok(());
    };
    let range = index_range(start, stop, list.len());
    c.out.array(range.len());
    for element in list.range(range.start, range.end) {
        bulk_element(c.out, element);
    }
    Ok(())
}
