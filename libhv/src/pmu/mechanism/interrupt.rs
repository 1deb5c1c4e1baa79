//! The counters' interrupt on its way to the guest: where the processor's LVTPC sends it, and how one is known that has
//! come.

use super::Pmu;
use crate::hw::{Host, PmiRoute, PmuHardware};
use crate::pmu::capability::PmuCapability;
use crate::pmu::direct::InterruptPath;
use crate::pmu::policy::{Interrupts, PmuPolicy};
use crate::pmu::registers::Maker;
use crate::pmu::report::Why;
use crate::pmu::slot::Pending;

/// An interrupt that has come since this was last asked, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Came {
    /// None has.
    Nothing,
    /// To the host: the guest's local APIC is to deliver it.
    ToHost,
    /// To the guest, without an exit: its local APIC is to show what the processor's does.
    ToGuest,
    /// An NMI to the host that is the guest's: its local APIC is to deliver it. The counters were not its cause, or that is
    /// told apart from it.
    Nmi,
}

impl<P: PmuPolicy> Pmu<P> {
    /// Whether interrupts are to reach the guest without an exit: where not, nothing of it costs anything.
    pub const DIRECT: bool = matches!(P::INTERRUPTS, Interrupts::Direct);

    /// Decides how interrupts reach the guest.
    pub(super) fn decide_path(host: Option<&PmuCapability>, hardware: &impl PmuHardware) -> InterruptPath {
        match host {
            _ if !Self::DIRECT => InterruptPath::LocalApic,
            Some(host) if host.maker == Maker::Amd => InterruptPath::NotDirect(Why::NotMaskedOnDelivery),
            _ if !hardware.passes_nmis() => InterruptPath::NotDirect(Why::NmisExit),
            _ => InterruptPath::Direct,
        }
    }

    /// Returns whether interrupts reach the guest without an exit, where it has them delivered as NMIs.
    #[inline(always)]
    pub fn is_direct(&self) -> bool {
        Self::DIRECT && self.path == InterruptPath::Direct
    }

    /// Has the processor's LVTPC do as the guest's does (A24). [`PmiRoute::GuestNmi`] is for a guest that
    /// [`is_direct`](Self::is_direct) alone.
    #[inline]
    pub fn mirror<H: Host>(&mut self, route: PmiRoute, hardware: &mut impl PmuHardware, host: &mut H) {
        let stands = self.route == route && !(Self::DIRECT && self.spent);
        if !Self::PRESENT || stands || self.view.is_err() {
            return;
        }
        if Self::DIRECT {
            if self.route == PmiRoute::GuestNmi && route != PmiRoute::GuestNmi {
                // It would leave the guest, and nobody would know whose it is.
                host.open_nmis();
            }
            // What the guest's local APIC has not been told is told later.
            self.unseen |= self.delivered(host);
            self.spent = false;
            hardware.pass_nmis(route == PmiRoute::GuestNmi);
        }
        self.route = route;
        host.route_pmi(route);
    }

    /// The guest's interrupt has come by a route that it shares with the host.
    pub fn came(&mut self) {
        self.late = true;
    }

    /// Returns whether the guest's interrupt has come to the host since the last call: its local APIC is to deliver one
    /// (A25).
    #[inline]
    pub fn take_interrupt<H: Host>(&mut self, host: &mut H) -> bool {
        if !Self::PRESENT || !(core::mem::take(&mut self.late) | host.take_guest_pmi()) {
            return false;
        }
        // The processor has masked its entry in delivering it; AMD's do not.
        if Self::DIRECT && self.route == PmiRoute::GuestNmi {
            self.spent = true;
        } else if self.host.is_none_or(|host| host.maker != Maker::Amd) {
            self.route = PmiRoute::Masked;
        }
        true
    }

    /// Returns whether an interrupt has come since the last call, and how.
    pub fn take_any<H: Host>(&mut self, host: &mut H) -> Came {
        // First the entry: an NMI that meets the host between the two is found by the second.
        let delivered = Self::DIRECT && self.delivered(host);
        if self.take_interrupt(host) {
            return Came::ToHost;
        }
        self.spent |= delivered;
        if self.take_unseen() | delivered {
            Came::ToGuest
        } else if self.take_other_nmi(host) {
            Came::Nmi
        } else {
            Came::Nothing
        }
    }

    /// Returns whether another NMI of the guest's has come to the host since the last call.
    pub fn take_other_nmi<H: Host>(&mut self, host: &mut H) -> bool {
        core::mem::take(&mut self.nmi) | host.take_guest_nmi()
    }

