//! The simplest keyspace there is: what the commands of the workload, and their effects in the stream, mean.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// The words of one command.
pub type Words = Vec<Vec<u8>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Text(Vec<u8>),
    List(VecDeque<Vec<u8>>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub data: Data,
    pub expiry_ms: Option<u64>,
}

/// All databases. A copy shares what was not changed since, so that equal pointers mean "not touched".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub dbs: Vec<BTreeMap<Rc<[u8]>, Rc<Value>>>,
}

const WRONG_TYPE: &[u8] = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";

pub fn int(value: i64) -> Vec<u8> {
    format!(":{value}\r\n").into_bytes()
}

pub fn bulk(value: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
}

fn bulk_or_null(value: Option<&[u8]>) -> Vec<u8> {
    value.map_or_else(|| b"$-1\r\n".to_vec(), bulk)
}

pub fn array(elements: &[Vec<u8>]) -> Vec<u8> {
    [format!("*{}\r\n", elements.len()).into_bytes(), elements.concat()].concat()
}

fn ok() -> Vec<u8> {
    b"+OK\r\n".to_vec()
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl State {
    pub fn new(databases: usize) -> Self {
        Self { dbs: vec![BTreeMap::new(); databases] }
    }

    pub fn get(&self, db: u16, key: &[u8]) -> Option<&Rc<Value>> {
        self.dbs[usize::from(db)].get(key)
    }

    /// Whether a key is, to the pointer, what it was in `earlier`.
    pub fn is_untouched_since(&self, earlier: &State, db: u16, key: &[u8]) -> bool {
        match (self.get(db, key), earlier.get(db, key)) {
            (Some(now), Some(then)) => Rc::ptr_eq(now, then),
            (now, then) => now.is_none() && then.is_none(),
        }
    }

    /// Equal but for expiries.
    pub fn has_same_data(&self, other: &State) -> bool {
        self.dbs.iter().zip(&other.dbs).all(|(left, right)| {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|((a, x), (b, y))| a == b && (Rc::ptr_eq(x, y) || x.data == y.data))
        })
    }

    /// Times at which something in here ends, after `from_ms` and up to `to_ms`; and `from_ms` itself.
    pub fn ends_within(&self, from_ms: u64, to_ms: u64) -> Vec<u64> {
        let ends = self.dbs.iter().flat_map(BTreeMap::values).filter_map(|value| value.expiry_ms);
        let within = ends.filter(|at_ms| *at_ms >= from_ms && *at_ms <= to_ms);
        within.map(|at_ms| at_ms + 1).chain([from_ms]).collect()
    }

    /// Without what is over at this time.
    pub fn hidden(&self, now_ms: u64) -> Self {
        let mut left = self.clone();
        for db in &mut left.dbs {
            db.retain(|_, value| value.expiry_ms.is_none_or(|at_ms| at_ms >= now_ms));
        }
        left
    }

    fn put(&mut self, db: u16, key: &[u8], data: Data, expiry_ms: Option<u64>) {
        self.dbs[usize::from(db)].insert(key.into(), Rc::new(Value { data, expiry_ms }));
    }

    fn text(&self, db: u16, key: &[u8]) -> Result<Option<&[u8]>, Vec<u8>> {
        match self.get(db, key).map(|value| &value.data) {
            None => Ok(None),
            Some(Data::Text(text)) => Ok(Some(text)),
            Some(Data::List(_)) => Err(WRONG_TYPE.to_vec()),
        }
    }

    /// Runs one command in `db` and returns its reply in RESP2. `SELECT` changes `db`.
    pub fn run(&mut self, db: &mut u16, words: &[Vec<u8>]) -> Vec<u8> {
        self.try_run(db, words).unwrap_or_else(|error| error)
    }

    fn try_run(&mut self, db: &mut u16, words: &[Vec<u8>]) -> Result<Vec<u8>, Vec<u8>> {
        let now = *db;
        let key = words.get(1).map_or(&b""[..], |word| word);
        Ok(match words[0].to_ascii_uppercase().as_slice() {
            b"PING" => b"+PONG\r\n".to_vec(),
            b"SELECT" => {
                *db = number(key).expect("a database") as u16;
                ok()
            }
            b"GET" => bulk_or_null(self.text(now, key)?),
            b"SET" => {
                let expiry_ms = match words.get(3).map(|word| word.to_ascii_uppercase()) {
                    Some(option) if option == b"PXAT" => Some(number(&words[4]).expect("a time") as u64),
                    // The time is the master's to know.
                    Some(option) if option == b"PX" => Some(0),
                    Some(option) => panic!("option {option:?}"),
                    None => None,
                };
                self.put(now, key, Data::Text(words[2].clone()), expiry_ms);
                ok()
            }
            b"GETSET" => {
                let old = bulk_or_null(self.text(now, key)?);
                self.put(now, key, Data::Text(words[2].clone()), None);
                old
            }
            b"INCR" => {
                let (old, expiry_ms) =
                    (self.text(now, key)?, self.get(now, key).and_then(|value| value.expiry_ms));
                let old = old.map_or(Some(0), number);
                let old = old.ok_or(b"-ERR value is not an integer or out of range\r\n".to_vec())?;
                self.put(now, key, Data::Text((old + 1).to_string().into_bytes()), expiry_ms);
                int(old + 1)
            }
            b"MGET" => {
                let values = words[1..].iter().map(|key| bulk_or_null(self.text(now, key).unwrap_or(None)));
                array(&values.collect::<Vec<_>>())
            }
            b"MSET" => {
                for pair in words[1..].chunks(2) {
                    self.put(now, &pair[0], Data::Text(pair[1].clone()), None);
                }
                ok()
            }
            b"MSETNX" => {
                let is_free = words[1..].iter().step_by(2).all(|key| self.get(now, key).is_none());
                if is_free {
                    for pair in words[1..].chunks(2) {
                        self.put(now, &pair[0], Data::Text(pair[1].clone()), None);
                    }
                }
                int(i64::from(is_free))
            }
            b"DEL" | b"UNLINK" => {
                let table = &mut self.dbs[usize::from(now)];
                int(words[1..].iter().filter(|key| table.remove(key.as_slice()).is_some()).count() as i64)
            }
            b"EXISTS" => int(words[1..].iter().filter(|key| self.get(now, key).is_some()).count() as i64),
            b"DBSIZE" => int(self.dbs[usize::from(now)].len() as i64),
            b"RENAME" => {
                let value = self.get(now, key).cloned().ok_or(b"-ERR no such key\r\n".to_vec())?;
                if key != words[2] {
                    self.dbs[usize::from(now)].remove(key);
                    self.put(now, &words[2], value.data.clone(), value.expiry_ms);
                }
                ok()
            }
            b"COPY" => {
                let (mut to_db, mut replace) = (now, false);
                let mut options = words[3..].iter();
                while let Some(option) = options.next() {
                    match option.as_slice() {
                        b"REPLACE" => replace = true,
                        b"DB" => {
                            to_db = number(options.next().expect("a number")).expect("a database") as u16
                        }
                        other => panic!("option {other:?}"),
                    }
                }
                if to_db == now && key == words[2] {
                    return Err(b"-ERR source and destination objects are the same\r\n".to_vec());
                }
                match self.get(now, key).cloned() {
                    Some(value) if replace || self.get(to_db, &words[2]).is_none() => {
                        self.put(to_db, &words[2], value.data.clone(), value.expiry_ms);
                        int(1)
                    }
                    _ => int(0),
                }
            }
            b"MOVE" => {
                let to_db = number(&words[2]).expect("a database") as u16;
                if to_db == now {
                    return Err(b"-ERR source and destination objects are the same\r\n".to_vec());
                }
                match self.get(now, key).cloned() {
                    Some(value) if self.get(to_db, key).is_none() => {
                        self.dbs[usize::from(now)].remove(key);
                        self.put(to_db, key, value.data.clone(), value.expiry_ms);
                        int(1)
                    }
                    _ => int(0),
                }
            }
            b"PERSIST" => match self.get(now, key).cloned() {
                Some(value) if value.expiry_ms.is_some() => {
                    self.put(now, key, value.data.clone(), None);
                    int(1)
                }
                _ => int(0),
            },
            b"PEXPIRE" | b"PEXPIREAT" => match self.get(now, key).cloned() {
                Some(value) => {
                    self.put(now, key, value.data.clone(), Some(number(&words[2]).expect("a time") as u64));
                    int(1)
                }
                None => int(0),
            },
            b"RPUSH" | b"LPUSH" => {
                let is_right = words[0].eq_ignore_ascii_case(b"RPUSH");
                let old = self.get(now, key).cloned();
                let (mut list, expiry_ms) = match old.as_deref() {
                    None => (VecDeque::new(), None),
                    Some(Value { data: Data::List(list), expiry_ms }) => (list.clone(), *expiry_ms),
                    Some(_) => return Err(WRONG_TYPE.to_vec()),
                };
                for word in &words[2..] {
                    if is_right { list.push_back(word.clone()) } else { list.push_front(word.clone()) }
                }
                let len = list.len() as i64;
                self.put(now, key, Data::List(list), expiry_ms);
                int(len)
            }
            b"LPOP" => match self.get(now, key).cloned().as_deref() {
                None => bulk_or_null(None),
                Some(Value { data: Data::List(list), expiry_ms }) => {
                    let mut list = list.clone();
                    let head = list.pop_front().expect("no key holds an empty list");
                    if list.is_empty() {
                        self.dbs[usize::from(now)].remove(key);
                    } else {
                        self.put(now, key, Data::List(list), *expiry_ms);
                    }
                    bulk(&head)
                }
                Some(_) => return Err(WRONG_TYPE.to_vec()),
            },
            b"LRANGE" => match self.get(now, key).map(|value| &value.data) {
                None => array(&[]),
                Some(Data::List(list)) => {
                    array(&list.iter().map(|element| bulk(element)).collect::<Vec<_>>())
                }
                Some(Data::Text(_)) => return Err(WRONG_TYPE.to_vec()),
            },
            b"FLUSHALL" => {
                self.dbs.iter_mut().for_each(BTreeMap::clear);
                ok()
            }
            b"FLUSHDB" => {
                self.dbs[usize::from(now)].clear();
                ok()
            }
            b"SWAPDB" => {
                let of = |word: &[u8]| number(word).expect("a database") as usize;
                self.dbs.swap(of(&words[1]), of(&words[2]));
                ok()
            }
            other => panic!("the model does not know {}", other.escape_ascii()),
        })
    }
}
