//! SVM's instructions and registers.
#![expect(unsafe_code, reason = "executes privileged instructions")]

use crate::exit::Msr;
use crate::hw::bare::{read_msr, write_msr};
use crate::memory::Frames;
use x86_64::registers::model_specific::{Efer, EferFlags};

const VM_CR: Msr = Msr(0xC001_0114);
const VM_HSAVE_PA: Msr = Msr(0xC001_0117);

/// Returns VM_CR. The processor has SVM.
pub(super) fn vm_cr() -> u64 {
    // SAFETY: CPUID reported SVM (`Capability::from_cpuid` comes first), which has the register; it has no side effects.
    unsafe { read_msr(VM_CR) }
}

/// Sets EFER.SVME and gives the processor its host save area (APM Vol. 2 15.30.4).
///
/// # Safety
/// The processor has SVM and firmware has not disabled it; `area` is given to the processor for good: it is neither
/// released nor used for anything else.
pub(super) unsafe fn enable(area: &Frames) {
    // SAFETY: setting SVME changes nothing for code that executes no SVM instruction; the caller vouches for SVM.
    unsafe { Efer::update(|flags| flags.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE)) };
    // SAFETY: the caller gives the processor the frame.
    unsafe { write_msr(VM_HSAVE_PA, area.physical().as_u64()) };
}

/// Writes what VMLOAD and VMSAVE move (FS, GS, TR, LDTR, STAR and friends) to a frame.
///
/// # Safety
/// EFER.SVME is set and `area` is a frame for it alone.
pub(super) unsafe fn vmsave(area: &mut Frames) {
    // SAFETY: the processor writes inside the frame, which is borrowed exclusively.
    unsafe {
        core::arch::asm!("vmsave rax", in("rax") area.physical().as_u64(), options(nostack, preserves_flags));
    }
}

/// IA32_TSC_AUX, which neither VMRUN nor VMLOAD switches: the host does not use it, so it is the guest's.
const TSC_AUX: Msr = Msr(0xC000_0103);

/// Returns the guest's IA32_TSC_AUX; 0 where the processor has none.
pub(super) fn tsc_aux(present: bool) -> u64 {
    // SAFETY: `present` is what CPUID says of RDTSCP or RDPID; a wrong claim is a #GP and ends in a panic.
    if present { unsafe { read_msr(TSC_AUX) } } else { 0 }
}

/// Sets the guest's IA32_TSC_AUX to the low 32 bits of `value`.
pub(super) fn set_tsc_aux(present: bool, value: u64) {
    if present {
        // SAFETY: as in `tsc_aux`; the host reads neither the register nor RDTSCP's ECX.
        unsafe { write_msr(TSC_AUX, value & 0xFFFF_FFFF) }
    }
}
