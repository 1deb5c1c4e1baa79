//! A PMU for tests, written from the manual and stricter than it: what would fault, or count whom it must not, panics.

use crate::hw::{GlobalSwitch, Host, PmiHost, PmiRoute, PmuHardware};
use crate::pmu::capability::PmuCapability;
use crate::pmu::registers::{CounterIndex, EventSelector, FixedControl, Maker, PmuRegister};
use crate::time::{Frequency, Tsc};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

/// An event of the fake's that happens once per instruction, beside cycles, which are as many; and one that never does.
pub(in crate::pmu) const INSTRUCTIONS: u64 = 0xC0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::pmu) enum World {
    Host,
    Guest,
}

#[derive(Debug)]
pub(in crate::pmu) struct State {
    pub(in crate::pmu) pmu: PmuCapability,
    switch: GlobalSwitch,
    pub(in crate::pmu) counters: [u64; 8],
    selectors: [u64; 8],
    fixed: [u64; 8],
    fixed_control: u64,
    control: u64,
    pub(super) status: u64,
    guest_control: u64,
    switched: Option<u64>,
    pub(in crate::pmu) world: World,
    pub(in crate::pmu) now: u64,
    pub(in crate::pmu) route: PmiRoute,
    masked: bool,
    /// Ticks from an overflow to its interrupt.
    pub(in crate::pmu) skid: u64,
    in_flight: Vec<u64>,
    pub(in crate::pmu) nmis: u32,
    pub(in crate::pmu) guest_pmi: bool,
    /// WRMSRs of counters, selectors, control and status.
    pub(in crate::pmu) writes: u64,
    pub(in crate::pmu) routes: u64,
    pub(in crate::pmu) passed: bool,
}

/// One processor; clones are the same.
#[derive(Clone, Debug)]
pub(in crate::pmu) struct Fake(pub(in crate::pmu) Rc<RefCell<State>>);

impl Fake {
    pub(in crate::pmu) fn new(pmu: PmuCapability, switch: GlobalSwitch) -> Self {
        Self(Rc::new(RefCell::new(State {
            pmu,
            switch,
            counters: [0; 8],
            selectors: [0; 8],
            fixed: [0; 8],
            fixed_control: 0,
            control: 0,
            status: 0,
            guest_control: 0,
            switched: None,
            world: World::Host,
            now: 0,
            route: PmiRoute::Masked,
            masked: false,
            skid: 0,
            in_flight: Vec::new(),
            nmis: 0,
            guest_pmi: false,
            writes: 0,
            routes: 0,
            passed: false,
        })))
    }

    /// VM entry: IA32_PERF_GLOBAL_CTRL is the guest's.
    pub(in crate::pmu) fn enter(&self) {
        let state = &mut *self.0.borrow_mut();
        assert_eq!(state.world, World::Host);
        state.world = World::Guest;
        if state.switched.is_some() {
            state.control = state.guest_control;
        }
    }

    /// VM exit: the guest's value is saved, the host's loaded.
    pub(in crate::pmu) fn leave(&self) {
        let state = &mut *self.0.borrow_mut();
        assert_eq!(state.world, World::Guest);
        state.world = World::Host;
        if let Some(host) = state.switched {
            state.guest_control = state.control;
            state.control = host;
        }
    }

    /// So many instructions are executed, a tick each.
    pub(in crate::pmu) fn run(&self, instructions: u64) {
        for _ in 0..instructions {
            self.0.borrow_mut().tick();
        }
    }

    pub(in crate::pmu) fn take_nmi(&self) -> bool {
        let nmis = &mut self.0.borrow_mut().nmis;
        let came = *nmis > 0;
        *nmis -= u32::from(came);
        came
    }
}

