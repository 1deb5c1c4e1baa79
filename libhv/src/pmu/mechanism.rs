//! The mechanism: it owns the registers on a policy's behalf, and stays sound whatever the policy answers.
//!
//! While the guest's PMU is in the processor, `bank` holds what the hypervisor wrote there (the selectors as the filter
//! let them through), and counters and status are the processor's. While it is not, `bank` holds everything.

use super::bank::{Bank, counter_register, selector_register};
use super::branches::Branches;
use super::capability::PmuCapability;
use super::credit::CreditMasks;
use super::direct::InterruptPath;
use super::policy::{Means, PmuPolicy, assert_possible};
use super::registers::{
    BranchRegister, CounterIndex, EventSelector, FixedControl, MAX_BRANCHES, MAX_COUNTERS, Maker, PmuRegister,
};
use super::report::PmuReport;
use super::slot::Owner;
use super::view::{NoPmu, PmuView};
use crate::error::{Error, Requirement};
use crate::exit::Msr;
use crate::hw::{GlobalSwitch, Host, PmiRoute, PmuHardware};
use crate::vcpu::cpuid::{CpuidSource, CpuidTable};
use core::fmt;

/// IA32_PERF_GLOBAL_STATUS.CTR_FRZ: counters are frozen by an interrupt (T-A24).
pub const COUNTERS_FROZEN: u64 = 1 << 59;

/// Returns the bits of IA32_PERF_GLOBAL_STATUS that an interrupt sets with this IA32_DEBUGCTL: LBR_FRZ by
/// FREEZE_LBRS_ON_PMI, CTR_FRZ by FREEZE_PERFMON_ON_PMI.
pub const fn frozen_by_interrupt(debugctl: u64) -> u64 {
    const FREEZE: u64 = 1 << 11 | 1 << 12;
    (debugctl & FREEZE) << 47
}

/// What has happened to a guest's PMU, for reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PmuCounts {
    /// Interrupts that the guest has got; of those without an exit, as of when its local APIC was last told of them.
    pub interrupts: u64,
    /// Events credited for instructions that the hypervisor executed.
    pub credited: u64,
    /// Times that the registers were put into the processor.
    pub loads: u64,
    /// Registers written for it, where what was in the processor differed.
    pub writes: u64,
}

impl fmt::Display for PmuCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interrupts, credited, loads, writes } = self;
        write!(f, "interrupts {interrupts}, credited {credited}, loads {loads}, writes {writes}")
    }
}

/// The PMU of one virtual processor.
#[derive(Debug)]
pub struct Pmu<P> {
    policy: P,
    owner: Owner,
    view: Result<PmuView, NoPmu>,
    host: Option<PmuCapability>,
    bank: Bank,
    /// Its last-branch records, where its registers are in no processor and kept for no other turn.
    records: Branches,
    /// The selectors as the guest wrote them.
    selectors: [u64; MAX_COUNTERS as usize],
    fixed_control: u64,
    /// The guest writes selectors without leaving: they are read where they are needed.
    selectors_passed: bool,
    masks: CreditMasks,
    /// Where the processor's LVTPC sends interrupts.
    route: PmiRoute,
    /// It has sent one there as an NMI, and lets no other through.
    spent: bool,
    /// An interrupt has come that the guest has not heard of.
    late: bool,
    owed: credit::Owed,
    /// An interrupt has reached the guest without an exit, and its local APIC has not been told.
    unseen: bool,
    /// Another NMI of the guest's came when its registers were leaving the processor.
    nmi: bool,
    path: InterruptPath,
    counts: PmuCounts,
}

impl<P: PmuPolicy> Pmu<P> {
    /// Whether there is anything at all: where not, no exit costs anything.
    pub const PRESENT: bool = !matches!(P::MEANS, Means::Hidden);
    /// Whether it is [`EmulatedPmu`](super::emulated::EmulatedPmu) that the guest gets.
    pub const EMULATED: bool = matches!(P::MEANS, Means::Emulated);

