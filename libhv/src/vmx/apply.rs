//! The backend's verbs: enter, and carry out what was decided.
#![expect(unsafe_code, reason = "enters the guest")]

use super::decode::{self, ExitFields};
use super::event::{self, Injection};
use super::flags::{ENTRY_FAILURE, ExitReason, Interruptibility, SecondaryControls};
use super::vmcs::Window;
use super::{Deliveries, Vmx, entry, field, msr, timer};
use crate::address::Gpa;
use crate::devices::lapic::ApicPage;
use crate::error::EntryFailure;
use crate::exit::{Event, Exit, GuestOwnedMsr, Msr, RawExit};
use crate::hw::{bare, vector};
use crate::memory::GuestMemory;
use crate::registers::{
    CR0_PE, ControlRegister, DescriptorTable, EntryState, Gpr, GuestState, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF,
    SegmentRegister, VectorState,
};
use crate::time::Tsc;
use crate::vcpu::{Backend, Handler, Offers};
use core::ops::RangeInclusive;

/// VM-instruction error 5: VMRESUME with a VMCS that has not been launched (SDM Vol. 3C 31.4).
const NOT_LAUNCHED: u32 = 5;
/// Pending debug exceptions, bit 14: a single step.
const PENDING_SINGLE_STEP: u64 = 1 << 14;
/// Pending debug exceptions, bit 12: a breakpoint that DR7 enables.
const PENDING_BREAKPOINT: u64 = 1 << 12;
/// IA32_DEBUGCTL.BTF: single-step on branches.
const DEBUGCTL_BTF: u64 = 1 << 1;
/// #DF, whose delivery unblocks nothing.
const DOUBLE_FAULT: u32 = 8;
/// #DB
const DEBUG: u8 = 1;

impl VectorState for Vmx {
    fn ymm(&self, number: u8) -> [u64; 4] {
        vector::ymm(number)
    }
    fn set_xmm(&mut self, number: u8, value: [u64; 2]) {
        vector::set_xmm(number, value);
    }
    fn set_ymm(&mut self, number: u8, value: [u64; 4]) {
        vector::set_ymm(number, value);
    }
}

/// Handles the kinds of exit that have no code of their own in the loop: there it would cost the others registers.
#[inline(never)]
fn handle_apart<T: Handler<Vmx>>(mut handler: T, reason: u32) -> Result<T::Answer, EntryFailure> {
    const APIC_WRITE: u32 = ExitReason::APIC_WRITE.0 as u32;
    if reason == APIC_WRITE {
        return Ok(handle_apic_write(handler));
    }
    if reason & ENTRY_FAILURE != 0 {
        return Err(handler.backend().refused());
    }
    let exit = handler.backend().sort(reason);
    Ok(handler.handle_rare(exit))
}

/// Handles an APIC write, the one frequent kind of them.
#[inline(never)]
fn handle_apic_write<T: Handler<Vmx>>(mut handler: T) -> T::Answer {
    let exit = decode::decode(ExitReason::APIC_WRITE.0.into(), handler.backend());
    handler.handle(exit)
}

impl Backend for Vmx {
    const SERVES_APIC: bool = true;

    fn load(&mut self, state: &EntryState) {
        const DR7_AFTER_RESET: u64 = 0x400;
        for (register, value) in Gpr::ALL.into_iter().zip(state.gprs) {
            self.set_gpr(register, value);
        }
        self.set_rip(state.rip);
        self.set_rflags(state.rflags);
        self.set_control(ControlRegister::Cr0, state.cr0);
        self.set_control(ControlRegister::Cr3, state.cr3);
        self.set_control(ControlRegister::Cr4, state.cr4);
        self.set_efer(state.efer);
        for (register, segment) in SegmentRegister::ALL.into_iter().zip(state.segments) {
            self.set_segment(register, segment);
        }
        self.set_tables(state.gdtr, state.idtr);
        self.vmcs.write(field::GUEST_DR7, DR7_AFTER_RESET);
        self.vmcs.set_debugctl(0);
        self.vmcs.write(field::GUEST_PENDING_DEBUG, 0);
        self.vmcs.write(field::GUEST_INTERRUPTIBILITY, 0);
        self.vmcs.write(field::GUEST_ACTIVITY, 0);
        self.vmcs.write(field::ENTRY_INTERRUPTION, 0);
        self.deliveries = Deliveries::default();
        bare::reset_xcr0();
        self.vmcs.invalidate_linear();
    }

    fn enter(&mut self) -> Result<Exit, EntryFailure> {
        let reason = self.leave()?;
        if reason & ENTRY_FAILURE != 0 { Err(self.refused()) } else { Ok(self.sort(reason)) }
    }

