//! A host that counts beside a guest that does, on the fake PMU: one processor, run by hand.

use super::fake::{Fake, INSTRUCTIONS};
use super::*;
use crate::hw::{GlobalSwitch, PmiHost, PmiRoute, PmuHardware};
use crate::pmu::capability::PmuCapability;
use crate::pmu::capability::processors::INTEL;
use crate::pmu::policy::PmuShare;
use crate::pmu::registers::{EventSelector, PmuRegister};

const USER_AND_SYSTEM: u64 = 0b11 << 16;
pub(super) const ENABLED: u64 = INSTRUCTIONS | USER_AND_SYSTEM | EventSelector::ENABLE;
pub(super) const MASK: u64 = (1 << 48) - 1;

pub(super) fn instructions() -> HostEvent {
    HostEvent::Selector(EventSelector(ENABLED))
}

/// A guest that counts, beside a host that does.
pub(super) struct Rig {
    pub(super) fake: Fake,
    pub(super) host: HostPmu,
    pub(super) guest: Kept,
    /// Interrupts that the guest was given, and NMIs that nobody knew.
    pub(super) guest_pmis: u32,
    pub(super) handled: u32,
    pub(super) strange: u32,
    /// How often host and guest have executed.
    pub(super) executed: [u64; 2],
}

impl Rig {
    pub(super) fn new<const GUEST: bool>(
        counters: &HostCounters<GUEST>,
        pmu: PmuCapability,
        guest: Option<&PmuShare>,
        switch: GlobalSwitch,
    ) -> Self {
        let mut fake = Fake::new(pmu, switch);
        let mut host = HostPmu::new(counters.as_events(), Some(&pmu), guest, switch).expect("enough counters");
        host.start(0, &mut fake.clone(), &mut fake);
        Self { fake, host, guest: Kept::default(), guest_pmis: 0, handled: 0, strange: 0, executed: [0; 2] }
    }

    pub(super) fn hardware(&self) -> Fake {
        self.fake.clone()
    }

    pub(super) fn host_runs(&mut self, instructions: u64) {
        for _ in 0..instructions {
            self.fake.run(1);
            self.executed[0] += 1;
            while self.fake.take_nmi() {
                let place = Some(Place::Host(self.executed[0]));
                let now = crate::hw::Host::now(&self.fake);
                let verdict = self.host.post().nmi(place, now, &mut self.hardware());
                self.strange += u32::from(verdict == Verdict::Strange);
                self.fake.route_pmi(PmiRoute::Host);
            }
        }
    }

    /// One stay in the guest, of so many instructions at most: it leaves for an NMI.
    pub(super) fn guest_runs(&mut self, instructions: u64) {
        let mut hardware = self.hardware();
        // On Intel's processors the guest's entry has masked itself until its handler has run.
        let masked = self.fake.0.borrow().pmu.maker == crate::pmu::Maker::Intel && self.guest_pmis > self.handled;
        let route = if masked { PmiRoute::Masked } else { PmiRoute::Guest };
        self.host.on_entry(&mut hardware, &mut self.fake, &self.guest, route);
        self.fake.enter();
        let mut nmi = false;
        for _ in 0..instructions {
            self.fake.run(1);
            self.executed[1] += 1;
            nmi = self.fake.take_nmi();
            // The interrupt on the guest's route is external: it makes the guest leave too.
            if nmi || self.fake.0.borrow().guest_pmi {
                break;
            }
        }
        self.fake.leave();
        self.host.on_exit(&mut hardware, &mut self.fake, &mut self.guest, true);
        if nmi {
            let verdict = self.host.on_nmi(&mut hardware, &mut self.fake, 0x1000_0000 + self.executed[1]);
            self.strange += u32::from(verdict == Verdict::Strange);
        }
        self.take_pmi();
    }

    pub(super) fn take_pmi(&mut self) {
        self.guest_pmis += u32::from(self.host.take_guest_pmi(&mut self.fake));
    }

    /// A stay with LVTPC open, in which the guest does this.
    pub(super) fn guest_stays(&mut self, does: impl FnOnce(&Fake)) {
        self.guest_stays_with(PmiRoute::Guest, does);
    }

    pub(super) fn guest_stays_with(&mut self, route: PmiRoute, does: impl FnOnce(&Fake)) {
        let mut hardware = self.hardware();
        self.host.on_entry(&mut hardware, &mut self.fake, &self.guest, route);
        self.fake.enter();
        does(&self.fake);
        self.fake.leave();
        self.host.on_exit(&mut hardware, &mut self.fake, &mut self.guest, true);
    }

    /// Counter 0 of the guest's interrupts when it runs over, and holds this.
    pub(super) fn guest_has(&mut self, value: u64) {
        (self.guest.bank.selectors[0], self.guest.bank.counters[0]) = (ENABLED | EventSelector::INTERRUPT, value);
        let mut hardware = self.hardware();
        hardware.set_guest_global_control(1);
        if !self.host.plan().parks_guest() {
            hardware.write_pmu(PmuRegister::Selector(0), self.guest.bank.selectors[0]);
            self.fake.0.borrow_mut().counters[0] = value;
        }
    }

    /// The guest's status, in the processor or kept.
    pub(super) fn guest_status(&self, apart: bool) -> u64 {
        let there = if apart { self.fake.read_pmu(PmuRegister::GlobalStatus) } else { self.guest.bank.global_status };
        self.guest.overflowed | there
    }

    /// The guest's counter 0 begins a period, with no status.
    pub(super) fn guest_rearms(&mut self, apart: bool, period: u64) {
        let from = MASK + 1 - period;
        if apart {
            self.fake.0.borrow_mut().counters[0] = from;
        }
        self.guest.bank.counters[0] = from;
        self.guest.overflowed = 0;
    }

    pub(super) fn settle(&mut self) {
        self.host.settle(&mut self.hardware(), &mut self.fake);
    }
}

/// A host that samples, with counters apart from the guest's or with the same.
pub(super) fn sampled(apart: bool, period: u64) -> Rig {
    let counters = HostCounters::new().sample(instructions(), period);
    let share = PmuShare { counters: if apart { 6 } else { 8 }, ..whole(&INTEL) };
    let rig = Rig::new(&counters, INTEL, Some(&share), GlobalSwitch::Hardware);
    assert_eq!(rig.host.plan() == Plan::PartitionRouted, apart);
    rig
}

pub(super) fn whole(pmu: &PmuCapability) -> PmuShare {
    PmuShare::all(pmu)
}
