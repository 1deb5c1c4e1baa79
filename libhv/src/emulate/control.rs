//! Which control register an instruction reaches, for processors that do not say (SVM without decode assists).

use super::length::{code_address, fetch};
use super::translate::locate;
use crate::exit::ControlAccess;
use crate::memory::GuestMemory;
use crate::registers::{Gpr, GuestState};
use bit_field::BitField;

/// Reads the MOV to or from a control register, CLTS, or LMSW with a register at RIP; `None` where there is none (any
/// more).
pub fn control_access(cpu: &impl GuestState, memory: &GuestMemory) -> Option<ControlAccess> {
    let bits = cpu.code_bits();
    let address = code_address(cpu, bits);
    let gpa = locate(cpu, memory, address)?;
    let (bytes, count) = fetch(cpu, memory, address, gpa);
    decode(bytes.get(..count)?, bits == 64, |register| cpu.gpr(register) as u16)
}

/// LOCK stands for the bit of REX that makes CR0 CR8, for code that has no REX (APM Vol. 3 "MOV CRn").
fn decode(bytes: &[u8], long: bool, value: impl FnOnce(Gpr) -> u16) -> Option<ControlAccess> {
    let (mut lock, mut rex) = (false, 0);
    let mut rest = bytes;
    loop {
        let (&byte, after) = rest.split_first()?;
        match byte {
            0xF0 => (lock, rex) = (true, 0),
            0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67 | 0xF2 | 0xF3 => rex = 0,
            0x40..=0x4F if long => rex = byte,
            _ => break,
        }
        rest = after;
    }
    let register = |operands: u8| Gpr::from_number(operands.get_bits(0..3) | u8::from(rex.get_bit(0)) << 3);
    let number = |operands: u8| operands.get_bits(3..6) | if lock || rex.get_bit(2) { 8 } else { 0 };
    match *rest {
        [0x0F, 0x20, operands, ..] => {
            Some(ControlAccess::Read { number: number(operands), destination: register(operands) })
        }
        [0x0F, 0x22, operands, ..] => {
            Some(ControlAccess::Write { number: number(operands), source: register(operands) })
        }
        [0x0F, 0x06, ..] => Some(ControlAccess::Clts),
        [0x0F, 0x01, operands @ 0xF0..=0xF7, ..] => Some(ControlAccess::Lmsw(value(register(operands)))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], long: bool) -> Option<ControlAccess> {
        super::decode(bytes, long, |register| 0x100 + register as u16)
    }

    #[test]
    fn instructions_reach_the_registers_an_assembler_gives_them() {
        let read = |number, destination| Some(ControlAccess::Read { number, destination });
        let write = |number, source| Some(ControlAccess::Write { number, source });
        assert_eq!(decode(&[0x0F, 0x22, 0xE0], true), write(4, Gpr::Rax));
        assert_eq!(decode(&[0x0F, 0x20, 0xC3], false), read(0, Gpr::Rbx));
        assert_eq!(decode(&[0x44, 0x0F, 0x22, 0xC0], true), write(8, Gpr::Rax));
        assert_eq!(decode(&[0x45, 0x0F, 0x20, 0xC7], true), read(8, Gpr::R15));
        assert_eq!(decode(&[0xF0, 0x0F, 0x22, 0xC1], false), write(8, Gpr::Rcx));
        assert_eq!(decode(&[0x44, 0x66, 0x0F, 0x22, 0xC0], true), write(0, Gpr::Rax), "a REX that is not last is none");
        assert_eq!(decode(&[0x0F, 0x06], true), Some(ControlAccess::Clts));
        assert_eq!(decode(&[0x41, 0x0F, 0x01, 0xF2], true), Some(ControlAccess::Lmsw(0x10A)));
        assert_eq!(decode(&[0x0F, 0x01, 0xE2], true), None, "SMSW");
        assert_eq!(decode(&[0x0F, 0x23, 0xC0], true), None);
        assert_eq!(decode(&[0x44, 0x0F, 0x22], true), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..15), long: bool) {
            if let Some(ControlAccess::Write { number, .. } | ControlAccess::Read { number, .. }) = decode(&bytes, long) {
                prop_assert!(number < 16 && bytes.contains(&0x0F));
            }
        }
    }
}
