//! Placeholder until the branch `types` lands.
use super::list::List;
use bytes::Bytes;

pub enum Object {
    Str(Bytes),
    List(List),
}

impl Object {
    pub fn free_effort(&self) -> usize {
        match self {
            Object::Str(_) => 1,
            Object::List(list) => list.free_effort(),
        }
    }
    pub fn free_some(&mut self, n: usize) -> bool {
        match self {
            Object::Str(_) => true,
            Object::List(list) => list.free_some(n),
        }
    }
}
