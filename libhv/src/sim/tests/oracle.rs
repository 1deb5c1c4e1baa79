//! What a guest must have seen, from what it did: a local APIC as sorted sets, read along the journal.

use crate::exit::Event;
use crate::sim::{Op, Record};
use crate::time::Tsc;
use std::collections::BTreeSet;
use std::vec::Vec;

/// The vector of the timer in TSC-deadline mode.
pub(super) const TIMER: u8 = 0xEC;

/// Follows a journal of a guest, and panics at the first thing that should not have happened.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    requested: BTreeSet<u8>,
    served: Vec<u8>,
    priority: u8,
    nmi: bool,
    in_nmi_handler: bool,
    armed: Option<u64>,
    /// Expiries since the timer's last delivery.
    expired: usize,
    /// The last delivery may have had an expiry of the same moment in it, or not.
    doubtful: bool,
    pub(super) interrupts: usize,
    pub(super) nmis: usize,
}

impl Oracle {
    pub(super) fn follow(&mut self, journal: &[Record]) {
        for &record in journal {
            match record {
                Record::Wrote(msr, value, moment) => self.wrote(msr, value, moment),
                Record::Completed(Op::Store(address, _), eax) if address >> 12 == 0xFEE00 => {
                    // TSC-deadline mode has its MSR alone: no register of the page needs a moment.
                    self.wrote(0x800 | (address >> 4 & 0xFF), eax.into(), Tsc(0));
                }
                Record::Completed(Op::WriteCr8, eax) => self.priority = (eax as u8) << 4,
                Record::Delivered(Event::Interrupt(vector), moment) => self.interrupt(vector, moment),
                Record::Delivered(Event::Nmi, _) => {
                    assert!(self.nmi, "an NMI that nobody sent");
                    assert!(!self.in_nmi_handler, "an NMI in its own handler");
                    (self.nmi, self.in_nmi_handler) = (false, true);
                    self.nmis += 1;
                }
                Record::Returned => self.in_nmi_handler = false,
                _ => {}
            }
        }
    }

    /// Panics unless all that was asked for has come.
    pub(super) fn finish(&self) {
        assert!(self.requested.is_empty(), "never delivered: {:x?}", self.requested);
        assert!(self.served.is_empty(), "never ended: {:x?}", self.served);
        assert!(!self.nmi, "an NMI was never delivered");
        assert_eq!((self.expired, self.armed), (0, None), "the timer's interrupt was never delivered");
    }

    fn expire(&mut self, now: u64) {
        if self.armed.is_some_and(|deadline| deadline <= now) {
            self.armed = None;
            self.expired += 1;
        }
    }

    fn wrote(&mut self, msr: u32, value: u64, moment: Tsc) {
        match msr {
            0x83F => drop(self.requested.insert(value as u8)),
            0x830 => {
                assert_eq!(value & !0x4FF, 0x4_0000, "this oracle knows messages to self");
                if value & 0x400 != 0 {
                    self.nmi = true;
                } else {
                    self.requested.insert(value as u8);
                }
            }
            0x80B => drop(self.served.pop()),
            0x6E0 => {
                self.expire(moment.0);
                self.armed = (value != 0).then_some(value);
            }
            _ => {}
        }
    }

    fn interrupt(&mut self, vector: u8, moment: Tsc) {
        self.interrupts += 1;
        let served = self.served.last().map_or(0, |vector| vector >> 4);
        assert!(vector >> 4 > served.max(self.priority >> 4), "{vector:#x} is not above what is served");
        if vector == TIMER {
            self.expire(moment.0 - 1);
            let early = self.expired == 0;
            self.expire(moment.0);
            assert!(self.expired > 0 || self.doubtful, "the timer's interrupt came too early, or twice");
            self.doubtful = !early && self.expired > 0 && self.armed.is_none();
            self.expired = 0;
        } else {
            assert!(self.requested.remove(&vector), "{vector:#x} was not asked for, or came twice");
            let above = self.requested.last().copied().unwrap_or(0);
            assert!(above < vector, "{above:#x} has waited longer than {vector:#x}");
        }
        self.served.push(vector);
    }
}
