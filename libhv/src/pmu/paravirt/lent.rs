//! Counters of a processor that are lent to a guest without a PMU: an emulated PMU of which the guest reaches nothing.

use super::source::{CounterId, CounterSource, HardwareEvent, NotLent};
use crate::hw::{GlobalSwitch, Host, PmuHardware};
use crate::pmu::bank::selector_register;
use crate::pmu::capability::PmuCapability;
use crate::pmu::credit::Retired;
use crate::pmu::emulated::EmulatedPmu;
use crate::pmu::policy::{Means, Passthrough, PmuPolicy, PmuShare};
use crate::pmu::registers::{CounterIndex, EventSelector, MAX_COUNTERS};
use crate::pmu::view::PmuView;

/// How far a counter goes at most without being looked at: as far as one can be set without full-width writes. From
/// there it has as far again to go before its bits do not suffice.
const FARTHEST: u64 = 1 << 31;

/// A counter that is lent.
#[derive(Clone, Copy, Debug)]
struct Lent {
    selector: u64,
    /// What it has counted until it held `held`.
    total: u64,
    held: u64,
}

/// The counters of a processor, and which of them are lent.
///
/// They count the guest alone: entry and exit switch them, or their selectors say so (requirement A17). Instructions that
/// the hypervisor executes for the guest are credited (A26).
#[derive(Debug)]
pub struct Lender {
    pmu: EmulatedPmu,
    lent: [Option<Lent>; MAX_COUNTERS as usize],
    /// A bit for each that counts.
    running: u32,
    /// The registers are in the processor.
    started: bool,
}

/// Returns whether a policy's paravirtual events may count with the processor's counters: nobody else does, neither the
/// guest nor a host that counts events of its own.
pub const fn lends<P: PmuPolicy>() -> bool {
    P::PARAVIRTUAL && matches!(P::MEANS, Means::Hidden) && !P::HOST_COUNTS
}

impl Lender {
    /// Makes the lender of a processor's counters; `None` where the policy lends nothing, or no counter counts a guest
    /// alone.
    pub fn decide<P: PmuPolicy>(processor: Option<&PmuCapability>, hardware: &impl PmuHardware) -> Option<Self> {
        let switch = hardware.global_switch();
        let pmu = processor.filter(|_| lends::<P>() && switch != GlobalSwitch::Missing)?;
        let share = PmuShare { fixed: 0, lbr: false, ..PmuShare::all(pmu) };
        let view = PmuView::new(pmu, &share, Means::Emulated, switch)?.without_freezing();
        Some(Self {
            pmu: EmulatedPmu::new(view, Some(pmu), switch),
            lent: [None; MAX_COUNTERS as usize],
            running: 0,
            started: false,
        })
    }

    /// Returns one of the same counters, of which none is lent.
    pub fn anew(&self) -> Self {
        Self { pmu: self.pmu.anew(), lent: [None; MAX_COUNTERS as usize], running: 0, started: false }
    }

    /// Returns how many counters there are.
    pub fn counters(&self) -> u32 {
        self.pmu.view().guest().counters.min(MAX_COUNTERS).into()
    }

    /// Returns whether any counts.
    #[inline]
    pub fn counts(&self) -> bool {
        self.running != 0
    }

    /// Returns whether any is lent.
    pub fn lends(&self) -> bool {
        self.lent.iter().any(Option::is_some)
    }

    /// The guest is about to run on this processor: what is lent goes into it. Nobody else has the processor's PMU.
    pub fn start<H: Host>(&mut self, hardware: &mut impl PmuHardware, host: &mut H) {
        if self.lends() {
            self.put(hardware);
            self.route(hardware, host);
        }
    }

    /// Puts the registers into the processor, unless they are there.
    fn put(&mut self, hardware: &mut impl PmuHardware) {
        if !core::mem::replace(&mut self.started, true) {
            self.pmu.start(hardware);
        }
    }

    /// The guest has ended: nothing of it stays in the processor.
    pub fn end<H: Host>(&mut self, hardware: &mut impl PmuHardware, host: &mut H) {
        if core::mem::take(&mut self.started) {
            self.pmu.end(hardware, host);
        }
    }

