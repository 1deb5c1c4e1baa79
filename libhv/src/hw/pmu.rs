//! The seam to a PMU: what the pillar asks of a backend, for the registers and the switch at entry and exit, and of a
//! host, for the interrupt. `BareMetal`'s side is in `vmx`, `svm` and `platform`; `sim` has its own.

use crate::pmu::registers::{CounterIndex, PmuRegister};
use crate::pmu::slot::PmuSlot;

/// How a backend switches IA32_PERF_GLOBAL_CTRL between guest and host (requirement A17).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GlobalSwitch {
    /// VM entry loads the guest's value, VM exit saves it and loads the host's: no instruction of either runs with the
    /// other's.
    Hardware,
    /// Nothing is switched: the selectors say that they count the guest alone (AMD's GuestOnly).
    Selectors,
    /// Neither: a guest's events would count the host.
    Missing,
}

/// The registers of a processor's PMU, and what of them a guest reaches without leaving. All methods are called with
/// the guest not running, on the processor that it runs on.
///
/// Only registers are written that the processor has, as [`PmuCapability`](crate::pmu::PmuCapability) tells it, and only
/// with bits that exist: another register or bit is a panic by #GP. Whatever is written, the registers reach neither
/// memory nor anything but the counting, which is why this is safe.
pub trait PmuHardware {
    /// Returns how IA32_PERF_GLOBAL_CTRL is switched.
    fn global_switch(&self) -> GlobalSwitch;

    /// Returns whether entry and exit find IA32_PERF_GLOBAL_CTRL in a list of MSRs, which takes them longer than a field.
    fn switches_by_list(&self) -> bool {
        false
    }

    /// Reads a register (RDMSR).
    fn read_pmu(&self, register: PmuRegister) -> u64;

    /// Writes a register (WRMSR). IA32_PERF_GLOBAL_CTRL is the processor's own at this moment, that is the host's where
    /// entry and exit switch it.
    fn write_pmu(&mut self, register: PmuRegister, value: u64);

    /// Reads a counter (RDPMC), which is faster than its register.
    fn read_counter(&self, counter: CounterIndex) -> u64;

    /// Has entry and exit switch IA32_PERF_GLOBAL_CTRL from now on, or no longer; `host` is what exits load. Nothing to
    /// do without [`GlobalSwitch::Hardware`].
    fn switch_global_control(&mut self, on: bool, host: u64);

    /// Returns what the next entry loads into IA32_PERF_GLOBAL_CTRL, which is what the guest left in it. Without
    /// [`GlobalSwitch::Hardware`] it is 0.
    fn guest_global_control(&self) -> u64;

    /// Has the next entry load `value` into IA32_PERF_GLOBAL_CTRL. Nothing to do without [`GlobalSwitch::Hardware`].
    fn set_guest_global_control(&mut self, value: u64);

    /// Returns whether entry and exit can switch IA32_LBR_CTL, so that no branch of the host is recorded.
    fn switches_branch_control(&self) -> bool {
        false
    }

    /// Has entry and exit switch IA32_LBR_CTL from now on, the guest's being 0 at first, or no longer. Nothing to do where
    /// they cannot.
    fn switch_branch_control(&mut self, _on: bool) {}

    /// Returns what the next entry loads into IA32_LBR_CTL, which is what the guest left in it; 0 where it is not switched.
    fn guest_branch_control(&self) -> u64 {
        0
    }

    /// Has the next entry load `value` into IA32_LBR_CTL, which is switched. The value is legal.
    fn set_guest_branch_control(&mut self, _value: u64) {}

    /// Returns whether NMIs can reach the guest without leaving it: by its own IDT, and blocked until its own IRET.
    fn passes_nmis(&self) -> bool {
        false
    }

    /// Has NMIs reach the guest without leaving it from now on, or no longer. While an NMI window is watched for they leave
    /// it all the same. Nothing to do where they cannot.
    fn pass_nmis(&mut self, _pass: bool) {}

    /// Lets the guest execute RDPMC without leaving, or no longer.
    fn pass_rdpmc(&mut self, pass: bool);

    /// Lets the guest read, write, both or neither of a register without leaving. The register is one that the
    /// processor has.
    fn pass_pmu(&mut self, register: PmuRegister, read: bool, write: bool);
}

/// Where the PMU's interrupt goes (LVTPC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PmiRoute {
    /// Nowhere: the entry is masked. An overflow shows in IA32_PERF_GLOBAL_STATUS alone.
    Masked,
    /// To a vector that nothing else has, by which a late interrupt is still known as the guest's (A22).
    Guest,
    /// To the guest as an NMI, which it gets without leaving while [`PmuHardware::pass_nmis`] has it so. The entry has a
    /// mark by which an NMI that meets the host is still known as the guest's (A22, A23).
    GuestNmi,
    /// To the host as an NMI.
    Host,
}

/// What the pillar asks of the logical processor's host beside [`Host`](super::Host).
pub trait PmiHost {
    /// Routes the interrupt. Intel's processors mask the entry when they deliver it: the next one comes after the next
    /// call alone.
    fn route_pmi(&mut self, route: PmiRoute);

    /// Returns whether the interrupt has come to the host on one of the guest's routes since the last call: by its vector,
    /// or as an NMI that met the host. No NMI of the guest's goes unheard: the next entry ends with an external interrupt.
    fn take_guest_pmi(&mut self) -> bool;

    /// Returns whether another NMI has met the host since the last call while the interrupt was routed by
    /// [`PmiRoute::GuestNmi`]: it is the guest's.
    fn take_guest_nmi(&mut self) -> bool {
        false
    }

    /// Returns whether the interrupt has been delivered by [`PmiRoute::GuestNmi`] since it was routed there, and has not
    /// met the host: the processor has masked its entry.
    fn guest_nmi_delivered(&self) -> bool {
        false
    }

    /// Has an NMI meet the host now that waits because the guest left in the middle of an NMI's handler. The guest's
    /// counters may have been the cause: that their interrupt was delivered is told as if it had been to the guest, and
    /// [`take_guest_nmi`](Self::take_guest_nmi) tells the rest.
    fn open_nmis(&mut self) {}

    /// Returns the account of who owns this processor's PMU.
    fn pmu_slot(&mut self) -> &mut PmuSlot;
}
