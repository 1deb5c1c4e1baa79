//! The machine around a simulated processor: its clock, its timer, and interrupts of its own at seeded moments.

use super::counting::{Counting, NMI_VECTOR, PMI_VECTOR};
use super::random::Random;
use crate::hw::Host;
use crate::pmu::slot::PmuSlot;
use crate::time::{Frequency, Tsc};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

/// The vector that the host's interrupts have.
pub(super) const HOST_VECTOR: u8 = 0x31;

/// What processor and host both see.
#[derive(Debug)]
pub(super) struct Wires {
    pub(super) now: Cell<u64>,
    deadline: Cell<Option<u64>>,
    /// An interrupt of the host's that has nothing to do with the guest.
    stray_at: Cell<u64>,
    stray_every: u64,
    pending: Cell<bool>,
    in_service: Cell<bool>,
    random: RefCell<Random>,
    pub(super) counting: RefCell<Option<Counting>>,
}

impl Wires {
    /// Lends the PMU.
    ///
    /// # Panics
    /// When there is none.
    pub(super) fn counting<T>(&self, borrow: impl FnOnce(&mut Counting) -> T) -> T {
        self.if_counting(borrow).expect("this machine has no PMU")
    }

    /// Lends the PMU, if there is one.
    pub(super) fn if_counting<T>(&self, borrow: impl FnOnce(&mut Counting) -> T) -> Option<T> {
        self.counting.borrow_mut().as_mut().map(borrow)
    }

    /// Returns whether the host has an interrupt pending, and lets those arrive whose time has come.
    pub(super) fn interrupts(&self) -> bool {
        let now = self.now.get();
        if self.deadline.get().is_some_and(|deadline| deadline <= now) {
            self.deadline.set(None);
            self.pending.set(true);
        }
        if self.stray_at.get() <= now {
            let next = 1 + self.random.borrow_mut().below(self.stray_every.saturating_mul(2));
            self.stray_at.set(now.saturating_add(next));
            self.pending.set(true);
        }
        self.pending.get() || self.pmi_pending()
    }

    fn pmi_pending(&self) -> bool {
        self.if_counting(|counting| counting.pending()).unwrap_or(false)
    }

    /// The processor acknowledges the interrupt on exit, as VMX does on request.
    pub(super) fn acknowledge(&self) -> u8 {
        if self.pmi_pending() {
            return self.counting(Counting::acknowledge);
        }
        self.pending.set(false);
        self.in_service.set(true);
        HOST_VECTOR
    }

    /// Panics when an acknowledged interrupt was left in service.
    pub(super) fn check_served(&self) {
        let pmi = self.if_counting(|counting| counting.in_service()).unwrap_or(false);
        assert!(!pmi && !self.in_service.get(), "an interrupt acknowledged on exit was never served");
    }
}

/// The host: [`Host`] for the run loop. Nothing in it depends on real time.
#[derive(Debug)]
pub struct Machine {
    wires: Rc<Wires>,
    frequency: Frequency,
    pub(super) slot: PmuSlot,
}

impl Machine {
    /// Makes a machine whose time-stamp counter runs at `frequency` and stands at 0. About every `stray_every` ticks an
    /// interrupt of its own arrives; never when 0.
    pub fn new(seed: u64, frequency: Frequency, stray_every: u64) -> Self {
        let first = if stray_every == 0 { u64::MAX } else { stray_every };
        let wires = Wires {
            now: Cell::new(0),
            deadline: Cell::new(None),
            stray_at: Cell::new(first),
            stray_every,
            pending: Cell::new(false),
            in_service: Cell::new(false),
            random: RefCell::new(Random::new(seed)),
            counting: RefCell::new(None),
        };
        Self { wires: Rc::new(wires), frequency, slot: PmuSlot::default() }
    }

    pub(super) fn wires(&self) -> Rc<Wires> {
        self.wires.clone()
    }

    fn serve_pending(&self) {
        self.wires.pending.set(false);
        self.wires.if_counting(Counting::serve);
    }

    /// Lets time pass.
    pub fn pass(&self, ticks: u64) {
        self.wires.now.set(self.wires.now.get().saturating_add(ticks));
    }
}

impl Host for Machine {
    fn now(&self) -> Tsc {
        Tsc(self.wires.now.get())
    }

    fn frequency(&self) -> Frequency {
        self.frequency
    }

    fn arm(&mut self, deadline: Option<Tsc>) {
        self.wires.deadline.set(deadline.map(|moment| moment.0));
    }

    /// # Panics
    /// When `acknowledged` is not what the processor acknowledged.
    fn serve_interrupts(&mut self, acknowledged: Option<u8>) {
        match acknowledged {
            Some(vector @ (PMI_VECTOR | NMI_VECTOR)) => {
                let in_service = self.wires.if_counting(|counting| counting.in_service()).unwrap_or(false);
                assert!(in_service, "nobody acknowledged vector {vector:#x}");
                self.wires.if_counting(Counting::serve);
            }
            Some(vector) => {
                assert!(vector == HOST_VECTOR && self.wires.in_service.get(), "nobody acknowledged vector {vector:#x}");
                self.wires.in_service.set(false);
            }
            None => self.serve_pending(),
        }
    }

    /// # Panics
    /// When no interrupt will ever come.
    fn wait(&mut self) {
        if !self.wires.interrupts() {
            let next = self.wires.deadline.get().unwrap_or(u64::MAX).min(self.wires.stray_at.get());
            assert_ne!(next, u64::MAX, "the host waits for an interrupt that will never come");
            self.wires.now.set(self.wires.now.get().max(next));
            self.wires.interrupts();
        }
        self.serve_pending();
    }
}
