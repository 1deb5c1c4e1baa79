//! What was decided about an exit, on its way through the run loop.

use super::events::{Combined, DOUBLE_FAULT, combine};
use super::{Appliance, Backend, Vcpu};
use crate::exit::{Event, Resolution, StopReason};
use crate::pmu::PmuPolicy;

/// A [`Resolution`] that is one number: the event and how the guest ended are seen to when they are found.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// Nobody has one.
    NotMine,
    /// The instruction was executed: go on after it.
    Complete,
    /// Go on where the guest stands.
    Retry,
    /// The guest gets an event: [`raise`](Vcpu::raise) has been called.
    Raised,
    /// The guest ends: [`stop`](Vcpu::stop) has been called.
    Stop,
}

impl<B: Backend, A: Appliance, P: PmuPolicy> Vcpu<B, A, P> {
    /// Returns the answer that a resolution is.
    #[inline(always)]
    pub(super) fn answer(&mut self, resolution: Resolution) -> Answer {
        match resolution {
            Resolution::NotMine => Answer::NotMine,
            Resolution::Complete => Answer::Complete,
            Resolution::Retry => Answer::Retry,
            Resolution::Inject(event) => self.raise(event),
            Resolution::Stop(reason) => self.stop(reason),
        }
    }

    /// Gives the guest an event at the instruction it stands at, and sees to the one that was being delivered.
    #[cold]
    #[inline(never)]
    pub(super) fn raise(&mut self, event: Event) -> Answer {
        let Some(first) = self.backend.take_interrupted() else {
            self.backend.inject(event);
            return Answer::Raised;
        };
        match combine(first, event) {
            Combined::Second => self.backend.inject(event),
            Combined::DoubleFault => self.backend.inject(DOUBLE_FAULT),
            Combined::Shutdown => return self.stop(StopReason::Shutdown),
            Combined::SecondThenFirst => {
                self.backend.inject(event);
                self.deferred = Some(first);
                self.attention = true;
            }
        }
        Answer::Raised
    }

    /// Has the loop end before the next entry, where it looks for what else there is to do.
    #[cold]
    #[inline(never)]
    pub(super) fn stop(&mut self, reason: StopReason) -> Answer {
        self.end = Some(reason);
        self.attention = true;
        Answer::Stop
    }
}
