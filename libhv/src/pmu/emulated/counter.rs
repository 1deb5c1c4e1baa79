//! The registers of an emulated PMU, and what each of its counters is backed by.

use crate::hw::{GlobalSwitch, PmuHardware};
use crate::pmu::bank::{counter_register, selector_register};
use crate::pmu::capability::{FULL_WIDTH_WRITES, PmuCapability};
use crate::pmu::credit::{CreditMasks, Retired};
use crate::pmu::mechanism::{COUNTERS_FROZEN, PmuCounts};
use crate::pmu::policy::PmuPolicy;
use crate::pmu::registers::{CounterIndex, EventSelector, FixedControl, MAX_COUNTERS, Maker, PmuRegister};
use crate::pmu::view::PmuView;
use crate::time::Tsc;

mod snapshot;
mod stay;

/// Unhalted core cycles and unhalted reference cycles, among the bits of CPUID.0AH:EBX.
const CYCLES: u32 = 1 << 0 | 1 << 2;
/// The same among the fixed-function counters.
const FIXED_CYCLES: u8 = 1 << 1 | 1 << 2;
/// The bits of a selector that say what is counted, and when: all but INT, EN and PC.
const WHAT: u64 = 0xFF87_FFFF;
const USER_AND_SYSTEM: u64 = 0b11 << 16;
const COUNT: usize = MAX_COUNTERS as usize;

/// What a counter is backed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backing {
    /// Nothing: it stands still.
    Nothing,
    /// The processor's counter of the same number.
    Processor,
    /// The time-stamp counter, while the guest runs.
    Clock,
}

/// One counter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    pub(super) index: CounterIndex,
    /// Its bits.
    pub(super) mask: u64,
    pub(super) value: u64,
    backing: Backing,
    /// The processor's counter when `value` was brought up to date.
    held: u64,
}

/// A guest's PMU, of which the guest reaches nothing without leaving.
#[derive(Debug)]
pub struct EmulatedPmu {
    view: PmuView,
    /// The processor's PMU, where it can be told to count the guest alone.
    processor: Option<PmuCapability>,
    pub(super) counters: [Counter; 2 * COUNT],
    /// As the guest wrote them.
    selectors: [u64; COUNT],
    fixed_control: u64,
    global_control: u64,
    status: u64,
    /// Of the selectors and of IA32_FIXED_CTR_CTRL, what the policy permits.
    permitted: [u64; COUNT],
    permitted_fixed: u64,
    /// A bit for each counter, as in IA32_PERF_GLOBAL_CTRL, that the clock moves.
    pub(super) ticking: u64,
    pub(super) entered: Tsc,
    freezes: bool,
    interrupt: bool,
    masks: CreditMasks,
    counts: PmuCounts,
    /// The processor's LVTPC lets interrupts through.
    routed: bool,
}

impl EmulatedPmu {
    /// Returns what there is to be shown: the processor's PMU, or where it has none, or none that counts the guest
    /// alone, one that counts cycles, by architectural performance monitoring of version 5.
    pub fn shown(processor: Option<&PmuCapability>, switch: GlobalSwitch) -> PmuCapability {
        processor.filter(|_| switch != GlobalSwitch::Missing).copied().unwrap_or(PmuCapability {
            maker: Maker::Intel,
            version: 5,
            counters: 4,
            width: 48,
            fixed: FIXED_CYCLES,
            fixed_width: 48,
            missing_events: 0xFF & !CYCLES,
            capabilities: FULL_WIDTH_WRITES,
            any_thread_deprecated: true,
            core_extensions: false,
            lbr_depth: 0,
            has_more: false,
        })
    }