    #[inline(always)]
    fn enter_for<T: Handler<Self>>(mut handler: T) -> Result<T::Answer, EntryFailure> {
        const CPUID: u32 = ExitReason::CPUID.0 as u32;
        const RDMSR: u32 = ExitReason::RDMSR.0 as u32;
        const WRMSR: u32 = ExitReason::WRMSR.0 as u32;
        const VMCALL: u32 = ExitReason::VMCALL.0 as u32;
        const EPT_VIOLATION: u32 = ExitReason::EPT_VIOLATION.0 as u32;
        const IO: u32 = ExitReason::IO.0 as u32;
        let reason = handler.backend().leave()?;
        // With a constant for the reason each place decodes and handles its own kind alone.
        macro_rules! each {
            ($($known:ident)*) => {
                match reason {
                    $($known => {
                        let exit = decode::decode($known, handler.backend());
                        handler.handle(exit)
                    })*
                    IO => match decode::decode(IO, handler.backend()) {
                        Exit::PortIo(access) => handler.handle(Exit::PortIo(access)),
                        other => handler.handle(other),
                    },
                    _ => return handle_apart(handler, reason),
                }
            };
        }
        Ok(each!(CPUID RDMSR WRMSR VMCALL EPT_VIOLATION))
    }

    #[cold]
    fn raw_exit(&self) -> RawExit {
        self.raw()
    }

    #[inline]
    fn advance(&mut self, memory: &GuestMemory) {
        let rip = self.vmcs.read(field::GUEST_RIP);
        self.advance_past(&Exit::Relax, rip, memory);
    }

    #[inline(always)]
    fn advance_past(&mut self, _exit: &Exit, rip: u64, _memory: &GuestMemory) {
        let length = self.vmcs.read(field::EXIT_INSTRUCTION_LENGTH);
        let next = rip.wrapping_add(length.into());
        let next = if (next as u32) < length { self.past_4_gib(next) } else { next };
        self.advance_to(next);
    }

    #[inline]
    fn advance_to(&mut self, next_rip: u64) {
        self.vmcs.write(field::GUEST_RIP, next_rip);
        let blocked = Interruptibility(self.vmcs.read(field::GUEST_INTERRUPTIBILITY));
        if blocked.0 & Interruptibility::SHADOW.0 != 0 {
            self.vmcs.write(field::GUEST_INTERRUPTIBILITY, blocked.with(Interruptibility::SHADOW, false).0);
        }
        let rflags = self.rflags();
        if rflags & (RFLAGS_TF | RFLAGS_RF) != 0 {
            self.step(rflags);
        }
    }

    #[inline]
    fn take_interrupted(&mut self) -> Option<Event> {
        let information = core::mem::take(&mut self.deliveries.interrupted);
        let [error_code, instruction_length] = self.deliveries.interrupted_rest;
        event::decode(Injection { information, error_code, instruction_length })
    }

    #[inline]
    fn accepts_interrupt(&self) -> bool {
        self.deliveries.injected == 0
            && self.rflags() & RFLAGS_IF != 0
            && self.vmcs.read(field::GUEST_INTERRUPTIBILITY) & Interruptibility::SHADOW.0 == 0
    }

    fn accepts_nmi(&self) -> bool {
        let blocking = Interruptibility::SHADOW.union(Interruptibility::BLOCKING_BY_NMI);
        self.deliveries.injected == 0 && self.vmcs.read(field::GUEST_INTERRUPTIBILITY) & blocking.0 == 0
    }

    fn inject(&mut self, event: Event) {
        let protected = match event {
            Event::Exception { .. } => self.vmcs.read(field::GUEST_CR0) & CR0_PE != 0,
            _ => true,
        };
        let Injection { information, error_code, instruction_length } = event::encode(event, protected);
        self.vmcs.write(field::ENTRY_INTERRUPTION, information);
        if information & event::HAS_ERROR_CODE != 0 {
            self.vmcs.write(field::ENTRY_ERROR_CODE, error_code);
        }
        if instruction_length != 0 {
            self.vmcs.write(field::ENTRY_INSTRUCTION_LENGTH, instruction_length);
        }
        self.deliveries.injected = information;
        self.deliveries.injected_rest = [error_code, instruction_length];
    }

    #[inline]
    fn injected(&self) -> Option<Event> {
        let Deliveries { injected: information, injected_rest: [error_code, instruction_length], .. } = self.deliveries;
        event::decode(Injection { information, error_code, instruction_length })
    }

    #[inline]
    fn watch_interrupt_window(&mut self, on: bool) {
        self.vmcs.watch(Window::Interrupt, on);
    }

    #[inline]
    fn watch_nmi_window(&mut self, on: bool) {
        self.vmcs.watch(Window::Nmi, on);
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcs.write(field::TSC_OFFSET, offset);
    }

    fn pass_msr(&mut self, msr: GuestOwnedMsr, read: bool, write: bool) {
        self.msrs.pass(msr.msr().0, read, write);
    }

