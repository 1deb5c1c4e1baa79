//! A local APIC behind a page, beside one whose every access is emulated: no guest can tell them apart.

use super::*;
use crate::devices::lapic::{Delivery, IA32_TSC_DEADLINE};
use crate::exit::Msr;
use crate::memory::FrameSource;
use crate::memory::frame::HeapFrames;
use crate::time::Frequency;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// Registers whose reads processors serve, by offset: SDM Vol. 3C "Virtualizing Reads from the APIC-Access Page".
fn served() -> impl Iterator<Item = u16> {
    let vectors = (0x100..0x280).step_by(16);
    let lvt = (0x320..=0x370).step_by(16);
    [0x20, 0x30, 0x80, 0xB0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, 0x380, 0x3E0].into_iter().chain(vectors).chain(lvt)
}

/// Registers to which writes are carried out in the page: "Virtualizing Writes to the APIC-Access Page".
const WRITTEN: [u16; 17] =
    [0x20, 0x80, 0xB0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x3E0];

/// The processor's part, and the run loop's.
struct Served {
    apic: LocalApic,
    page: ApicPage,
    /// Effects of the last exit.
    effect: Effect,
    threshold: u8,
}

impl Served {
    fn new() -> Self {
        let frame = HeapFrames.allocate(1).expect("heap");
        let mut served = Self { apic: fresh(), page: ApicPage::new(frame), effect: Effect::None, threshold: 0 };
        served.apic.show_all();
        served.enter();
        served
    }

    /// The guest is about to run.
    fn enter(&mut self) {
        self.apic.show(&mut self.page);
        self.threshold = self.apic.held_back();
        assert!(self.threshold << 4 <= self.page.get(TPR) as u8, "it would leave at once, again and again");
    }

    /// A store: what the processor does (SDM Vol. 3C "APIC-Write Emulation"), and what an exit leads to.
    fn store(&mut self, offset: u16, value: u32, now: Tsc) {
        self.effect = Effect::None;
        self.page.set(u32::from(offset) >> 4, value);
        match offset {
            0x80 => {
                self.page.set(TPR, value & 0xFF);
                if (value as u8) >> 4 < self.threshold {
                    self.apic.take(&self.page);
                    self.enter();
                }
            }
            0x310 => self.page.set(ICR_HIGH, value & 0xFF00_0000),
            _ if self.apic.written_quietly(&mut self.page, offset) => {}
            _ => {
                self.effect = self.apic.written(&self.page, offset, now);
                self.enter();
            }
        }
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut LocalApic) -> T) -> T {
        self.apic.take(&self.page);
        let answer = change(&mut self.apic);
        self.enter();
        answer
    }
}

fn fresh() -> LocalApic {
    let mut apic = LocalApic::new(2, Frequency::from_hz(1_000_000_000));
    apic.set_virtual_wire();
    apic
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Store(u16, u32),
    /// An access that is emulated: to a register of which writes are not served, or of another width.
    Emulated(u16, u32),
    Deliver(Delivery, u8, bool),
    Acknowledge,
    Counters,
    /// The counters' interrupt has reached the guest without an exit.
    Delivered,
    Lint0(bool),
    Lint1(bool),
    Deadline(u64),
    /// Off and on again.
    Reset,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let value = || {
        prop_oneof![
            any::<u32>(),
            any::<u8>().prop_map(u32::from),
            Just(0x1FF),
            Just(0xFF),
            (0u32..0x8_0000).prop_map(|entry| entry & 0x7_97FF)
        ]
    };
    let delivery = prop::sample::select(&[Delivery::Fixed, Delivery::Fixed, Delivery::Fixed, Delivery::Nmi][..]);
    prop_oneof![
        12 => (prop::sample::select(&WRITTEN[..]), value()).prop_map(|(offset, value)| Step::Store(offset, value)),
        4 => (prop::sample::select(&[0x80u16, 0xB0, 0x300][..]), 0u32..0x100).prop_map(|(offset, value)| {
            // IPIs to itself.
            Step::Store(offset, if offset == 0x300 { 0x4_0000 | value } else { value })
        }),
        2 => (0u16..0x400, value()).prop_map(|(offset, value)| Step::Emulated(offset & 0x3F0, value)),
        6 => (delivery, any::<u8>(), any::<bool>()).prop_map(|(delivery, vector, level)| Step::Deliver(delivery, vector, level)),
        1 => Just(Step::Deliver(Delivery::Init, 0, false)),
        6 => Just(Step::Acknowledge),
        3 => Just(Step::Counters),
        2 => Just(Step::Delivered),
        2 => any::<bool>().prop_map(Step::Lint0),
        1 => any::<bool>().prop_map(Step::Lint1),
        1 => (0u64..5000).prop_map(Step::Deadline),
        1 => Just(Step::Reset),
        3 => (0u64..500).prop_map(Step::Pass),
    ]
}