impl State {
    fn tick(&mut self) {
        self.now += 1;
        let mut interrupts = false;
        for n in 0..self.pmu.counters {
            if self.counts(n) {
                let counter = &mut self.counters[usize::from(n)];
                *counter = (*counter + 1) & self.pmu.counter_mask();
                if *counter == 0 {
                    self.status |= 1 << n;
                    interrupts |= EventSelector(self.selectors[usize::from(n)]).interrupts();
                }
            }
        }
        for n in (0..8).filter(|n| self.pmu.has_fixed(*n)) {
            let enabled = FixedControl(self.fixed_control).of(n) & 3 != 0 && self.control >> (32 + n) & 1 != 0;
            if enabled && n < 3 {
                let counter = &mut self.fixed[usize::from(n)];
                *counter = (*counter + 1) & 0xFFFF_FFFF_FFFF;
                if *counter == 0 {
                    self.status |= 1 << (32 + n);
                    interrupts |= FixedControl(self.fixed_control).interrupts(n);
                }
            }
        }
        if interrupts {
            self.in_flight.push(self.now + self.skid);
        }
        let (now, arrived) = (self.now, self.in_flight.iter().filter(|at| **at <= self.now).count());
        self.in_flight.retain(|at| *at > now);
        if arrived > 0 && !self.masked {
            match self.route {
                PmiRoute::Masked => {}
                PmiRoute::Guest => self.guest_pmi = true,
                PmiRoute::Host => self.nmis += 1,
                PmiRoute::GuestNmi => unreachable!("a host that counts needs its NMIs"),
            }
            // Delivering masks the entry on Intel's processors.
            self.masked = self.pmu.maker == Maker::Intel && self.route != PmiRoute::Masked;
        }
    }

    fn counts(&self, n: u8) -> bool {
        let selector = EventSelector(self.selectors[usize::from(n)]);
        let known = matches!(
            (selector.event(self.pmu.maker), self.pmu.maker),
            (0xC0, _) | (0x3C, Maker::Intel) | (0x76, Maker::Amd)
        );
        let global = !self.pmu.has_global_control() || self.control >> n & 1 != 0;
        let (guest_only, host_only) =
            (selector.0 & EventSelector::GUEST_ONLY != 0, selector.0 & EventSelector::HOST_ONLY != 0);
        let whom = guest_only == host_only || guest_only == (self.world == World::Guest);
        let rings = selector.user() || selector.system();
        known && selector.enabled() && global && rings && (self.pmu.maker == Maker::Intel || whom)
    }

    fn running(&self) -> bool {
        if self.pmu.maker == Maker::Intel && self.pmu.has_global_control() {
            return self.control != 0;
        }
        (0..8).any(|n| self.counts(n))
    }

    fn is_register(&self, register: PmuRegister) -> bool {
        use PmuRegister::*;
        let intel = self.pmu.maker == Maker::Intel;
        match register {
            Counter(n) => intel && n < self.pmu.counters,
            FullCounter(n) => n < self.pmu.counters && (!intel || self.pmu.full_width_writes()),
            Selector(n) => intel && n < self.pmu.counters,
            CoreSelector(n) => !intel && n < self.pmu.counters,
            Fixed(n) => self.pmu.has_fixed(n),
            FixedControl => self.pmu.fixed != 0,
            GlobalControl | GlobalStatus | StatusReset => self.pmu.has_global_control(),
            StatusSet => self.pmu.has_status_set(),
            InUse => intel && self.pmu.version >= 4,
            Capabilities => intel,
            Branch(_) => false,
        }
    }
}

impl PmuHardware for Fake {
    fn global_switch(&self) -> GlobalSwitch {
        self.0.borrow().switch
    }

    fn read_pmu(&self, register: PmuRegister) -> u64 {
        let state = self.0.borrow();
        assert!(state.is_register(register), "#GP: {register:?} does not exist");
        match register {
            PmuRegister::Counter(n) | PmuRegister::FullCounter(n) => state.counters[usize::from(n)],
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => state.selectors[usize::from(n)],
            PmuRegister::Fixed(n) => state.fixed[usize::from(n)],
            PmuRegister::FixedControl => state.fixed_control,
            PmuRegister::GlobalControl => state.control,
            PmuRegister::GlobalStatus => state.status,
            _ => 0,
        }
    }

