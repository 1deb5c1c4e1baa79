//! What an exit means: from the exit reason, and the fields it makes sense to read, to an [`Exit`]. Pure.

use super::event;
use super::flags::ExitReason;
use crate::address::{Gpa, Gva};
use crate::exit::{ApicAccess, ControlAccess, Exit, Msr, NestedPageFault, PortIo, RawExit, Width};
use crate::registers::Gpr;
use bit_field::BitField;

/// The words an exit leaves behind. Each is read only where the reason gives it a meaning.
pub(super) trait ExitFields {
    /// Exit qualification (SDM Vol. 3C 28.2.1).
    fn qualification(&self) -> u64;
    /// VM-exit interruption information (SDM Vol. 3C 25.9.2).
    fn interruption(&self) -> u32;
    /// VM-exit interruption error code.
    fn error_code(&self) -> u32;
    /// Guest-physical address.
    fn guest_physical(&self) -> u64;
    /// Guest-linear address.
    fn guest_linear(&self) -> u64;
    /// RIP
    fn rip(&self) -> u64;
    /// A general-purpose register of the guest.
    fn register(&self, register: Gpr) -> u64;
    /// Settles what the exit left half done. Called for the exits that can come in the middle of the delivery of an
    /// event, or of an IRET: the guest's own faults (SDM Vol. 3C 28.2.4); and for traps, which come before the #DB of the
    /// same instruction.
    fn settle(&mut self, reason: ExitReason);
}

/// Returns an exit whole, for what has no words of its own.
#[cold]
pub(super) fn raw(reason: u32, fields: &impl ExitFields) -> RawExit {
    RawExit { code: reason.into(), info1: fields.qualification(), info2: fields.guest_physical(), rip: fields.rip() }
}

#[inline]
fn edx_eax(fields: &impl ExitFields) -> u64 {
    fields.register(Gpr::Rdx) << 32 | fields.register(Gpr::Rax) & 0xFFFF_FFFF
}

#[inline]
fn low(fields: &impl ExitFields, register: Gpr) -> u32 {
    fields.register(register) as u32
}

/// Returns what an exit with this reason word (bit 31 clear) means.
#[inline(always)]
pub(super) fn decode(reason: u32, fields: &mut impl ExitFields) -> Exit {
    match ExitReason(reason as u16) {
        ExitReason::CPUID => Exit::Cpuid { leaf: low(fields, Gpr::Rax), subleaf: low(fields, Gpr::Rcx) },
        ExitReason::RDMSR => Exit::Rdmsr(Msr(low(fields, Gpr::Rcx))),
        ExitReason::WRMSR => Exit::Wrmsr(Msr(low(fields, Gpr::Rcx)), edx_eax(fields)),
        ExitReason::IO => port_io(reason, fields),
        ExitReason::EPT_VIOLATION => {
            fields.settle(ExitReason::EPT_VIOLATION);
            Exit::NestedPageFault(nested_page_fault(fields))
        }
        ExitReason::APIC_WRITE => {
            fields.settle(ExitReason::APIC_WRITE);
            Exit::ApicWrite { offset: fields.qualification().get_bits(0..12) as u16 & 0xFF0 }
        }
        ExitReason::EXTERNAL_INTERRUPT => external_interrupt(fields.interruption()),
        ExitReason::PREEMPTION_TIMER => Exit::TimerExpired,
        ExitReason::INTERRUPT_WINDOW => Exit::InterruptWindow,
        ExitReason::NMI_WINDOW => Exit::NmiWindow,
        ExitReason::HLT => Exit::Halt,
        ExitReason::VMCALL => Exit::Hypercall,
        ExitReason::CONTROL_REGISTER => control_register(reason, fields),
        ExitReason::EXCEPTION_OR_NMI => {
            fields.settle(ExitReason::EXCEPTION_OR_NMI);
            exception_or_nmi(fields)
        }
        ExitReason::APIC_ACCESS => {
            fields.settle(ExitReason::APIC_ACCESS);
            Exit::ApicAccess(apic_access(fields))
        }
        ExitReason::TPR_BELOW_THRESHOLD => {
            fields.settle(ExitReason::TPR_BELOW_THRESHOLD);
            Exit::TprBelowThreshold
        }
        ExitReason::MOV_DR => Exit::DebugRegister,
        ExitReason::RDPMC => Exit::Rdpmc(low(fields, Gpr::Rcx)),
        ExitReason::XSETBV => Exit::Xsetbv { xcr: low(fields, Gpr::Rcx), value: edx_eax(fields) },
        ExitReason::PAUSE => Exit::Relax,
        ExitReason::INVD | ExitReason::WBINVD => Exit::CacheFlush,
        ExitReason::TRIPLE_FAULT => Exit::Shutdown,
        ExitReason::INIT => Exit::Init,
        ExitReason::GETSEC
        | ExitReason::RSM
        | ExitReason::INVEPT
        | ExitReason::INVVPID
        | ExitReason::VMFUNC
        | ExitReason::ENCLS
        | ExitReason::ENCLV
        | ExitReason::MONITOR
        | ExitReason::MWAIT
        | ExitReason::UMWAIT
        | ExitReason::TPAUSE
        | ExitReason::LOADIWKEY
        | ExitReason::SEAMCALL
        | ExitReason::TDCALL => Exit::Undefined,
        ExitReason(number) if (ExitReason::VMCLEAR.0..=ExitReason::VMXON.0).contains(&number) => Exit::Undefined,
        _ => Exit::Unhandled(raw(reason, fields)),
    }
}

