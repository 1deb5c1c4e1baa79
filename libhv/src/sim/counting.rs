//! The PMU in its machine: what an instruction does to it, and the way of its interrupt to the host.

use super::pmu::amd::Slots;
use super::pmu::{Answered, Caches, Config, Happened, Kind, Pmu, Predictor, Taken};
use crate::hw::{PmiHost, PmiRoute};
use crate::pmu::slot::PmuSlot;
use crate::sim::Machine;

/// The vector that the PMU's interrupt has on the guest's route: above that of the host's other interrupts.
pub(super) const PMI_VECTOR: u8 = 0x32;
/// By which the host has the next entry end after an NMI of the guest's has met it.
pub(super) const NMI_VECTOR: u8 = 0x33;

const DEBUGCTL: u32 = 0x1D9;
const INTEL_GLOBAL_CONTROL: u32 = 0x38F;
const LBR_CTL: u32 = 0x14CE;
/// Where the hypervisor's code is, as last branch records show it: nowhere that a guest of 32 bits is.
const HOST_CODE: u64 = 0xFFFF_8000_0000_0000;

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
    /// An NMI waits in the processor.
    nmi: bool,
    /// The host does not take it: the guest left in the middle of an NMI's handler, or by an NMI.
    nmis_blocked: bool,
    /// One that waited for the guest is let in.
    opening: bool,
    /// Another NMI of the guest's has met the host.
    other_nmi: bool,
    host_nmis: u64,
    /// An NMI of the guest's has met the host: an interrupt of [`NMI_VECTOR`] is pending, and acknowledged.
    met: bool,
    met_in_service: bool,
    /// The interrupt of virtualized counters waits for their guest.
    pub(super) to_guest: bool,
}

/// The guest's controls that entry and exit switch. Where they do not, there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Controls {
    pub(super) debug: u64,
    pub(super) global: Option<u64>,
    pub(super) lbr: Option<u64>,
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
            nmis_blocked: false,
            opening: false,
            other_nmi: false,
            host_nmis: 0,
            met: false,
            met_in_service: false,
            to_guest: false,
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
        if matches!(&self.pmu, Pmu::Amd(pmu) if pmu.is_loaded()) {
            self.to_guest = true;
            return;
        }
        if self.entry.masked {
            return;
        }
        self.pending |= self.entry.route == PmiRoute::Guest;
        self.nmi |= matches!(self.entry.route, PmiRoute::Host | PmiRoute::GuestNmi);
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
        if happened.branches > 0 {
            let (from, to) = (HOST_CODE, HOST_CODE + 0x100);
            self.pmu.branch(0, &Taken { from, to, kind: Kind::DirectJump, mispredicted: false });
        }
        self.step(0, false, happened);
        if happened.instructions == 0 && self.arrives_in.is_some() {
            self.arrive();
        }
        self.meet_nmi();
    }

    /// The host takes the NMI that waits, unless they are blocked: its handler knows the guest's by their entry.
    fn meet_nmi(&mut self) {
        if self.nmis_blocked || !core::mem::take(&mut self.nmi) {
            return;
        }
        if self.entry.route != PmiRoute::GuestNmi {
            self.host_nmis += 1;
            return;
        }
        self.met = true;
        if self.entry.masked && !self.opening {
            self.entry = Entry { route: PmiRoute::Masked, masked: true };
            self.taken = true;
        } else {
            self.other_nmi = true;
        }
    }

    /// Returns where LVTPC sends the interrupt.
    #[cfg(test)]
    pub(super) fn route(&self) -> PmiRoute {
        self.entry.route
    }

    fn has_delivered_guest_nmi(&self) -> bool {
        self.entry.route == PmiRoute::GuestNmi && self.entry.masked
    }

    /// An instruction of the host's, IRET, unblocks NMIs.
    fn unblock_nmis(&mut self) {
        self.nmis_blocked = false;
        self.meet_nmi();
    }

    /// VM entry: the hypervisor's last instructions, then the guest's virtualized counters and its controls.
    ///
    /// # Errors
    /// The exit code of a VMRUN that is refused because the host's counters are on while the guest's are virtualized
    /// (T-A14).
    ///
    /// # Panics
    /// When one of them holds what the processor does not take, or cannot be virtualized.
    pub(super) fn enter(&mut self, guest: &Controls, virtualized: Option<&Slots>) -> Result<(), i64> {
        self.host(&self.host_work.clone());
        self.nmis_blocked = false;
        if let Some(slots) = virtualized {
            match &mut self.pmu {
                Pmu::Amd(pmu) => pmu.load(slots)?,
                Pmu::Intel(_) => panic!("only AMD's processors have PMC virtualization"),
            }
        }
        let switched = [(DEBUGCTL, Some(guest.debug)), (INTEL_GLOBAL_CONTROL, guest.global), (LBR_CTL, guest.lbr)];
        for (msr, value) in switched {
            if let Some(value) = value {
                self.pmu.host_write(msr, value);
            }
        }
        Ok(())
    }

    /// VM exit: returns the guest's controls, with the host's in their places; then the hypervisor's first instructions,
    /// with NMIs blocked or not.
    pub(super) fn exit(&mut self, host: &Controls, nmis_blocked: bool) -> Controls {
        self.nmis_blocked = nmis_blocked;
        let mut switch = |msr: u32, host: u64| {
            let guest = self.pmu.host_read(msr);
            self.pmu.host_write(msr, host);
            guest
        };
        let guest = Controls {
            debug: switch(DEBUGCTL, host.debug),
            global: host.global.map(|host| switch(INTEL_GLOBAL_CONTROL, host)),
            lbr: host.lbr.map(|host| switch(LBR_CTL, host)),
        };
        self.host(&self.host_work.clone());
        guest
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

    /// Takes the NMI that waits, for a guest that gets it without leaving.
    pub(super) fn take_nmi(&mut self) -> bool {
        core::mem::take(&mut self.nmi)
    }

    pub(super) fn pending(&self) -> bool {
        self.pending || self.met
    }

    pub(super) fn in_service(&self) -> bool {
        self.in_service || self.met_in_service
    }

    pub(super) fn acknowledge(&mut self) -> u8 {
        if core::mem::take(&mut self.met) {
            self.met_in_service = true;
            return NMI_VECTOR;
        }
        self.pending = false;
        self.in_service = true;
        PMI_VECTOR
    }

    /// The host serves what has come.
    pub(super) fn serve(&mut self) {
        let served = self.pending() || self.in_service();
        self.taken |= self.pending | self.in_service;
        (self.pending, self.in_service) = (false, false);
        (self.met, self.met_in_service) = (false, false);
        if served {
            self.unblock_nmis();
        }
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

    fn take_guest_nmi(&mut self) -> bool {
        self.wires().counting(|counting| core::mem::take(&mut counting.other_nmi))
    }

    fn guest_nmi_delivered(&self) -> bool {
        self.wires().counting(|counting| counting.has_delivered_guest_nmi())
    }

    fn open_nmis(&mut self) {
        self.wires().counting(|counting| {
            counting.opening = true;
            counting.unblock_nmis();
            counting.opening = false;
        });
    }

    fn pmu_slot(&mut self) -> &mut PmuSlot {
        &mut self.slot
    }
}
