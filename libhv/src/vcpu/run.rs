//! The one run loop: enter, take down, resolve, apply, and see to events before the next entry.

use super::answer::Answer;
use super::backend::Handler;
use super::{Appliance, Backend, Vcpu, World};
use crate::error::{Error, Result};
use crate::exit::{Event, Exit, StopReason};
use crate::hw::Host;
use crate::pmu::PmuPolicy;
use crate::pmu::paravirt::Paravirt;
use crate::time::Tsc;
use crate::trace::Kind;
use core::ops::ControlFlow;

/// One turn of the run loop.
struct Once<'v, 'w, B, A, P, H> {
    vcpu: &'v mut Vcpu<B, A, P>,
    world: &'v mut World<'w, H>,
}

impl<B: Backend, A: Appliance, P: PmuPolicy, H: Host> Handler<B> for Once<'_, '_, B, A, P, H> {
    type Answer = ();

    #[inline(always)]
    fn backend(&mut self) -> &mut B {
        &mut self.vcpu.backend
    }

    #[inline(always)]
    fn handle(self, exit: Exit) {
        self.see_to::<false>(exit);
    }

    #[inline(always)]
    fn handle_rare(self, exit: Exit) {
        self.see_to::<true>(exit);
    }
}

impl<B: Backend, A: Appliance, P: PmuPolicy, H: Host> Once<'_, '_, B, A, P, H> {
    /// Sees to an exit, which is of a rare kind or may be of any.
    #[inline(always)]
    fn see_to<const RARE: bool>(self, exit: Exit) {
        let Self { vcpu, world } = self;
        let (kind, left_at) = (Kind::from(&exit), world.host.now());
        vcpu.resume_host(world);
        vcpu.stop_clock(left_at);
        let rip = vcpu.backend.rip();
        vcpu.trace.left(kind, rip);
        if left_at >= vcpu.due {
            vcpu.pass_time(world, left_at);
        }
        let answer = vcpu.resolve::<RARE, H>(&exit, world, left_at);
        if vcpu.apply(answer, &exit, rip, world).is_break() {
            return;
        }
        vcpu.hear_emulated(world);
        vcpu.trace.handled(kind, || world.host.now().0.wrapping_sub(left_at.0));
        vcpu.count_exit(kind, left_at, world);
    }
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// Runs the guest until it ends.
    ///
    /// # Errors
    /// [`Error::VmEntry`] when the processor refuses to enter; [`Error::Unsupported`] where its PMU cannot be the guest's
    /// beside another's, or the host cannot count beside it.
    pub fn run<H: Host>(&mut self, world: &mut World<'_, H>) -> Result<StopReason> {
        self.follow_apic_mode(world);
        let ended = self.enter_until_end(world);
        if let Err(Error::VmEntry(_)) = ended {
            // What was put there for the guest comes out again.
            self.resume_host(world);
            self.stop_clock(world.host.now());
        }
        self.leave_pmu(world);
        self.take_apic(world);
        ended
    }

    fn enter_until_end<H: Host>(&mut self, world: &mut World<'_, H>) -> Result<StopReason> {
        self.enter_pmu(world)?;
        if P::HOST_COUNTS {
            self.start_host(world)?;
        }
        loop {
            if self.attention {
                if let Some(reason) = self.end.take() {
                    return Ok(reason);
                }
                if self.apic.served::<B>().is_some() {
                    self.attend_with_page(world);
                } else {
                    self.attend(world);
                }
            }
            self.stop_host(world);
            if P::HOST_COUNTS && self.guest_pmi_waits() {
                // It came in the host: the guest is to have it before its next instruction.
                self.resume_host(world);
                self.hear_pmu(world);
                continue;
            }
            self.start_clock(world);
            B::enter_for(Once { vcpu: self, world }).map_err(Error::VmEntry)?;
        }
    }

    /// Carries out what was decided; breaks off where the guest has ended.
    #[inline(always)]
    fn apply<H: Host>(&mut self, answer: Answer, exit: &Exit, rip: u64, world: &mut World<'_, H>) -> ControlFlow<()> {
        match answer {
            Answer::Complete => {
                self.backend.advance_past(exit, rip, world.memory);
                self.retired(false, world);
                if exit.is_instruction() {
                    return ControlFlow::Continue(());
                }
            }
            Answer::Retry => {}
            Answer::Raised => return ControlFlow::Continue(()),
            Answer::Stop => return ControlFlow::Break(()),
            Answer::NotMine => {
                let raw = self.backend.raw_exit();
                let _ = self.stop(StopReason::Unhandled(match *exit {
                    Exit::Unhandled(raw) => raw,
                    _ => raw,
                }));
                return ControlFlow::Break(());
            }
        }
        if let Some(event) = self.backend.take_interrupted() {
            self.deliver_again(event);
        }
        ControlFlow::Continue(())
    }

