//! The instructions of VMX, and the registers of the processor that a guest's state stays in.
#![expect(unsafe_code, reason = "executes VMX instructions, and moves CR2, DR6 and capability MSRs")]

use super::capability::{self, Allowed, RawCapabilities};
use crate::exit::Msr;
use crate::hw::bare;
use crate::pmu::capability::FREEZE_IN_SMM;
use bit_field::BitField;
use core::arch::asm;
use x86_64::PhysAddr;
use x86_64::registers::segmentation::{CS, Segment};

macro_rules! vmx_instruction {
    ($(#[$doc:meta])* $name:ident, $mnemonic:literal) => {
        $(#[$doc])*
        pub(super) unsafe fn $name(region: PhysAddr) -> bool {
            let operand = region.as_u64();
            let success: u8;
            // SAFETY: the caller vouches for privilege, mode and region. No `nomem`: the processor reads the operand.
            unsafe {
                asm!(concat!($mnemonic, " qword ptr [{operand}]"), "seta {success}",
                    operand = in(reg) &operand, success = out(reg_byte) success, options(nostack));
            }
            success != 0
        }
    };
}

vmx_instruction! {
    /// VMXON; returns whether it succeeded.
    ///
    /// # Safety
    /// Privilege level 0, CR4.VMXE = 1, CR0 and CR4 as VMX fixes them, IA32_FEATURE_CONTROL locked with bit 2; the
    /// frame at `region` belongs to the processor until VMXOFF and starts with the revision identifier.
    vmxon, "vmxon"
}
vmx_instruction! {
    /// VMCLEAR; returns whether it succeeded.
    ///
    /// # Safety
    /// VMX root operation; the frame at `region` is a VMCS region of the caller's.
    vmclear, "vmclear"
}
vmx_instruction! {
    /// VMPTRLD; returns whether it succeeded.
    ///
    /// # Safety
    /// VMX root operation; the frame at `region` is a VMCS region, cleared, and belongs to the processor from here on.
    vmptrld, "vmptrld"
}

/// VMXOFF
///
/// # Safety
/// VMX root operation; nothing is current that is still needed.
pub(super) unsafe fn vmxoff() {
    // SAFETY: the caller vouches for it.
    unsafe { asm!("vmxoff", options(nostack)) }
}

/// VMREAD. Fails, which debug builds check, only for a field that the processor does not have.
///
/// # Safety
/// VMX root operation with a current VMCS.
#[inline]
pub(super) unsafe fn vmread(encoding: u32) -> u64 {
    let value: u64;
    #[cfg(debug_assertions)]
    {
        let success: u8;
        // SAFETY: the caller vouches for it. The current VMCS is no memory of the program's.
        unsafe {
            asm!("xor {value:e}, {value:e}", "vmread {value}, {encoding}", "seta {success}", encoding = in(reg) u64::from(encoding),
                value = out(reg) value, success = out(reg_byte) success, options(nomem, nostack));
        }
        assert!(success != 0, "VMREAD of a field that the processor does not have: {encoding:#x}");
    }
    #[cfg(not(debug_assertions))]
    // SAFETY: as above.
    unsafe {
        asm!("vmread {value}, {encoding}", encoding = in(reg) u64::from(encoding), value = out(reg) value,
            options(nomem, nostack));
    }
    value
}

/// VMWRITE. Fails, which debug builds check, only for a field that the processor does not have.
///
/// # Safety
/// VMX root operation with a current VMCS, and a value that is safe for the host in this field.
#[inline]
pub(super) unsafe fn vmwrite(encoding: u32, value: u64) {
    #[cfg(debug_assertions)]
    {
        let success: u8;
        // SAFETY: the caller vouches for it. The current VMCS is no memory of the program's.
        unsafe {
            asm!("vmwrite {encoding}, {value}", "seta {success}", encoding = in(reg) u64::from(encoding),
                value = in(reg) value, success = out(reg_byte) success, options(nomem, nostack));
        }
        assert!(success != 0, "VMWRITE of a field that the processor does not have: {encoding:#x}");
    }
    #[cfg(not(debug_assertions))]
    // SAFETY: as above.
    unsafe {
        asm!("vmwrite {encoding}, {value}", encoding = in(reg) u64::from(encoding), value = in(reg) value,
            options(nomem, nostack));
    }
}

macro_rules! invalidation {
    ($(#[$doc:meta])* $name:ident, $mnemonic:literal) => {
        $(#[$doc])*
        pub(super) unsafe fn $name(kind: u64, descriptor: [u64; 2]) {
            // SAFETY: the caller vouches for it; invalidating harms no one. A `kind` that the processor does not have
            // makes the instruction fail without effect.
            unsafe {
                asm!(concat!($mnemonic, " {kind}, xmmword ptr [{descriptor}]"), kind = in(reg) kind,
                    descriptor = in(reg) &descriptor, options(nostack));
            }
        }
    };
}

invalidation! {
    /// INVEPT: kind 1 is one EPT pointer's translations, 2 all (SDM Vol. 3C 31.3).
    ///
    /// # Safety
    /// VMX root operation; the processor has INVEPT.
    invept, "invept"
}
invalidation! {
    /// INVVPID: kind 1 is one VPID's translations, 2 all (SDM Vol. 3C 31.3).
    ///
    /// # Safety
    /// VMX root operation; the processor has INVVPID.
    invvpid, "invvpid"
}

/// Returns CR2.
///
/// # Safety
/// Privilege level 0.
#[inline]
pub(super) unsafe fn read_cr2() -> u64 {
    let value;
    // SAFETY: the caller vouches for the privilege level; CR2 steers nothing.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Sets CR2.
///
/// # Safety
/// Privilege level 0.
#[inline]
pub(super) unsafe fn write_cr2(value: u64) {
    // SAFETY: as for reading it.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
}

/// Returns DR6.
///
/// # Safety
/// Privilege level 0, and DR7.GD = 0, as every VM exit leaves it.
pub(super) unsafe fn read_dr6() -> u64 {
    let value;
    // SAFETY: the caller vouches for it; DR6 steers nothing.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Sets DR6; bits 63:32 of `value` are ignored.
///
/// # Safety
/// As [`read_dr6`].
pub(super) unsafe fn write_dr6(value: u64) {
    let value = value & 0xFFFF_FFFF;
    // SAFETY: as for reading it; bits 63:32, which would fault, are clear.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
}

/// Returns the host's IA32_DEBUGCTL where it has FREEZE_WHILE_SMM; 0 where not. The processor is in VMX operation.
pub(super) fn host_debugctl() -> u64 {
    const PERF_CAPABILITIES: Msr = Msr(0x345);
    const DEBUGCTL: Msr = Msr(0x1D9);
    if !raw_cpuid::CpuId::new().get_feature_info().is_some_and(|info| info.has_pdcm()) {
        return 0;
    }
    // SAFETY: VMX operation is at privilege level 0; CPUID.1:ECX.PDCM says that the register exists.
    let capabilities = unsafe { bare::read_msr(PERF_CAPABILITIES) };
    if capabilities & FREEZE_IN_SMM == 0 {
        return 0;
    }
    // SAFETY: as above; the register exists on every processor with VMX.
    unsafe { bare::read_msr(DEBUGCTL) }
}

/// Reads the capability MSRs; `None` where there is no VMX, or not the privilege to ask.
pub(super) fn read_capabilities() -> Option<RawCapabilities> {
    let privileged = CS::get_reg().0.get_bits(0..2) == 0;
    let vmx = raw_cpuid::CpuId::new().get_feature_info().is_some_and(|info| info.has_vmx());
    if !privileged || !vmx {
        return None;
    }
    // SAFETY: privilege level 0, checked above. CPUID.1:ECX.VMX says that 3AH and 480H to 48AH exist; the others are
    // read where those say that they do (SDM Vol. 3D App. A). Reading them has no side effects.
    let read = |index| unsafe { bare::read_msr(Msr(index)) };
    let allowed = |index| Allowed { msr: index, word: read(index) };
    let basic = read(capability::BASIC);
    let first = if basic.get_bit(55) { 0x48D } else { 0x481 };
    let primary = allowed(first + 1);
    let secondary = if primary.has(1 << 31) { allowed(capability::SECONDARY) } else { Allowed::default() };
    let paging_or_tags = secondary.has(1 << 1) || secondary.has(1 << 5);
    Some(RawCapabilities {
        feature_control: read(capability::FEATURE_CONTROL),
        basic,
        misc: read(0x485),
        cr0_fixed0: read(0x486),
        cr0_fixed1: read(0x487),
        cr4_fixed0: read(0x488),
        cr4_fixed1: read(0x489),
        ept_vpid: if paging_or_tags { read(0x48C) } else { 0 },
        pin: allowed(first),
        primary,
        secondary,
        exit: allowed(first + 2),
        entry: allowed(first + 3),
    })
}
