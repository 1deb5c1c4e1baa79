//! Events in the layout that EVENTINJ and EXITINTINFO share (APM Vol. 2 15.20).

use crate::exit::Event;
use bit_field::BitField;

const VALID: usize = 31;
const HAS_ERROR_CODE: usize = 11;
const TYPE_INTERRUPT: u64 = 0;
const TYPE_NMI: u64 = 2;
const TYPE_EXCEPTION: u64 = 3;
const TYPE_SOFTWARE: u64 = 4;

/// Returns the word that makes VMRUN deliver `event`.
pub fn encode(event: Event) -> u64 {
    let (kind, vector, error_code) = match event {
        Event::Interrupt(vector) => (TYPE_INTERRUPT, vector, None),
        Event::Nmi => (TYPE_NMI, 2, None),
        Event::Exception { vector, error_code } => (TYPE_EXCEPTION, vector, error_code),
        Event::Software { vector, exception: true, .. } => (TYPE_EXCEPTION, vector, None),
        Event::Software { vector, .. } => (TYPE_SOFTWARE, vector, None),
    };
    let mut word = u64::from(vector);
    word.set_bits(8..11, kind);
    word.set_bit(VALID, true);
    if let Some(code) = error_code {
        word.set_bit(HAS_ERROR_CODE, true);
        word.set_bits(32..64, code.into());
    }
    word
}

/// Returns the event in a word, if it is valid and has to be delivered again.
///
/// INT n, INT3 and INTO are not: the guest still stands at the instruction (APM Vol. 2 15.7.2), which runs again.
pub fn decode(word: u64) -> Option<Event> {
    if !word.get_bit(VALID) {
        return None;
    }
    let vector = word as u8;
    match word.get_bits(8..11) {
        TYPE_INTERRUPT => Some(Event::Interrupt(vector)),
        TYPE_NMI => Some(Event::Nmi),
        TYPE_EXCEPTION if !matches!(vector, 3 | 4) => {
            let error_code = word.get_bit(HAS_ERROR_CODE).then(|| word.get_bits(32..64) as u32);
            Some(Event::Exception { vector, error_code })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_those_of_the_manual() {
        assert_eq!(encode(Event::Interrupt(0x30)), 0x8000_0030);
        assert_eq!(encode(Event::Nmi), 0x8000_0202);
        assert_eq!(encode(Event::GENERAL_PROTECTION), 0x8000_0B0D);
        assert_eq!(encode(Event::Exception { vector: 14, error_code: Some(7) }), 0x7_8000_0B0E);
        assert_eq!(encode(Event::UNDEFINED), 0x8000_0306);
        assert_eq!(decode(0x8000_0480), None, "INT 80H runs again");
        assert_eq!(decode(0x8000_0303), None, "INT3 runs again");
    }

    proptest! {
        #[test]
        fn what_is_to_be_delivered_again_survives(word: u64) {
            if let Some(event) = decode(word) {
                prop_assert_eq!(decode(encode(event)), Some(event));
            }
            prop_assert!(word >> 31 & 1 == 1 || decode(word).is_none());
        }
    }
}