    /// Makes the PMU that `view` shows, as after a reset. `processor` is what the processor has.
    pub fn new(view: PmuView, processor: Option<&PmuCapability>, switch: GlobalSwitch) -> Self {
        let guest = view.guest();
        let processor = processor.filter(|pmu| switch != GlobalSwitch::Missing && pmu.maker == guest.maker).copied();
        let counter = |at: usize| {
            let n = (at % COUNT) as u8;
            let (index, mask) = if at < COUNT {
                (CounterIndex::General(n), guest.counter_mask())
            } else {
                (CounterIndex::Fixed(n), guest.fixed_mask())
            };
            Counter { index, mask, value: 0, backing: Backing::Nothing, held: 0 }
        };
        Self {
            processor,
            counters: core::array::from_fn(counter),
            selectors: [0; COUNT],
            fixed_control: 0,
            global_control: if guest.has_global_control() { guest.counter_bits() } else { 0 },
            status: 0,
            permitted: [0; COUNT],
            permitted_fixed: 0,
            ticking: 0,
            entered: Tsc(0),
            freezes: false,
            interrupt: false,
            masks: CreditMasks::default(),
            counts: PmuCounts::default(),
            routed: false,
            view,
        }
    }

    /// Returns one like it, as after a reset.
    pub fn anew(&self) -> Self {
        Self::new(self.view, self.processor.as_ref(), self.view.switch())
    }

    /// Returns what the guest is shown.
    pub fn view(&self) -> &PmuView {
        &self.view
    }

    /// Tells whether IA32_DEBUGCTL.FREEZE_PERFMON_ON_PMI is set.
    pub fn set_freezes(&mut self, freezes: bool) {
        self.freezes = freezes;
    }

    /// Returns what has happened: interrupts given to the guest, and events credited.
    pub fn counts(&self) -> PmuCounts {
        self.counts
    }

    /// Returns whether the processor's counters are used.
    #[inline]
    pub fn uses_processor(&self) -> bool {
        self.processor.is_some()
    }

    /// Notes whether the processor's LVTPC lets interrupts through; returns whether that is new.
    pub(super) fn set_routed(&mut self, routed: bool) -> bool {
        core::mem::replace(&mut self.routed, routed) != routed
    }

    /// Returns the counters that count an instruction which retires.
    #[inline]
    pub fn counting(&self, retired: Retired) -> u64 {
        let mask = self.masks.counting(retired);
        if mask == 0 || self.status & COUNTERS_FROZEN != 0 {
            return 0;
        }
        if self.view.guest().has_global_control() { mask & self.global_control } else { mask }
    }

    fn at(index: CounterIndex) -> usize {
        match index {
            CounterIndex::General(n) => usize::from(n) % COUNT,
            CounterIndex::Fixed(n) => COUNT + usize::from(n) % COUNT,
        }
    }

    fn exists(&self, index: CounterIndex) -> bool {
        match index {
            CounterIndex::General(n) => self.view.guest().has_counter(n),
            CounterIndex::Fixed(n) => self.view.guest().has_fixed(n),
        }
    }

    /// Returns the bits of the processor's counter, where it has one of that number.
    fn processor_mask(&self, index: CounterIndex) -> Option<u64> {
        let pmu = self.processor.as_ref()?;
        match index {
            CounterIndex::General(n) => pmu.has_counter(n).then(|| pmu.counter_mask()),
            CounterIndex::Fixed(n) => pmu.has_fixed(n).then(|| pmu.fixed_mask()),
        }
    }

    /// Returns whether a counter counts something that the policy permits: its own enable bits, not the global ones.
    fn selected(&self, index: CounterIndex) -> bool {
        match index {
            CounterIndex::General(n) => EventSelector(self.permitted[usize::from(n) % COUNT]).enabled(),
            CounterIndex::Fixed(n) => FixedControl(self.permitted_fixed).of(n) & 0b11 != 0,
        }
    }

    pub(super) fn interrupts(&self, index: CounterIndex) -> bool {
        match index {
            CounterIndex::General(n) => EventSelector(self.selectors[usize::from(n) % COUNT]).interrupts(),
            CounterIndex::Fixed(n) => FixedControl(self.fixed_control).interrupts(n),
        }
    }

    /// Returns whether what a counter is to count is cycles at all privilege levels: the hypervisor knows how long the
    /// guest ran, not at which of them.
    fn counts_cycles(&self, index: CounterIndex) -> bool {
        match index {
            CounterIndex::General(n) => {
                let what = self.permitted[usize::from(n) % COUNT] & WHAT;
                self.view.guest().maker == Maker::Intel && matches!(what ^ USER_AND_SYSTEM, 0x003C | 0x013C)
            }
            CounterIndex::Fixed(n) => {
                FIXED_CYCLES >> (n & 7) & 1 != 0 && FixedControl(self.permitted_fixed).of(n) & 0b11 == 0b11
            }
        }
    }

