//! One virtual processor on SVM: what was decided is carried out on its VMCB.
#![expect(unsafe_code, reason = "vouches for the VMCB that the processor enters")]

use super::capability::Capability;
use super::decode::{self, Operands, code};
use super::entry::{self, GuestRegisters};
use super::npt::NptEntry;
use super::vmcb::*;
use super::{event, instructions, msr};
use crate::address::Gpa;
use crate::emulate::{Opcode, control_access, next_instruction};
use crate::error::{EntryFailure, Error, Result};
use crate::exit::{ControlAccess, Event, Exit, GuestOwnedMsr, Msr, RawExit};
use crate::hw::{bare, vector};
use crate::memory::nested::NestedTables;
use crate::memory::permissions::{MsrPermissions, PortPermissions, svm_layout};
use crate::memory::{FrameSource, Frames, GuestMemory};
use crate::registers::{DescriptorTable, EntryState, Gpr, GuestState, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF, VectorState};
use crate::vcpu::{Backend, Handler, Offers};
use bit_field::BitField;
use core::marker::PhantomData;
use core::ops::RangeInclusive;
use raw_cpuid::CpuId;
use x86_64::PhysAddr;

/// DR6.BS: single step.
const DR6_BS: u64 = 1 << 14;
/// #DB
const DEBUG: u8 = 1;
/// #AC
const ALIGNMENT_CHECK: u8 = 17;
/// #MC
const MACHINE_CHECK: u8 = 18;
/// IA32_PAT after a reset (SDM Vol. 3A 12.12.4).
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

/// Where an NMI that waits for the guest's IRET stands. Without vNMI the processor does not tell when the guest's NMI
/// handler has ended: IRET is intercepted, and then stepped over (APM Vol. 2 15.9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NmiState {
    /// The guest can take one.
    Open,
    /// The guest is in its handler.
    Blocked,
    /// The guest is stepped over the IRET, or over the instruction in a shadow; whether RFLAGS.TF was its own.
    Stepping { own_trap: bool, over_iret: bool },
}

/// One virtual processor on SVM.
#[derive(Debug)]
pub struct Svm {
    pub(super) vmcb: Vmcb,
    pub(super) registers: GuestRegisters,
    capability: Capability,
    nested: NestedTables<NptEntry>,
    host: Frames,
    /// What VMSAVE and EFER hold is this processor's: the value does not leave it.
    pinned: PhantomData<*const ()>,
    pub(super) msrs: MsrPermissions,
    ports: PortPermissions,
    nmi: NmiState,
    has_tsc_aux: bool,
}

impl Svm {
    /// Makes a virtual processor on this processor, which it stays on. `asid` is 1 up to what [`Capability::asids`]
    /// says, less one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the processor or its firmware has no SVM or no nested paging;
    /// [`Error::OutOfMemory`] when frames run out.
    ///
    /// # Safety
    /// While the value lives, nobody else uses SVM on this processor, and the host does not rely on registers that no
    /// world switch saves: vector and x87 state, XCR0, DR0 to DR3, IA32_TSC_AUX. Interrupts are off from every exit to
    /// the next entry.
    pub unsafe fn new(frames: &mut impl FrameSource, nested: NestedTables<NptEntry>, asid: u32) -> Result<Self> {
        let root = nested.root();
        let capability = Capability::of_this_processor()?;
        let mut take = |count| frames.allocate(count).ok_or(Error::OutOfMemory("the SVM control structures"));
        let save_area = take(1)?;
        // SAFETY: the capability check found SVM there and enabled; the frame is never released: it is forgotten here.
        unsafe { instructions::enable(&save_area) };
        let mut host = take(1)?;
        // SAFETY: SVME was set above.
        unsafe { instructions::vmsave(&mut host) };
        let mut svm = Self {
            vmcb: Vmcb::new(take(1)?),
            registers: GuestRegisters::default(),
            capability,
            nested,
            host,
            pinned: PhantomData,
            msrs: MsrPermissions::closed(take(2)?, svm_layout),
            ports: PortPermissions::closed(take(3)?),
            nmi: NmiState::Open,
            has_tsc_aux: CpuId::new()
                .get_extended_processor_and_feature_identifiers()
                .is_some_and(|features| features.has_rdtscp()),
        };
        svm.close(root, asid);
        Ok(svm)
    }