    #[inline(always)]
    fn switched_msr(&self, msr: Msr) -> Option<u64> {
        msr::read(&self.vmcs, msr, self.tsc_aux)
    }

    #[inline(always)]
    fn set_switched_msr(&mut self, msr: Msr, value: u64) -> bool {
        msr::write(&mut self.vmcs, msr, value, self.tsc_aux)
    }

    fn descriptor_tables(&self) -> (DescriptorTable, DescriptorTable) {
        self.tables()
    }

    fn set_read_only(&mut self, page: Option<Gpa>) -> bool {
        self.nested.set_read_only(page).inspect(|_| self.flush_nested()).is_some()
    }

    fn flush_nested(&mut self) {
        self.vmcs.invalidate_nested();
    }

    fn flush_linear(&mut self) {
        self.vmcs.invalidate_linear();
    }

    fn offers(&self) -> Offers {
        let secondary = self.capabilities.controls().secondary;
        Offers {
            rdtscp: secondary.contains(SecondaryControls::RDTSCP),
            invpcid: secondary.contains(SecondaryControls::INVPCID),
            xsaves: secondary.contains(SecondaryControls::XSAVES),
        }
    }

    fn give_apic_page(&mut self) -> Option<ApicPage> {
        self.virtual_apic.as_mut()?.page.take()
    }

    fn virtualize_apic(&mut self, on: bool) -> bool {
        Self::virtualize_apic(self, on)
    }

    #[inline]
    fn set_priority_threshold(&mut self, class: u8) {
        self.vmcs.set_priority_threshold(class);
    }

    fn own_cr4(&mut self, bits: u64) {
        Self::own_cr4(self, bits);
    }

    fn xcr0(&self) -> u64 {
        bare::xcr0()
    }

    fn set_xcr0(&mut self, value: u64) {
        bare::set_xcr0(value);
    }

    fn set_pdptes(&mut self, entries: [u64; 4]) {
        for (index, entry) in (0..).zip(entries) {
            self.vmcs.write(field::pdpte(index), entry);
        }
    }

    #[inline]
    fn arm_timer(&mut self, now: Tsc, deadline: Option<Tsc>) -> bool {
        let Some(shift) = self.timer_shift else { return false };
        if let Some(deadline) = deadline {
            self.vmcs.write(field::PREEMPTION_TIMER, timer::count(now, deadline, shift));
        }
        self.vmcs.run_timer(deadline.is_some());
        true
    }
}

impl Vmx {
    /// Lets the guest reach ports without leaving.
    ///
    /// # Safety
    /// What the ports do is the guest's to do: no device behind them reads or writes memory that is not the guest's, or
    /// changes what the host relies on.
    pub unsafe fn pass_ports(&mut self, ports: RangeInclusive<u16>) {
        self.ports.pass(ports);
    }

    /// Runs the guest until it leaves, and returns the exit reason.
    #[inline(always)]
    fn leave(&mut self) -> Result<u32, EntryFailure> {
        self.deliveries.injected = 0;
        self.deliveries.interrupted = 0;
        // SAFETY: `self.vmcs` is the current VMCS, arranged and captured in `new`, whose caller vouched for tables and
        // host; `self.registers` are its own.
        if unsafe { entry::resume(&mut self.registers) }.is_err() {
            self.launch()?;
        }
        Ok(self.reason())
    }

    /// Returns what an exit means.
    #[inline(never)]
    fn sort(&mut self, reason: u32) -> Exit {
        decode::decode(reason, self)
    }

    /// Enters for the first time, after VMRESUME has failed.
    #[cold]
    #[inline(never)]
    fn launch(&mut self) -> Result<(), EntryFailure> {
        let failure = EntryFailure::VmInstruction(self.vmcs.read(field::INSTRUCTION_ERROR));
        if failure != EntryFailure::VmInstruction(NOT_LAUNCHED) {
            return Err(failure);
        }
        // SAFETY: as in `leave`.
        unsafe { entry::launch(&mut self.registers) }
            .map_err(|_| EntryFailure::VmInstruction(self.vmcs.read(field::INSTRUCTION_ERROR)))
    }

    #[cold]
    fn refused(&self) -> EntryFailure {
        EntryFailure::InvalidState(self.raw())
    }

    /// Outside 64-bit mode EIP has 32 bits.
    #[cold]
    fn past_4_gib(&self, next: u64) -> u64 {
        if self.code_bits() == 64 { next } else { next & 0xFFFF_FFFF }
    }

