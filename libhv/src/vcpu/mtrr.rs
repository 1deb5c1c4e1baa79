//! Memory type range registers: stored and checked, without effect (SDM Vol. 3A 12.11).
//!
//! Nested paging gives guest memory its type. A guest finds the registers as firmware leaves them, and may change them.

use super::msr::index;

/// Variable ranges.
const RANGES: usize = 8;
/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const CAPABILITY: u64 = RANGES as u64 | FIXED_SUPPORTED | WRITE_COMBINING_SUPPORTED;
const FIXED_SUPPORTED: u64 = 1 << 8;
const WRITE_COMBINING_SUPPORTED: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE.FE and .E: fixed ranges and all ranges are on.
const ENABLES: u64 = 0b11 << 10;
const WRITE_BACK: u8 = 6;
const WRITE_PROTECTED: u8 = 5;
/// The V bit of a variable range's mask.
const VALID: u64 = 1 << 11;

/// The registers of one virtual processor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mtrrs {
    default: u64,
    fixed: [u64; 11],
    /// Base and mask by turns.
    variable: [u64; 2 * RANGES],
    /// Bits of an address above the guest's physical addresses.
    beyond: u64,
}

impl Mtrrs {
    /// Makes the registers as firmware leaves them: memory write-back, A0000H to BFFFFH uncached, C0000H to FFFFFH
    /// write-protected, no variable range. Guest-physical addresses have `address_bits` bits, 32 to 52.
    pub fn new(address_bits: u32) -> Self {
        let all = |memory_type: u8| u64::from_le_bytes([memory_type; 8]);
        let mut fixed = [all(WRITE_PROTECTED); 11];
        fixed[..2].fill(all(WRITE_BACK));
        fixed[2] = 0;
        let beyond = u64::MAX.checked_shl(address_bits).unwrap_or(0);
        Self { default: ENABLES | u64::from(WRITE_BACK), fixed, variable: [0; 2 * RANGES], beyond }
    }

    /// Reads a register; `None` when `msr` is none of them.
    pub fn read(&self, msr: u32) -> Option<u64> {
        match msr {
            index::MTRRCAP => Some(CAPABILITY),
            index::MTRR_DEF_TYPE => Some(self.default),
            index::MTRR_PHYSBASE0..=index::MTRR_PHYSMASK7 => {
                self.variable.get((msr - index::MTRR_PHYSBASE0) as usize).copied()
            }
            _ => fixed_position(msr).and_then(|position| self.fixed.get(position)).copied(),
        }
    }

    /// Writes a register; returns false, and writes nothing, where the processor raises #GP: a reserved bit or type,
    /// IA32_MTRRCAP, or a register that does not exist.
    pub fn write(&mut self, msr: u32, value: u64) -> bool {
        let reserved = match msr {
            index::MTRR_DEF_TYPE => !(ENABLES | 0xFF),
            index::MTRR_PHYSBASE0..=index::MTRR_PHYSMASK7 if msr.is_multiple_of(2) => 0xF00 | self.beyond,
            index::MTRR_PHYSBASE0..=index::MTRR_PHYSMASK7 => (0xFFF & !VALID) | self.beyond,
            _ => 0,
        };
        let [low, ..] = value.to_le_bytes();
        let types_exist = match msr {
            index::MTRR_DEF_TYPE => is_type(low),
            index::MTRR_PHYSBASE0..=index::MTRR_PHYSMASK7 => msr % 2 == 1 || is_type(low),
            _ => value.to_le_bytes().into_iter().all(is_type),
        };
        let place = match msr {
            index::MTRR_DEF_TYPE => Some(&mut self.default),
            index::MTRR_PHYSBASE0..=index::MTRR_PHYSMASK7 => {
                self.variable.get_mut((msr - index::MTRR_PHYSBASE0) as usize)
            }
            _ => fixed_position(msr).and_then(|position| self.fixed.get_mut(position)),
        };
        match place {
            Some(place) if types_exist && value & reserved == 0 => {
                *place = value;
                true
            }
            _ => false,
        }
    }
}

/// Returns whether a memory type exists: uncached, write-combining, write-through, write-protected or write-back.
fn is_type(memory_type: u8) -> bool {
    matches!(memory_type, 0 | 1 | 4 | 5 | 6)
}

/// Returns the position of a fixed-range register among the eleven.
fn fixed_position(msr: u32) -> Option<usize> {
    match msr {
        index::MTRR_FIX64K => Some(0),
        index::MTRR_FIX16K_80000 => Some(1),
        index::MTRR_FIX16K_A0000 => Some(2),
        index::MTRR_FIX4K_C0000..=index::MTRR_FIX4K_F8000 => Some((msr - index::MTRR_FIX4K_C0000) as usize + 3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a write of `value` does by the manual's tables, for 40-bit addresses.
    fn legal(msr: u32, value: u64) -> bool {
        let kind = |byte: u64| [0, 1, 4, 5, 6].contains(&(byte & 0xFF));
        match msr {
            0x2FF => value & 0xFFFF_FFFF_FFFF_F300 == 0 && kind(value),
            0x200 | 0x202 | 0x204 | 0x206 | 0x208 | 0x20A | 0x20C | 0x20E => {
                value & 0xFFFF_FF00_0000_0F00 == 0 && kind(value)
            }
            0x201 | 0x203 | 0x205 | 0x207 | 0x209 | 0x20B | 0x20D | 0x20F => value & 0xFFFF_FF00_0000_07FF == 0,
            0x250 | 0x258 | 0x259 | 0x268..=0x26F => (0..8).all(|byte| kind(value >> (byte * 8))),
            _ => false,
        }
    }

    fn likely() -> impl Strategy<Value = u64> {
        let bytes = proptest::array::uniform8(
            prop_oneof![8 => prop::sample::select(alloc::vec![0u8, 1, 4, 5, 6]), 1 => any::<u8>()],
        );
        prop_oneof![
            bytes.prop_map(u64::from_le_bytes),
            (any::<u32>(), any::<u16>(), 0u64..8)
                .prop_map(|(high, low, kind)| u64::from(high) << 9 & !0xFFF | u64::from(low & 0xC00) | kind),
            any::<u64>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn a_write_is_stored_where_the_manual_allows_it_and_refused_where_not(
            msr in prop_oneof![0x1F8u32..0x280, Just(0x2FF), Just(0xFE)], value in likely(),
        ) {
            let mut mtrrs = Mtrrs::new(40);
            let before = mtrrs.clone();
            prop_assert_eq!(mtrrs.write(msr, value), legal(msr, value));
            if legal(msr, value) {
                prop_assert_eq!(mtrrs.read(msr), Some(value));
            } else {
                prop_assert_eq!(&mtrrs, &before);
            }
            for other in (0x1F8..0x300).filter(|other| *other != msr) {
                prop_assert_eq!(mtrrs.read(other), before.read(other));
            }
        }
    }

    #[test]
    fn firmware_left_memory_write_back_and_the_video_area_uncached() {
        let mtrrs = Mtrrs::new(52);
        assert_eq!(mtrrs.read(0x2FF), Some(0xC06));
        assert_eq!(
            [0x250, 0x258, 0x259, 0x26F].map(|msr| mtrrs.read(msr)),
            [Some(0x0606_0606_0606_0606), Some(0x0606_0606_0606_0606), Some(0), Some(0x0505_0505_0505_0505),]
        );
    }
}
