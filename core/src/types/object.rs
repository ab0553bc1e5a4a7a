//! Placeholder until the branch `types` lands.
use super::list::List;
use bytes::Bytes;

#[derive(Clone, Debug)]
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
    pub fn type_name(&self) -> &'static str {
        match self {
            Object::Str(_) => "string",
            Object::List(_) => "list",
        }
    }
    pub fn encoding(&self) -> &'static str {
        match self {
            Object::Str(_) => "raw",
            Object::List(list) => list.encoding(),
        }
    }
    pub fn heap_bytes(&self) -> usize {
        match self {
            Object::Str(bytes) => bytes.len(),
            Object::List(list) => list.heap_bytes(),
        }
    }
}
