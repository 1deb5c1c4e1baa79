//! A generator of numbers that is the same everywhere: what a seed gives, it gives again.

/// A xorshift generator (Marsaglia's 13, 7, 17).
pub struct Random(u64);

impl Random {
    /// Begins with a seed; near seeds give unlike numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns the next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    /// Returns one of `choices`.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Returns a number with few bits set, with many, or with any.
    pub fn value(&mut self) -> u64 {
        match self.below(5) {
            0 => 0,
            1 => 1 << self.below(64),
            2 => self.next() & 0xffff,
            3 => !(1 << self.below(64)),
            _ => self.next(),
        }
    }
}
