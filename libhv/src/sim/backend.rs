//! The simulated processor as a backend: entered by the run loop, and told what was decided.

use super::check;
use super::processor::{Left, Processor, Record, Shadow, Vendor};
use super::program::Op;
use crate::address::Gpa;
use crate::error::EntryFailure;
use crate::exit::{Event, Exit, GuestOwnedMsr, Msr, RawExit};
use crate::memory::GuestMemory;
use crate::memory::nested::Access;
use crate::registers::{ControlRegister, DescriptorTable, EntryState, GuestState};
use crate::time::Tsc;
use crate::vcpu::{Backend, Offers};
use core::ops::RangeInclusive;

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;

/// The MSRs that are switched with the guest, see [`Backend::switched_msr`].
pub(super) const SWITCHED: [u32; 13] = [
    0x174,
    0x175,
    0x176,
    0x1D9,
    0x277,
    0xC000_0081,
    0xC000_0082,
    0xC000_0083,
    0xC000_0084,
    0xC000_0100,
    0xC000_0101,
    0xC000_0102,
    0xC000_0103,
];

/// VM entry with events blocked by MOV SS (SDM Vol. 3C 31.4).
const BLOCKED_BY_MOV_SS: u32 = 26;

impl Processor {
    /// Lets the guest reach ports without leaving.
    pub fn pass_ports(&mut self, ports: RangeInclusive<u16>) {
        self.passed_ports.push(ports);
    }
}

impl Backend for Processor {
    fn load(&mut self, entry: &EntryState) {
        self.gprs = entry.gprs;
        self.rip = entry.rip;
        self.set_rflags(entry.rflags);
        self.set_control(ControlRegister::Cr0, entry.cr0);
        self.cr3 = entry.cr3;
        self.set_control(ControlRegister::Cr4, entry.cr4);
        self.set_efer(entry.efer);
        self.segments = entry.segments;
        self.tables = (entry.gdtr, entry.idtr);
        (self.shadow, self.nmi_blocked, self.step) = (Shadow::None, false, false);
        (self.injection, self.interrupted, self.left) = (None, None, Left::default());
    }

    /// # Panics
    /// When the hypervisor has done what it must not, see the words of the panic.
    fn enter(&mut self) -> Result<Exit, EntryFailure> {
        self.check_entry();
        let refuses = self.refuses_in == 1;
        self.refuses_in = self.refuses_in.saturating_sub(1);
        if refuses {
            return Err(EntryFailure::VmInstruction(BLOCKED_BY_MOV_SS));
        }
        self.left = Left::default();
        self.enter_counting()?;
        self.timer_expires = self.timer.map_or(u64::MAX, |count| self.now().0.saturating_add(count));
        let mut exit = self.injection.take().and_then(|event| self.deliver(event));
        let exit = loop {
            if let Some(exit) = exit.or_else(|| self.between()).or_else(|| self.step()) {
                break exit;
            }
            exit = None;
        };
        if self.vendor == Vendor::Amd && matches!(self.interrupted, Some(Event::Software { .. })) {
            self.interrupted = None;
        }
        self.exit_counting(self.vendor == Vendor::Intel && exit == Exit::Nmi);
        let now = self.now().0;
        self.timer = self.timer.map(|_| self.timer_expires.saturating_sub(now));
        self.left.raw = match exit {
            Exit::Unhandled(raw) => raw,
            _ => RawExit { rip: self.rip, ..RawExit::default() },
        };
        Ok(exit)
    }

    fn raw_exit(&self) -> RawExit {
        self.left.raw
    }

    /// # Panics
    /// When the last exit was not an instruction's, or has been advanced over.
    fn advance(&mut self, _memory: &GuestMemory) {
        let (_, length) = self.left.instruction.expect("advanced over an exit that is no instruction's");
        self.advance_to(self.rip.wrapping_add(length.into()) & 0xFFFF_FFFF);
    }

