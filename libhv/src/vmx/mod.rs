//! The VMX backend (SDM Vol. 3C chapters 24 to 33).
//!
//! `capability` says what the processor has, `vmcs` is VMX operation as a value, `entry` goes into the guest and comes
//! back, `decode` says what an exit means, `apply` carries out what was decided.

mod apic;
mod apply;
pub mod capability;
mod debug_control;
mod decode;
mod entry;
pub mod ept;
mod event;
mod field;
pub mod flags;
mod guest_state;
mod host_state;
mod instructions;
mod msr;
mod msr_list;
mod pmu;
mod setup;
mod timer;
mod vmcs;

pub use capability::Capabilities;
pub use ept::EptEntry;

use crate::error::{Error, Requirement, Result};
use crate::exit::RawExit;
use crate::memory::nested::NestedTables;
use crate::memory::permissions::{MsrPermissions, PortPermissions};
use crate::registers::Gpr;
use apic::VirtualApic;
use decode::ExitFields;
use entry::Registers;
use flags::ExitReason;
use msr_list::MsrList;
use pmu::GlobalControl;
use vmcs::Vmcs;

/// A virtual processor on the processor that made it.
///
/// It takes five frames: the VMXON region, the VMCS, and those of MSR and port permissions; a sixth where exits cannot save
/// IA32_PERF_GLOBAL_CTRL to the VMCS, one more where the host has IA32_DEBUGCTL.FREEZE_WHILE_SMM set, and two where the
/// processor serves the guest's local APIC from a page. Vector and x87
/// state, XCR0, CR2, DR0 to DR3, DR6, the SYSCALL MSRs, IA32_KERNEL_GS_BASE and IA32_TSC_AUX stay in the processor as the
/// guest has them, and so do the registers of the PMU, but for IA32_PERF_GLOBAL_CTRL.
#[derive(Debug)]
pub struct Vmx {
    registers: Registers,
    vmcs: Vmcs,
    deliveries: Deliveries,
    /// Bits of CR4 that the guest may change without leaving.
    cr4_own: u64,
    /// Bits of CR4 that are set while the guest runs, whatever it asks for.
    cr4_host: u64,
    timer_shift: Option<u32>,
    tsc_aux: bool,
    capabilities: Capabilities,
    nested: NestedTables<EptEntry>,
    msrs: MsrPermissions,
    ports: PortPermissions,
    global_control: GlobalControl,
    /// Where the processor can serve the local APIC.
    virtual_apic: Option<VirtualApic>,
    /// What exits load beside the host's fields.
    _exit_loads: Option<MsrList>,
}

/// Events on their way. Entering forgets both with one store: their first words stand side by side.
#[derive(Debug, Default)]
#[repr(C)]
struct Deliveries {
    /// Interruption information of what the next entry delivers; 0 when nothing.
    injected: u32,
    /// Interruption information of what the last exit interrupted; 0 when nothing, or taken.
    interrupted: u32,
    /// Error code and instruction length of the first.
    injected_rest: [u32; 2],
    /// Error code and instruction length of the second.
    interrupted_rest: [u32; 2],
}

impl Vmx {
    /// Judges this processor, and changes nothing.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the first thing that is missing; [`Requirement::Virtualization`] also where the
    /// caller does not run at privilege level 0.
    pub fn check() -> Result<Capabilities> {
        let raw = instructions::read_capabilities().ok_or(Error::Unsupported(Requirement::Virtualization))?;
        Capabilities::judge(raw).map_err(Error::Unsupported)
    }

    /// Returns the nested tables, to change them. What they say of it, `flush_nested` must follow.
    pub fn nested(&mut self) -> &mut NestedTables<EptEntry> {
        &mut self.nested
    }

    /// Returns what the processor can do, and which controls are used.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Lets the guest change these bits of CR4 without leaving: those that CPUID offers it. Bits that the processor
    /// lacks, VMXE and MCE stay the host's. At first the guest owns none.
    pub fn own_cr4(&mut self, bits: u64) {
        self.cr4_own = bits & self.capabilities.cr4_supported() & !self.cr4_host & !guest_state::CR4_HOST;
        self.vmcs.set_masks(!guest_state::CR0_OWN, !self.cr4_own);
    }
}

impl ExitFields for Vmx {
    #[inline]
    fn qualification(&self) -> u64 {
        self.vmcs.read(field::EXIT_QUALIFICATION)
    }
    #[inline]
    fn interruption(&self) -> u32 {
        self.vmcs.read(field::EXIT_INTERRUPTION)
    }
    #[inline]
    fn error_code(&self) -> u32 {
        self.vmcs.read(field::EXIT_ERROR_CODE)
    }
    #[inline]
    fn guest_physical(&self) -> u64 {
        self.vmcs.read(field::GUEST_PHYSICAL_ADDRESS)
    }
    #[inline]
    fn guest_linear(&self) -> u64 {
        self.vmcs.read(field::GUEST_LINEAR_ADDRESS)
    }
    #[inline]
    fn rip(&self) -> u64 {
        self.vmcs.read(field::GUEST_RIP)
    }
    #[inline]
    fn register(&self, register: Gpr) -> u64 {
        self.registers.general[register as usize]
    }
    #[inline]
    fn settle(&mut self, reason: ExitReason) {
        match reason {
            ExitReason::APIC_WRITE | ExitReason::TPR_BELOW_THRESHOLD => self.settle_trap(),
            _ => self.settle_delivery(reason),
        }
    }
}

impl Vmx {
    #[inline]
    fn reason(&self) -> u32 {
        self.vmcs.read(field::EXIT_REASON)
    }

    fn raw(&self) -> RawExit {
        decode::raw(self.reason(), self)
    }
}
