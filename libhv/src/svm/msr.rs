//! The MSRs that VMRUN, VMLOAD and VMSAVE switch, and IA32_TSC_AUX, which stays in the processor.

use super::instructions;
use super::vmcb::SaveArea;
use crate::exit::Msr;

const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_DEBUGCTL: u32 = 0x1D9;
const IA32_PAT: u32 = 0x277;
const STAR: u32 = 0xC000_0081;
const LSTAR: u32 = 0xC000_0082;
const CSTAR: u32 = 0xC000_0083;
const SFMASK: u32 = 0xC000_0084;
const FS_BASE: u32 = 0xC000_0100;
const GS_BASE: u32 = 0xC000_0101;
const KERNEL_GS_BASE: u32 = 0xC000_0102;
const TSC_AUX: u32 = 0xC000_0103;

/// Returns an MSR that is switched with the guest; `None` for any other. `tsc_aux` says that there is IA32_TSC_AUX.
#[inline]
pub(super) fn read(save: &SaveArea, msr: Msr, tsc_aux: bool) -> Option<u64> {
    Some(match msr.0 {
        IA32_SYSENTER_CS => save.sysenter_cs,
        IA32_SYSENTER_ESP => save.sysenter_esp,
        IA32_SYSENTER_EIP => save.sysenter_eip,
        IA32_DEBUGCTL => save.debugctl,
        IA32_PAT => save.pat,
        STAR => save.star,
        LSTAR => save.lstar,
        CSTAR => save.cstar,
        SFMASK => save.sfmask,
        FS_BASE => save.fs.base,
        GS_BASE => save.gs.base,
        KERNEL_GS_BASE => save.kernel_gs_base,
        TSC_AUX => instructions::tsc_aux(tsc_aux),
        _ => return None,
    })
}

/// Writes an MSR that is switched with the guest, and returns whether it is one.
#[inline]
pub(super) fn write(save: &mut SaveArea, msr: Msr, value: u64, tsc_aux: bool) -> bool {
    match msr.0 {
        IA32_SYSENTER_CS => save.sysenter_cs = value,
        IA32_SYSENTER_ESP => save.sysenter_esp = value,
        IA32_SYSENTER_EIP => save.sysenter_eip = value,
        IA32_DEBUGCTL => save.debugctl = value,
        IA32_PAT => save.pat = value,
        STAR => save.star = value,
        LSTAR => save.lstar = value,
        CSTAR => save.cstar = value,
        SFMASK => save.sfmask = value,
        FS_BASE => save.fs.base = value,
        GS_BASE => save.gs.base = value,
        KERNEL_GS_BASE => save.kernel_gs_base = value,
        TSC_AUX => instructions::set_tsc_aux(tsc_aux, value),
        _ => return false,
    }
    true
}
