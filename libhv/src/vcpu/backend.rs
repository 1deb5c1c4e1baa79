//! What a virtualization backend does: enter, tell why the guest left, and carry out what was decided.

use crate::address::Gpa;
use crate::devices::lapic::ApicPage;
use crate::error::EntryFailure;
use crate::exit::{Event, Exit, GuestOwnedMsr, Msr, RawExit};
use crate::hw::PmuHardware;
use crate::memory::GuestMemory;
use crate::registers::{DescriptorTable, EntryState, GuestState, VectorState};
use crate::time::Tsc;

/// Instructions that a backend lets work in the guest, where the host has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offers {
    /// RDTSCP and RDPID, with IA32_TSC_AUX the guest's own.
    pub rdtscp: bool,
    /// INVPCID
    pub invpcid: bool,
    /// XSAVES and XRSTORS
    pub xsaves: bool,
}

/// Whoever has a backend and sees to its exits: the run loop.
pub trait Handler<B> {
    /// What comes of an exit.
    type Answer;

    /// Returns the backend.
    fn backend(&mut self) -> &mut B;

    /// Sees to one exit.
    fn handle(self, exit: Exit) -> Self::Answer;

    /// Sees to one exit that is none of CPUID, RDMSR, WRMSR, a port, a nested page fault, a hypercall and an APIC write:
    /// [`handle`](Self::handle) without the code for these, for a backend that calls it for each of them.
    fn handle_rare(self, exit: Exit) -> Self::Answer;
}

/// One virtual processor on one vendor's hardware, or in `sim`.
///
/// Everything starts closed: every MSR and port is intercepted. All methods are called with the guest not running.
pub trait Backend: GuestState + VectorState + PmuHardware {
    /// There are processors for this backend that serve the registers of a local APIC from a page, see
    /// [`virtualize_apic`](Self::virtualize_apic).
    const SERVES_APIC: bool = false;

    /// Sets the guest's registers to what a loader or a reset asks for.
    fn load(&mut self, entry: &EntryState);

    /// Enters the guest and returns why it left. The exit's fields have been read once, before this returns.
    ///
    /// # Errors
    /// When the processor refuses to enter.
    fn enter(&mut self) -> Result<Exit, EntryFailure>;

    /// Enters the guest and returns what `handler` answers to why it left.
    ///
    /// A backend may call the handler at several places, one for each frequent kind of exit: the compiler then makes
    /// straight code of each, where one place would sort the kinds twice.
    ///
    /// # Errors
    /// Those of [`enter`](Self::enter).
    #[inline(always)]
    fn enter_for<T: Handler<Self>>(mut handler: T) -> Result<T::Answer, EntryFailure>
    where
        Self: Sized,
    {
        let exit = handler.backend().enter()?;
        Ok(handler.handle(exit))
    }

    /// Returns the last exit as the processor told it.
    fn raw_exit(&self) -> RawExit;

    /// Moves RIP past the instruction that exited and ends the interrupt shadow (STI, MOV SS) it stood in. With
    /// RFLAGS.TF set the guest gets the single-step #DB it would have got. `memory` serves processors that do not
    /// report the length of the instruction.
    fn advance(&mut self, memory: &GuestMemory);

    /// Does what [`advance`](Self::advance) does, for a caller that has the last exit at hand, and `rip`, where the
    /// guest stood: what these say need not be found out again.
    #[inline(always)]
    fn advance_past(&mut self, _exit: &Exit, _rip: u64, memory: &GuestMemory) {
        self.advance(memory);
    }

    /// Does what [`advance`](Self::advance) does for an instruction whose end the emulator knows: sets RIP to
    /// `next_rip`.
    fn advance_to(&mut self, next_rip: u64);

    /// Returns the event whose delivery the last exit interrupted, once.
    fn take_interrupted(&mut self) -> Option<Event>;

    /// Returns whether a maskable interrupt would be taken at once: RFLAGS.IF, no shadow, nothing to be injected.
    fn accepts_interrupt(&self) -> bool;

    /// Returns whether an NMI would be taken at once: not blocked by an earlier one, no shadow, nothing to be injected.
    fn accepts_nmi(&self) -> bool;

    /// Has the next entry deliver `event`; replaces one given before. A #PF's address goes to CR2 by the caller.
    fn inject(&mut self, event: Event);

    /// Returns the event that the next entry will deliver.
    fn injected(&self) -> Option<Event>;