    /// # Panics
    /// When the last exit was not an instruction's, has been advanced over, or the instruction ends elsewhere.
    fn advance_to(&mut self, next_rip: u64) {
        let (op, length) = self.left.instruction.take().expect("advanced over an exit that is no instruction's");
        let end = self.left.raw.rip.wrapping_add(length.into()) & 0xFFFF_FFFF;
        assert_eq!(next_rip, end, "{op:?} ends at {end:#x}");
        assert!(self.interrupted.is_none(), "advanced while an event was being delivered");
        self.rip = next_rip;
        self.shadow = Shadow::None;
        self.records.push(match op {
            Op::Wrmsr => Record::Wrote(self.gprs[1] as u32, self.edx_eax(), self.now()),
            op => Record::Completed(op, self.gprs[0] as u32),
        });
        if self.rflags & RFLAGS_TF != 0 {
            self.inject(Event::Exception { vector: 1, error_code: None });
        }
    }

    fn take_interrupted(&mut self) -> Option<Event> {
        self.interrupted.take()
    }

    fn accepts_interrupt(&self) -> bool {
        self.rflags & RFLAGS_IF != 0 && self.shadow == Shadow::None && self.injection.is_none()
    }

    fn accepts_nmi(&self) -> bool {
        !self.nmi_blocked && self.shadow == Shadow::None && self.injection.is_none()
    }

    /// # Panics
    /// When it replaces an event that would be lost with it: an interrupt or an NMI.
    fn inject(&mut self, event: Event) {
        let lost = matches!(self.injection, Some(Event::Interrupt(_) | Event::Nmi));
        assert!(!lost, "{:?} is lost to {event:?}", self.injection);
        self.injection = Some(event);
    }

    fn injected(&self) -> Option<Event> {
        self.injection
    }

    fn watch_interrupt_window(&mut self, on: bool) {
        self.watches_interrupts = on;
    }

    fn watch_nmi_window(&mut self, on: bool) {
        self.watches_nmi = on;
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    fn pass_msr(&mut self, msr: GuestOwnedMsr, read: bool, write: bool) {
        self.passed_msrs.insert(msr.msr().0, (read, write));
    }

    fn switched_msr(&self, msr: Msr) -> Option<u64> {
        self.switched.get(&msr.0).copied()
    }

    /// # Panics
    /// When the guest may not hold the value: an address that is not canonical.
    fn set_switched_msr(&mut self, msr: Msr, value: u64) -> bool {
        let is_address = matches!(msr.0, 0x175 | 0x176 | 0xC000_0082 | 0xC000_0083 | 0xC000_0100..=0xC000_0102);
        let canonical = (value as i64) << 16 >> 16 == value as i64;
        assert!(!is_address || canonical, "{msr:?} holds an address that is not canonical: {value:#x}");
        self.switched.get_mut(&msr.0).map(|held| *held = value).is_some()
    }

    fn descriptor_tables(&self) -> (DescriptorTable, DescriptorTable) {
        self.tables
    }

    fn set_read_only(&mut self, page: Option<Gpa>) -> bool {
        if page.is_some_and(|page| self.nested.access(page).is_none()) {
            return false;
        }
        let before = core::mem::replace(&mut self.read_only, page);
        for (page, access) in [(before, Access::ALL), (page, Access::READ_EXECUTE)] {
            if let Some(page) = page {
                self.nested.set(page, Some(access));
            }
        }
        self.flush_nested();
        true
    }

    fn flush_nested(&mut self) {
        self.nested.flush();
    }

    fn offers(&self) -> Offers {
        Offers { rdtscp: true, invpcid: false, xsaves: false }
    }

    fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// # Panics
    /// When XSETBV would fault: CR4.OSXSAVE is clear, or the value is not one the processor takes.
    fn set_xcr0(&mut self, value: u64) {
        check::xcr0(value, self.cr4);
        self.xcr0 = value;
    }

    fn arm_timer(&mut self, now: Tsc, deadline: Option<Tsc>) -> bool {
        if self.vendor == Vendor::Intel {
            self.timer = deadline.map(|deadline| deadline.since(now));
        }
        self.vendor == Vendor::Intel
    }
}