    /// Decides what the guest gets of a processor's PMU on a backend.
    pub fn new(policy: P, host: Option<PmuCapability>, hardware: &impl PmuHardware) -> Self {
        const { assert_possible::<P>() }
        let decide = |host: &PmuCapability| {
            let mut share = policy.share(host);
            share.lbr &= hardware.switches_branch_control();
            let view = PmuView::decide(host, &share, P::MEANS, hardware.global_switch())?;
            let view = view.switched_by_list(hardware.switches_by_list());
            let view = if P::HOST_COUNTS { view.beside_host() } else { view };
            Ok(if P::FILTERS { view.filtered_by(|selector| policy.permits(selector, host)) } else { view })
        };
        let view = match &host {
            _ if !Self::PRESENT => Err(NoPmu::Policy),
            None => Err(NoPmu::Processor),
            Some(host) => decide(host),
        };
        let path = Self::decide_path(host.as_ref(), hardware);
        let mut this = Self {
            policy,
            owner: Owner::new(),
            view,
            host,
            bank: Bank::default(),
            records: Branches::default(),
            selectors: [0; MAX_COUNTERS as usize],
            fixed_control: 0,
            selectors_passed: false,
            masks: CreditMasks::default(),
            route: PmiRoute::Masked,
            spent: false,
            late: false,
            owed: credit::Owed::default(),
            unseen: false,
            nmi: false,
            path,
            counts: PmuCounts::default(),
        };
        this.reset();
        this
    }

    /// Returns what the guest is shown.
    pub fn view(&self) -> Option<&PmuView> {
        self.view.as_ref().ok()
    }

    /// Reports what the guest gets and what it does not, and why.
    pub fn report(&self) -> PmuReport {
        PmuReport::new(self.view).interrupting_by(self.path)
    }

    /// Returns what has happened.
    pub fn counts(&self) -> PmuCounts {
        self.counts
    }

    /// Returns how many last-branch records the guest has.
    fn depth(&self) -> u8 {
        self.view().map_or(0, |view| view.guest().lbr_depth)
    }

    /// Has CPUID tell the guest of its PMU.
    pub fn describe(&self, cpuid: &mut CpuidTable, host: &impl CpuidSource) {
        if let Ok(view) = &self.view {
            view.describe(cpuid, host);
        }
    }

    /// As after a reset: every register 0, but that IA32_PERF_GLOBAL_CTRL enables the general-purpose counters (T-A3).
    fn reset(&mut self) {
        let pmu = self.view().map(PmuView::guest);
        let global_control = pmu.filter(|pmu| pmu.has_global_control()).map_or(0, PmuCapability::counter_bits);
        self.bank = Bank { global_control, ..Bank::default() };
    }

    /// Opens to the guest what it may reach without leaving, and closes the rest (A9 to A12, T-A16).
    pub fn arrange(&mut self, hardware: &mut impl PmuHardware) {
        let (Ok(view), Some(host)) = (&self.view, &self.host) else { return };
        let each = (0..MAX_COUNTERS).flat_map(|n| {
            use PmuRegister::{CoreSelector, Counter, Fixed, FullCounter, Selector};
            [Counter(n), FullCounter(n), Selector(n), CoreSelector(n), Fixed(n)]
        });
        let global = {
            use PmuRegister::{FixedControl, GlobalControl, GlobalStatus, InUse, StatusReset, StatusSet};
            [FixedControl, GlobalControl, GlobalStatus, StatusReset, StatusSet, InUse]
        };
        let branches = (0..MAX_BRANCHES).flat_map(|n| {
            use BranchRegister::{From, Info, To};
            [From(n), To(n), Info(n)].map(PmuRegister::Branch)
        });
        let controls = [PmuRegister::Branch(BranchRegister::Control), PmuRegister::Branch(BranchRegister::Depth)];
        for register in each.chain(global).chain(branches).chain(controls).filter(|register| host.has(*register)) {
            let passed = view.passes(register, false);
            hardware.pass_pmu(register, passed.read, passed.write);
        }
        self.selectors_passed = view.passes(selector_register(host, 0), false).write;
        hardware.pass_rdpmc(view.passes_rdpmc());
        if host.has_global_control() && hardware.global_switch() == GlobalSwitch::Hardware {
            // From now on what the host runs with: nothing of it is counted (A4).
            hardware.write_pmu(PmuRegister::GlobalControl, 0);
        }
        hardware.switch_branch_control(self.depth() != 0);
        hardware.switch_global_control(true, 0);
        hardware.set_guest_global_control(self.bank.global_control);
    }

