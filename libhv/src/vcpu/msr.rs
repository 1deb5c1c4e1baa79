//! What RDMSR and WRMSR give the guest: a list of what it may reach, checked in full; anything else is #GP.
//!
//! Handlers are pure: they return what is to be done. Registers that the processor switches with the guest go to the
//! backend after their check, those of the local APIC to its model, and the rest is answered here. Machine checks have
//! no banks, MTRRs are stored without effect, and VMX, SVM and power management have no registers.
//! Those of the PMU are its pillar's.

pub mod index;
#[cfg(test)]
mod tests;

use super::cpuid::{CpuidTable, Feature};
use super::mtrr::Mtrrs;
use crate::exit::Msr;
use crate::registers::{CR0_PG, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE};
use crate::time::{Frequency, Tsc};

/// EFER.FFXSR (APM Vol. 2 3.1.7)
const EFER_FFXSR: u64 = 1 << 14;
/// IA32_DEBUGCTL.BTF: single-step on branches.
const DEBUGCTL_BTF: u64 = 1 << 1;
/// IA32_MISC_ENABLE bit 0: fast strings, which the guest may turn off without effect.
const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
/// IA32_MISC_ENABLE bit 7, read-only: performance monitoring is available.
const MISC_ENABLE_PERFORMANCE_MONITORING: u64 = 1 << 7;
/// IA32_MISC_ENABLE bits 11 and 12, read-only: neither branch trace storage nor processor event-based sampling.
const MISC_ENABLE_UNAVAILABLE: u64 = 1 << 11 | 1 << 12;
/// IA32_SPEC_CTRL.IBRS
const SPEC_CTRL_IBRS: u64 = 1 << 0;
/// IA32_SPEC_CTRL.STIBP
const SPEC_CTRL_STIBP: u64 = 1 << 1;
/// IA32_SPEC_CTRL.SSBD
const SPEC_CTRL_SSBD: u64 = 1 << 2;
/// IA32_PRED_CMD.IBPB
const PRED_CMD_IBPB: u64 = 1 << 0;
/// The component that IA32_XFD can disable: XCR0.TILEDATA.
const XFD_TILEDATA: u64 = 1 << 18;
/// HWCR.TscFreqSel: the TSC counts at the frequency of P0.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// HWCR bits that systems set on processors that do not have them: TLBCACHEDIS, FFDIS, IGNNE_EM.
const HWCR_IGNORED: u64 = 1 << 3 | 1 << 6 | 1 << 8;
/// DE_CFG bit 1: LFENCE is serializing.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// IA32_ARCH_CAPABILITIES bits that say what the processor does not suffer from, or does by itself: RDCL_NO, RSBA,
/// SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, FB_CLEAR, RRSBA,
/// BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO.
const ARCH_CAPABILITIES_ALLOWED: u64 = 1 << 0
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 17
    | 1 << 19
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;
/// IA32_ARCH_CAPABILITIES.IBRS_ALL, which needs IBRS.
const ARCH_CAPABILITIES_IBRS_ALL: u64 = 1 << 1;

/// What RDMSR gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum MsrRead {
    /// EDX:EAX
    Value(u64),
    /// What [`Backend::switched_msr`](super::Backend::switched_msr) returns.
    Switched,
    /// What the local APIC's model returns: IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC registers.
    LocalApic,
    /// #GP
    Fault,
}

/// What WRMSR does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum MsrWrite {
    /// It is done.
    Done,
    /// The backend gets this value with [`Backend::set_switched_msr`](super::Backend::set_switched_msr): it is legal.
    Switched(u64),
    /// IA32_EFER becomes this; LMA is as it was.
    Efer(u64),
    /// The backend gets this with [`Backend::set_tsc_offset`](super::Backend::set_tsc_offset), and the local APIC's
    /// timer counts by it.
    TscOffset(u64),
    /// The local APIC's model decides, as in [`MsrRead::LocalApic`].
    LocalApic,
    /// #GP
    Fault,
}