    /// Sets the intercepts that make everything closed.
    fn close(&mut self, root: PhysAddr, asid: u32) {
        let (iopm, msrpm) = (self.ports.physical(), self.msrs.physical());
        let control = &mut self.vmcb.control;
        control.cr_reads.set_bit(8, true);
        control.cr_writes.set_bit(0, true).set_bit(4, true).set_bit(8, true);
        for vector in [DEBUG, ALIGNMENT_CHECK, MACHINE_CHECK] {
            control.exceptions.set_bit(vector.into(), true);
        }
        control.intercept3 = {
            use intercept3::*;
            INTR | NMI | INIT | RDPMC | CPUID | INVD | HLT | INVLPGA | IOIO_PROT | MSR_PROT | FERR_FREEZE | SHUTDOWN
        };
        control.intercept4 = {
            use intercept4::*;
            VMRUN | VMMCALL | VMLOAD | VMSAVE | STGI | CLGI | SKINIT | WBINVD | MONITOR | MWAIT | XSETBV | RDPRU
        };
        control.iopm_base_pa = iopm.as_u64();
        control.msrpm_base_pa = msrpm.as_u64();
        control.asid = asid;
        control.virtual_interrupt = V_INTR_MASKING;
        control.nested_control = NP_ENABLE;
        control.nested_cr3 = root.as_u64();
        self.vmcb.save.pat = PAT_AT_RESET;
        self.flush_nested();
    }

    /// Returns the nested tables, to change them. What they say of it, `flush_nested` must follow.
    pub fn nested(&mut self) -> &mut NestedTables<NptEntry> {
        &mut self.nested
    }

    /// Lets the guest reach ports without leaving.
    ///
    /// # Safety
    /// What the ports do is the guest's to do: no device behind them reads or writes memory that is not the guest's, or
    /// changes what the host relies on.
    pub unsafe fn pass_ports(&mut self, ports: RangeInclusive<u16>) {
        self.ports.pass(ports);
    }

    /// Returns what SVM can do here.
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// RFLAGS without the trap flag that stepping over an IRET needs.
    #[inline]
    pub(super) fn guest_rflags(&self) -> u64 {
        match self.nmi {
            NmiState::Stepping { own_trap: false, .. } => self.vmcb.save.rflags & !RFLAGS_TF,
            _ => self.vmcb.save.rflags,
        }
    }

    pub(super) fn set_guest_rflags(&mut self, value: u64) {
        let step = if matches!(self.nmi, NmiState::Stepping { .. }) { RFLAGS_TF } else { 0 };
        self.vmcb.save.rflags = value | step;
    }

    /// Has the guest leave after one instruction, when NMIs open: the IRET of an NMI handler, or one in a shadow.
    fn step_to_nmi(&mut self, over_iret: bool) {
        self.nmi = NmiState::Stepping { own_trap: self.vmcb.save.rflags & RFLAGS_TF != 0, over_iret };
        self.vmcb.save.rflags |= RFLAGS_TF;
        self.vmcb.control.intercept3 &= !intercept3::IRET;
    }

    /// The instruction after which NMIs open has run. Returns whether the #DB is the guest's own as well.
    fn stepped(&mut self, own_trap: bool, over_iret: bool) -> bool {
        self.nmi = NmiState::Open;
        if !own_trap {
            self.vmcb.save.dr6 &= !DR6_BS;
        }
        // An IRET has loaded the RFLAGS of what was interrupted: a trap flag there is the guest's.
        if !own_trap && !over_iret {
            self.vmcb.save.rflags &= !RFLAGS_TF;
        }
        own_trap
    }