    fn write_pmu(&mut self, register: PmuRegister, value: u64) {
        let state = &mut *self.0.borrow_mut();
        assert!(state.is_register(register), "#GP: {register:?} does not exist");
        assert_eq!(state.world, World::Host, "{register:?} is written while the guest runs");
        state.writes += 1;
        let global = state.pmu.control_bits() | if state.pmu.maker == Maker::Intel { 7 << 61 | 3 << 58 } else { 0 };
        let (bits, standing) = match register {
            PmuRegister::Counter(_) => panic!("a write that extends the sign, where all bits can be written"),
            PmuRegister::FullCounter(_) => (state.pmu.counter_mask(), true),
            PmuRegister::Fixed(_) => (state.pmu.fixed_mask(), true),
            PmuRegister::Selector(_) | PmuRegister::CoreSelector(_) => (state.pmu.selector_bits(), false),
            PmuRegister::FixedControl => (state.pmu.fixed_control_bits(), true),
            PmuRegister::GlobalControl => (state.pmu.control_bits(), false),
            PmuRegister::StatusReset | PmuRegister::StatusSet => (global, false),
            _ => panic!("#GP: {register:?} is read-only"),
        };
        assert_eq!(value & !bits, 0, "#GP: {register:?} has reserved bits");
        assert!(!standing || !state.running(), "{register:?} is written while counters run");
        match register {
            PmuRegister::FullCounter(n) => state.counters[usize::from(n)] = value,
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => state.selectors[usize::from(n)] = value,
            PmuRegister::Fixed(n) => state.fixed[usize::from(n)] = value,
            PmuRegister::FixedControl => state.fixed_control = value,
            PmuRegister::GlobalControl => state.control = value,
            PmuRegister::StatusReset => state.status &= !value,
            PmuRegister::StatusSet => state.status |= value,
            _ => {}
        }
    }

    fn read_counter(&self, counter: CounterIndex) -> u64 {
        let state = self.0.borrow();
        match counter {
            CounterIndex::General(n) => {
                assert!(n < state.pmu.counters, "#GP: RDPMC of a counter that does not exist");
                state.counters[usize::from(n)]
            }
            CounterIndex::Fixed(n) => {
                assert!(state.pmu.has_fixed(n), "#GP: RDPMC of a counter that does not exist");
                state.fixed[usize::from(n)]
            }
        }
    }

    fn switch_global_control(&mut self, on: bool, host: u64) {
        let state = &mut *self.0.borrow_mut();
        if state.switch == GlobalSwitch::Hardware {
            assert_eq!(host & !state.pmu.control_bits(), 0, "VM entry fails: the host's value has reserved bits");
            state.switched = on.then_some(host);
        }
    }

    fn guest_global_control(&self) -> u64 {
        self.0.borrow().guest_control
    }

    fn set_guest_global_control(&mut self, value: u64) {
        let state = &mut *self.0.borrow_mut();
        if state.switch == GlobalSwitch::Hardware {
            assert_eq!(value & !state.pmu.control_bits(), 0, "VM entry fails: the guest's value has reserved bits");
            state.guest_control = value;
        }
    }

    fn pass_rdpmc(&mut self, pass: bool) {
        self.0.borrow_mut().passed |= pass;
    }

    fn pass_pmu(&mut self, _register: PmuRegister, read: bool, write: bool) {
        self.0.borrow_mut().passed |= read | write;
    }
}

impl PmiHost for Fake {
    fn route_pmi(&mut self, route: PmiRoute) {
        let state = &mut *self.0.borrow_mut();
        assert!(
            state.route == route || !state.running(),
            "the interrupt changes hands from {:?} to {route:?} while counters run",
            state.route
        );
        state.routes += u64::from(state.route != route);
        (state.route, state.masked) = (route, false);
    }

    fn take_guest_pmi(&mut self) -> bool {
        core::mem::take(&mut self.0.borrow_mut().guest_pmi)
    }

    fn pmu_slot(&mut self) -> &mut crate::pmu::slot::PmuSlot {
        unreachable!("nobody asks whose the PMU is")
    }
}

impl Host for Fake {
    fn now(&self) -> Tsc {
        Tsc(self.0.borrow().now)
    }
    fn frequency(&self) -> Frequency {
        Frequency::from_hz(1_000_000_000)
    }
    fn arm(&mut self, _deadline: Option<Tsc>) {}
    fn serve_interrupts(&mut self, _acknowledged: Option<u8>) {}
    fn wait(&mut self) {}
}
