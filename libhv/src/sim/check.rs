//! What must hold when a guest is entered (SDM Vol. 3C 27.2.1.3, 27.3.1), as panics that say what did not.

use super::processor::{Processor, Shadow};
use crate::exit::Event;

const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG
const CR0_BITS: u64 = 0xE005_003F;
/// VME to OSXMMEXCPT, UMIP, LA57, VMXE, SMXE, FSGSBASE, PCIDE, OSXSAVE, KL, SMEP, SMAP, PKE, CET, PKS, UINTR
const CR4_BITS: u64 = 0x03FF_7FFF;
/// SCE, LME, LMA, NXE, and AMD's SVME, LMSLE, FFXSR, TCE
const EFER_BITS: u64 = 0xFD01;
const RFLAGS_RESERVED: u64 = !0x003F_7FD7;
const RFLAGS_ONE: u64 = 1 << 1;
const RFLAGS_IF: u64 = 1 << 9;

pub(super) fn rflags(value: u64) {
    assert!(value & RFLAGS_RESERVED == 0 && value & RFLAGS_ONE != 0, "RFLAGS {value:#x} has reserved bits wrong");
}

pub(super) fn cr0(value: u64) {
    assert_eq!(value & !CR0_BITS, 0, "CR0 {value:#x} has reserved bits set");
    assert!(value & CR0_PG == 0 || value & CR0_PE != 0, "CR0 {value:#x} has PG without PE");
    assert!(value & CR0_NW == 0 || value & CR0_CD != 0, "CR0 {value:#x} has NW without CD");
}

pub(super) fn cr4(value: u64) {
    assert_eq!(value & !CR4_BITS, 0, "CR4 {value:#x} has reserved bits set");
}

/// What XSETBV takes (SDM Vol. 1 13.3): x87 always, AVX not without SSE, and nothing the processor has not.
pub(super) fn xcr0(value: u64, cr4: u64) {
    assert_ne!(cr4 >> 18 & 1, 0, "XSETBV without CR4.OSXSAVE");
    assert!([0b001, 0b011, 0b111].contains(&value), "XSETBV faults with {value:#x}");
}

pub(super) fn efer(value: u64) {
    assert_eq!(value & !EFER_BITS, 0, "IA32_EFER {value:#x} has reserved bits set");
}

/// Returns whether an exception pushes an error code in protected mode (SDM Vol. 3A table 6-1).
pub(super) fn has_error_code(vector: u8) -> bool {
    [8, 10, 11, 12, 13, 14, 17, 21].contains(&vector)
}

impl Processor {
    /// Checks everything that entering needs.
    pub(super) fn check_entry(&self) {
        self.wires.check_served();
        assert!(self.interrupted.is_none(), "{:?} was being delivered, and was forgotten", self.interrupted);
        rflags(self.rflags);
        cr0(self.cr0);
        cr4(self.cr4);
        efer(self.efer);
        let paging = self.cr0 & CR0_PG != 0;
        assert!(!paging && self.cr0 & CR0_PE != 0, "this processor executes protected mode without paging");
        assert_eq!(self.efer >> 10 & 1, 0, "IA32_EFER.LMA without paging");
        assert_eq!(self.rip >> 32, 0, "RIP {:#x} outside 64-bit mode", self.rip);
        assert_eq!(self.rflags >> 17 & 1, 0, "this processor has no virtual-8086 mode");
        if self.shadow == Shadow::Sti {
            assert!(self.rflags & RFLAGS_IF != 0, "blocking by STI with interrupts disabled");
        }
        if let Some(event) = self.injection {
            self.check_injection(event);
        }
    }

    fn check_injection(&self, event: Event) {
        match event {
            Event::Interrupt(vector) => {
                assert!(self.rflags & RFLAGS_IF != 0, "interrupt {vector:#x} injected with interrupts disabled");
                assert_eq!(self.shadow, Shadow::None, "interrupt {vector:#x} injected in a shadow");
            }
            Event::Nmi => {
                assert!(!self.nmi_blocked, "an NMI injected while NMIs are blocked");
                assert_eq!(self.shadow, Shadow::None, "an NMI injected in a shadow");
            }
            Event::Exception { vector, error_code } => {
                assert!(vector < 32 && vector != 2, "vector {vector} is not an exception");
                assert_eq!(error_code.is_some(), has_error_code(vector), "the error code of exception {vector}");
                assert!(
                    error_code.is_none_or(|code| code <= 0xFFFF),
                    "error code {error_code:?} has reserved bits set"
                );
            }
            Event::Software { vector, length, exception } => {
                assert!((1..=15).contains(&length), "an instruction of {length} bytes");
                assert!(!exception || matches!(vector, 3 | 4), "vector {vector} is no software exception");
            }
        }
    }
}