    /// Returns the instruction that the last exit reports.
    fn opcode(&self, memory: &GuestMemory) -> Option<Opcode> {
        let control = &self.vmcb.control;
        Some(match control.exit_code {
            code::CPUID => Opcode::Cpuid,
            code::MSR if control.exit_info1 == 0 => Opcode::Rdmsr,
            code::MSR => Opcode::Wrmsr,
            code::HLT => Opcode::Hlt,
            code::VMMCALL => Opcode::Vmmcall,
            code::XSETBV => Opcode::Xsetbv,
            code::WBINVD => Opcode::Wbinvd,
            code::INVD => Opcode::Invd,
            code::RDPMC => Opcode::Rdpmc,
            code::MONITOR => Opcode::Monitor,
            code::MWAIT | code::MWAIT_ARMED => Opcode::Mwait,
            // The intercept of CR0 writes is that of MOV, CLTS and LMSW alike.
            code::CR_READ..code::DR_READ => match control_access(self, memory)? {
                ControlAccess::Clts => Opcode::Clts,
                ControlAccess::Lmsw(_) => Opcode::Lmsw,
                _ => Opcode::MovControl,
            },
            _ => return None,
        })
    }

    /// Moves RIP past `opcode`, whose end is found from its bytes, for processors that do not save where it ends.
    /// Where the bytes cannot be read any more, the guest has changed its page tables under its own feet and runs what
    /// stands there now.
    #[inline(always)]
    fn advance_over(&mut self, opcode: Opcode, memory: &GuestMemory) {
        if let Some(next) = next_instruction(self, memory, opcode) {
            self.advance_to(next);
        }
    }

    /// Ends an instruction that began with RFLAGS.TF or RFLAGS.RF set: RF is spent, TF raises #DB before the next.
    #[cold]
    fn step(&mut self) {
        self.vmcb.save.rflags &= !RFLAGS_RF;
        if self.guest_rflags() & RFLAGS_TF != 0 {
            self.vmcb.save.dr6 |= DR6_BS;
            self.inject(Event::Exception { vector: DEBUG, error_code: None });
        }
    }

    fn interrupt_shadow(&self) -> bool {
        self.vmcb.control.interrupt_state & SHADOW != 0
    }
}

impl Svm {
    /// Runs the guest until it leaves.
    #[inline(always)]
    fn leave(&mut self) -> RawExit {
        let (guest, host) = (self.vmcb.physical().as_u64(), self.host.physical().as_u64());
        // SAFETY: `new` enabled SVM and filled `host`; nested tables map only what is the guest's (`GuestFrames`);
        // `close` set the intercepts, and `self` is borrowed exclusively. The host runs with IF = 0 (`hw::Host`).
        unsafe { entry::run(&mut self.registers, guest, host) };
        let control = &mut self.vmcb.control;
        control.event_injection = 0;
        control.tlb_control = 0;
        self.raw_exit()
    }

    /// Returns the registers that some exits go with.
    #[inline(always)]
    fn operands(&self) -> Operands {
        Operands {
            rax: self.vmcb.save.rax,
            rcx: self.registers.rcx,
            rdx: self.registers.rdx,
            decode_assists: self.capability.decode_assists,
        }
    }

    /// Returns what an exit means; `None` for one that is this backend's own, after which the guest goes on.
    #[inline(never)]
    fn sort(&mut self) -> Option<Exit> {
        let raw = self.raw_exit();
        if raw.code == code::IRET {
            self.step_to_nmi(true);
            return None;
        }
        if let NmiState::Stepping { own_trap, over_iret } = self.nmi
            && raw.code == code::EXCEPTION + u64::from(DEBUG)
            && !self.stepped(own_trap, over_iret)
        {
            return Some(Exit::NmiWindow);
        }
        Some(decode::decode(&raw, self.operands()))
    }
}

/// Handles the kinds of exit that have no code of their own in the loop: there it would cost the others registers.
#[inline(never)]
fn handle_apart<T: Handler<Svm>>(handler: T, exit: Exit) -> core::result::Result<T::Answer, EntryFailure> {
    decode::not_refused(&exit)?;
    Ok(handler.handle_rare(exit))
}