/// The state of a virtual processor that shows in its MSRs or decides what they accept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MsrContext {
    /// CR0 as the guest reads it.
    pub cr0: u64,
    /// IA32_EFER as the guest reads it.
    pub efer: u64,
    /// The host's time-stamp counter.
    pub now: Tsc,
}

/// What a guest's MSRs depend on beside its CPUID.
#[derive(Clone, Copy, Debug)]
pub struct MsrSettings {
    /// The guest's time-stamp counter.
    pub tsc: Frequency,
    /// The revision of the microcode that the guest is told.
    pub microcode: u32,
    /// The host's IA32_ARCH_CAPABILITIES; shown in part, and where CPUID says it exists.
    pub arch_capabilities: u64,
}

/// The MSRs of one virtual processor, without those that the processor or the local APIC's model holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Msrs {
    amd: bool,
    mtrrs: Mtrrs,
    /// Bits of IA32_EFER that exist.
    efer: u64,
    /// Bits of IA32_SPEC_CTRL that exist; 0 when the register does not.
    spec_ctrl: u64,
    prediction_barrier: bool,
    tsc_aux: bool,
    adjustable: bool,
    /// Whether IA32_XSS exists, and what it may hold.
    xss_offered: Option<u64>,
    xfd: bool,
    arch_capabilities: Option<u64>,
    microcode: u32,
    platform_info: u64,
    tsc_offset: u64,
    tsc_adjust: u64,
    misc_enable: u64,
    /// Bits of IA32_MISC_ENABLE that say what the processor has, read-only.
    misc_enable_fixed: u64,
    /// Bits of IA32_DEBUGCTL that exist.
    debugctl: u64,
    xss: u64,
}

impl Msrs {
    /// Makes the MSRs of a processor whose CPUID is `cpuid`, as they are after firmware has run.
    pub fn new(cpuid: &CpuidTable, settings: &MsrSettings) -> Self {
        let if_offered = |feature, bits: u64| if cpuid.offers(feature) { bits } else { 0 };
        let either = |one, other| cpuid.offers(one) || cpuid.offers(other);
        let efer = if_offered(Feature::SYSCALL, EFER_SCE)
            | if_offered(Feature::LONG_MODE, EFER_LME | EFER_LMA)
            | if_offered(Feature::NX, EFER_NXE)
            | if_offered(Feature::FFXSR, EFER_FFXSR);
        let mut spec_ctrl = 0;
        if either(Feature::IBRS_IBPB, Feature::AMD_IBRS) {
            spec_ctrl |= SPEC_CTRL_IBRS;
        }
        if either(Feature::STIBP, Feature::AMD_STIBP) {
            spec_ctrl |= SPEC_CTRL_STIBP;
        }
        if either(Feature::SSBD, Feature::AMD_SSBD) {
            spec_ctrl |= SPEC_CTRL_SSBD;
        }
        let ibrs_all = if spec_ctrl & SPEC_CTRL_IBRS != 0 { ARCH_CAPABILITIES_IBRS_ALL } else { 0 };
        let capabilities = settings.arch_capabilities & (ARCH_CAPABILITIES_ALLOWED | ibrs_all);
        // Bits 15:8: the TSC's frequency in units of 100 MHz (SDM Vol. 4, MSR_PLATFORM_INFO).
        let ratio = (settings.tsc.hz() / 100_000_000).min(0xFF);
        Self {
            amd: cpuid.is_amd(),
            mtrrs: Mtrrs::new(cpuid.physical_address_bits()),
            efer,
            spec_ctrl,
            prediction_barrier: either(Feature::IBRS_IBPB, Feature::AMD_IBPB),
            tsc_aux: either(Feature::RDTSCP, Feature::RDPID),
            adjustable: cpuid.offers(Feature::TSC_ADJUST),
            xss_offered: cpuid.offers(Feature::XSAVES).then(|| cpuid.xss()),
            xfd: cpuid.offers(Feature::XFD),
            arch_capabilities: cpuid.offers(Feature::ARCH_CAPABILITIES).then_some(capabilities),
            microcode: settings.microcode,
            platform_info: ratio << 8,
            tsc_offset: 0,
            tsc_adjust: 0,
            misc_enable: MISC_ENABLE_FAST_STRINGS,
            misc_enable_fixed: MISC_ENABLE_UNAVAILABLE,
            debugctl: DEBUGCTL_BTF,
            xss: 0,
        }
    }

