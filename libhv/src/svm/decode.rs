//! What a #VMEXIT means (APM Vol. 2 App. C). Pure: numbers in, an [`Exit`] out.

use crate::address::Gpa;
use crate::error::EntryFailure;
use crate::exit::{ControlAccess, Exit, Msr, NestedPageFault, PortIo, RawExit, Width};
use crate::registers::Gpr;
use bit_field::BitField;

/// Exit codes.
pub mod code {
    #![expect(missing_docs, reason = "the names are the manual's")]
    pub const CR_READ: u64 = 0x00;
    pub const CR_WRITE: u64 = 0x10;
    pub const DR_READ: u64 = 0x20;
    pub const EXCEPTION: u64 = 0x40;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const INIT: u64 = 0x63;
    pub const VINTR: u64 = 0x64;
    pub const RDPMC: u64 = 0x6F;
    pub const CPUID: u64 = 0x72;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7A;
    pub const IOIO: u64 = 0x7B;
    pub const MSR: u64 = 0x7C;
    pub const SHUTDOWN: u64 = 0x7F;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const SKINIT: u64 = 0x86;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8A;
    pub const MWAIT: u64 = 0x8B;
    pub const MWAIT_ARMED: u64 = 0x8C;
    pub const XSETBV: u64 = 0x8D;
    pub const RDPRU: u64 = 0x8E;
    pub const NPF: u64 = 0x400;
    pub const INVALID: u64 = -1i64 as u64;
    pub const BUSY: u64 = -2i64 as u64;
    pub const IDLE_REQUIRED: u64 = -3i64 as u64;
    pub const INVALID_PMC: u64 = -4i64 as u64;
}

/// Returns the code of a VMRUN that the processor refused (APM Vol. 2 15.5.1, App. C); `None` for an exit of a guest that
/// has run. Codes have 64 bits, and a refusal has its sign in all of them (T-A26); QEMU's TCG, which knows
/// [`code::INVALID`] alone, writes the low 32 and leaves the others 0.
#[inline]
pub fn refusal(code: u64) -> Option<u64> {
    const INVALID_IN_32_BITS: u64 = code::INVALID & 0xFFFF_FFFF;
    match code {
        code::INVALID_PMC | code::IDLE_REQUIRED | code::BUSY | code::INVALID => Some(code),
        INVALID_IN_32_BITS => Some(code::INVALID),
        _ => None,
    }
}

