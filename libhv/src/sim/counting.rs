//! The PMU in its machine: what an instruction does to it, and the way of its interrupt to the host.

use super::pmu::{Answered, Caches, Config, Happened, Kind, Pmu, Predictor, Taken};
use crate::hw::{PmiHost, PmiRoute};
use crate::pmu::slot::PmuSlot;
use crate::sim::Machine;

/// The vector that the PMU's interrupt has on the guest's route: above that of the host's other interrupts.
pub(super) const PMI_VECTOR: u8 = 0x32;

const DEBUGCTL: u32 = 0x1D9;
const INTEL_GLOBAL_CONTROL: u32 = 0x38F;

/// The performance monitoring entry of the local vector table, as far as the seam shows it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    route: PmiRoute,
    masked: bool,
}

/// A PMU, what feeds it, and its interrupt on the way.
#[derive(Debug)]
pub(super) struct Counting {
    pub(super) pmu: Pmu,
    predictor: Predictor,
    caches: Caches,
    entry: Entry,
    /// Entry and exit can switch IA32_PERF_GLOBAL_CTRL.
    pub(super) switches: bool,
    /// Instructions from an overflow to its interrupt.
    skid: u64,
    /// Instructions until the interrupt that was requested arrives.
    arrives_in: Option<u64>,
    /// What the hypervisor does at each exit, and again before each entry.
    host_work: Happened,
    pending: bool,
    in_service: bool,
    taken: bool,
    nmi: bool,
    host_nmis: u64,
}

/// What the instruction at hand has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doing {
    pub(super) retires: bool,
    /// A branch, and whether it was taken.
    pub(super) branch: Option<(Kind, bool)>,
}

impl Counting {
    pub(super) fn new(config: Config) -> Self {
        Self {
            pmu: Pmu::new(config),
            switches: matches!(config, Config::Intel(intel) if intel.version >= 2),
            predictor: Predictor::default(),
            caches: Caches::default(),
            entry: Entry { route: PmiRoute::Masked, masked: true },
            skid: 0,
            arrives_in: None,
            host_work: Happened::default(),
            pending: false,
            in_service: false,
            taken: false,
            nmi: false,
            host_nmis: 0,
        }
    }

    fn step(&mut self, cpl: u8, in_guest: bool, happened: &Happened) {
        if let Some(left) = self.arrives_in {
            self.arrives_in = Some(left.saturating_sub(happened.instructions));
        }
        if self.pmu.step(cpl, in_guest, happened) && self.arrives_in.is_none() {
            self.arrives_in = Some(self.skid);
        }
        if self.arrives_in == Some(0) {
            self.arrive();
        }
    }

    /// The interrupt reaches the local APIC. Intel's masks the entry when it delivers (SDM Vol. 3A 12.5.1); an interrupt
    /// that meets a mask is lost.
    fn arrive(&mut self) {
        self.arrives_in = None;
        if self.entry.masked {
            return;
        }
        self.pending |= self.entry.route == PmiRoute::Guest;
        self.nmi |= self.entry.route == PmiRoute::Host;
        self.entry.masked = matches!(self.pmu, Pmu::Intel(_));
    }

    /// The guest executed an instruction at privilege level `cpl`, or part of one, in one cycle.
    pub(super) fn executed(&mut self, cpl: u8, doing: Doing, from: u64, to: u64, touched: (u64, u64)) {
        let (llc_references, llc_misses) = touched;
        let mut happened = Happened { cycles: 1, ref_cycles: 1, llc_references, llc_misses, ..Happened::default() };
        if doing.retires {
            happened.instructions = 1;
            if let Some((kind, taken)) = doing.branch {
                let predicted = kind.predicted();
                let mispredicted = predicted.is_some_and(|branch| self.predictor.branch(branch, from, to, taken));
                happened.branches = 1;
                happened.conditional = u64::from(kind == Kind::Conditional);
                happened.mispredicted = u64::from(mispredicted);
                if taken {
                    self.pmu.branch(cpl, &Taken { from, to, kind, mispredicted });
                }
            }
        }
        self.step(cpl, true, &happened);
    }

    /// Accesses memory; returns references to the last-level cache and misses.
    pub(super) fn touch(&mut self, physical: u64) -> (u64, u64) {
        match self.caches.access(physical) {
            Answered::First => (0, 0),
            Answered::Last => (1, 0),
            Answered::Memory => (1, 1),
        }
    }

    /// The hypervisor executes, with an interrupt that is still on its way arriving meanwhile.
    pub(super) fn host(&mut self, happened: &Happened) {
        self.step(0, false, happened);
        if happened.instructions == 0 && self.arrives_in.is_some() {
            self.arrive();
        }
        self.host_nmis += u64::from(core::mem::take(&mut self.nmi));
    }