    /// Returns whether an interrupt reached the guest without an exit that its local APIC has not been told, before its
    /// registers left the processor or its entry was routed elsewhere.
    pub fn take_unseen(&mut self) -> bool {
        core::mem::take(&mut self.unseen)
    }

    /// The guest has left by an NMI; returns whose it is.
    pub fn left_by_nmi<H: Host>(&mut self, host: &H) -> Came {
        if !Self::DIRECT || self.route != PmiRoute::GuestNmi {
            return Came::Nothing;
        }
        let delivered = self.delivered(host);
        self.spent |= delivered;
        if delivered { Came::ToHost } else { Came::Nmi }
    }

    /// Returns whether the processor has delivered an NMI that nobody has taken note of.
    fn delivered<H: Host>(&self, host: &H) -> bool {
        self.route == PmiRoute::GuestNmi && !self.spent && host.guest_nmi_delivered()
    }

    /// The guest has written to its LVTPC what it held, after it took an interrupt that did not leave it: takes note of the
    /// interrupt and lets the next one through. Returns whether that was all; otherwise nothing has happened, and the entry
    /// is to be seen to as ever.
    #[inline(always)]
    pub fn arm_again<H: Host>(&mut self, host: &mut H) -> bool {
        let waits = self.late | self.unseen | self.nmi | !self.owed.is_nothing();
        if waits || !self.delivered(host) {
            return false;
        }
        self.count_interrupt();
        host.route_pmi(PmiRoute::GuestNmi);
        true
    }

    /// The guest's local APIC has delivered an interrupt of the counters, or shows one that was.
    #[inline]
    pub fn count_interrupt(&mut self) {
        self.counts.interrupts += 1;
    }

    /// Interrupts have come that the guest's local APIC has not been told.
    pub(super) fn owe(&mut self, pending: Pending) {
        self.late |= pending.late;
        self.unseen |= pending.unseen;
        self.nmi |= pending.nmi;
    }
}

/// The registers of a guest leave the processor: nothing comes on its routes any more. Returns whether an NMI had.
pub(super) fn close<H: Host>(hardware: &mut impl PmuHardware, host: &mut H) -> bool {
    // An NMI that would wait for the guest's IRET meets the host, where it is found.
    host.open_nmis();
    let delivered = host.guest_nmi_delivered();
    host.route_pmi(PmiRoute::Masked);
    hardware.pass_nmis(false);
    delivered
}

