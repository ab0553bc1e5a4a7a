//! Forty hex digits, by which histories, marks and full syncs are named on the wire.

/// How many digits.
pub const HEX_LEN: usize = 40;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hex([u8; HEX_LEN]);

impl Hex {
    /// Digits that nobody can guess by accident.
    pub(crate) fn random(rng: &mut fastrand::Rng) -> Self {
        Hex(std::array::from_fn(|_| b"0123456789abcdef"[rng.usize(..16)]))
    }

    /// From the wire, in either case.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut digits: [u8; HEX_LEN] = text.try_into().ok()?;
        digits.make_ascii_lowercase();
        digits.iter().all(u8::is_ascii_hexdigit).then_some(Hex(digits))
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hex digits")
    }
}

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
