//! Interruption information: how the VMCS writes down an event, on its way into the guest and interrupted on the way
//! (SDM Vol. 3C 25.8.3, 25.9.2, 25.9.3). Pure.

use crate::exit::Event;
use bit_field::BitField;

/// Bit 31: there is an event.
pub(super) const VALID: u32 = 1 << 31;
/// Bit 11: it has an error code.
pub(super) const HAS_ERROR_CODE: u32 = 1 << 11;
/// Bit 12 of exit interruption information: an IRET that faulted had unblocked NMIs.
pub(super) const UNBLOCKED_BY_IRET: u32 = 1 << 12;

const EXTERNAL: u32 = 0;
const NMI: u32 = 2;
const HARDWARE_EXCEPTION: u32 = 3;
const SOFTWARE_INTERRUPT: u32 = 4;
const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5;
const SOFTWARE_EXCEPTION: u32 = 6;

/// #DB, which ICEBP raises as a privileged software exception.
const DEBUG: u8 = 1;
/// The vector of an NMI.
const NMI_VECTOR: u8 = 2;
/// #DF, #TS, #NP, #SS, #GP, #PF and #AC: the exceptions that push an error code in protected mode.
const WITH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;

/// An event as VM entry takes it: interruption information, error code, instruction length.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Injection {
    pub(super) information: u32,
    pub(super) error_code: u32,
    pub(super) instruction_length: u32,
}

const fn information(kind: u32, vector: u8) -> u32 {
    VALID | kind << 8 | vector as u32
}

/// Encodes an event for VM entry. In real mode (`protected` false) exceptions push no error code; in protected mode
/// those that have one push it, 0 where none was given (SDM Vol. 3C 27.2.1.3).
#[inline]
pub(super) fn encode(event: Event, protected: bool) -> Injection {
    match event {
        Event::Interrupt(vector) => Injection { information: information(EXTERNAL, vector), ..Injection::default() },
        Event::Nmi => Injection { information: information(NMI, NMI_VECTOR), ..Injection::default() },
        Event::Exception { vector, error_code } => {
            let mut injection =
                Injection { information: information(HARDWARE_EXCEPTION, vector), ..Injection::default() };
            if protected && vector < 32 && WITH_ERROR_CODE.get_bit(vector.into()) {
                injection.information |= HAS_ERROR_CODE;
                injection.error_code = error_code.unwrap_or(0) & 0xFFFF;
            }
            injection
        }
        Event::Software { vector, length, exception } => {
            let kind = match (exception, vector) {
                (false, _) => SOFTWARE_INTERRUPT,
                (true, DEBUG) => PRIVILEGED_SOFTWARE_EXCEPTION,
                (true, _) => SOFTWARE_EXCEPTION,
            };
            Injection {
                information: information(kind, vector),
                error_code: 0,
                instruction_length: u32::from(length).clamp(1, 15),
            }
        }
    }
}

/// Decodes an event: an injection, or IDT-vectoring information with its error code and the exit's instruction
/// length; `None` when there is none, or one that hardware never reports.
#[inline]
pub(super) fn decode(injection: Injection) -> Option<Event> {
    let Injection { information, error_code, instruction_length } = injection;
    if information & VALID == 0 {
        return None;
    }
    let vector = information.get_bits(0..8) as u8;
    let error_code = information.get_bit(11).then_some(error_code);
    let software = |exception| Event::Software { vector, length: instruction_length.get_bits(0..4) as u8, exception };
    match information.get_bits(8..11) {
        EXTERNAL => Some(Event::Interrupt(vector)),
        NMI => Some(Event::Nmi),
        HARDWARE_EXCEPTION => Some(Event::Exception { vector, error_code }),
        SOFTWARE_INTERRUPT => Some(software(false)),
        PRIVILEGED_SOFTWARE_EXCEPTION | SOFTWARE_EXCEPTION => Some(software(true)),
        _ => None,
    }
}

/// Returns whether exit interruption information tells of an NMI.
#[inline]
pub(super) fn is_nmi(information: u32) -> bool {
    information & VALID != 0 && information.get_bits(8..11) == NMI
}

/// Returns whether exit interruption information tells of a #DB that is a fault or trap of the guest's.
#[inline]
pub(super) fn is_debug_exception(information: u32) -> bool {
    information & (VALID | 0x7FF) == self::information(HARDWARE_EXCEPTION, DEBUG)
}

/// Returns whether exit interruption information tells of INT1 (ICEBP), whose #DB is neither fault nor trap.
#[inline]
pub(super) fn is_int1(information: u32) -> bool {
    information & (VALID | 0x7FF) == self::information(PRIVILEGED_SOFTWARE_EXCEPTION, DEBUG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        let with_code = [8u8, 10, 11, 12, 13, 14, 17];
        prop_oneof![
            any::<u8>().prop_map(Event::Interrupt),
            Just(Event::Nmi),
            (0u8..32, 0u32..0x10000).prop_map(move |(vector, code)| Event::Exception {
                vector,
                error_code: with_code.contains(&vector).then_some(code)
            }),
            (any::<u8>(), 1u8..16).prop_map(|(vector, length)| Event::Software { vector, length, exception: false }),
            (prop::sample::select(&[1u8, 3, 4][..]), 1u8..16).prop_map(|(vector, length)| Event::Software {
                vector,
                length,
                exception: true
            }),
        ]
    }

    proptest! {
        #[test]
        fn an_event_survives_its_encoding(event in event()) {
            prop_assert_eq!(decode(encode(event, true)), Some(event));
        }

        #[test]
        fn what_is_encoded_passes_the_entry_checks(event in event(), protected: bool) {
            let Injection { information, error_code, instruction_length } = encode(event, protected);
            let (kind, vector) = (information >> 8 & 7, information & 0xFF);
            prop_assert_eq!(information & 0x7FFF_F000, 0);
            prop_assert!([0, 2, 3, 4, 5, 6].contains(&kind));
            prop_assert!(kind != 2 || vector == 2);
            prop_assert!(kind != 3 || vector < 32);
            let code = kind == 3 && protected && [8, 10, 11, 12, 13, 14, 17].contains(&vector);
            prop_assert_eq!(information >> 11 & 1 == 1, code);
            prop_assert!(error_code <= 0xFFFF);
            prop_assert_eq!((4..=6).contains(&kind), (1..=15).contains(&instruction_length));
        }

        #[test]
        fn any_words_decode(information: u32, error_code: u32, instruction_length: u32) {
            let event = decode(Injection { information, error_code, instruction_length });
            prop_assert!(event.is_none() || information & VALID != 0);
        }
    }

    #[test]
    fn icebp_is_a_privileged_software_exception() {
        let injection = encode(Event::Software { vector: 1, length: 1, exception: true }, true);
        assert_eq!(injection, Injection { information: 0x8000_0501, error_code: 0, instruction_length: 1 });
        assert_eq!([0x8000_0501, 0x8000_0301, 0x0000_0501, 0x8000_0603].map(is_int1), [true, false, false, false]);
        assert_eq!([0x8000_0501, 0x8000_0301].map(is_debug_exception), [false, true]);
    }
}