    /// Finds what backs a counter now, and has the processor's go on from its value. `value` is up to date.
    fn back(&mut self, at: usize, hardware: &mut impl PmuHardware) {
        let Counter { index, mask, value, .. } = self.counters[at];
        let backing = match self.processor_mask(index) {
            _ if !self.exists(index) => Backing::Nothing,
            Some(_) => Backing::Processor,
            None if self.counts_cycles(index) => Backing::Clock,
            None => Backing::Nothing,
        };
        self.counters[at].backing = backing;
        if backing == Backing::Processor {
            // It runs over when the guest's does, as far as it has the bits: that interrupts.
            let processor = self.processor_mask(index).unwrap_or(0);
            let held = (value | !mask) & processor;
            self.counters[at].held = held;
            self.write_counter(index, held, hardware);
        }
    }

    fn write_counter(&self, index: CounterIndex, value: u64, hardware: &mut impl PmuHardware) {
        let Some(pmu) = &self.processor else { return };
        let register = match index {
            CounterIndex::General(n) => counter_register(pmu, n),
            CounterIndex::Fixed(n) => PmuRegister::Fixed(n),
        };
        hardware.write_pmu(register, value);
    }

    /// Lets those count that are enabled.
    fn enable(&mut self, hardware: &mut impl PmuHardware) {
        let global = self.view.guest().has_global_control();
        let frozen = self.status & COUNTERS_FROZEN != 0;
        let (mut counting, mut ticking) = (0, 0);
        for counter in &self.counters {
            let bit = 1 << counter.index.bit();
            let enabled = !frozen && (!global || self.global_control & bit != 0) && self.selected(counter.index);
            match counter.backing {
                Backing::Processor if enabled => counting |= bit,
                Backing::Clock if enabled => ticking |= bit,
                _ => {}
            }
        }
        self.ticking = ticking;
        let Some(pmu) = &self.processor else { return };
        match hardware.global_switch() {
            GlobalSwitch::Hardware => hardware.set_guest_global_control(counting),
            _ if pmu.has_global_control() => hardware.write_pmu(PmuRegister::GlobalControl, counting),
            _ => {
                for n in 0..self.view.guest().counters {
                    self.write_selector(n, counting >> n & 1 != 0, hardware);
                }
            }
        }
    }

    /// Has the processor's counter count what the guest's is to count.
    fn write_selector(&self, n: u8, enabled: bool, hardware: &mut impl PmuHardware) {
        let Some(pmu) = self.processor.as_ref().filter(|pmu| pmu.has_counter(n)) else { return };
        let mut selector = self.permitted[usize::from(n) % COUNT];
        if !enabled {
            selector &= !EventSelector::ENABLE;
        }
        if pmu.maker == Maker::Amd {
            selector = selector & !EventSelector::HOST_ONLY | EventSelector::GUEST_ONLY;
        }
        hardware.write_pmu(selector_register(pmu, n), selector & pmu.selector_bits());
    }

    /// Adds to a counter what has happened. Returns the bit in IA32_PERF_GLOBAL_STATUS when it has run over.
    pub(super) fn add(&mut self, at: usize, happened: u64) -> u64 {
        let counter = &mut self.counters[at];
        let sum = counter.value.wrapping_add(happened);
        let over = sum > counter.mask || sum < happened;
        counter.value = sum & counter.mask;
        if over { 1 << counter.index.bit() } else { 0 }
    }

    /// Takes down that counters have run over; the others stand still from then on where that freezes them.
    pub(super) fn run_over(&mut self, bits: u64, hardware: &mut impl PmuHardware) {
        if bits != 0 && self.take_down(bits) && self.freezes {
            self.enable(hardware);
        }
    }