/// Has both local APICs live through a step; returns what each answered.
fn live(step: Step, model: &mut LocalApic, served: &mut Served, now: &mut Tsc) -> [Option<u32>; 2] {
    // The run loop brings devices to the moment of an exit first.
    let now = {
        if let Step::Pass(ticks) = step {
            *now = *now + ticks;
        }
        *now
    };
    model.advance(now);
    served.change(|apic| apic.advance(now));
    let (mut of_model, mut of_served) = (Effect::None, Effect::None);
    let mut both = |change: &dyn Fn(&mut LocalApic) -> Option<u32>| [change(model), served.change(change)];
    let answers = match step {
        Step::Store(offset, value) => {
            of_model = model.write(offset, value, now);
            served.store(offset, value, now);
            of_served = served.effect;
            [None; 2]
        }
        Step::Emulated(offset, value) => {
            of_model = model.write(offset, value, now);
            of_served = served.change(|apic| apic.write(offset, value, now));
            [Some(model.read(offset, now)), Some(served.change(|apic| apic.read(offset, now)))]
        }
        Step::Deliver(delivery, vector, level) => both(&|apic| {
            apic.deliver(delivery, vector, level);
            None
        }),
        Step::Acknowledge => both(&|apic| apic.acknowledge().map(u32::from)),
        Step::Counters => both(&|apic| Some(apic.raise_performance_monitoring().into())),
        Step::Delivered => both(&|apic| Some(apic.performance_monitoring_was_delivered().into())),
        Step::Lint0(high) => both(&|apic| {
            apic.set_lint0(high);
            None
        }),
        Step::Lint1(high) => both(&|apic| {
            apic.set_lint1(high);
            None
        }),
        Step::Deadline(ticks) => both(&|apic| Some(apic.write_msr(Msr(IA32_TSC_DEADLINE), ticks, now).is_ok().into())),
        Step::Reset => both(&|apic| {
            let base = apic.base();
            Some((apic.set_base(base & !0x800).is_ok() && apic.set_base(base).is_ok()).into())
        }),
        Step::Pass(_) => [None; 2],
    };
    assert_eq!(of_model, of_served);
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// A24: also what the delivery of the counters' interrupt masks.
    #[test]
    fn whatever_happens_the_page_shows_what_a_read_would(steps in prop::collection::vec(step(), 1..60)) {
        let (mut model, mut served, mut now) = (fresh(), Served::new(), Tsc(1));
        for (number, step) in steps.into_iter().enumerate() {
            let [of_model, of_served] = live(step, &mut model, &mut served, &mut now);
            prop_assert_eq!(of_model, of_served, "step {}, {:?}", number, step);
            for offset in self::served() {
                let shown = served.page.register(offset);
                prop_assert_eq!(shown, model.read(offset, now), "{:#x} after step {}, {:?}", offset, number, step);
            }
        }
    }

    /// What a task priority has held back, and lets go, is heard of.
    #[test]
    fn no_interrupt_is_lost_to_a_task_priority_that_is_lowered_without_an_exit(
        vectors in prop::collection::vec(16u8.., 1..5), priorities: [u8; 4]
    ) {
        let mut served = Served::new();
        served.store(0xF0, 0x1FF, Tsc(1));
        for priority in priorities {
            served.store(0x80, priority.into(), Tsc(1));
            for &vector in &vectors {
                served.store(0x300, 0x4_0000 | u32::from(vector), Tsc(1));
            }
        }
        let highest = vectors.iter().copied().max().unwrap_or(0);
        // The guest lowers it step by step: either what waits was known to be deliverable, or an exit comes in time.
        for priority in (0..16u8).rev() {
            served.store(0x80, u32::from(priority) << 4, Tsc(1));
            if highest >> 4 > priority {
                prop_assert_eq!(served.apic.pending(), Some(highest));
                return Ok(());
            }
        }
    }
}

/// INIT comes after what the guest has written was fetched: whoever fetches again before the next entry finds it reset.
#[test]
fn what_init_has_reset_is_not_fetched_from_the_page() {
    let mut served = Served::new();
    served.store(0x80, 0x50, Tsc(1));
    served.store(0x310, 0x0300_0000, Tsc(1));
    served.apic.take(&served.page);
    served.apic.deliver(Delivery::Init, 0, false);
    served.apic.take(&served.page);
    served.enter();
    assert_eq!([0x80, 0x310].map(|offset| served.page.register(offset)), [0, 0]);
}

#[test]
fn the_page_holds_registers_and_zeros() {
    let mut served = Served::new();
    served.store(0x340, u32::MAX, Tsc(1));
    let beside: Vec<u64> = (0..512)
        .filter(|word| word % 2 == 1 || !self::served().any(|offset| usize::from(offset) / 8 == *word))
        .map(|word| served.page.0.words()[word])
        .collect();
    assert!(beside.iter().all(|&word| word == 0));
    assert_eq!(served.page.register(0x340), 0x1_07FF, "what there is of the entry");
    assert_eq!(served.page.register(0x343), 0x1_07FF, "a part of it lies there");
}

#[test]
fn only_the_place_after_power_up_is_served_and_only_in_xapic_mode() {
    let mut apic = fresh();
    assert!(apic.may_be_shown());
    for (base, shown) in [(0xFEE0_0800, true), (0xFED0_0800, false), (0xFEE0_0C00, false), (0xFEE0_0000, false)] {
        apic.set_base(base).expect("a legal change");
        assert_eq!(apic.may_be_shown(), shown, "{base:#x}");
    }
}

/// Whoever runs the guest looks after a write that was not quiet alone: another interrupt would wait for the next exit.
#[test]
fn the_end_of_an_interrupt_that_holds_another_back_is_not_quiet() {
    let mut served = Served::new();
    let mut taken = |others: &[u8]| {
        served.change(|apic| {
            apic.deliver(Delivery::Fixed, 0x55, false);
            assert_eq!(apic.acknowledge(), Some(0x55));
            others.iter().for_each(|&vector| apic.deliver(Delivery::Fixed, vector, false));
        });
        (served.apic.written_quietly(&mut served.page, 0xB0), served.apic.processor_priority())
    };
    assert_eq!(taken(&[]), (true, 0));
    assert_eq!(taken(&[0x51]), (false, 0x50));
}
