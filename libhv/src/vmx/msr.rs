//! MSRs that belong to the guest: those the VMCS switches, and those the host never uses, which stay in the processor.
#![expect(unsafe_code, reason = "reads and writes the guest's MSRs that stay in the processor")]

use super::field;
use super::vmcs::Vmcs;
use crate::exit::Msr;
use crate::hw::bare;
use crate::registers::SegmentRegister;
use x86_64::VirtAddr;

const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const DEBUGCTL: u32 = 0x1D9;
const PAT: u32 = 0x277;
const STAR: u32 = 0xC000_0081;
const LSTAR: u32 = 0xC000_0082;
const CSTAR: u32 = 0xC000_0083;
const SFMASK: u32 = 0xC000_0084;
const FS_BASE: u32 = 0xC000_0100;
const GS_BASE: u32 = 0xC000_0101;
const KERNEL_GS_BASE: u32 = 0xC000_0102;
const TSC_AUX: u32 = 0xC000_0103;

/// Returns what a value becomes so that WRMSR takes it, for an MSR that stays in the processor; `None` for others.
#[inline(always)]
fn resident(msr: Msr, value: u64, tsc_aux: bool) -> Option<u64> {
    match msr.0 {
        STAR => Some(value),
        LSTAR | CSTAR | KERNEL_GS_BASE => Some(VirtAddr::new_truncate(value).as_u64()),
        SFMASK => Some(value & 0xFFFF_FFFF),
        TSC_AUX if tsc_aux => Some(value & 0xFFFF_FFFF),
        _ => None,
    }
}

/// Reads an MSR of the guest's; `None` for one that is not switched. `tsc_aux` says that the processor has
/// IA32_TSC_AUX.
#[inline(always)]
pub(super) fn read(vmcs: &Vmcs, msr: Msr, tsc_aux: bool) -> Option<u64> {
    Some(match msr.0 {
        SYSENTER_CS => vmcs.read(field::GUEST_SYSENTER_CS).into(),
        SYSENTER_ESP => vmcs.read(field::GUEST_SYSENTER_ESP),
        SYSENTER_EIP => vmcs.read(field::GUEST_SYSENTER_EIP),
        DEBUGCTL => vmcs.debugctl(),
        PAT => vmcs.read(field::GUEST_PAT),
        FS_BASE => vmcs.read(field::base(SegmentRegister::Fs)),
        GS_BASE => vmcs.read(field::base(SegmentRegister::Gs)),
        _ => {
            resident(msr, 0, tsc_aux)?;
            // SAFETY: `Vmcs` exists at privilege level 0 alone; the MSR is one that every 64-bit processor has, or
            // IA32_TSC_AUX on one that has it.
            unsafe { bare::read_msr(msr) }
        }
    })
}

/// Writes an MSR of the guest's; returns whether it is switched.
#[inline(always)]
pub(super) fn write(vmcs: &mut Vmcs, msr: Msr, value: u64, tsc_aux: bool) -> bool {
    match msr.0 {
        SYSENTER_CS => vmcs.write(field::GUEST_SYSENTER_CS, value as u32),
        SYSENTER_ESP => vmcs.write(field::GUEST_SYSENTER_ESP, value),
        SYSENTER_EIP => vmcs.write(field::GUEST_SYSENTER_EIP, value),
        DEBUGCTL => vmcs.set_debugctl(value),
        PAT => vmcs.write(field::GUEST_PAT, value),
        FS_BASE => vmcs.write(field::base(SegmentRegister::Fs), value),
        GS_BASE => vmcs.write(field::base(SegmentRegister::Gs), value),
        _ => {
            let Some(value) = resident(msr, value, tsc_aux) else { return false };
            // SAFETY: as for reading; the value has the reserved bits clear and is canonical where it must be, and
            // the host does not use these registers while it has a guest (`Vmx::new`).
            unsafe { bare::write_msr(msr, value) }
        }
    }
    true
}

/// Gives the guest's MSRs the values they have after a reset (SDM Vol. 3A 10.1.1).
pub(super) fn reset(vmcs: &mut Vmcs, tsc_aux: bool) {
    const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;
    let zero = [
        SYSENTER_CS,
        SYSENTER_ESP,
        SYSENTER_EIP,
        DEBUGCTL,
        STAR,
        LSTAR,
        CSTAR,
        SFMASK,
        FS_BASE,
        GS_BASE,
        KERNEL_GS_BASE,
        TSC_AUX,
    ];
    for msr in zero {
        write(vmcs, Msr(msr), 0, tsc_aux);
    }
    write(vmcs, Msr(PAT), PAT_AFTER_RESET, tsc_aux);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_stays_in_the_processor_is_always_written_with_a_value_it_takes(msr in 0xC000_0080u32..0xC000_0110, value: u64, tsc_aux: bool) {
            let Some(written) = resident(Msr(msr), value, tsc_aux) else { return Ok(()) };
            let canonical = (written as i64) << 16 >> 16 == written as i64;
            match msr {
                LSTAR | CSTAR | KERNEL_GS_BASE => prop_assert!(canonical),
                SFMASK | TSC_AUX => prop_assert!(written >> 32 == 0),
                other => prop_assert_eq!(other, STAR),
            }
            prop_assert!(msr != TSC_AUX || tsc_aux);
        }
    }
}