impl Backend for Svm {
    fn load(&mut self, entry: &EntryState) {
        bare::reset_xcr0();
        self.vmcb.save.load(entry);
        for register in Gpr::ALL {
            self.set_gpr(register, entry.gprs[register as usize]);
        }
        self.nmi = NmiState::Open;
        let control = &mut self.vmcb.control;
        control.intercept3 &= !(intercept3::IRET | intercept3::VINTR);
        control.interrupt_state = 0;
        control.event_injection = 0;
        control.virtual_interrupt = V_INTR_MASKING;
    }

    fn enter(&mut self) -> core::result::Result<Exit, EntryFailure> {
        loop {
            self.leave();
            if let Some(exit) = self.sort() {
                return decode::not_refused(&exit).map(|()| exit);
            }
        }
    }

    #[inline(always)]
    fn enter_for<T: Handler<Self>>(mut handler: T) -> core::result::Result<T::Answer, EntryFailure> {
        loop {
            let raw = handler.backend().leave();
            let operands = handler.backend().operands();
            // With a constant for the code each place decodes and handles its own kind alone.
            let of = |code, info1| decode::decode(&RawExit { code, info1, ..raw }, operands);
            return Ok(match raw.code {
                code::CPUID => handler.handle(of(code::CPUID, raw.info1)),
                code::MSR if raw.info1 == 0 => handler.handle(of(code::MSR, 0)),
                code::MSR => handler.handle(of(code::MSR, 1)),
                code::VMMCALL => handler.handle(of(code::VMMCALL, raw.info1)),
                code::NPF => handler.handle(of(code::NPF, raw.info1)),
                code::IOIO => match of(code::IOIO, raw.info1) {
                    Exit::PortIo(access) => handler.handle(Exit::PortIo(access)),
                    other => handler.handle(other),
                },
                _ => match handler.backend().sort() {
                    Some(exit) => return handle_apart(handler, exit),
                    None => continue,
                },
            });
        }
    }

    #[inline]
    fn raw_exit(&self) -> RawExit {
        let control = &self.vmcb.control;
        RawExit {
            code: control.exit_code,
            info1: control.exit_info1,
            info2: control.exit_info2,
            rip: self.vmcb.save.rip,
        }
    }

    fn advance(&mut self, memory: &GuestMemory) {
        let control = &self.vmcb.control;
        if self.capability.nrip_save {
            self.advance_to(control.next_rip);
        } else if control.exit_code == code::IOIO {
            self.advance_to(control.exit_info2);
        } else if let Some(opcode) = self.opcode(memory) {
            self.advance_over(opcode, memory);
        }
    }

    #[inline(always)]
    fn advance_past(&mut self, exit: &Exit, _rip: u64, memory: &GuestMemory) {
        if self.capability.nrip_save {
            return self.advance_to(self.vmcb.control.next_rip);
        }
        match exit {
            Exit::PortIo(_) => self.advance_to(self.vmcb.control.exit_info2),
            Exit::Cpuid { .. } => self.advance_over(Opcode::Cpuid, memory),
            Exit::Rdmsr(_) => self.advance_over(Opcode::Rdmsr, memory),
            Exit::Wrmsr(..) => self.advance_over(Opcode::Wrmsr, memory),
            Exit::Hypercall => self.advance_over(Opcode::Vmmcall, memory),
            _ => self.advance(memory),
        }
    }

    #[inline]
    fn advance_to(&mut self, next_rip: u64) {
        self.vmcb.save.rip = next_rip;
        self.vmcb.control.interrupt_state &= !SHADOW;
        if self.vmcb.save.rflags & (RFLAGS_TF | RFLAGS_RF) != 0 {
            self.step();
        }
    }

    #[inline]
    fn take_interrupted(&mut self) -> Option<Event> {
        let word = core::mem::take(&mut self.vmcb.control.exit_int_info);
        if word.get_bit(31) { event::decode(word) } else { None }
    }

    #[inline]
    fn accepts_interrupt(&self) -> bool {
        self.vmcb.save.rflags & RFLAGS_IF != 0 && !self.interrupt_shadow() && self.vmcb.control.event_injection == 0
    }

