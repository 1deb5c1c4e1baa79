//! The host's counters at entry and exit, in the order of requirement A16, with interrupts off throughout (A21).

use super::events::{Assigned, HostCountersError, HostEvents, Sample};
use super::parked::Kept;
use super::plan::Plan;
use super::post::{Place, Post, Verdict};
use crate::hw::{GlobalSwitch, Host, PmiRoute, PmuHardware};
use crate::pmu::bank::{Bank, counter_register, selector_register};
use crate::pmu::capability::PmuCapability;
use crate::pmu::policy::PmuShare;
use crate::pmu::registers::{CounterIndex, EventSelector, PmuRegister};
use crate::time::Tsc;
use alloc::vec::Vec;

/// The host's counters of one logical processor.
#[derive(Debug)]
pub struct HostPmu {
    pmu: PmuCapability,
    plan: Plan,
    events: Vec<Assigned>,
    post: &'static Post,
    on_sample: fn(&Sample),
    watches: bool,
    /// The registers as they are while the host's events run, IA32_PERF_GLOBAL_CTRL aside.
    bank: Bank,
    /// Whether the guest is counted too.
    guest: bool,
    /// The bits of the guest's counters in the global registers.
    guests: u64,
    writes: u64,
}

impl HostPmu {
    /// Gives the events counters of a processor's PMU, and decides how it is shared. `guest` is what the guest has of
    /// it, `None` when it has no PMU.
    ///
    /// # Errors
    /// When what is wanted cannot be counted beside that guest.
    pub fn new(
        events: &HostEvents,
        pmu: Option<&PmuCapability>,
        guest: Option<&PmuShare>,
        switch: GlobalSwitch,
    ) -> Result<Self, HostCountersError> {
        let pmu = pmu.ok_or(HostCountersError::NoPmu)?;
        let assigned = events.assign(pmu)?;
        let plan = Plan::of(pmu, &assigned, events.counts_guest(), guest, switch)?;
        Ok(Self {
            pmu: *pmu,
            plan,
            post: Post::new(pmu, events, &assigned),
            on_sample: events.on_sample,
            watches: assigned.iter().any(|event| event.watches),
            bank: Bank::default(),
            guest: events.counts_guest(),
            guests: guest.map_or(0, |share| ((1 << (share.counters & 63)) - 1) | u64::from(share.fixed) << 32),
            writes: 0,
            events: assigned,
        })
    }