    /// Puts the guest's registers into the processor, unless they are there still: whoever is there instead leaves. The
    /// processor's counters stand still meanwhile.
    ///
    /// # Errors
    /// [`Requirement::RestorablePmu`], and nothing has changed: see [`PmuCapability::restores_all`]. A guest that is in
    /// such a processor is not displaced, and one that has left it with what cannot be restored does not come back.
    #[inline]
    pub fn acquire<H: Host>(&mut self, hardware: &mut impl PmuHardware, host: &mut H) -> Result<(), Error> {
        if Self::PRESENT && self.view.is_ok() && host.pmu_slot().owner() != Some(self.owner) {
            return self.load(hardware, host);
        }
        Ok(())
    }

    #[cold]
    fn load<H: Host>(&mut self, hardware: &mut impl PmuHardware, host: &mut H) -> Result<(), Error> {
        let Some(pmu) = self.host else { return Ok(()) };
        let displaces = host.pmu_slot().owner().is_some();
        if displaces && !pmu.restores_all() || !self.bank.can_be_put(&pmu) {
            return Err(Error::Unsupported(Requirement::RestorablePmu));
        }
        let present = self.read_out(&pmu, hardware);
        let (mine, theirs) = (self.depth(), host.pmu_slot().depth());
        let branches = Branches::take(theirs, hardware);
        // What is on its way to the one who leaves has come by now, and is kept for it (T-A13): what meets a mask is lost.
        let delivered = close(hardware, host);
        let pending = what_came(delivered, host);
        let slot = host.pmu_slot();
        if let Some(other) = slot.owner() {
            slot.park(other, present, pending, branches);
        }
        let mut records = core::mem::take(&mut self.records);
        if let Some((bank, pending, kept)) = slot.unpark(self.owner) {
            // Those that the guest has written without leaving are news, and no others.
            if bank.selectors != self.bank.selectors || bank.fixed_control != self.bank.fixed_control {
                self.masks = CreditMasks::of(&pmu, &bank.selectors, FixedControl(bank.fixed_control));
            }
            self.bank = bank;
            self.owe(pending);
            records = kept;
        }
        slot.set_owner(Some(self.owner), mine);
        if mine != 0 || theirs != 0 {
            self.counts.writes += u64::from(records.put(pmu.lbr_depth, hardware));
        }
        self.counts.loads += 1;
        self.counts.writes += u64::from(self.bank.put(&pmu, &present, hardware));
        self.start(&pmu, hardware);
        (self.route, self.spent) = (PmiRoute::Masked, false);
        Ok(())
    }

    /// Reads all that is in the processor, with its counters stopped where nothing else stops them.
    fn read_out(&self, pmu: &PmuCapability, hardware: &mut impl PmuHardware) -> Bank {
        let mut present = Bank::default();
        if hardware.global_switch() == GlobalSwitch::Selectors && pmu.has_global_control() {
            present.global_control = hardware.read_pmu(PmuRegister::GlobalControl);
            hardware.write_pmu(PmuRegister::GlobalControl, 0);
        }
        present.take_selectors(pmu, hardware);
        present.take_counts(pmu, hardware);
        present
    }