    #[inline]
    fn accepts_nmi(&self) -> bool {
        let blocked = matches!(self.nmi, NmiState::Blocked | NmiState::Stepping { over_iret: true, .. });
        !blocked && !self.interrupt_shadow() && self.vmcb.control.event_injection == 0
    }

    fn inject(&mut self, event: Event) {
        self.vmcb.control.event_injection = event::encode(event);
        if event == Event::Nmi {
            // A step that has not come to its end is no more needed.
            self.vmcb.save.rflags = self.guest_rflags();
            self.nmi = NmiState::Blocked;
            self.vmcb.control.intercept3 |= intercept3::IRET;
        }
    }

    #[inline]
    fn injected(&self) -> Option<Event> {
        event::decode(self.vmcb.control.event_injection)
    }

    fn watch_interrupt_window(&mut self, on: bool) {
        let control = &mut self.vmcb.control;
        if on {
            control.intercept3 |= intercept3::VINTR;
            control.virtual_interrupt |= V_IRQ | V_INTR_PRIO | V_IGN_TPR;
        } else {
            control.intercept3 &= !intercept3::VINTR;
            control.virtual_interrupt &= !(V_IRQ | V_INTR_PRIO | V_IGN_TPR);
        }
    }

    /// QEMU's TCG does not intercept MOV from CR8, and reads V_TPR.
    #[inline]
    fn set_task_priority(&mut self, class: u8) {
        self.vmcb.control.virtual_interrupt.set_bits(0..8, class.into());
    }

    /// An NMI that is blocked is told of by the IRET's interception, which its injection has set; one held back by a
    /// shadow is stepped to.
    fn watch_nmi_window(&mut self, on: bool) {
        if on && self.nmi == NmiState::Open {
            self.step_to_nmi(false);
        }
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.control.tsc_offset = offset;
    }

    fn pass_msr(&mut self, msr: GuestOwnedMsr, read: bool, write: bool) {
        self.msrs.pass(msr.msr().0, read, write);
    }

    #[inline]
    fn switched_msr(&self, msr: Msr) -> Option<u64> {
        msr::read(&self.vmcb.save, msr, self.has_tsc_aux)
    }

    #[inline]
    fn set_switched_msr(&mut self, msr: Msr, value: u64) -> bool {
        msr::write(&mut self.vmcb.save, msr, value, self.has_tsc_aux)
    }

    fn descriptor_tables(&self) -> (DescriptorTable, DescriptorTable) {
        self.vmcb.save.tables()
    }

    fn set_read_only(&mut self, page: Option<Gpa>) -> bool {
        self.nested.set_read_only(page).inspect(|_| self.flush_nested()).is_some()
    }

    fn flush_nested(&mut self) {
        // TLB_CONTROL: 3 flushes this guest's translations, 1 all (APM Vol. 2 15.16.2).
        self.vmcb.control.tlb_control = if self.capability.flush_by_asid { 3 } else { 1 };
    }

    fn offers(&self) -> Offers {
        Offers { rdtscp: self.has_tsc_aux, invpcid: true, xsaves: true }
    }

    fn xcr0(&self) -> u64 {
        bare::xcr0()
    }

    fn set_xcr0(&mut self, value: u64) {
        bare::set_xcr0(value);
    }

    fn fetched(&self) -> &[u8] {
        let control = &self.vmcb.control;
        let count = if self.capability.decode_assists { control.fetched_count & 15 } else { 0 };
        &control.fetched[..count.into()]
    }
}

impl VectorState for Svm {
    fn ymm(&self, number: u8) -> [u64; 4] {
        vector::ymm(number)
    }
    fn set_xmm(&mut self, number: u8, value: [u64; 2]) {
        vector::set_xmm(number, value);
    }
    fn set_ymm(&mut self, number: u8, value: [u64; 4]) {
        vector::set_ymm(number, value);
    }
    fn pkru(&self) -> Option<u32> {
        vector::pkru()
    }
}