    /// The exit came in the middle of a delivery: it begins anew.
    #[cold]
    pub(super) fn deliver_again(&mut self, event: Event) {
        if self.backend.injected().is_none() {
            self.backend.inject(event);
        } else {
            self.deferred = Some(event);
        }
        self.attention = true;
    }

    /// Gives the guest the event that waits longest and that it can take; asks to be told when it can take the others.
    #[inline(always)]
    pub(super) fn attend<H: Host>(&mut self, world: &mut World<'_, H>) {
        self.attention = false;
        match self.deferred {
            Some(Event::Nmi) if self.backend.accepts_nmi() => {
                self.deferred = None;
                self.backend.inject(Event::Nmi);
            }
            Some(event) if self.backend.accepts_interrupt() => {
                self.deferred = None;
                self.backend.inject(event);
            }
            _ => {}
        }
        if world.chipset.nmi_pending(self.index) && self.backend.accepts_nmi() {
            world.chipset.take_nmi(self.index);
            self.backend.inject(Event::Nmi);
        }
        let nmi_waits = world.chipset.nmi_pending(self.index) || self.deferred == Some(Event::Nmi);
        self.watch_nmi(nmi_waits);
        let waiting = world.chipset.pending_interrupt(self.index);
        if waiting
            && self.deferred.is_none()
            && self.backend.accepts_interrupt()
            && let Some(vector) = world.chipset.acknowledge(self.index)
        {
            self.backend.inject(Event::Interrupt(vector));
            self.happened(Paravirt::count_interrupt);
        }
        let waits = (waiting && world.chipset.pending_interrupt(self.index))
            || self.deferred.is_some_and(|event| event != Event::Nmi);
        self.watch_interrupts(waits);
        self.arm(world);
        self.refresh_page(world);
    }

    fn watch_nmi(&mut self, on: bool) {
        if on || self.watches_nmi {
            self.watches_nmi = on;
            self.backend.watch_nmi_window(on);
        }
    }

    fn watch_interrupts(&mut self, on: bool) {
        if on || self.watches_interrupts {
            self.watches_interrupts = on;
            self.backend.watch_interrupt_window(on);
        }
    }

    /// Has the guest leave when a device's time has come.
    #[inline]
    pub(super) fn arm<H: Host>(&mut self, world: &mut World<'_, H>) {
        let devices = world.chipset.next_deadline();
        let deadline = match self.clock_deadline(|| world.host.now()) {
            Some(clock) => Some(devices.map_or(clock, |devices| devices.min(clock))),
            None => devices,
        };
        if self.armed != Some(deadline) {
            self.armed = Some(deadline);
            self.due = deadline.unwrap_or(Tsc(u64::MAX));
            if !self.backend.arm_timer(world.host.now(), deadline) {
                world.host.arm(deadline);
            }
        }
    }

    /// Time has passed, or the host was interrupted: devices move on.
    #[cold]
    pub(super) fn pass_time<H: Host>(&mut self, world: &mut World<'_, H>, now: Tsc) {
        world.chipset.advance(now);
        self.due = Tsc(u64::MAX);
        self.armed = None;
        self.attention = true;
    }

    /// HLT: waits until the guest has an event to take.
    pub(super) fn halt<H: Host>(&mut self, world: &mut World<'_, H>) -> Answer {
        self.backend.advance(world.memory);
        self.retired(false, world);
        self.take_apic(world);
        self.attention = true;
        loop {
            world.chipset.advance(world.host.now());
            self.hear_pmu(world);
            self.interrupt_halted(world);
            if let Some(reason) = world.chipset.stop() {
                return self.stop(reason);
            }
            let (takes_interrupt, takes_nmi) = (self.backend.accepts_interrupt(), self.backend.accepts_nmi());
            let nmi = world.chipset.nmi_pending(self.index) || self.deferred == Some(Event::Nmi);
            let overtaken = self.deferred.is_some_and(|event| event != Event::Nmi);
            let interrupt = world.chipset.pending_interrupt(self.index) || overtaken;
            if takes_interrupt && interrupt || takes_nmi && nmi || self.backend.injected().is_some() {
                return Answer::Retry;
            }
            let may_wake = takes_interrupt || takes_nmi && world.chipset.nmi_possible(self.index);
            if !may_wake {
                return self.stop(StopReason::Halted);
            }
            world.host.arm(world.chipset.next_deadline());
            world.host.wait();
            self.armed = None;
        }
    }
}