/// Tells exits, which pass, from a VMRUN that the processor has refused: that has a code which no exit has.
///
/// # Errors
/// The refusal.
#[inline]
pub fn not_refused(exit: &Exit) -> Result<(), EntryFailure> {
    match exit {
        Exit::Unhandled(raw) => match refusal(raw.code) {
            Some(code) => Err(EntryFailure::InvalidState(RawExit { code, ..*raw })),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The registers that the meaning of some exits depends on.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// RAX
    pub rax: u64,
    /// RCX
    pub rcx: u64,
    /// RDX
    pub rdx: u64,
    /// The processor has decode assists, so that EXITINFO1 of a MOV CRn names the register.
    pub decode_assists: bool,
}

/// Returns what an exit means.
#[inline(always)]
pub fn decode(raw: &RawExit, operands: Operands) -> Exit {
    let Operands { rax, rcx, rdx, .. } = operands;
    let edx_eax = rdx << 32 | rax & 0xFFFF_FFFF;
    match raw.code {
        code::CPUID => Exit::Cpuid { leaf: rax as u32, subleaf: rcx as u32 },
        code::MSR if raw.info1 == 0 => Exit::Rdmsr(Msr(rcx as u32)),
        code::MSR => Exit::Wrmsr(Msr(rcx as u32), edx_eax),
        code::IOIO => port_io(raw),
        code::NPF => Exit::NestedPageFault(NestedPageFault {
            gpa: Gpa::new(raw.info2),
            gva: None,
            write: raw.info1.get_bit(1),
            fetch: raw.info1.get_bit(4),
            present: raw.info1.get_bit(0),
            page_walk: raw.info1.get_bit(33),
        }),
        code::INTR => Exit::ExternalInterrupt(None),
        code::VINTR => Exit::InterruptWindow,
        code::HLT => Exit::Halt,
        code::VMMCALL => Exit::Hypercall,
        code::NMI => Exit::Nmi,
        code::INIT => Exit::Init,
        code::RDPMC => Exit::Rdpmc(rcx as u32),
        code::XSETBV => Exit::Xsetbv { xcr: rcx as u32, value: edx_eax },
        code::INVD | code::WBINVD => Exit::CacheFlush,
        code::SHUTDOWN => Exit::Shutdown,
        code::MONITOR | code::MWAIT | code::MWAIT_ARMED | code::RDPRU | code::INVLPGA => Exit::Undefined,
        code::VMRUN..=code::SKINIT => Exit::Undefined,
        code::CR_READ..code::DR_READ => control_register(raw, operands.decode_assists),
        code::DR_READ..code::EXCEPTION => Exit::DebugRegister,
        code::EXCEPTION..code::INTR => {
            let vector = (raw.code - code::EXCEPTION) as u8;
            let error_code = has_error_code(vector).then_some(raw.info1 as u32);
            Exit::Exception { vector, error_code }
        }
        _ => Exit::Unhandled(*raw),
    }
}

/// Returns whether the exception pushes an error code (APM Vol. 2 8.2).
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// EXITINFO1 of an I/O intercept (APM Vol. 2 15.10.2).
#[inline(always)]
fn port_io(raw: &RawExit) -> Exit {
    let width = match raw.info1.get_bits(4..7) {
        1 => Width::Byte,
        2 => Width::Word,
        4 => Width::Dword,
        _ => return Exit::Unhandled(*raw),
    };
    let port = raw.info1.get_bits(16..32) as u16;
    Exit::PortIo(PortIo { port, width, input: raw.info1.get_bit(0), string: raw.info1.get_bit(2) })
}

/// MOV CRn with the register that decode assists name (APM Vol. 2 15.8.1), or without.
fn control_register(raw: &RawExit, decode_assists: bool) -> Exit {
    let number = raw.code.get_bits(0..4) as u8;
    if !decode_assists || !raw.info1.get_bit(63) {
        return Exit::ControlRegister(ControlAccess::Undecoded);
    }
    let register = Gpr::from_number(raw.info1.get_bits(0..4) as u8);
    Exit::ControlRegister(if raw.code < code::CR_WRITE {
        ControlAccess::Read { number, destination: register }
    } else {
        ControlAccess::Write { number, source: register }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exit(code: u64, info1: u64, info2: u64) -> Exit {
        let operands = Operands { rax: 0x1_0000_0007, rcx: 0xC000_0080, rdx: 6, decode_assists: true };
        decode(&RawExit { code, info1, info2, rip: 0 }, operands)
    }

    proptest! {
        /// The codes the manual gives to intercepts that this backend does not set are among the unknown.
        #[test]
        fn an_unknown_code_is_kept_whole(code in prop_oneof![any::<u64>(), 0u64..0x410, 0xFFFF_FFF0u64..], info1: u64, info2: u64) {
            let known = matches!(code, 0..=0x61 | 0x63 | 0x64 | 0x6F | 0x72 | 0x76 | 0x78 | 0x7A..=0x7C | 0x7F..=0x86 | 0x89..=0x8E | 0x400);
            if !known {
                prop_assert_eq!(exit(code, info1, info2), Exit::Unhandled(RawExit { code, info1, info2, rip: 0 }));
            }
        }
    }

    /// T-A26
    #[test]
    fn a_refused_vmrun_is_told_from_exits_by_all_64_bits() {
        for code in -4i64..0 {
            assert_eq!(refusal(code as u64), Some(code as u64));
        }
        assert_eq!(refusal(0xFFFF_FFFF), Some(u64::MAX), "QEMU's TCG writes 32 bits");
        for code in [0, 0x72, 0x400, 0xFFFF_FFFC, 0xFFFF_FFFD, 0xFFFF_FFFE, 0x1_FFFF_FFFF, -5i64 as u64, 1 << 63] {
            assert_eq!(refusal(code), None, "{code:#x}");
        }
    }

    #[test]
    fn exits_mean_what_the_manual_says() {
        assert_eq!(exit(0x72, 0, 0), Exit::Cpuid { leaf: 7, subleaf: 0xC000_0080 });
        assert_eq!(exit(0x7C, 0, 0), Exit::Rdmsr(Msr(0xC000_0080)));
        assert_eq!(exit(0x7C, 1, 0), Exit::Wrmsr(Msr(0xC000_0080), 0x6_0000_0007));
        let out = PortIo { port: 0x3F8, width: Width::Byte, input: false, string: false };
        assert_eq!(exit(0x7B, 0x03F8_0010, 0), Exit::PortIo(out));
        let ins = PortIo { port: 0x1F0, width: Width::Word, input: true, string: true };
        assert_eq!(exit(0x7B, 0x01F0_0025, 0), Exit::PortIo(ins));
        let fault = NestedPageFault {
            gpa: Gpa::new(0xFEC0_0000),
            gva: None,
            write: true,
            fetch: false,
            present: false,
            page_walk: false,
        };
        assert_eq!(exit(0x400, 1 << 32 | 6, 0xFEC0_0000), Exit::NestedPageFault(fault));
        let fetch = NestedPageFault { write: false, fetch: true, ..fault };
        assert_eq!(exit(0x400, 1 << 32 | 0x14, 0xFEC0_0000), Exit::NestedPageFault(fetch));
        let walk = NestedPageFault { present: true, page_walk: true, ..fault };
        assert_eq!(exit(0x400, 1 << 33 | 7, 0xFEC0_0000), Exit::NestedPageFault(walk));
        assert_eq!(exit(0x4D, 0x18, 0), Exit::Exception { vector: 13, error_code: Some(0x18) });
        assert_eq!(exit(0x43, 0x18, 0), Exit::Exception { vector: 3, error_code: None });
        let write = ControlAccess::Write { number: 8, source: Gpr::R9 };
        assert_eq!(exit(0x18, 1 << 63 | 9, 0), Exit::ControlRegister(write));
        let read = ControlAccess::Read { number: 4, destination: Gpr::Rcx };
        assert_eq!(exit(0x04, 1 << 63 | 1, 0), Exit::ControlRegister(read));
        assert_eq!(exit(0x14, 0, 0), Exit::ControlRegister(ControlAccess::Undecoded));
        assert!(matches!(exit(u64::MAX - 1, 0, 0), Exit::Unhandled(_)));
    }
}