    /// Has IA32_MISC_ENABLE say whether there is performance monitoring, and IA32_DEBUGCTL take these bits of its own.
    pub fn show_performance_monitoring(&mut self, present: bool, debugctl: u64) {
        let available = if present { MISC_ENABLE_PERFORMANCE_MONITORING } else { 0 };
        self.misc_enable_fixed = MISC_ENABLE_UNAVAILABLE | available;
        self.debugctl = DEBUGCTL_BTF | debugctl;
    }

    /// Returns what the guest's time-stamp counter is ahead of the host's, modulo 2^64.
    pub fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// Has the guest's time-stamp counter run ahead of the host's by `offset`, modulo 2^64, as at a reset:
    /// IA32_TSC_ADJUST does not follow.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    /// Returns IA32_XSS.
    pub fn xss(&self) -> u64 {
        self.xss
    }

    /// Returns the registers that memory types come from.
    pub fn mtrrs(&self) -> &Mtrrs {
        &self.mtrrs
    }

    /// Returns what RDMSR of `msr` gives. `context` is asked only where the answer depends on it.
    #[inline(always)]
    pub fn read(&self, msr: Msr, context: impl FnOnce() -> MsrContext) -> MsrRead {
        match msr.0 {
            index::FS_BASE..=index::KERNEL_GS_BASE
            | index::SYSENTER_CS..=index::SYSENTER_EIP
            | index::STAR..=index::FMASK
            | index::PAT
            | index::DEBUGCTL => MsrRead::Switched,
            index::TSC_AUX if self.tsc_aux => MsrRead::Switched,
            index::APIC_BASE | index::TSC_DEADLINE | index::X2APIC_FIRST..=index::X2APIC_LAST => MsrRead::LocalApic,
            index::TSC => MsrRead::Value(context().now.0.wrapping_add(self.tsc_offset)),
            index::TSC_ADJUST if self.adjustable => MsrRead::Value(self.tsc_adjust),
            index::EFER => MsrRead::Value(context().efer),
            index::SPEC_CTRL if self.spec_ctrl != 0 => MsrRead::Switched,
            index::XFD | index::XFD_ERR if self.xfd => MsrRead::Switched,
            other => self.stored(other).map_or(MsrRead::Fault, MsrRead::Value),
        }
    }

    /// Returns what is held here and read as it stands.
    fn stored(&self, msr: u32) -> Option<u64> {
        Some(match msr {
            index::MCG_CAP | index::MCG_STATUS => 0,
            index::XSS => self.xss_offered.map(|_| self.xss)?,
            index::ARCH_CAPABILITIES => self.arch_capabilities?,
            index::BIOS_SIGN_ID if self.amd => self.microcode.into(),
            index::BIOS_SIGN_ID => u64::from(self.microcode) << 32,
            index::PLATFORM_ID if !self.amd => 0,
            index::PLATFORM_INFO if !self.amd => self.platform_info,
            index::MISC_ENABLE if !self.amd => self.misc_enable | self.misc_enable_fixed,
            index::HWCR if self.amd => HWCR_TSC_FREQ_SEL,
            index::DE_CFG if self.amd => DE_CFG_LFENCE,
            index::SYSCFG | index::NB_CFG | index::INT_PENDING_MESSAGE if self.amd => 0,
            _ => self.mtrrs.read(msr)?,
        })
    }