    /// Ends an instruction that began with RFLAGS.TF or RFLAGS.RF set: RF is spent, TF raises #DB before the next, with
    /// the breakpoints that the instruction's shadow held back. Left pending, it would be lost to an interrupt that the
    /// entry delivers (SDM Vol. 3C 27.7.3).
    #[cold]
    fn step(&mut self, rflags: u64) {
        self.set_rflags(rflags & !RFLAGS_RF);
        if self.single_steps(rflags) {
            let pending = self.vmcs.read(field::GUEST_PENDING_DEBUG);
            self.deliver_pending(pending | PENDING_SINGLE_STEP);
        }
    }

    fn single_steps(&self, rflags: u64) -> bool {
        rflags & RFLAGS_TF != 0 && self.vmcs.read(field::GUEST_DEBUGCTL) & DEBUGCTL_BTF == 0
    }

    /// Does what a #DB or INT1 (ICEBP) does beside calling the handler, and its interception leaves to the host.
    #[cold]
    fn settle_debug(&mut self, information: u32) {
        if event::is_int1(information) {
            // Its handler finds the address after it; the exit has left the guest at it (SDM Vol. 3C 28.3.3).
            let length = self.vmcs.read(field::EXIT_INSTRUCTION_LENGTH);
            let next = self.vmcs.read(field::GUEST_RIP).wrapping_add(length.into());
            let next = self.past_4_gib(next);
            self.vmcs.write(field::GUEST_RIP, next);
        } else {
            let causes = self.qualification();
            self.vmcs.take_debug_causes(causes);
        }
        let shadow = self.vmcs.read(field::GUEST_INTERRUPTIBILITY) & Interruptibility::SHADOW.0 != 0;
        if shadow && self.single_steps(self.rflags()) {
            // Entry refuses a shadow under RFLAGS.TF without a pending single step (SDM Vol. 3C 27.3.1.5), even when it
            // delivers an event that takes the place of both.
            let pending = self.vmcs.read(field::GUEST_PENDING_DEBUG);
            self.vmcs.write(field::GUEST_PENDING_DEBUG, pending | PENDING_SINGLE_STEP);
        }
    }

    /// Delivers the #DB that a trap has come before: single step or breakpoint of the instruction that caused both. Left
    /// pending, it would be lost to an interrupt that the entry delivers (SDM Vol. 3C 27.7.3).
    #[inline(always)]
    pub(super) fn settle_trap(&mut self) {
        let pending = self.vmcs.read(field::GUEST_PENDING_DEBUG);
        if pending & (PENDING_SINGLE_STEP | PENDING_BREAKPOINT) != 0 {
            self.deliver_pending(pending);
        }
    }

    #[cold]
    #[inline(never)]
    fn deliver_pending(&mut self, causes: u64) {
        self.vmcs.take_debug_causes(causes);
        self.vmcs.write(field::GUEST_PENDING_DEBUG, 0);
        self.inject(Event::Exception { vector: DEBUG, error_code: None });
    }

    /// Keeps what a fault of the guest's interrupted: the delivery of an event, or an IRET that had unblocked NMIs
    /// (SDM Vol. 3C 28.2.3, 28.2.4).
    #[inline(never)]
    pub(super) fn settle_delivery(&mut self, reason: ExitReason) {
        let vectoring = self.vmcs.read(field::IDT_VECTORING);
        if vectoring & event::VALID != 0 {
            self.deliveries.interrupted = vectoring;
            self.deliveries.interrupted_rest =
                [self.vmcs.read(field::IDT_VECTORING_ERROR_CODE), self.vmcs.read(field::EXIT_INSTRUCTION_LENGTH)];
            if event::is_nmi(vectoring) {
                // The NMI blocks others once it has been delivered, which it will be again.
                self.block_nmis(false);
            }
        } else if self.unblocked_by_iret(reason) {
            self.block_nmis(true);
        }
        if reason == ExitReason::EXCEPTION_OR_NMI {
            let information = self.interruption();
            if event::is_nmi(information) {
                bare::unblock_nmis();
            }
            if event::is_debug_exception(information) || event::is_int1(information) {
                self.settle_debug(information);
            }
        }
    }

    fn block_nmis(&mut self, on: bool) {
        let blocked = Interruptibility(self.vmcs.read(field::GUEST_INTERRUPTIBILITY));
        self.vmcs.write(field::GUEST_INTERRUPTIBILITY, blocked.with(Interruptibility::BLOCKING_BY_NMI, on).0);
    }

    fn unblocked_by_iret(&self, reason: ExitReason) -> bool {
        if reason == ExitReason::EPT_VIOLATION {
            return self.qualification() & u64::from(event::UNBLOCKED_BY_IRET) != 0;
        }
        if reason != ExitReason::EXCEPTION_OR_NMI {
            return false;
        }
        let information = self.interruption();
        let double_fault = information & 0xFF == DOUBLE_FAULT;
        !event::is_nmi(information) && !double_fault && information & event::UNBLOCKED_BY_IRET != 0
    }
}
