//! Whole numbers of any length, as far as reading and printing long floats needs them.

/// 32-bit limbs, the lowest first, the highest not zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Big(Vec<u32>);

const CHUNK_DIGITS: usize = 9;
const CHUNK: u32 = 1_000_000_000;

impl From<u128> for Big {
    fn from(value: u128) -> Self {
        let mut big = Self((0..4).map(|limb| (value >> (32 * limb)) as u32).collect());
        big.trim();
        big
    }
}

impl Big {
    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    pub(super) fn multiply_add(&mut self, factor: u32, addend: u32) {
        let mut carry = u64::from(addend);
        for limb in &mut self.0 {
            carry += u64::from(*limb) * u64::from(factor);
            *limb = carry as u32;
            carry >>= 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    /// Divides and returns the remainder.
    fn divide(&mut self, divisor: u32) -> u32 {
        let mut rest = 0;
        for limb in self.0.iter_mut().rev() {
            let value = rest << 32 | u64::from(*limb);
            *limb = (value / u64::from(divisor)) as u32;
            rest = value % u64::from(divisor);
        }
        self.trim();
        rest as u32
    }

    pub(super) fn multiply_by_power_of_ten(&mut self, power: usize) {
        for _ in 0..power / CHUNK_DIGITS {
            self.multiply_add(CHUNK, 0);
        }
        self.multiply_add(10u32.pow((power % CHUNK_DIGITS) as u32), 0);
    }

    /// Divides; true if something was left over.
    pub(super) fn divide_by_power_of_ten(&mut self, power: usize) -> bool {
        let mut left = false;
        for _ in 0..power / CHUNK_DIGITS {
            left |= self.divide(CHUNK) != 0;
        }
        left | (self.divide(10u32.pow((power % CHUNK_DIGITS) as u32)) != 0)
    }

    pub(super) fn shift_left(&mut self, bits: usize) {
        self.multiply_add(1 << (bits % 32), 0);
        self.0.splice(0..0, std::iter::repeat_n(0, bits / 32));
        self.trim();
    }

    /// The highest limbs, at least 96 bits of them if there are so many; whether anything but zeros stands below
    /// them; and how many bits that is.
    pub(super) fn top_bits(&self) -> (u128, bool, usize) {
        let cut = self.0.len().saturating_sub(4);
        let high = self.0[cut..].iter().rev().fold(0, |high, limb| high << 32 | u128::from(*limb));
        (high, self.0[..cut].iter().any(|limb| *limb != 0), 32 * cut)
    }

    pub(super) fn to_decimal(&self) -> String {
        let mut rest = self.clone();
        let mut chunks = Vec::with_capacity(self.0.len() * 32 / 29 + 1);
        while !rest.0.is_empty() {
            chunks.push(rest.divide(CHUNK));
        }
        let mut text = chunks.pop().unwrap_or(0).to_string();
        for chunk in chunks.iter().rev() {
            text.push_str(&format!("{chunk:0width$}", width = CHUNK_DIGITS));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_agrees_with_128_bits() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..2_000 {
            let value = rng.u128(..) >> rng.u32(64..128);
            let power = rng.usize(0..=18);
            let mut big = Big::from(value);
            assert_eq!(big.to_decimal(), value.to_string());
            big.multiply_by_power_of_ten(power);
            assert_eq!(big, Big::from(value * 10u128.pow(power as u32)));
            let addend = rng.u32(0..1000);
            big.multiply_add(1, addend);
            let sum = value * 10u128.pow(power as u32) + u128::from(addend);
            let left = big.divide_by_power_of_ten(power);
            assert_eq!(
                (big.clone(), left),
                (Big::from(sum / 10u128.pow(power as u32)), !sum.is_multiple_of(10u128.pow(power as u32)))
            );
            let shift = rng.usize(0..60);
            let mut big = Big::from(value);
            big.shift_left(shift);
            assert_eq!(big, Big::from(value << shift));
            assert_eq!(big.top_bits(), (value << shift, false, 0));
        }
    }

    #[test]
    fn what_lies_below_the_top_is_told() {
        let mut big = Big::from(5);
        big.shift_left(320);
        let (high, below, shift) = big.top_bits();
        assert!(!below);
        assert_eq!((high, shift), (5 << 96, 320 - 96));
        big.multiply_add(1, 1);
        assert!(big.top_bits().1);
    }
}
