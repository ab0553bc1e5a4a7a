//! The parts of a snapshot ([`crate::parts`]) as the link sees them, which makes them one: how far each of them is, and whether
//! they are what the master said they would be.

use crate::parts::Token;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// So many bytes are loaded.
    Under(u64),
    /// All of it is loaded.
    Whole(u64),
    Failed(String),
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Gathering {
    token: Token,
    parts: Vec<Part>,
    /// The length of each, as the master says.
    announced: Option<Vec<u64>>,
}

impl Gathering {
    pub(super) fn new(token: Token, count: usize) -> Self {
        Self { token, parts: vec![Part::Under(0); count], announced: None }
    }

    /// By which news of these parts are told from those of an attempt before.
    pub(super) fn token(&self) -> Token {
        self.token
    }

    pub(super) fn count(&self) -> usize {
        self.parts.len()
    }

    /// A part got on.
    pub(super) fn progress(&mut self, index: usize, read_bytes: u64) {
        if let Part::Under(bytes) = &mut self.parts[index] {
            *bytes = read_bytes;
        }
    }

    /// A part is loaded.
    pub(super) fn loaded(&mut self, index: usize, len_bytes: u64) {
        if let part @ Part::Under(_) = &mut self.parts[index] {
            *part = Part::Whole(len_bytes);
        }
    }

    pub(super) fn failed(&mut self, index: usize, why: &str) {
        self.parts[index] = Part::Failed(why.to_owned());
    }

    /// The master says that all is sent.
    pub(super) fn announce(&mut self, lens_bytes: Vec<u64>) {
        self.announced = Some(lens_bytes);
    }

    /// What was loaded of all parts.
    pub(super) fn read_bytes(&self) -> u64 {
        let bytes = |part: &Part| match part {
            Part::Under(bytes) | Part::Whole(bytes) => *bytes,
            Part::Failed(_) => 0,
        };
        self.parts.iter().map(bytes).sum()
    }

    /// Whether they are the dataset: all parts were loaded, and each is as long as the master says.
    ///
    /// # Errors
    /// They never will be.
    pub(super) fn is_whole(&self) -> Result<bool, String> {
        let failed = self.parts.iter().zip(0..).find_map(|(part, index)| match part {
            Part::Failed(why) => Some(format!("data connection {index}: {why}")),
            _ => None,
        });
        if let Some(why) = failed {
            return Err(why);
        }
        let Some(announced) = &self.announced else { return Ok(false) };
        if announced.len() != self.parts.len() {
            return Err(format!("the master sent {} parts of {}", announced.len(), self.parts.len()));
        }
        let mut is_whole = true;
        for (index, (part, announced)) in self.parts.iter().zip(announced).enumerate() {
            match part {
                Part::Whole(len_bytes) if len_bytes == announced => {}
                Part::Whole(len_bytes) => {
                    return Err(format!(
                        "data connection {index} brought {len_bytes} bytes, and the master sent {announced}"
                    ));
                }
                _ => is_whole = false,
            }
        }
        Ok(is_whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(count: usize) -> Gathering {
        Gathering::new(Token::random(&mut fastrand::Rng::with_seed(1)), count)
    }

    #[test]
    fn law9_parts_are_a_dataset_when_all_are_loaded_and_as_long_as_announced() {
        // In every order of what is loaded and what is said.
        for order in 0..6 {
            let mut parts = new(2);
            let steps: [usize; 3] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][order];
            for (done, step) in steps.into_iter().enumerate() {
                assert_eq!(parts.is_whole(), Ok(false), "{done} of {steps:?}");
                match step {
                    2 => parts.announce(vec![10, 20]),
                    index => parts.loaded(index, 10 + 10 * index as u64),
                }
            }
            assert_eq!(parts.is_whole(), Ok(true));
        }
    }

    #[test]
    fn law9_a_part_that_is_missing_or_short_is_never_taken_for_the_dataset() {
        let mut parts = new(2);
        parts.progress(0, 5);
        parts.loaded(1, 20);
        assert_eq!(parts.read_bytes(), 25);
        parts.announce(vec![10, 20]);
        assert_eq!(parts.is_whole(), Ok(false));
        let mut short = parts.clone();
        short.loaded(0, 9);
        assert!(short.is_whole().unwrap_err().contains("connection 0 brought 9 bytes"));
        let mut fewer = parts.clone();
        fewer.loaded(0, 10);
        fewer.announce(vec![10]);
        assert!(fewer.is_whole().unwrap_err().contains("1 parts of 2"));
        // Nothing helps one that has failed.
        parts.failed(0, "it broke at byte 7");
        parts.loaded(0, 10);
        assert_eq!(parts.is_whole(), Err("data connection 0: it broke at byte 7".into()));
    }
}