    /// Returns whether a counter has run over, by the processor's interrupt or by an instruction that was credited.
    pub fn hear<H: Host>(&mut self, hardware: &mut impl PmuHardware, host: &mut H) -> bool {
        let came = self.pmu.uses_processor() && host.take_guest_pmi();
        self.pmu.hear(came, hardware)
    }

    /// Lets interrupts of counters through while any is lent: each has to be let through anew.
    pub fn route<H: Host>(&mut self, hardware: &mut impl PmuHardware, host: &mut H) {
        if let Some(route) = self.pmu.mirror(self.lends(), hardware) {
            host.route_pmi(route);
        }
    }

    /// Returns the counters that count an instruction which retires.
    #[inline]
    pub fn counting(&self, retired: Retired) -> u64 {
        self.pmu.counting(retired)
    }

    /// Credits an instruction to `counters` (A26). Returns whether one of them ran over.
    pub fn credit(&mut self, counters: u64, hardware: &mut impl PmuHardware) -> bool {
        if counters != 0 {
            self.pmu.credit(counters, hardware);
        }
        self.pmu.take_interrupt()
    }
}

/// The counters of a lender, at hand: with the registers they are in.
#[derive(Debug)]
pub struct AtHand<'a, B> {
    /// The lender, where there is one.
    pub lender: Option<&'a mut Lender>,
    /// The guest has a PMU of its own.
    pub own: bool,
    /// The registers.
    pub hardware: &'a mut B,
}

impl<B: PmuHardware> AtHand<'_, B> {
    fn get(&mut self, counter: CounterId) -> Option<(&mut EmulatedPmu, &mut Lent, u8, &mut B)> {
        let lender = self.lender.as_deref_mut()?;
        let lent = lender.lent.get_mut(counter.0 as usize)?.as_mut()?;
        Some((&mut lender.pmu, lent, counter.0 as u8, self.hardware))
    }

    fn select(&mut self, counter: CounterId, enable: bool) {
        let Some((pmu, lent, n, hardware)) = self.get(counter) else { return };
        let register = selector_register(pmu.view().guest(), n);
        let bits = if enable { EventSelector::ENABLE | EventSelector::INTERRUPT } else { 0 };
        let written = pmu.write(register, lent.selector | bits, &Passthrough::new(), hardware);
        if let Some(lender) = self.lender.as_deref_mut() {
            lender.running = lender.running & !(1 << counter.0) | u32::from(enable) << counter.0;
        }
        debug_assert!(written.is_some(), "a selector that the processor does not take");
    }
}

