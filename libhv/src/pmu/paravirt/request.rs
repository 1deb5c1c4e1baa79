//! What an open block asks for: any bytes in, a legal event or the reason why it is none out. Pure.

use super::abi::{EXITS_BY_REASON, EventType, MAX_EVENTS, OPEN_NOTIFY, OpenBlock, Reason, Refusal, Software, VERSION};
use super::source::HardwareEvent;
use crate::address::Gpa;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counted {
    /// A software event.
    Software(Software),
    /// The exits for one reason.
    Exits(Reason),
    /// A hardware event.
    Hardware(HardwareEvent),
}

impl Counted {
    fn decode(event_type: u32, config: u64) -> Result<Self, Refusal> {
        match EventType::from_number(event_type).ok_or(Refusal::UnsupportedType)? {
            EventType::Software => {
                let number = u32::try_from(config).map_err(|_| Refusal::UnsupportedEvent)?;
                let found = match number.checked_sub(EXITS_BY_REASON) {
                    Some(reason) => Reason::from_number(reason).map(Self::Exits),
                    None => Software::from_number(number).map(Self::Software),
                };
                found.ok_or(Refusal::UnsupportedEvent)
            }
            EventType::Hardware => HardwareEvent::new(config).map(Self::Hardware).ok_or(Refusal::ReservedBits),
        }
    }

    fn encode(self) -> (EventType, u64) {
        match self {
            Self::Software(software) => (EventType::Software, software.number().into()),
            Self::Exits(reason) => (EventType::Software, (EXITS_BY_REASON + reason.number()).into()),
            Self::Hardware(event) => (EventType::Hardware, event.bits().into()),
        }
    }
}

/// An event that a guest asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The event's identifier, below [`MAX_EVENTS`].
    pub id: u32,
    /// What is counted.
    pub counted: Counted,
    /// It overflows whenever it has counted so many; 0: never.
    pub period: u64,
    /// Overflows raise an interrupt; then there is a period.
    pub notify: bool,
    /// The result block, aligned to 8 bytes.
    pub result: Gpa,
}

impl Request {
    /// Reads an open block.
    ///
    /// # Errors
    /// A reason why it is none.
    pub fn decode(block: &OpenBlock) -> Result<Self, Refusal> {
        check_header(block.version, block.length, OpenBlock::LENGTH)?;
        if block.flags & !OPEN_NOTIFY != 0 || block.reserved0 != 0 || block.reserved1 != 0 || block.reserved2 != 0 {
            return Err(Refusal::ReservedBits);
        }
        let counted = Counted::decode(block.event_type, block.config)?;
        let notify = block.flags & OPEN_NOTIFY != 0;
        if notify && block.period == 0 {
            return Err(Refusal::NoPeriod);
        }
        if !block.result.is_multiple_of(8) {
            return Err(Refusal::Unaligned);
        }
        if block.id >= MAX_EVENTS {
            return Err(Refusal::IdOutOfRange);
        }
        Ok(Self { id: block.id, counted, period: block.period, notify, result: Gpa::new(block.result) })
    }

    /// Returns the open block that asks for it.
    pub fn encode(&self) -> OpenBlock {
        let (event_type, config) = self.counted.encode();
        OpenBlock {
            version: VERSION,
            length: OpenBlock::LENGTH,
            flags: if self.notify { OPEN_NOTIFY } else { 0 },
            event_type: event_type.number(),
            config,
            period: self.period,
            result: self.result.as_u64(),
            id: self.id,
            ..OpenBlock::zeroed()
        }
    }
}

/// Checks what every block begins with.
pub(super) fn check_header(version: u32, length: u32, bytes: u32) -> Result<(), Refusal> {
    if version != VERSION {
        return Err(Refusal::WrongVersion);
    }
    if length == bytes { Ok(()) } else { Err(Refusal::WrongLength) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: Request = Request {
        id: 3,
        counted: Counted::Software(Software::Exits),
        period: 100,
        notify: true,
        result: Gpa::new(0x1000),
    };

    /// A block that is nearly right: a legal one with some of its bytes changed.
    fn nearly_right() -> impl Strategy<Value = [u8; 64]> {
        let changes = proptest::collection::vec((0usize..64, prop_oneof![any::<u8>(), 0u8..3]), 0..4);
        changes.prop_map(|changes| {
            let mut bytes = GOOD.encode().to_bytes();
            changes.into_iter().for_each(|(place, byte)| bytes[place] = byte);
            bytes
        })
    }

    proptest! {
        /// Any 64 bytes are an event or an error; what is an event says no more than the event has.
        /// Also B5.
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop_oneof![any::<[u8; 64]>(), nearly_right()]) {
            let block = OpenBlock::from_bytes(&bytes);
            prop_assert_eq!(block.to_bytes(), bytes);
            if let Ok(request) = Request::decode(&block) {
                prop_assert_eq!(request.encode().to_bytes(), bytes);
                prop_assert!(request.id < MAX_EVENTS && request.result.as_u64() % 8 == 0);
                prop_assert!(!request.notify || request.period != 0);
            }
        }
    }

    /// Requirement B6.
    #[test]
    fn each_defect_has_its_own_error() {
        let changed = |change: fn(&mut OpenBlock)| {
            let mut block = GOOD.encode();
            change(&mut block);
            Request::decode(&block)
        };
        assert_eq!(changed(|_| {}), Ok(GOOD));
        type Case = (fn(&mut OpenBlock), Refusal);
        let cases: &[Case] = &[
            (|block| block.version = 0, Refusal::WrongVersion),
            (|block| block.version = 2, Refusal::WrongVersion),
            (|block| block.length = 56, Refusal::WrongLength),
            (|block| block.length = 72, Refusal::WrongLength),
            (|block| block.flags = 2, Refusal::ReservedBits),
            (|block| block.reserved0 = 1, Refusal::ReservedBits),
            (|block| block.reserved1 = 1, Refusal::ReservedBits),
            (|block| block.reserved2 = 1 << 63, Refusal::ReservedBits),
            (|block| block.event_type = 0, Refusal::UnsupportedType),
            // PERF_TYPE_BREAKPOINT of Linux (B6).
            (|block| block.event_type = 5, Refusal::UnsupportedType),
            (|block| block.config = 6, Refusal::UnsupportedEvent),
            (|block| block.config = 0x100 + 26, Refusal::UnsupportedEvent),
            (|block| block.config = 1 << 32, Refusal::UnsupportedEvent),
            (|block| (block.event_type, block.config) = (2, 1 << 22), Refusal::ReservedBits),
            (|block| (block.event_type, block.config) = (2, 1 << 32), Refusal::ReservedBits),
            (|block| block.period = 0, Refusal::NoPeriod),
            (|block| block.result = 0x1004, Refusal::Unaligned),
            (|block| block.id = MAX_EVENTS, Refusal::IdOutOfRange),
        ];
        for (number, (change, refusal)) in cases.iter().enumerate() {
            assert_eq!(changed(*change), Err(*refusal), "case {number}");
        }
        assert!(changed(|block| block.config = 0x100 + 22).is_ok());
        assert!(changed(|block| (block.event_type, block.config) = (2, 0xFF87_FFFF)).is_ok());
    }
}