/// Returns what has come until the registers have been read out; `delivered` is what [`close`] returned.
pub(super) fn what_came<H: Host>(delivered: bool, host: &mut H) -> Pending {
    host.serve_interrupts(None);
    let late = host.take_guest_pmi();
    Pending { late, unseen: delivered && !late, nmi: host.take_guest_nmi() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmu::mechanism::rig::{ONE, Rig, TestGuest};
    use crate::pmu::{Direct, EventSelector, Passthrough};
    use crate::sim::pmu::intel;

    /// The guest's counter 0 runs over, with an interrupt.
    fn overflow<P: PmuPolicy>(rig: &mut Rig, guest: &mut TestGuest<P>) {
        const EVERYWHERE: u64 = 0xC0 | 3 << 16 | 1 << 20 | EventSelector::ENABLE;
        for (msr, value) in [(0x390, 1), (0x186, EVERYWHERE), (0x4C1, (1 << 48) - 1), (0x38F, 1)] {
            rig.wrmsr(guest, msr, value).expect("legal");
        }
        rig.step(guest, 3, &ONE);
    }

    fn two() -> (Rig, TestGuest<Direct<Passthrough>>, TestGuest<Passthrough>) {
        let mut rig = Rig::intel(intel::Config::default());
        let (direct, other) = (rig.guest(Passthrough::new().direct_interrupts()), rig.guest(Passthrough::new()));
        (rig, direct, other)
    }

    /// T-A13: what its local APIC has not been told when it loses the processor, it is told when it comes back, once.
    #[test]
    fn a_guest_that_loses_the_processor_keeps_what_has_come_of_its_interrupts() {
        let (mut rig, mut guest, mut other) = two();
        rig.resume(&mut guest);
        assert!(rig.registers.nmis_passed);
        overflow(&mut rig, &mut guest);
        assert_eq!((guest.interrupts, guest.exits), (1, 0));
        rig.pause(&mut guest);
        rig.resume(&mut other);
        assert!(!rig.registers.nmis_passed, "NMIs leave a guest that has not asked for them");
        assert_eq!(other.mechanism.take_any(&mut rig.host), Came::Nothing, "it is the other's");
        overflow(&mut rig, &mut other);
        assert_eq!((other.interrupts, other.exits), (1, 1));
        rig.pause(&mut other);
        rig.resume(&mut guest);
        assert!(rig.registers.nmis_passed);
        assert_eq!([0; 2].map(|_| guest.mechanism.take_any(&mut rig.host)), [Came::ToGuest, Came::Nothing]);
        assert_eq!(guest.interrupts, 1);
    }

    /// T-A12, T-A13.
    #[test]
    fn one_that_meets_the_host_when_its_guest_leaves_is_delivered_when_it_comes_back() {
        let (mut rig, mut guest, mut other) = two();
        rig.resume(&mut guest);
        rig.host.arrived = true;
        rig.pause(&mut guest);
        rig.resume(&mut other);
        assert_eq!(other.interrupts, 0);
        rig.pause(&mut other);
        rig.resume(&mut guest);
        assert_eq!((guest.interrupts, other.interrupts), (1, 0));
        assert_eq!(guest.mechanism.take_any(&mut rig.host), Came::Nothing);
    }

    /// T-A13: one that waits for the IRET of a handler is not let in to whoever is next.
    #[test]
    fn one_that_waits_for_its_guest_when_that_leaves_comes_with_it_again() {
        let (mut rig, mut guest, mut other) = two();
        rig.resume(&mut guest);
        rig.host.nmi_waits = true;
        rig.pause(&mut guest);
        rig.resume(&mut other);
        assert!(!rig.host.nmi_waits);
        assert_eq!(other.mechanism.take_any(&mut rig.host), Came::Nothing);
        rig.pause(&mut other);
        rig.resume(&mut guest);
        assert_eq!([0; 2].map(|_| guest.mechanism.take_any(&mut rig.host)), [Came::Nmi, Came::Nothing]);
    }

    /// A26, T-A12: what waits beside the interrupt is seen to where all of it is.
    #[test]
    fn an_entry_is_armed_again_at_once_where_nothing_else_waits() {
        const NOTHING: Pending = Pending { late: false, unseen: false, nmi: false };
        let (mut rig, mut guest, _) = two();
        rig.resume(&mut guest);
        assert!(!guest.mechanism.arm_again(&mut rig.host), "nothing has come");
        for pending in [
            Pending { late: true, ..NOTHING },
            Pending { unseen: true, ..NOTHING },
            Pending { nmi: true, ..NOTHING },
            NOTHING,
        ] {
            overflow(&mut rig, &mut guest);
            guest.mechanism.owe(pending);
            assert_eq!(guest.mechanism.arm_again(&mut rig.host), pending == NOTHING, "{pending:?}");
            while guest.mechanism.take_any(&mut rig.host) != Came::Nothing {}
            rig.mirror(&mut guest, true);
        }
        assert_eq!(guest.mechanism.counts().interrupts, 1, "those told of are counted by who is told");
    }

    /// A26: on a processor where the hypervisor cannot have a counter run over.
    #[test]
    fn an_entry_is_not_armed_again_at_once_while_a_counter_is_owed() {
        let mut rig = Rig::intel(intel::Config { version: 3, ..intel::Config::default() });
        let mut guest = rig.guest(Passthrough::new().direct_interrupts());
        rig.resume(&mut guest);
        for (msr, value) in [(0x186, 0xC0 | 3 << 16 | 1 << 20 | EventSelector::ENABLE), (0x4C1, (1 << 48) - 1)] {
            rig.wrmsr(&mut guest, msr, value).expect("legal");
        }
        (0..3).for_each(|_| rig.exit(&mut guest, 3, false));
        rig.step(&mut guest, 3, &ONE);
        assert!(!guest.mechanism.arm_again(&mut rig.host));
        assert_eq!(guest.mechanism.take_any(&mut rig.host), Came::ToGuest);
        guest.mechanism.settle(&mut rig.registers);
        assert_eq!(rig.rdpmc(&mut guest, 0), Ok(3));
    }

    /// An entry that delivers once is told of once, and again after it has been routed again.
    #[test]
    fn each_delivery_is_told_of_once() {
        let (mut rig, mut guest, _) = two();
        rig.resume(&mut guest);
        for _ in 0..3 {
            overflow(&mut rig, &mut guest);
            assert_eq!([0; 2].map(|_| guest.mechanism.take_any(&mut rig.host)), [Came::ToGuest, Came::Nothing]);
            rig.mirror(&mut guest, true);
        }
        overflow(&mut rig, &mut guest);
        rig.mirror(&mut guest, false);
        assert!(!rig.registers.nmis_passed);
        overflow(&mut rig, &mut guest);
        assert_eq!([0; 2].map(|_| guest.mechanism.take_any(&mut rig.host)), [Came::ToGuest, Came::Nothing]);
        assert_eq!(guest.interrupts, 4);
    }
}