impl<B: PmuHardware> CounterSource for AtHand<'_, B> {
    fn open(&mut self, event: HardwareEvent) -> Result<CounterId, NotLent> {
        let Some(lender) = self.lender.as_deref_mut() else {
            return Err(if self.own { NotLent::Own } else { NotLent::Unsupported });
        };
        let selector = event.selector(lender.pmu.view().host()).ok_or(NotLent::Unsupported)?;
        let counters = lender.counters() as usize;
        let mut places = (0..).zip(lender.lent.iter_mut().take(counters));
        let (n, place) = places.find(|(_, place)| place.is_none()).ok_or(NotLent::NoneFree)?;
        let held = lender.pmu.rdpmc(CounterIndex::General(n), self.hardware);
        *place = Some(Lent { selector, total: 0, held });
        lender.put(self.hardware);
        Ok(CounterId(n.into()))
    }

    fn start(&mut self, counter: CounterId, ahead: u64) {
        self.watch(counter, ahead);
        self.select(counter, true);
    }

    fn stop(&mut self, counter: CounterId) {
        self.read(counter);
        self.select(counter, false);
    }

    fn read(&mut self, counter: CounterId) -> u64 {
        let Some((pmu, lent, n, hardware)) = self.get(counter) else { return 0 };
        let held = pmu.rdpmc(CounterIndex::General(n), hardware);
        let more = held.wrapping_sub(lent.held) & pmu.view().guest().counter_mask();
        (lent.total, lent.held) = (lent.total.wrapping_add(more), held);
        lent.total
    }

    fn watch(&mut self, counter: CounterId, ahead: u64) {
        self.read(counter);
        let Some((pmu, lent, n, hardware)) = self.get(counter) else { return };
        let far = if (1..=FARTHEST).contains(&ahead) { ahead } else { FARTHEST };
        lent.held = far.wrapping_neg() & pmu.view().guest().counter_mask();
        pmu.set_counter(n, lent.held, hardware);
    }

    fn close(&mut self, counter: CounterId) {
        if let Some(place) = self.lender.as_deref_mut().and_then(|lender| lender.lent.get_mut(counter.0 as usize)) {
            *place = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Gpa;
    use crate::exit::Width;
    use crate::memory::GuestMemory;
    use crate::pmu::mechanism::rig::{ONE, Rig};
    use crate::pmu::paravirt::abi::{Operation, ResultBlock};
    use crate::pmu::paravirt::request::{Counted, Request};
    use crate::pmu::paravirt::{Call, Paravirt, Paravirtual};
    use crate::sim::pmu::intel;
    use crate::trace::Trace;

    const COUNTER: u32 = 0x4C1;
    const CONTROL: u32 = 0x38F;

    /// B3, B8: without a period nobody is told of anything, and the count goes on beyond the bits of the counter.
    #[test]
    fn an_event_without_a_period_counts_on_when_its_counter_has_run_over() {
        for period in [0, 1 << 60] {
            let mut rig = Rig::intel(intel::Config::default());
            let decided = Lender::decide::<Paravirtual<()>>(Some(&rig.capability), &rig.registers);
            let (mut lender, mut paravirt, trace) = (decided.expect("counters"), Paravirt::new(), Trace::new(0));
            let mut memory = GuestMemory::for_tests(0x2000);
            let counted = Counted::Hardware(HardwareEvent::new(0xC0 | 0b11 << 16).expect("a legal selector"));
            let request = Request { id: 0, counted, period, notify: false, result: Gpa::new(0x1000) };
            memory.write(Gpa::new(0), &request.encode().to_bytes()).expect("memory");
            memory.write_number(request.result, Width::Qword, 1 | 32 << 32).expect("memory");
            macro_rules! source {
                () => {
                    &mut AtHand { lender: Some(&mut lender), own: false, hardware: &mut rig.registers }
                };
            }
            for operation in [Operation::Open, Operation::Enable] {
                let call = Call { operation, id: 0, address: Gpa::new(0) };
                assert_eq!(paravirt.hypercall(call, &mut memory, &trace, source!()), Ok(()));
            }
            let mut happened = 0;
            for _ in 0..3 {
                // All that there is until it runs over, and one more.
                let before = rig.registers.pmu.host_read_counter(0);
                rig.registers.pmu.host_write(COUNTER, (1 << 48) - 1);
                let control = rig.registers.guest_global_control();
                rig.registers.pmu.host_write(CONTROL, control);
                assert!(rig.registers.pmu.step(3, true, &ONE), "it interrupts");
                rig.registers.pmu.host_write(CONTROL, 0);
                happened += (1 << 48) - before;
                rig.host.arrived = true;
                if lender.hear(&mut rig.registers, &mut rig.host) {
                    paravirt.look(&trace, source!());
                }
            }
            let call = Call { operation: Operation::Disable, id: 0, address: Gpa::new(0) };
            assert_eq!(paravirt.hypercall(call, &mut memory, &trace, source!()), Ok(()));
            assert!(!lender.counts() && lender.lends(), "an exit costs no more than before");
            let mut bytes = [0; ResultBlock::LENGTH as usize];
            memory.read(request.result, &mut bytes).expect("memory");
            assert_eq!(ResultBlock::from_bytes(&bytes).count, happened, "period {period}");
        }
    }

    #[test]
    fn a_counter_that_is_lent_again_begins_at_0() {
        let mut rig = Rig::intel(intel::Config::default());
        let decided = Lender::decide::<Paravirtual<()>>(Some(&rig.capability), &rig.registers);
        let mut lender = decided.expect("counters");
        let mut source = AtHand { lender: Some(&mut lender), own: false, hardware: &mut rig.registers };
        for _ in 0..2 {
            let event = HardwareEvent::new(0xC0).expect("a legal selector");
            let counter = source.open(event).expect("all are free");
            assert_eq!((counter, source.read(counter)), (CounterId(0), 0));
            source.start(counter, 0);
            source.hardware.pmu.host_write(COUNTER, 7);
            assert_eq!(source.read(counter), FARTHEST + 7);
            source.stop(counter);
            source.close(counter);
        }
    }
}