    /// VM entry: the hypervisor's last instructions, then the guest's IA32_DEBUGCTL and, where it is switched, the
    /// guest's IA32_PERF_GLOBAL_CTRL.
    ///
    /// # Panics
    /// When one of them holds what the processor does not take.
    pub(super) fn enter(&mut self, debug_control: u64, global_control: Option<u64>) {
        self.host(&self.host_work.clone());
        self.pmu.host_write(DEBUGCTL, debug_control);
        if let Some(guest) = global_control {
            self.pmu.host_write(INTEL_GLOBAL_CONTROL, guest);
        }
    }

    /// VM exit: returns the guest's IA32_DEBUGCTL and, where `host` replaces it, IA32_PERF_GLOBAL_CTRL. Then the
    /// hypervisor's first instructions.
    pub(super) fn exit(&mut self, host: Option<u64>) -> (u64, Option<u64>) {
        let debug_control = self.pmu.host_read(DEBUGCTL);
        self.pmu.host_write(DEBUGCTL, 0);
        let guest = host.map(|host| {
            let guest = self.pmu.host_read(INTEL_GLOBAL_CONTROL);
            self.pmu.host_write(INTEL_GLOBAL_CONTROL, host);
            guest
        });
        self.host(&self.host_work.clone());
        (debug_control, guest)
    }

    /// Returns whether an NMI stands before the guest's next instruction. Where the exit takes it (VMX), it is gone
    /// then; else the host has it next (APM Vol. 2 15.13.2).
    pub(super) fn nmi(&mut self) -> bool {
        let nmi = self.nmi;
        if matches!(self.pmu, Pmu::Intel(_)) {
            self.nmi = false;
        }
        nmi
    }

    pub(super) fn pending(&self) -> bool {
        self.pending
    }

    pub(super) fn in_service(&self) -> bool {
        self.in_service
    }

    pub(super) fn acknowledge(&mut self) {
        self.pending = false;
        self.in_service = true;
    }

    /// The host serves the interrupt on the guest's route, if it has come.
    pub(super) fn serve(&mut self) {
        self.taken |= self.pending | self.in_service;
        (self.pending, self.in_service) = (false, false);
    }
}

impl Machine {
    /// Gives the machine's processor a PMU, as it is after RESET.
    ///
    /// # Panics
    /// When no processor is like `config`.
    pub fn set_pmu(&self, config: Config) {
        self.wires().counting.replace(Some(Counting::new(config)));
    }

    /// Takes the controls away by which entry and exit switch IA32_PERF_GLOBAL_CTRL.
    ///
    /// # Panics
    /// When there is no PMU.
    pub fn hide_global_switch(&self) {
        self.wires().counting(|counting| counting.switches = false);
    }

    /// Has the PMU's interrupt arrive so many instructions after the overflow, or at the end of the hypervisor's work
    /// after an exit where that has none.
    ///
    /// # Panics
    /// When there is no PMU.
    pub fn set_pmi_skid(&self, instructions: u64) {
        self.wires().counting(|counting| counting.skid = instructions);
    }

    /// Has the hypervisor do so much at each exit, before it can do anything about it, and again before each entry.
    ///
    /// # Panics
    /// When there is no PMU.
    pub fn set_host_work(&self, happened: Happened) {
        self.wires().counting(|counting| counting.host_work = happened);
    }

    /// Has the hypervisor work now.
    ///
    /// # Panics
    /// When there is no PMU.
    pub fn work(&self, happened: &Happened) {
        self.wires().counting(|counting| counting.host(happened));
    }

    /// Lends the PMU.
    ///
    /// # Panics
    /// When there is none.
    pub fn pmu<T>(&self, borrow: impl FnOnce(&mut Pmu) -> T) -> T {
        self.wires().counting(|counting| borrow(&mut counting.pmu))
    }

    /// Returns how many NMIs the host has taken outside its guests.
    ///
    /// # Panics
    /// When there is no PMU, the only source of NMIs.
    pub fn host_nmis(&self) -> u64 {
        self.wires().counting(|counting| counting.host_nmis)
    }
}

impl PmiHost for Machine {
    fn route_pmi(&mut self, route: PmiRoute) {
        self.wires().counting(|counting| counting.entry = Entry { route, masked: route == PmiRoute::Masked });
    }

    fn take_guest_pmi(&mut self) -> bool {
        self.wires().counting(|counting| core::mem::take(&mut counting.taken))
    }

    fn pmu_slot(&mut self) -> &mut PmuSlot {
        &mut self.slot
    }
}