/// SDM Vol. 3C table "Exit Qualification for I/O Instructions".
#[inline]
fn port_io(reason: u32, fields: &impl ExitFields) -> Exit {
    let qualification = fields.qualification();
    let width = match qualification.get_bits(0..3) {
        0 => Width::Byte,
        1 => Width::Word,
        3 => Width::Dword,
        _ => return Exit::Unhandled(raw(reason, fields)),
    };
    Exit::PortIo(PortIo {
        port: qualification.get_bits(16..32) as u16,
        width,
        input: qualification.get_bit(3),
        string: qualification.get_bit(4),
    })
}

/// SDM Vol. 3C table "Exit Qualification for EPT Violations".
#[inline]
fn nested_page_fault(fields: &impl ExitFields) -> NestedPageFault {
    let qualification = fields.qualification();
    let linear_is_valid = qualification.get_bit(7);
    NestedPageFault {
        gpa: Gpa::new(fields.guest_physical()),
        gva: linear_is_valid.then(|| Gva::new(fields.guest_linear())),
        write: qualification.get_bit(1),
        fetch: qualification.get_bit(2),
        present: qualification.get_bits(3..6) != 0,
        page_walk: linear_is_valid && !qualification.get_bit(8),
    }
}

/// SDM Vol. 3C table "Exit Qualification for APIC-Access VM Exits from Linear Accesses and Guest-Physical Accesses".
fn apic_access(fields: &impl ExitFields) -> ApicAccess {
    let qualification = fields.qualification();
    let kind = qualification.get_bits(12..16);
    // Data read, data write, fetch, and data in the delivery of an event, which is written: to a stack. The others are to
    // guest-physical addresses, the guest's page tables.
    ApicAccess {
        offset: qualification.get_bits(0..12) as u16,
        write: matches!(kind, 1 | 3),
        fetch: kind == 2,
        page_walk: matches!(kind, 10 | 15),
    }
}

#[inline]
fn external_interrupt(information: u32) -> Exit {
    Exit::ExternalInterrupt((information & event::VALID != 0).then_some(information.get_bits(0..8) as u8))
}

fn exception_or_nmi(fields: &impl ExitFields) -> Exit {
    let information = fields.interruption();
    if event::is_nmi(information) {
        return Exit::Nmi;
    }
    Exit::Exception {
        vector: information.get_bits(0..8) as u8,
        error_code: (information & event::HAS_ERROR_CODE != 0).then(|| fields.error_code()),
    }
}