    /// Returns what WRMSR of `value` to `msr` does. What is held here has been written by then.
    #[inline(always)]
    pub fn write(&mut self, msr: Msr, value: u64, context: impl FnOnce() -> MsrContext) -> MsrWrite {
        let switched = |legal: bool| if legal { MsrWrite::Switched(value) } else { MsrWrite::Fault };
        let done = |legal: bool| if legal { MsrWrite::Done } else { MsrWrite::Fault };
        match msr.0 {
            index::FS_BASE..=index::KERNEL_GS_BASE
            | index::SYSENTER_ESP
            | index::SYSENTER_EIP
            | index::LSTAR
            | index::CSTAR => switched(is_canonical(value)),
            index::SYSENTER_CS | index::STAR => MsrWrite::Switched(value),
            index::FMASK => switched(value >> 32 == 0),
            index::TSC_AUX => switched(self.tsc_aux && value >> 32 == 0),
            index::PAT => switched(is_pat(value)),
            index::DEBUGCTL => switched(value & !self.debugctl == 0),
            index::APIC_BASE | index::TSC_DEADLINE | index::X2APIC_FIRST..=index::X2APIC_LAST => MsrWrite::LocalApic,
            index::EFER => self.write_efer(value, context()),
            index::TSC => {
                let offset = value.wrapping_sub(context().now.0);
                self.tsc_adjust = self.tsc_adjust.wrapping_add(offset).wrapping_sub(self.tsc_offset);
                self.tsc_offset = offset;
                MsrWrite::TscOffset(offset)
            }
            index::TSC_ADJUST if self.adjustable => {
                self.tsc_offset = self.tsc_offset.wrapping_add(value).wrapping_sub(self.tsc_adjust);
                self.tsc_adjust = value;
                MsrWrite::TscOffset(self.tsc_offset)
            }
            index::SPEC_CTRL => switched(self.spec_ctrl != 0 && value & !self.spec_ctrl == 0),
            index::PRED_CMD => switched(self.prediction_barrier && value & !PRED_CMD_IBPB == 0),
            index::XFD | index::XFD_ERR => switched(self.xfd && value & !XFD_TILEDATA == 0),
            index::XSS => {
                let legal = self.xss_offered.is_some_and(|offered| value & !offered == 0);
                if legal {
                    self.xss = value;
                }
                done(legal)
            }
            index::MISC_ENABLE if !self.amd => {
                let legal = value & !(MISC_ENABLE_FAST_STRINGS | self.misc_enable_fixed) == 0;
                if legal {
                    self.misc_enable = value & MISC_ENABLE_FAST_STRINGS;
                }
                done(legal)
            }
            // Software writes 0 before it reads the revision (SDM Vol. 3A 10.11.7.1); a revision is not stored.
            index::BIOS_SIGN_ID => done(!self.amd && value == 0),
            index::MCG_STATUS => done(value == 0),
            index::HWCR if self.amd => done(value & !(HWCR_IGNORED | HWCR_TSC_FREQ_SEL) == 0),
            index::DE_CFG if self.amd => done(value == DE_CFG_LFENCE),
            index::SYSCFG | index::NB_CFG | index::INT_PENDING_MESSAGE if self.amd => done(value == 0),
            other => done(self.mtrrs.write(other, value)),
        }
    }

    /// IA32_EFER: reserved bits and a change of LME under paging are #GP, and LMA is ignored (SDM Vol. 3A 4.1.1, APM
    /// Vol. 2 3.1.7).
    fn write_efer(&self, value: u64, context: MsrContext) -> MsrWrite {
        let MsrContext { cr0, efer, .. } = context;
        if value & !self.efer != 0 || cr0 & CR0_PG != 0 && (value ^ efer) & EFER_LME != 0 {
            return MsrWrite::Fault;
        }
        MsrWrite::Efer(value & !EFER_LMA | efer & EFER_LMA)
    }
}

/// Returns whether an address is canonical with 48 bits: guests have four-level paging.
#[inline]
const fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// Returns whether each byte is a memory type of the page attribute table: 0, 1, 4, 5, 6 or 7 (SDM Vol. 3A 12.12.2).
#[inline]
fn is_pat(value: u64) -> bool {
    const BIT_1: u64 = 0x0202_0202_0202_0202;
    const BITS_7_TO_3: u64 = 0xF8F8_F8F8_F8F8_F8F8;
    // Of the values that three bits have, 2 and 3 are none: bit 1 goes with bit 2 alone.
    value & (BITS_7_TO_3 | BIT_1 & !(value >> 1)) == 0
}