    /// Returns how it is shared.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Returns the account: values, samples, and what the handler of NMIs needs.
    pub fn post(&self) -> &'static Post {
        self.post
    }

    /// Takes what is to be kept of the guest's registers out of the processor, before [`start`](Self::start).
    pub fn adopt(&mut self, guest: &mut Kept, hardware: &mut impl PmuHardware) {
        self.bank = Bank::default();
        match self.plan {
            Plan::Switch => _ = self.save(guest, true, hardware),
            Plan::PartitionRouted => _ = self.take_overflows(guest, hardware),
            Plan::Processor | Plan::Stop | Plan::Partition => {}
        }
    }

    /// Stops the events for good, with their account up to date, and leaves nothing of them in the registers.
    pub fn end(&mut self, hardware: &mut impl PmuHardware, host: &mut impl Host) {
        self.stop(hardware, host.now());
        self.post.tell(self.on_sample);
        host.route_pmi(PmiRoute::Masked);
        self.post.forgive(|| host.now());
        let mut fixed = 0;
        for event in &self.events {
            match event.counter {
                CounterIndex::General(n) => {
                    hardware.write_pmu(selector_register(&self.pmu, n), 0);
                    hardware.write_pmu(counter_register(&self.pmu, n), 0);
                }
                CounterIndex::Fixed(n) => {
                    fixed |= 0xF << (4 * (n & 7));
                    hardware.write_pmu(PmuRegister::Fixed(n), 0);
                }
            }
        }
        if fixed != 0 {
            hardware.write_pmu(PmuRegister::FixedControl, hardware.read_pmu(PmuRegister::FixedControl) & !fixed);
        }
    }

    /// Starts the events on a processor in whose registers nothing counts. What the mechanism arranges for the guest has
    /// been arranged.
    pub fn start(&mut self, processor: usize, hardware: &mut impl PmuHardware, host: &mut impl Host) {
        self.post.set_processor(processor);
        for (number, event) in self.events.iter().enumerate() {
            // Where it was when it ended, or at the beginning.
            let from = self.post.held(number);
            match event.counter {
                CounterIndex::General(n) => {
                    let at = usize::from(n & 7);
                    (self.bank.selectors[at], self.bank.counters[at]) = (event.control, from);
                }
                CounterIndex::Fixed(n) => {
                    self.bank.fixed_control |= event.control << (4 * (n & 7));
                    self.bank.fixed[usize::from(n & 7)] = from;
                }
            }
        }
        let control = self.post.control();
        match self.plan {
            Plan::Processor if self.guest => hardware.switch_global_control(false, control),
            Plan::Processor => {
                hardware.set_guest_global_control(0);
                hardware.switch_global_control(true, control);
            }
            Plan::Partition => hardware.switch_global_control(true, control),
            Plan::PartitionRouted | Plan::Switch => hardware.switch_global_control(true, 0),
            Plan::Stop => {}
        }
        self.quiet().put(&self.pmu, &Bank::default(), hardware);
        if self.plan != Plan::Partition {
            host.route_pmi(PmiRoute::Host);
        }
        self.resume(hardware, host);
    }

    /// What the registers hold while the events are stopped: without IA32_PERF_GLOBAL_CTRL the selectors stop them.
    fn quiet(&self) -> Bank {
        let mut bank = self.bank;
        if !self.pmu.has_global_control() {
            for selector in &mut bank.selectors {
                *selector &= !EventSelector::ENABLE;
            }
        }
        bank
    }

    fn enable(&self, enabled: bool, hardware: &mut impl PmuHardware) {
        if self.pmu.has_global_control() {
            return hardware.write_pmu(PmuRegister::GlobalControl, if enabled { self.post.control() } else { 0 });
        }
        for event in &self.events {
            if let CounterIndex::General(n) = event.counter {
                let control = if enabled { event.control } else { event.control & !EventSelector::ENABLE };
                hardware.write_pmu(selector_register(&self.pmu, n), control);
            }
        }
    }

    /// Stops the events, and brings their account up to date.
    fn stop(&mut self, hardware: &mut impl PmuHardware, now: Tsc) {
        self.post.set_running(false);
        self.enable(false, hardware);
        self.post.settle(hardware, now);
    }

    fn resume(&mut self, hardware: &mut impl PmuHardware, host: &mut impl Host) {
        self.post.set_running(true);
        // From here on the handler sees to those that come.
        self.post.forgive(|| host.now());
        self.enable(true, hardware);
    }

    /// Before each entry: the host's events stop, the interrupt is routed as `route` says, and `guest` is put into the
    /// registers. With no guest that has a PMU, `guest` and `route` have no meaning.
    #[inline]
    pub fn on_entry(&mut self, hardware: &mut impl PmuHardware, host: &mut impl Host, guest: &Kept, route: PmiRoute) {
        if self.post.has_samples() {
            self.post.tell(self.on_sample);
        }
        if self.watches {
            self.post.beat();
        }
        match self.plan {
            Plan::Processor | Plan::Partition => {}
            Plan::Stop => self.stop(hardware, host.now()),
            Plan::PartitionRouted => {
                self.stop(hardware, host.now());
                self.post.set_guest_open(route == PmiRoute::Guest);
                host.route_pmi(route);
            }
            Plan::Switch => {
                self.stop(hardware, host.now());
                self.post.set_guest_open(route == PmiRoute::Guest);
                host.route_pmi(route);
                self.restore(&guest.bank, hardware);
            }
        }
    }

    fn restore(&mut self, guest: &Bank, hardware: &mut impl PmuHardware) {
        for (number, event) in self.events.iter().enumerate() {
            let held = self.post.held(number);
            match event.counter {
                CounterIndex::General(n) => self.bank.counters[usize::from(n & 7)] = held,
                CounterIndex::Fixed(n) => self.bank.fixed[usize::from(n & 7)] = held,
            }
        }
        let mut present = self.quiet();
        if self.pmu.has_global_control() {
            present.global_status = hardware.read_pmu(PmuRegister::GlobalStatus);
        }
        self.writes += u64::from(guest.put(&self.pmu, &present, hardware));
        if self.software_control(hardware) {
            hardware.write_pmu(PmuRegister::GlobalControl, guest.global_control);
        }
    }

    /// Whether IA32_PERF_GLOBAL_CTRL is neither the processor's to switch nor missing.
    fn software_control(&self, hardware: &impl PmuHardware) -> bool {
        self.pmu.has_global_control() && hardware.global_switch() == GlobalSwitch::Selectors
    }

    /// After each exit: the guest's registers are saved into `guest` and leave the processor, the interrupt is the
    /// host's, and its events go on. `selectors` tells that the guest writes selectors without leaving.
    #[inline]
    pub fn on_exit(
        &mut self,
        hardware: &mut impl PmuHardware,
        host: &mut impl Host,
        guest: &mut Kept,
        selectors: bool,
    ) {
        match self.plan {
            Plan::Processor | Plan::Partition => {}
            Plan::Stop => self.resume(hardware, host),
            Plan::PartitionRouted => {
                let overflowed = self.take_overflows(guest, hardware);
                if overflowed != 0 {
                    let mut bank = Bank::default();
                    bank.take_selectors(&self.pmu, hardware);
                    self.tell(overflowed & bank.interrupting(), host);
                }
                host.route_pmi(PmiRoute::Host);
                self.resume(hardware, host);
            }
            Plan::Switch => {
                let overflowed = self.save(guest, selectors, hardware);
                if overflowed != 0 {
                    self.tell(overflowed & guest.bank.interrupting(), host);
                }
                host.route_pmi(PmiRoute::Host);
                self.resume(hardware, host);
            }
        }
    }

    /// Returns the status bits of the guest's counters that have run over since it was entered.
    fn save(&mut self, kept: &mut Kept, selectors: bool, hardware: &mut impl PmuHardware) -> u64 {
        let guest = &mut kept.bank;
        if self.software_control(hardware) {
            guest.global_control = hardware.read_pmu(PmuRegister::GlobalControl);
            hardware.write_pmu(PmuRegister::GlobalControl, 0);
        }
        if selectors {
            guest.take_selectors(&self.pmu, hardware);
        }
        guest.take_counts(&self.pmu, hardware);
        // What is the host's now overwrites what was the guest's, and what neither needs becomes 0 (A20).
        self.writes += u64::from(self.quiet().put(&self.pmu, guest, hardware));
        let overflowed = kept.take_overflows(kept.bank.global_status);
        kept.bank.global_status &= !overflowed;
        overflowed
    }

    /// As above, where the counters stay in the processor.
    #[inline]
    fn take_overflows(&self, kept: &mut Kept, hardware: &mut impl PmuHardware) -> u64 {
        if !self.pmu.has_global_control() {
            return 0;
        }
        let overflowed = kept.take_overflows(hardware.read_pmu(PmuRegister::GlobalStatus) & self.guests);
        if overflowed != 0 {
            hardware.write_pmu(PmuRegister::StatusReset, overflowed);
        }
        overflowed
    }

    /// Counters of the guest's have run over in its stay, these with an interrupt.
    #[cold]
    fn tell(&self, interrupting: u64, host: &impl Host) {
        if interrupting != 0 {
            self.post.guest_ran_over(host.now());
        }
    }

    /// The guest has left for an NMI, where it stood at `rip`; [`on_exit`](Self::on_exit) has been called. Returns whose
    /// the NMI was.
    pub fn on_nmi(&mut self, hardware: &mut impl PmuHardware, host: &mut impl Host, rip: u64) -> Verdict {
        let verdict = self.post.nmi(self.guest.then_some(Place::Guest(rip)), host.now(), hardware);
        if matches!(verdict, Verdict::Served | Verdict::Late) && self.plan != Plan::Partition {
            host.route_pmi(PmiRoute::Host);
        }
        verdict
    }

    /// Returns whether an interrupt of the guest's counters has come by the host's route, and waits to be
    /// [taken](Self::take_guest_pmi).
    #[inline]
    pub fn has_guest_pmi(&self) -> bool {
        self.post.has_guest_pmi()
    }

    /// Returns whether an interrupt of the guest's counters has come since the last call, by whichever route: one that
    /// came late took the host's, and a late one of the host's the guest's (A22, T-A12).
    #[inline]
    pub fn take_guest_pmi(&mut self, host: &mut impl Host) -> bool {
        let came = host.take_guest_pmi();
        self.post.take_guest_pmi(came, || host.now())
    }

    /// Brings the account up to date, at any time between exit and entry.
    pub fn settle(&mut self, hardware: &mut impl PmuHardware, host: &mut impl Host) {
        self.stop(hardware, host.now());
        self.resume(hardware, host);
        self.post.tell(self.on_sample);
    }

    /// Returns how many registers entries and exits have written.
    pub fn writes(&self) -> u64 {
        self.writes
    }
}