/// SDM Vol. 3C table "Exit Qualification for Control-Register Accesses".
fn control_register(reason: u32, fields: &impl ExitFields) -> Exit {
    let qualification = fields.qualification();
    let number = qualification.get_bits(0..4) as u8;
    let register = Gpr::from_number(qualification.get_bits(8..12) as u8);
    Exit::ControlRegister(match qualification.get_bits(4..6) {
        0 => ControlAccess::Write { number, source: register },
        1 => ControlAccess::Read { number, destination: register },
        2 => ControlAccess::Clts,
        3 => ControlAccess::Lmsw(qualification.get_bits(16..32) as u16),
        _ => return Exit::Unhandled(raw(reason, fields)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An exit's words, all of them.
    #[derive(Clone, Debug, Default)]
    struct Words {
        qualification: u64,
        interruption: u32,
        error_code: u32,
        guest_physical: u64,
        guest_linear: u64,
        rip: u64,
        registers: [u64; 16],
        settled: Option<ExitReason>,
    }

    impl ExitFields for Words {
        fn qualification(&self) -> u64 {
            self.qualification
        }
        fn interruption(&self) -> u32 {
            self.interruption
        }
        fn error_code(&self) -> u32 {
            self.error_code
        }
        fn guest_physical(&self) -> u64 {
            self.guest_physical
        }
        fn guest_linear(&self) -> u64 {
            self.guest_linear
        }
        fn rip(&self) -> u64 {
            self.rip
        }
        fn register(&self, register: Gpr) -> u64 {
            self.registers[register as usize]
        }
        fn settle(&mut self, reason: ExitReason) {
            self.settled = Some(reason);
        }
    }

    fn words() -> impl Strategy<Value = Words> {
        (any::<[u64; 4]>(), any::<[u32; 2]>(), any::<[u64; 16]>()).prop_map(|(wide, narrow, registers)| Words {
            qualification: wide[0],
            interruption: narrow[0],
            error_code: narrow[1],
            guest_physical: wide[1],
            guest_linear: wide[2],
            rip: wide[3],
            registers,
            settled: None,
        })
    }

    proptest! {
        #[test]
        fn any_exit_decodes_and_an_unknown_one_is_kept_whole(reason in prop_oneof![0u32..100, any::<u32>()], mut words in words()) {
            if let Exit::Unhandled(raw) = decode(reason, &mut words) {
                let whole = RawExit { code: reason.into(), info1: words.qualification, info2: words.guest_physical, rip: words.rip };
                prop_assert_eq!(raw, whole);
            }
        }

        #[test]
        fn port_accesses_decode_as_the_manual_lays_them_out(port: u16, size in 0usize..3, input: bool, string: bool, rest in 0u64..4) {
            let width = [Width::Byte, Width::Word, Width::Dword][size];
            let qualification = (width.bytes() as u64 - 1) | (u64::from(input) << 3) | u64::from(string) << 4 | rest << 5 | u64::from(port) << 16;
            let mut words = Words { qualification, ..Words::default() };
            prop_assert_eq!(decode(30, &mut words), Exit::PortIo(PortIo { port, width, input, string }));
        }

        #[test]
        fn an_ept_violation_tells_walks_from_accesses(mut words in words()) {
            let Exit::NestedPageFault(fault) = decode(48, &mut words) else { panic!("reason 48 is an EPT violation") };
            let bit = |bit: u32| words.qualification & 1 << bit != 0;
            prop_assert_eq!((fault.write, fault.fetch), (bit(1), bit(2)));
            prop_assert_eq!(fault.present, bit(3) || bit(4) || bit(5));
            prop_assert_eq!(fault.page_walk, bit(7) && !bit(8));
            prop_assert_eq!(fault.gva.map(Gva::as_u64), bit(7).then_some(words.guest_linear));
            prop_assert_eq!(fault.gpa.as_u64(), words.guest_physical);
        }

        #[test]
        fn accesses_to_the_apic_page_decode_as_the_manual_lays_them_out(offset in 0u16..4096, kind in 0u64..16, rest in 0u64..1 << 40) {
            let qualification = u64::from(offset) | kind << 12 | rest << 16;
            let decoded = |reason| decode(reason, &mut Words { qualification, ..Words::default() });
            let access = ApicAccess { offset, write: [1, 3].contains(&kind), fetch: kind == 2, page_walk: [10, 15].contains(&kind) };
            prop_assert_eq!(decoded(44), Exit::ApicAccess(access));
            prop_assert_eq!(decoded(56), Exit::ApicWrite { offset: offset & 0xFF0 }, "the register, whatever part was written");
            prop_assert_eq!(decoded(43), Exit::TprBelowThreshold);
        }

        #[test]
        fn control_register_accesses_name_their_register(number in 0u8..16, register in 0u8..16, operand: u16) {
            let words = |kind: u64| Words {
                qualification: u64::from(number) | kind << 4 | u64::from(register) << 8 | u64::from(operand) << 16,
                ..Words::default()
            };
            let named = Gpr::from_number(register);
            let decoded = |kind| decode(28, &mut words(kind));
            prop_assert_eq!(decoded(0), Exit::ControlRegister(ControlAccess::Write { number, source: named }));
            prop_assert_eq!(decoded(1), Exit::ControlRegister(ControlAccess::Read { number, destination: named }));
            prop_assert_eq!(decoded(2), Exit::ControlRegister(ControlAccess::Clts));
            prop_assert_eq!(decoded(3), Exit::ControlRegister(ControlAccess::Lmsw(operand)));
        }

        #[test]
        fn upper_halves_of_registers_do_not_leak_into_32_bit_operands(registers: [u64; 16]) {
            let mut words = Words { registers, ..Words::default() };
            let value = registers[2] << 32 | registers[0] & 0xFFFF_FFFF;
            let index = registers[1] as u32;
            prop_assert_eq!(decode(10, &mut words), Exit::Cpuid { leaf: registers[0] as u32, subleaf: index });
            prop_assert_eq!(decode(32, &mut words), Exit::Wrmsr(Msr(index), value));
            prop_assert_eq!(decode(55, &mut words), Exit::Xsetbv { xcr: index, value });
        }
    }

    #[test]
    fn faults_and_traps_of_the_guest_are_settled_and_instructions_are_not() {
        for reason in 0..100 {
            let mut words = Words::default();
            decode(reason, &mut words);
            let settles = [0, 43, 44, 48, 56].contains(&reason);
            assert_eq!(words.settled.map(|reason| reason.0.into()), settles.then_some(reason));
        }
    }

    #[test]
    fn every_vmx_instruction_but_vmcall_is_undefined_and_so_is_what_cpuid_hides() {
        for reason in (19..=27).chain([11, 36, 39, 50, 53, 59]) {
            assert_eq!(decode(reason, &mut Words::default()), Exit::Undefined, "{reason}");
        }
        assert_eq!(decode(18, &mut Words::default()), Exit::Hypercall);
    }

    #[test]
    fn an_nmi_is_told_from_exception_2_and_an_error_code_from_none() {
        let decoded = |interruption| decode(0, &mut Words { interruption, error_code: 7, ..Words::default() });
        assert_eq!(decoded(0x8000_0202), Exit::Nmi);
        assert_eq!(decoded(0x8000_0B0E), Exit::Exception { vector: 14, error_code: Some(7) });
        assert_eq!(decoded(0x8000_0301), Exit::Exception { vector: 1, error_code: None });
    }

    #[test]
    fn an_acknowledged_interrupt_comes_with_its_vector() {
        let decoded = |interruption| decode(1, &mut Words { interruption, ..Words::default() });
        assert_eq!(decoded(0x8000_0035), Exit::ExternalInterrupt(Some(0x35)));
        assert_eq!(decoded(0x35), Exit::ExternalInterrupt(None));
    }
}