    /// Takes down that counters have run over; returns whether that interrupts.
    #[inline(always)]
    fn take_down(&mut self, bits: u64) -> bool {
        let interrupts =
            self.counters.iter().any(|counter| bits >> counter.index.bit() & 1 != 0 && self.interrupts(counter.index));
        self.status |= bits;
        if interrupts {
            self.interrupt = true;
            match (self.view.guest().maker, self.view.guest().version) {
                (Maker::Intel, 4..) if self.freezes => self.status |= COUNTERS_FROZEN,
                // SDM Vol. 3B "Freezing LBR and Performance Counters on PMI": the legacy freeze.
                (Maker::Intel, _) if self.freezes => self.global_control = 0,
                _ => {}
            }
        }
        interrupts
    }

    /// Brings one counter up to date. Returns the bit in IA32_PERF_GLOBAL_STATUS when it has run over.
    fn bring(&mut self, at: usize, hardware: &mut impl PmuHardware) -> u64 {
        let Counter { index, mask, backing: Backing::Processor, held, .. } = self.counters[at] else { return 0 };
        let processor = self.processor_mask(index).unwrap_or(0);
        let now = hardware.read_counter(index) & processor;
        self.counters[at].held = now;
        let over = self.add(at, now.wrapping_sub(held) & processor);
        if let Some(pmu) = self.processor.filter(|pmu| now < held && pmu.has_global_control()) {
            // The interrupt has frozen the processor's counters where the guest wants them frozen; from here on it is
            // IA32_PERF_GLOBAL_CTRL that keeps them so, until the guest thaws its own.
            let frozen = if pmu.maker == Maker::Intel && pmu.version >= 4 { COUNTERS_FROZEN } else { 0 };
            hardware.write_pmu(PmuRegister::StatusReset, 1 << index.bit() | frozen);
        }
        if over != 0 && mask < processor {
            self.back(at, hardware);
        }
        over
    }

    /// Brings all counters up to date: what has run over shows in the status, and in
    /// [`take_interrupt`](Self::take_interrupt). To be called when an interrupt of the processor's counters has come, and
    /// before the guest unmasks its LVTPC, with the interrupt dropped: what ran over before interrupts nobody.
    pub fn settle(&mut self, hardware: &mut impl PmuHardware) {
        let mut over = 0;
        for at in 0..self.counters.len() {
            over |= self.bring(at, hardware);
        }
        self.run_over(over, hardware);
    }

    /// RDMSR; `None` for #GP.
    pub fn read(&mut self, register: PmuRegister, hardware: &mut impl PmuHardware) -> Option<u64> {
        if !self.view.exists(register) {
            return None;
        }
        Some(match register {
            PmuRegister::Counter(n) | PmuRegister::FullCounter(n) => self.rdpmc(CounterIndex::General(n), hardware),
            PmuRegister::Fixed(n) => self.rdpmc(CounterIndex::Fixed(n), hardware),
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => self.selectors[usize::from(n) % COUNT],
            PmuRegister::FixedControl => self.fixed_control,
            PmuRegister::GlobalControl => self.global_control,
            PmuRegister::GlobalStatus => {
                self.settle(hardware);
                self.status
            }
            PmuRegister::InUse => self.view.in_use(&self.selectors, FixedControl(self.fixed_control)),
            PmuRegister::StatusReset | PmuRegister::StatusSet => 0,
            PmuRegister::Branch(_) => return None,
            PmuRegister::Capabilities => self.view.perf_capabilities(),
        })
    }

    /// RDPMC of a counter that [`PmuView::rdpmc`] says the guest may read.
    pub fn rdpmc(&mut self, counter: CounterIndex, hardware: &mut impl PmuHardware) -> u64 {
        let at = Self::at(counter);
        let over = self.bring(at, hardware);
        self.run_over(over, hardware);
        self.counters[at].value
    }

