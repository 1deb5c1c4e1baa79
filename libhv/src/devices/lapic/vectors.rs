//! `VectorSet`: one of the 256-bit registers IRR, ISR and TMR, with its highest vector at hand.

/// A set of interrupt vectors, 16 to 255; the vectors below are never members (SDM Vol. 3A 11.8.4).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct VectorSet {
    words: [u64; 4],
    /// The highest member; 0 for none.
    highest: u8,
}

impl VectorSet {
    /// Returns the highest member, or 0 when there is none.
    #[inline]
    pub(super) const fn highest(&self) -> u8 {
        self.highest
    }

    #[inline]
    pub(super) const fn contains(&self, vector: u8) -> bool {
        self.words[(vector >> 6) as usize] >> (vector & 63) & 1 != 0
    }

    /// Adds a vector; one below 16 is left out.
    #[inline]
    pub(super) fn insert(&mut self, vector: u8) {
        if vector >= 16 {
            self.words[(vector >> 6) as usize] |= 1 << (vector & 63);
            self.highest = self.highest.max(vector);
        }
    }

    /// Adds a vector above all members, 16 or more.
    #[inline]
    pub(super) fn insert_highest(&mut self, vector: u8) {
        debug_assert!(vector >= 16 && vector > self.highest, "{vector} over {}", self.highest);
        self.words[(vector >> 6) as usize] |= 1 << (vector & 63);
        self.highest = vector;
    }

    #[inline]
    pub(super) fn remove(&mut self, vector: u8) {
        self.words[(vector >> 6) as usize] &= !(1 << (vector & 63));
        if vector == self.highest {
            self.highest = self.find_highest();
        }
    }

    /// Returns the register, vector 0 in bit 0 of the first word.
    #[inline]
    pub(super) const fn words(&self) -> &[u64; 4] {
        &self.words
    }

    /// Returns bits 31:0 of the register whose place in the eight is `index`, 0 for vectors 31:0.
    pub(super) fn word(&self, index: usize) -> u32 {
        self.words.get(index / 2).map_or(0, |word| (word >> (index % 2 * 32)) as u32)
    }

    #[inline]
    fn find_highest(&self) -> u8 {
        let [low, second, third, high] = self.words;
        // Written out: a loop over four words costs more than what it does.
        let (base, word) = match (high, third, second) {
            (1.., ..) => (192, high),
            (_, 1.., _) => (128, third),
            (_, _, 1..) => (64, second),
            _ => (0, low),
        };
        // Without a member the lowest bit stands for none: vector 0 never is one.
        base + (word | 1).ilog2() as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_vector_set_agrees_with_a_sorted_set(steps in prop::collection::vec((any::<bool>(), any::<u8>()), 0..200)) {
            let (mut set, mut model) = (VectorSet::default(), BTreeSet::new());
            for (insert, vector) in steps {
                if insert {
                    set.insert(vector);
                    if vector >= 16 {
                        model.insert(vector);
                    }
                } else {
                    set.remove(vector);
                    model.remove(&vector);
                }
                prop_assert_eq!(set.highest(), model.last().copied().unwrap_or(0));
                prop_assert_eq!(set.contains(vector), model.contains(&vector));
            }
            for vector in 0..=255u8 {
                let in_word = set.word(usize::from(vector) / 32) >> (vector % 32) & 1 != 0;
                prop_assert_eq!(in_word, model.contains(&vector));
            }
        }
    }
}
