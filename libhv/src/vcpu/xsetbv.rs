//! XSETBV: every check the processor makes, in its order (SDM Vol. 2D, XSETBV; Vol. 1 13.3).

use crate::exit::Event;
use crate::registers::CR4_OSXSAVE;

/// XCR0.x87
const X87: u64 = 1 << 0;
/// XCR0.SSE
const SSE: u64 = 1 << 1;
/// XCR0.AVX
const AVX: u64 = 1 << 2;
/// XCR0.BNDREGS and XCR0.BNDCSR
const MPX: u64 = 0b11 << 3;
/// XCR0.opmask, XCR0.ZMM_Hi256 and XCR0.Hi16_ZMM
const AVX512: u64 = 0b111 << 5;
/// XCR0.TILECFG and XCR0.TILEDATA
const AMX: u64 = 0b11 << 17;
/// XCR0.APX
const APX: u64 = 1 << 19;

/// Returns whether XCR0 may hold `value` on a processor that offers the components `offered`.
pub const fn is_legal(value: u64, offered: u64) -> bool {
    value & !offered == 0
        && value & X87 != 0
        && (value & AVX == 0 || value & SSE != 0)
        && (value & AVX512 == 0 || value & (AVX512 | AVX) == AVX512 | AVX)
        && (value & MPX == 0 || value & MPX == MPX)
        && (value & AMX == 0 || value & AMX == AMX)
        && (value & APX == 0 || value & MPX == 0)
}

/// Checks an XSETBV of `value` to register `xcr` by a guest with `cr4` at privilege level `cpl`, on a processor that
/// offers it the components `offered`.
///
/// # Errors
/// The event the guest gets instead: #UD without CR4.OSXSAVE, #GP for the rest.
pub const fn check(cr4: u64, cpl: u8, xcr: u32, value: u64, offered: u64) -> Result<(), Event> {
    if cr4 & CR4_OSXSAVE == 0 {
        Err(Event::UNDEFINED)
    } else if cpl != 0 || xcr != 0 || !is_legal(value, offered) {
        Err(Event::GENERAL_PROTECTION)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every legal combination, as lists of components: written out rather than computed from dependencies.
    fn legal(value: u64) -> bool {
        let vector: &[&[u32]] = &[&[], &[1], &[1, 2], &[1, 2, 5, 6, 7]];
        let bounds: &[&[u32]] = &[&[], &[3, 4], &[19]];
        let alone: &[&[u32]] = &[&[], &[9]];
        let tiles: &[&[u32]] = &[&[], &[17, 18]];
        vector.iter().any(|vector| {
            bounds.iter().any(|bounds| {
                alone.iter().any(|alone| {
                    tiles.iter().any(|tiles| {
                        let parts = [&[0], *vector, *bounds, *alone, *tiles].concat();
                        parts.iter().fold(0u64, |sum, bit| sum | 1 << bit) == value
                    })
                })
            })
        })
    }

    #[test]
    fn of_all_combinations_of_components_the_legal_ones_are_accepted() {
        let components = [0u32, 1, 2, 3, 4, 5, 6, 7, 9, 17, 18, 19];
        for choice in 0u32..1 << components.len() {
            let bit = |(index, component): (usize, &u32)| u64::from(choice >> index & 1) << component;
            let value = components.iter().enumerate().map(bit).sum();
            assert_eq!(is_legal(value, u64::MAX), legal(value), "{value:#x}");
        }
    }

    proptest! {
        #[test]
        fn only_what_is_offered_is_legal(value: u64, offered: u64) {
            let value = value & 0xE_02FF | 1;
            prop_assert_eq!(is_legal(value, offered), legal(value) && value & offered == value);
        }

        #[test]
        fn the_checks_come_in_the_processor_s_order(cr4: u64, cpl in 0u8..4, xcr in 0u32..3, value: u64) {
            let expected = match (cr4 >> 18 & 1, cpl, xcr, legal(value)) {
                (0, ..) => Err(Event::Exception { vector: 6, error_code: None }),
                (_, 0, 0, true) => Ok(()),
                _ => Err(Event::Exception { vector: 13, error_code: Some(0) }),
            };
            prop_assert_eq!(check(cr4, cpl, xcr, value, 0xF_02FF), expected);
            let expected = if cr4 & 1 << 18 == 0 { Err(Event::UNDEFINED) } else if cpl == 0 { Ok(()) } else { Err(Event::GENERAL_PROTECTION) };
            prop_assert_eq!(check(cr4, cpl, 0, 7, 7), expected);
        }
    }
}