    /// WRMSR; `None` for #GP. `policy` filters what is counted: what it denies reads back as written, and stands still.
    pub fn write(
        &mut self,
        register: PmuRegister,
        value: u64,
        policy: &impl PmuPolicy,
        hardware: &mut impl PmuHardware,
    ) -> Option<()> {
        let value = self.view.validate_write(register, value).ok()?;
        // What has happened until now happened under the old values.
        self.settle(hardware);
        match register {
            PmuRegister::Counter(n) | PmuRegister::FullCounter(n) => {
                self.set_value(CounterIndex::General(n), value, hardware);
            }
            PmuRegister::Fixed(n) => self.set_value(CounterIndex::Fixed(n), value, hardware),
            PmuRegister::Selector(n) | PmuRegister::CoreSelector(n) => {
                self.permit(n, value, policy);
                self.back(Self::at(CounterIndex::General(n)), hardware);
                self.write_selector(n, true, hardware);
            }
            PmuRegister::FixedControl => self.set_fixed_control(value, policy, hardware),
            PmuRegister::GlobalControl => self.global_control = value,
            PmuRegister::StatusReset => self.status &= !value,
            PmuRegister::StatusSet => self.status |= value,
            PmuRegister::GlobalStatus | PmuRegister::InUse | PmuRegister::Capabilities | PmuRegister::Branch(_) => {
                return None;
            }
        }
        self.masks = CreditMasks::of(self.view.guest(), &self.permitted, FixedControl(self.permitted_fixed));
        self.enable(hardware);
        Some(())
    }

    /// Keeps a selector as the guest wrote it, and what the policy permits of it.
    fn permit(&mut self, n: u8, value: u64, policy: &impl PmuPolicy) {
        let permitted = policy.permits(EventSelector(value), self.view.host());
        self.selectors[usize::from(n) % COUNT] = value;
        self.permitted[usize::from(n) % COUNT] = if permitted { value } else { 0 };
    }

    /// As above for IA32_FIXED_CTR_CTRL.
    fn permit_fixed(&mut self, value: u64, policy: &impl PmuPolicy) {
        (self.fixed_control, self.permitted_fixed) = (value, value);
        for n in (0..MAX_COUNTERS).filter(|n| !policy.permits_fixed(*n, FixedControl(value))) {
            self.permitted_fixed &= !(0xF << (4 * n));
        }
    }

    /// Sets a general-purpose counter. What it has counted has been read.
    pub fn set_counter(&mut self, n: u8, value: u64, hardware: &mut impl PmuHardware) {
        self.set_value(CounterIndex::General(n), value, hardware);
    }

    fn set_value(&mut self, index: CounterIndex, value: u64, hardware: &mut impl PmuHardware) {
        let at = Self::at(index);
        self.counters[at].value = value & self.counters[at].mask;
        self.back(at, hardware);
    }

    fn set_fixed_control(&mut self, value: u64, policy: &impl PmuPolicy, hardware: &mut impl PmuHardware) {
        self.permit_fixed(value, policy);
        for n in 0..MAX_COUNTERS {
            self.back(Self::at(CounterIndex::Fixed(n)), hardware);
        }
        self.write_fixed_control(hardware);
    }

    fn write_fixed_control(&self, hardware: &mut impl PmuHardware) {
        // A guest without fixed-function counters leaves them to a host that counts.
        if let Some(pmu) = self.processor.filter(|_| self.view.guest().fixed != 0) {
            hardware.write_pmu(PmuRegister::FixedControl, self.permitted_fixed & pmu.fixed_control_bits());
        }
    }

    /// Counts an event for each counter of `counters`, bits as in IA32_PERF_GLOBAL_CTRL: what the hypervisor executed in
    /// the guest's stead (A26).
    pub fn credit(&mut self, counters: u64, hardware: &mut impl PmuHardware) {
        let mut over = 0;
        for at in 0..self.counters.len() {
            let counter = self.counters[at];
            if counters >> counter.index.bit() & 1 != 0 && counter.backing != Backing::Nothing {
                self.counts.credited += 1;
                over |= self.bring(at, hardware) | self.add(at, 1);
                self.back(at, hardware);
            }
        }
        self.run_over(over, hardware);
    }

    /// Forgets an interrupt that is due.
    pub(super) fn drop_interrupt(&mut self) {
        self.interrupt = false;
    }

    /// Returns whether a counter has run over that interrupts, since the last call: the guest's local APIC is to deliver
    /// one.
    #[inline]
    pub fn take_interrupt(&mut self) -> bool {
        core::mem::take(&mut self.interrupt)
    }

    /// The guest's local APIC has delivered an interrupt of the counters.
    #[inline]
    pub fn count_interrupt(&mut self) {
        self.counts.interrupts += 1;
    }
}