    /// Lets the counters go, where no entry does: last of all.
    fn start(&self, pmu: &PmuCapability, hardware: &mut impl PmuHardware) {
        if hardware.global_switch() == GlobalSwitch::Selectors && pmu.has_global_control() {
            hardware.write_pmu(PmuRegister::GlobalControl, self.bank.global_control);
        }
    }

    /// Takes the guest's registers out of the processor and leaves none of its values there (A20).
    pub fn release<H: Host>(&mut self, hardware: &mut impl PmuHardware, host: &mut H) {
        let Some(pmu) = self.host.filter(|_| host.pmu_slot().owner() == Some(self.owner)) else { return };
        let global_control = match hardware.global_switch() {
            GlobalSwitch::Hardware => hardware.guest_global_control(),
            _ => 0,
        };
        let present = self.read_out(&pmu, hardware);
        let delivered = close(hardware, host);
        (self.route, self.spent) = (PmiRoute::Masked, false);
        self.owe(what_came(delivered, host));
        self.bank = Bank { global_control: present.global_control | global_control, ..present };
        self.masks = CreditMasks::of(&pmu, &present.selectors, FixedControl(present.fixed_control));
        Bank::default().put(&pmu, &present, hardware);
        if self.depth() != 0 {
            self.records = Branches::take(self.depth(), hardware);
            Branches::default().put(self.depth(), hardware);
        }
        host.pmu_slot().set_owner(None, 0);
    }

    /// Returns what the processor has.
    pub fn processor(&self) -> Option<&PmuCapability> {
        self.host.as_ref()
    }

    /// Returns the policy.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// Returns the register of an MSR that the guest may know of.
    fn register(&self, msr: Msr) -> Option<(PmuRegister, &PmuView, &PmuCapability)> {
        let (view, host) = (self.view()?, self.host.as_ref()?);
        let register = PmuRegister::of(msr, host.maker).filter(|register| view.exists(*register))?;
        Some((register, view, host))
    }

