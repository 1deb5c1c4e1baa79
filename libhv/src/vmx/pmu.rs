//! The PMU's seam on VMX: IA32_PERF_GLOBAL_CTRL is switched by entries and exits, and costs no instruction.
#![expect(unsafe_code, reason = "has entries and exits load and store an MSR")]

use super::Vmx;
use super::capability::{Capabilities, GlobalControlMeans};
use super::field;
use super::msr_list::MsrList;
use crate::error::{Error, Result};
use crate::exit::Msr;
use crate::hw::{GlobalSwitch, PmuHardware, counters};
use crate::memory::FrameSource;
use crate::pmu::registers::{CounterIndex, Maker, PmuRegister};

/// IA32_PERF_GLOBAL_CTRL
const GLOBAL_CTRL: Msr = Msr(0x38F);

/// Where the guest's IA32_PERF_GLOBAL_CTRL is while the guest does not run.
#[derive(Debug)]
pub(super) enum GlobalControl {
    /// In the VMCS.
    Field,
    /// In a list of this one MSR. It is where exits store to and where entries load from, so that software has nothing
    /// to copy from one place to the other, nor to look whether it changed.
    List(MsrList),
    /// Nowhere: it is not switched.
    Missing,
}

impl GlobalControl {
    /// Chooses what the processor offers; a list takes a frame.
    pub(super) fn new(capabilities: &Capabilities, frames: &mut impl FrameSource) -> Result<Self> {
        Ok(match capabilities.global_control() {
            GlobalControlMeans::Fields => Self::Field,
            GlobalControlMeans::Missing => Self::Missing,
            GlobalControlMeans::List => {
                let full = Error::OutOfMemory("the list of MSRs that exits store");
                let mut list = MsrList::new(frames.allocate(1).ok_or(full)?, capabilities.msr_list_limit());
                list.set(GLOBAL_CTRL, 0).map_err(|_| full)?;
                Self::List(list)
            }
        })
    }
}

impl PmuHardware for Vmx {
    #[inline]
    fn global_switch(&self) -> GlobalSwitch {
        match self.global_control {
            GlobalControl::Missing => GlobalSwitch::Missing,
            GlobalControl::Field | GlobalControl::List(_) => GlobalSwitch::Hardware,
        }
    }

    fn switches_by_list(&self) -> bool {
        matches!(self.global_control, GlobalControl::List(_))
    }

    #[inline]
    fn read_pmu(&self, register: PmuRegister) -> u64 {
        counters::read(register, Maker::Intel)
    }

    #[inline]
    fn write_pmu(&mut self, register: PmuRegister, value: u64) {
        counters::write(register, Maker::Intel, value);
    }

    #[inline]
    fn read_counter(&self, counter: CounterIndex) -> u64 {
        counters::read_counter(counter)
    }

    fn switch_global_control(&mut self, on: bool, host: u64) {
        let list = match &self.global_control {
            GlobalControl::Field => None,
            GlobalControl::List(list) => Some(list),
            GlobalControl::Missing => return,
        };
        // SAFETY: the list has IA32_PERF_GLOBAL_CTRL alone, see `GlobalControl::new`, and lives with the VMCS in `Vmx`.
        unsafe { self.vmcs.switch_global_control(on, host, list) }
    }

    #[inline]
    fn guest_global_control(&self) -> u64 {
        match &self.global_control {
            GlobalControl::Field => self.vmcs.read(field::GUEST_PERF_GLOBAL_CTRL),
            GlobalControl::List(list) => list.get(GLOBAL_CTRL).unwrap_or(0),
            GlobalControl::Missing => 0,
        }
    }

    fn set_guest_global_control(&mut self, value: u64) {
        match &mut self.global_control {
            GlobalControl::Field => self.vmcs.write(field::GUEST_PERF_GLOBAL_CTRL, value),
            // The MSR is on the list, so that there is room for it.
            GlobalControl::List(list) => drop(list.set(GLOBAL_CTRL, value)),
            GlobalControl::Missing => {}
        }
    }

    fn switches_branch_control(&self) -> bool {
        self.capabilities.switches_branch_control()
    }

    fn switch_branch_control(&mut self, on: bool) {
        if self.switches_branch_control() {
            self.vmcs.switch_branch_control(on);
        }
    }

    fn guest_branch_control(&self) -> u64 {
        if self.switches_branch_control() { self.vmcs.read(field::GUEST_LBR_CTL) } else { 0 }
    }

    fn set_guest_branch_control(&mut self, value: u64) {
        if self.switches_branch_control() {
            self.vmcs.write(field::GUEST_LBR_CTL, value);
        }
    }

    fn passes_nmis(&self) -> bool {
        self.capabilities.passes_nmis()
    }

    fn pass_nmis(&mut self, pass: bool) {
        if self.passes_nmis() {
            self.vmcs.pass_nmis(pass);
        }
    }

    fn pass_rdpmc(&mut self, pass: bool) {
        self.vmcs.intercept_rdpmc(!pass);
    }

    fn pass_pmu(&mut self, register: PmuRegister, read: bool, write: bool) {
        if let Some(msr) = register.msr(Maker::Intel) {
            self.msrs.pass(msr.0, read, write);
        }
    }
}