    /// Asks for an [`Exit::InterruptWindow`] as soon as the guest can take an interrupt, or stops asking.
    fn watch_interrupt_window(&mut self, on: bool);

    /// Asks for an [`Exit::NmiWindow`] as soon as the guest can take an NMI, or stops asking.
    fn watch_nmi_window(&mut self, on: bool);

    /// Adds `offset` to what the guest's RDTSC and IA32_TIME_STAMP_COUNTER read, modulo 2^64.
    fn set_tsc_offset(&mut self, offset: u64);

    /// Lets the guest read, write or both an MSR without an exit. MSRs no bitmap covers stay intercepted.
    fn pass_msr(&mut self, msr: GuestOwnedMsr, read: bool, write: bool);

    /// Reads an MSR that the processor switches with the guest (FS, GS and kernel GS base, SYSENTER, STAR, LSTAR,
    /// CSTAR, SFMASK, PAT, TSC_AUX, DEBUGCTL); `None` for any other.
    fn switched_msr(&self, msr: Msr) -> Option<u64>;

    /// Writes an MSR that the processor switches with the guest; returns whether it is one. The value is one the
    /// guest may hold: the caller has checked it.
    fn set_switched_msr(&mut self, msr: Msr, value: u64) -> bool;

    /// Returns GDTR and IDTR.
    fn descriptor_tables(&self) -> (DescriptorTable, DescriptorTable);

    /// Has nested paging keep the guest from writing to one page of its memory from the next entry on, instead of the one
    /// before; `None` for none. A write is an [`Exit::NestedPageFault`] then. Returns whether it can: nothing has changed if
    /// not.
    fn set_read_only(&mut self, page: Option<Gpa>) -> bool {
        page.is_none()
    }

    /// Has the next entry forget what the processor remembers of this guest's nested translations.
    fn flush_nested(&mut self);

    /// Has the next entry forget what the processor remembers of the guest's own translations, as after a change of
    /// CR0.PG or CR4.PGE.
    fn flush_linear(&mut self) {
        self.flush_nested();
    }

    /// Tells the local APIC's task priority class, CR8, to processors that let the guest read it without leaving.
    fn set_task_priority(&mut self, _class: u8) {}

    /// Has the processor serve the registers of the local APIC at FEE00000H from a page, or has every access to them leave
    /// again; returns whether it serves them. What the page holds at first is the caller's to say.
    fn virtualize_apic(&mut self, _on: bool) -> bool {
        false
    }

    /// Gives away the page from which the processor serves the local APIC, once; `None` where it cannot.
    fn give_apic_page(&mut self) -> Option<ApicPage> {
        None
    }

    /// Asks for an [`Exit::TprBelowThreshold`] when the class of the task priority in the page falls below this one, 0 to
    /// 15; 0 stops asking. It is not below it now.
    #[inline(always)]
    fn set_priority_threshold(&mut self, _class: u8) {}

    /// Sets the page-directory-pointer-table entries that PAE paging keeps in the processor. They are legal. Nothing to
    /// do where the processor reads them from memory when it needs them (APM Vol. 2 15.25.10).
    fn set_pdptes(&mut self, _entries: [u64; 4]) {}

    /// Has the backend's own timer cause [`Exit::TimerExpired`] at `deadline`, or at any moment before; `None` stops
    /// it. Returns false where the backend has no timer: the host's is used then. The timer counts while the guest
    /// runs, so that it is late by what the host spends between.
    fn arm_timer(&mut self, _now: Tsc, _deadline: Option<Tsc>) -> bool {
        false
    }

    /// Returns what the guest can be offered on this backend beside what the host's CPUID says.
    fn offers(&self) -> Offers;

    /// Lets the guest change these bits of CR4 without leaving, where the backend can tell bits apart: those that CPUID
    /// offers it.
    fn own_cr4(&mut self, _bits: u64) {}

    /// Returns XCR0, which stays in the processor as the guest has it.
    fn xcr0(&self) -> u64;

    /// Sets XCR0. The value is legal: see [`xsetbv::check`](super::xsetbv::check).
    fn set_xcr0(&mut self, value: u64);

    /// Returns the instruction bytes the processor fetched for the last exit, where it reports them (SVM decode
    /// assists, APM Vol. 2 15.8.4); empty where not.
    fn fetched(&self) -> &[u8] {
        &[]
    }
}