    /// RDMSR that left the guest; `None` for #GP.
    pub fn read(&self, msr: Msr, hardware: &impl PmuHardware) -> Option<u64> {
        let (register, view, host) = self.register(msr)?;
        let at = |n: u8| usize::from(n & (MAX_COUNTERS - 1));
        Some(match register {
            PmuRegister::Capabilities => view.perf_capabilities(),
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) if self.selectors_passed => {
                hardware.read_pmu(selector_register(host, n))
            }
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => self.selectors[at(n)],
            // What only the processor has and the guest does not see stays hidden, here and below.
            PmuRegister::FixedControl if self.selectors_passed => {
                hardware.read_pmu(register) & view.guest().fixed_control_bits()
            }
            PmuRegister::FixedControl => self.fixed_control,
            PmuRegister::Counter(n) | PmuRegister::FullCounter(n) => hardware.read_counter(CounterIndex::General(n)),
            PmuRegister::Fixed(n) => hardware.read_counter(CounterIndex::Fixed(n)),
            PmuRegister::GlobalControl if hardware.global_switch() == GlobalSwitch::Hardware => {
                hardware.guest_global_control()
            }
            PmuRegister::GlobalControl => hardware.read_pmu(register) & view.guest().control_bits(),
            PmuRegister::GlobalStatus => hardware.read_pmu(register) & view.status_bits(),
            PmuRegister::InUse => self.in_use(view, host, hardware),
            PmuRegister::StatusReset | PmuRegister::StatusSet => 0,
            PmuRegister::Branch(_) => hardware.read_pmu(register),
        })
    }

    /// Returns IA32_PERF_GLOBAL_INUSE by what the guest wrote.
    fn in_use(&self, view: &PmuView, host: &PmuCapability, hardware: &impl PmuHardware) -> u64 {
        if !self.selectors_passed {
            return view.in_use(&self.selectors, FixedControl(self.fixed_control));
        }
        let mut bank = Bank::default();
        bank.take_selectors(host, hardware);
        view.in_use(&bank.selectors, FixedControl(bank.fixed_control))
    }

    /// WRMSR that left the guest; `None` for #GP. Its legality is that of the guest's PMU, not the processor's.
    pub fn write(&mut self, msr: Msr, value: u64, hardware: &mut impl PmuHardware) -> Option<()> {
        let (register, view, host) = self.register(msr)?;
        let (value, host) = (view.validate_write(register, value).ok()?, *host);
        match register {
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => self.select(n, value, &host, hardware),
            PmuRegister::FixedControl => self.select_fixed(value, &host, hardware),
            PmuRegister::Counter(n) | PmuRegister::FullCounter(n) => {
                hardware.write_pmu(counter_register(&host, n), value);
            }
            PmuRegister::GlobalControl if hardware.global_switch() == GlobalSwitch::Hardware => {
                hardware.set_guest_global_control(value);
            }
            PmuRegister::GlobalControl => hardware.write_pmu(register, value),
            PmuRegister::Fixed(_) | PmuRegister::StatusReset | PmuRegister::StatusSet | PmuRegister::Branch(_) => {
                hardware.write_pmu(register, value);
            }
            PmuRegister::Capabilities | PmuRegister::GlobalStatus | PmuRegister::InUse => return None,
        }
        Some(())
    }

    /// Returns what the policy leaves of a selector: what the processor is to have (A14).
    fn allowed(&self, value: u64, host: &PmuCapability) -> u64 {
        let permitted = !P::FILTERS || self.policy.permits(EventSelector(value), host);
        let allowed = if permitted { value } else { value & !EventSelector::ENABLE };
        match host.maker {
            Maker::Intel => allowed,
            Maker::Amd => allowed & !EventSelector::HOST_ONLY | EventSelector::GUEST_ONLY,
        }
    }

    /// As above for IA32_FIXED_CTR_CTRL.
    fn allowed_fixed(&self, value: u64) -> u64 {
        let denied = |n: &u8| P::FILTERS && !self.policy.permits_fixed(*n, FixedControl(value));
        (0..MAX_COUNTERS).filter(denied).fold(value, |allowed, n| allowed & !(0xF << (4 * n)))
    }

    /// Keeps the guest's selector, and gives the processor what it may have of it: compared is what the processor has,
    /// never what the guest wrote before (T-A1).
    fn select(&mut self, n: u8, value: u64, host: &PmuCapability, hardware: &mut impl PmuHardware) {
        let at = usize::from(n & (MAX_COUNTERS - 1));
        self.selectors[at] = value;
        let allowed = self.allowed(value, host);
        if self.bank.selectors[at] != allowed {
            self.bank.selectors[at] = allowed;
            hardware.write_pmu(selector_register(host, n), allowed);
            self.masks.select(n, EventSelector(allowed), host.maker);
        }
    }

    /// As above for IA32_FIXED_CTR_CTRL.
    fn select_fixed(&mut self, value: u64, host: &PmuCapability, hardware: &mut impl PmuHardware) {
        self.fixed_control = value;
        let allowed = self.allowed_fixed(value);
        if self.bank.fixed_control != allowed {
            self.bank.fixed_control = allowed;
            hardware.write_pmu(PmuRegister::FixedControl, allowed);
            self.masks.select_fixed(host, FixedControl(allowed));
        }
    }

    /// RDPMC that left the guest; `None` for #GP.
    pub fn read_counter(&self, ecx: u32, cpl: u8, cr4: u64, hardware: &impl PmuHardware) -> Option<u64> {
        let counter = self.view()?.rdpmc(ecx, cpl, cr4).ok()?;
        Some(hardware.read_counter(counter))
    }
}

mod credit;
mod interrupt;
mod snapshot;

pub use interrupt::Came;
use interrupt::{close, what_came};

#[cfg(test)]
mod hostile;
#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;
