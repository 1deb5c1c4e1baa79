//! The interpreter: one instruction at a time, and what comes between two.

use super::counting::{Counting, Doing};
use super::pmu::{Kind, Pmu};
use super::processor::{Processor, Record, SPENT, Shadow, Vendor};
use super::program::Op;
use crate::address::{Gpa, Gva};
use crate::exit::{ControlAccess, Event, Exit, Msr, NestedPageFault, PortIo, RawExit, Width};
use crate::registers::{Gpr, GuestState};
use core::cell::Cell;

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
/// What POPFD and IRETD can load here: the arithmetic flags, TF, IF, DF, AC, ID.
const RFLAGS_LOADABLE: u64 = 0x0024_0FD5;
const RFLAGS_ZF: u64 = 1 << 6;
const CR4_PCE: u64 = 1 << 8;
const CR4_OSXSAVE: u64 = 1 << 18;
const UNDEFINED: Event = Event::Exception { vector: 6, error_code: None };

impl Processor {
    /// Takes what comes between two instructions, in the order of the manual (SDM Vol. 3A 6.9, Vol. 3C 26.2, 26.5):
    /// traps of the last instruction, the timer, NMI window, the host's NMIs and interrupts, interrupt window.
    pub(super) fn between(&mut self) -> Option<Exit> {
        if core::mem::take(&mut self.step) {
            return Some(Exit::Exception { vector: 1, error_code: None });
        }
        if self.take_virtual_interrupt() {
            // Its handler is next, or the exit that its delivery meets.
            if let Some(exit) = self.deliver(Event::Nmi) {
                return Some(exit);
            }
        }
        if self.timer_expires <= self.now().0 {
            return Some(Exit::TimerExpired);
        }
        if self.watches_nmi && !self.nmi_blocked && self.shadow == Shadow::None {
            return Some(Exit::NmiWindow);
        }
        if !self.gets_nmis() {
            if self.wires.if_counting(Counting::nmi) == Some(true) {
                return Some(Exit::Nmi);
            }
        } else if !self.nmi_blocked
            && self.shadow == Shadow::None
            && self.wires.if_counting(Counting::take_nmi) == Some(true)
            && let Some(exit) = self.deliver(Event::Nmi)
        {
            return Some(exit);
        }
        if self.wires.interrupts() {
            let vector = (self.vendor == Vendor::Intel).then(|| self.wires.acknowledge());
            return Some(Exit::ExternalInterrupt(vector));
        }
        if self.watches_interrupts && self.rflags & RFLAGS_IF != 0 && self.shadow == Shadow::None {
            return Some(Exit::InterruptWindow);
        }
        (self.executed >= self.budget).then_some(Exit::Unhandled(RawExit {
            code: SPENT,
            rip: self.rip,
            info1: 0,
            info2: 0,
        }))
    }

    /// Executes one instruction, or returns why it exits; in one cycle, whatever comes of it.
    pub(super) fn step(&mut self) -> Option<Exit> {
        self.executed += 1;
        self.wires.now.set(self.wires.now.get() + 1);
        let (from, cpl) = (self.rip, self.cpl());
        (self.doing, self.touched) = (Doing::default(), Cell::default());
        let exit = self.attempt(cpl);
        self.doing.retires &= exit.is_none();
        let (doing, to, touched) = (self.doing, self.rip, self.touched.get());
        self.wires.if_counting(|counting| counting.executed(cpl, doing, from, to, touched));
        exit
    }

    fn attempt(&mut self, cpl: u8) -> Option<Exit> {
        if let Err(refused) = self.nested.check(self.rip, |access| access.execute) {
            return Some(self.fetch_fault(refused.present));
        }
        let offset = self.rip.wrapping_sub(self.first.into());
        let op = usize::try_from(offset).ok().and_then(|offset| self.ops.get(offset)).copied().flatten();
        let Some((op, length)) = op else { return self.deliver(UNDEFINED) };
        let traced = self.rflags & RFLAGS_TF != 0;
        // The privilege for RDPMC is checked before its intercept (SDM Vol. 3C 26.1.1, APM Vol. 2 15.7).
        if op == Op::Rdpmc && cpl > 0 && self.cr4 & CR4_PCE == 0 {
            return self.deliver(Event::GENERAL_PROTECTION);
        }
        if let Some(exit) = self.intercepted(op) {
            self.left.instruction = Some((op, length));
            return Some(exit);
        }
        let shadow = core::mem::replace(&mut self.shadow, Shadow::None);
        self.doing.retires = true;
        let exit = self.execute(op, length);
        if exit.is_some() {
            // Nothing was done: the shadow, if there was one, is still there.
            self.shadow = shadow;
            if self.interrupted.is_none() && matches!(exit, Some(Exit::NestedPageFault(_))) {
                self.left.instruction = Some((op, length));
            }
        } else {
            self.step |= traced && self.rflags & RFLAGS_TF != 0 && self.shadow != Shadow::MovSs;
        }
        exit
    }

    /// Ends an instruction: RIP is behind it.
    fn pass(&mut self, length: u8) {
        self.rip = self.rip.wrapping_add(length.into()) & 0xFFFF_FFFF;
    }

    /// Returns the exit of an instruction that is always intercepted, before it does anything.
    fn intercepted(&self, op: Op) -> Option<Exit> {
        let (eax, ecx) = (self.gpr(Gpr::Rax) as u32, self.gpr(Gpr::Rcx) as u32);
        let port = |width, input| {
            let port = self.gpr(Gpr::Rdx) as u16;
            let last = port.saturating_add(width as u16 - 1);
            let passed = self.passed_ports.iter().any(|ports| ports.contains(&port) && ports.contains(&last));
            (!passed).then_some(Exit::PortIo(PortIo { port, width, input, string: false }))
        };
        let passed = self.passed_msrs.get(&ecx).copied().unwrap_or_default();
        match op {
            Op::Cpuid => Some(Exit::Cpuid { leaf: eax, subleaf: ecx }),
            Op::Rdmsr => (!passed.0).then_some(Exit::Rdmsr(Msr(ecx))),
            Op::Rdpmc => (!self.passes_rdpmc).then_some(Exit::Rdpmc(ecx)),
            Op::Wrmsr => (!passed.1).then(|| Exit::Wrmsr(Msr(ecx), self.edx_eax())),
            Op::Out(width) => port(width, false),
            Op::In(width) => port(width, true),
            Op::Hlt => Some(Exit::Halt),
            Op::Xsetbv if self.cr4 & CR4_OSXSAVE != 0 => Some(Exit::Xsetbv { xcr: ecx, value: self.edx_eax() }),
            Op::Hypercall => Some(Exit::Hypercall),
            Op::Wbinvd => Some(Exit::CacheFlush),
            Op::WriteCr4 => Some(Exit::ControlRegister(ControlAccess::Write { number: 4, source: Gpr::Rax })),
            Op::WriteCr8 => Some(Exit::ControlRegister(ControlAccess::Write { number: 8, source: Gpr::Rax })),
            Op::ReadCr8 => Some(Exit::ControlRegister(ControlAccess::Read { number: 8, destination: Gpr::Rax })),
            _ => None,
        }
    }

    /// Executes an instruction that is not intercepted; returns an exit when it meets nested paging, and then has done
    /// nothing.
    fn execute(&mut self, op: Op, length: u8) -> Option<Exit> {
        match op {
            Op::Mov(register, number) => self.set_gpr(register, number.into()),
            Op::Rdtsc => {
                let now = self.now().0.wrapping_add(self.tsc_offset);
                self.set_edx_eax(now);
            }
            Op::Rdmsr => {
                let msr = self.gpr(Gpr::Rcx) as u32;
                if let Some(read) = self.of_pmu(msr, |pmu| pmu.read(msr)) {
                    let Ok(value) = read else { return self.fault(Event::GENERAL_PROTECTION) };
                    self.set_edx_eax(value);
                    self.pass(length);
                    return None;
                }
                let value = self.switched.get(&msr).or(self.own_msrs.get(&msr)).copied().unwrap_or(0);
                self.set_edx_eax(value);
            }
            Op::Wrmsr => {
                let (msr, value) = (self.gpr(Gpr::Rcx) as u32, self.edx_eax());
                if let Some(written) = self.of_pmu(msr, |pmu| pmu.write(msr, value)) {
                    if written.is_err() {
                        return self.fault(Event::GENERAL_PROTECTION);
                    }
                    self.pass(length);
                    self.records.push(Record::Wrote(msr, value, self.now()));
                    return None;
                }
                let registers = if self.switched.contains_key(&msr) { &mut self.switched } else { &mut self.own_msrs };
                registers.insert(msr, value);
                self.records.push(Record::Wrote(msr, value, self.now()));
            }
            Op::In(width) => {
                // Nothing answers at a port of the machine's own.
                let kept = if width == Width::Dword { 0 } else { self.gpr(Gpr::Rax) & !width.mask() };
                self.set_gpr(Gpr::Rax, kept | width.mask());
            }
            Op::Store(address, width) => {
                if let Err(exit) = self.span(address, width, true) {
                    return Some(exit);
                }
                self.write_memory(address.into(), width, self.gpr(Gpr::Rax));
            }
            Op::Load(address, width) => {
                if let Err(exit) = self.span(address, width, false) {
                    return Some(exit);
                }
                let kept = if width == Width::Dword { 0 } else { self.gpr(Gpr::Rax) & !width.mask() };
                self.set_gpr(Gpr::Rax, kept | self.read_memory(address.into(), width));
            }
            Op::Sti => {
                if self.rflags & RFLAGS_IF == 0 {
                    self.shadow = Shadow::Sti;
                }
                self.rflags |= RFLAGS_IF;
            }
            Op::Cli => self.rflags &= !RFLAGS_IF,
            Op::MovSs => self.shadow = Shadow::MovSs,
            Op::Push(number) => {
                let top = (self.gpr(Gpr::Rsp) as u32).wrapping_sub(4);
                if let Err(exit) = self.span(top, Width::Dword, true) {
                    return Some(exit);
                }
                self.write_memory(top.into(), Width::Dword, number.into());
                self.set_gpr(Gpr::Rsp, top.into());
            }
            Op::PopFlags => {
                let top = self.gpr(Gpr::Rsp) as u32;
                if let Err(exit) = self.span(top, Width::Dword, false) {
                    return Some(exit);
                }
                self.load_flags(self.read_memory(top.into(), Width::Dword));
                self.set_gpr(Gpr::Rsp, top.wrapping_add(4).into());
            }
            Op::DropErrorCode => {
                let top = (self.gpr(Gpr::Rsp) as u32).wrapping_add(4);
                self.set_gpr(Gpr::Rsp, top.into());
            }
            Op::PushAll => {
                let top = self.gpr(Gpr::Rsp) as u32;
                let slots: [u32; 8] = core::array::from_fn(|index| top.wrapping_sub(4 * (index as u32 + 1)));
                if let Some(exit) = slots.iter().find_map(|&slot| self.span(slot, Width::Dword, true).err()) {
                    return Some(exit);
                }
                for (slot, value) in slots.into_iter().zip(self.gprs) {
                    self.write_memory(slot.into(), Width::Dword, value);
                }
                self.set_gpr(Gpr::Rsp, top.wrapping_sub(32).into());
            }
            Op::PopAll => {
                let top = self.gpr(Gpr::Rsp) as u32;
                let slots: [u32; 8] = core::array::from_fn(|index| top.wrapping_add(4 * (7 - index as u32)));
                if let Some(exit) = slots.iter().find_map(|&slot| self.span(slot, Width::Dword, false).err()) {
                    return Some(exit);
                }
                for (register, slot) in slots.into_iter().enumerate() {
                    self.gprs[register] = self.read_memory(slot.into(), Width::Dword);
                }
                self.set_gpr(Gpr::Rsp, top.wrapping_add(32).into());
            }
            Op::AddEax(number) => {
                let sum = (self.gpr(Gpr::Rax) as u32).wrapping_add(number);
                self.set_gpr(Gpr::Rax, sum.into());
            }
            Op::ReturnTo(register) => {
                let top = self.gpr(Gpr::Rsp) as u32;
                if let Err(exit) = self.span(top, Width::Dword, true) {
                    return Some(exit);
                }
                self.write_memory(top.into(), Width::Dword, self.gpr(register));
            }
            Op::Iret => return self.iret(),
            Op::Jump(to) => {
                self.doing.branch = Some((Kind::DirectJump, true));
                self.rip = to.into();
                return None;
            }
            Op::JumpNotZero(to) => {
                let taken = self.rflags & RFLAGS_ZF == 0;
                self.doing.branch = Some((Kind::Conditional, taken));
                if taken {
                    self.rip = to.into();
                    return None;
                }
            }
            Op::Call(to) => {
                let top = (self.gpr(Gpr::Rsp) as u32).wrapping_sub(4);
                if let Err(exit) = self.span(top, Width::Dword, true) {
                    return Some(exit);
                }
                let resume = self.rip.wrapping_add(length.into());
                self.write_memory(top.into(), Width::Dword, resume);
                self.set_gpr(Gpr::Rsp, top.into());
                self.doing.branch = Some((Kind::DirectCall, true));
                self.rip = to.into();
                return None;
            }
            Op::Return => {
                let top = self.gpr(Gpr::Rsp) as u32;
                if let Err(exit) = self.span(top, Width::Dword, false) {
                    return Some(exit);
                }
                self.rip = self.read_memory(top.into(), Width::Dword);
                self.set_gpr(Gpr::Rsp, top.wrapping_add(4).into());
                self.doing.branch = Some((Kind::Return, true));
                return None;
            }
            Op::Decrement(register) => {
                let before = self.gpr(register) as u32;
                let after = before.wrapping_sub(1);
                self.set_gpr(register, after.into());
                self.set_flags_of_decrement(before, after);
            }
            Op::Rdpmc => {
                let ecx = self.gpr(Gpr::Rcx) as u32;
                let value = self.wires.if_counting(|counting| counting.pmu.read_counter(ecx));
                let Some(Ok(value)) = value else { return self.fault(Event::GENERAL_PROTECTION) };
                self.set_edx_eax(value);
            }
            Op::Int3 | Op::Int(_) => {
                let (vector, exception) = if let Op::Int(vector) = op { (vector, false) } else { (3, true) };
                self.doing.branch = Some((Kind::Other, true));
                return self.deliver(Event::Software { vector, length, exception });
            }
            Op::Ud2 | Op::Xsetbv => return self.fault(UNDEFINED),
            Op::Nop | Op::Pause | Op::Out(_) => {}
            Op::Cpuid | Op::Hlt | Op::Hypercall | Op::Wbinvd | Op::WriteCr4 | Op::WriteCr8 | Op::ReadCr8 => {
                unreachable!("{op:?} is always intercepted")
            }
        }
        self.pass(length);
        None
    }

    /// Delivers a fault of the instruction at hand, which does not retire.
    fn fault(&mut self, event: Event) -> Option<Exit> {
        self.doing.retires = false;
        self.deliver(event)
    }

    /// Lends the PMU when it has the MSR.
    fn of_pmu<T>(&self, msr: u32, access: impl FnOnce(&mut Pmu) -> T) -> Option<T> {
        self.wires.if_counting(|counting| counting.pmu.has(msr).then(|| access(&mut counting.pmu))).flatten()
    }

    /// OF, SF, ZF, AF and PF after DEC of 32 bits (SDM Vol. 2A "DEC"). CF stays.
    fn set_flags_of_decrement(&mut self, before: u32, after: u32) {
        let mut set = |bit: u32, is: bool| self.rflags = self.rflags & !(1 << bit) | u64::from(is) << bit;
        set(2, (after as u8).count_ones().is_multiple_of(2));
        set(4, before & 0xF == 0);
        set(6, after == 0);
        set(7, after >> 31 != 0);
        set(11, before == 1 << 31);
    }

    fn load_flags(&mut self, flags: u64) {
        self.rflags = self.rflags & !RFLAGS_LOADABLE | flags & RFLAGS_LOADABLE;
    }

    /// Pops EIP, CS and EFLAGS. NMIs are open from here on.
    fn iret(&mut self) -> Option<Exit> {
        let top = self.gpr(Gpr::Rsp) as u32;
        let slots = [top, top.wrapping_add(4), top.wrapping_add(8)];
        if let Some(exit) = slots.iter().find_map(|&slot| self.span(slot, Width::Dword, false).err()) {
            return Some(exit);
        }
        let [resume, _, flags] = slots.map(|slot| self.read_memory(slot.into(), Width::Dword));
        self.rip = resume;
        self.load_flags(flags);
        self.set_gpr(Gpr::Rsp, top.wrapping_add(12).into());
        self.nmi_blocked = false;
        self.doing.branch = Some((Kind::Other, true));
        self.records.push(Record::Returned);
        None
    }

    /// Translates the bytes of an operand, which may lie in two pages.
    fn span(&self, address: u32, width: Width, write: bool) -> Result<(), Exit> {
        self.translate(address.into(), write)?;
        self.translate(address.wrapping_add(width as u32 - 1).into(), write)
    }

    fn fetch_fault(&self, present: bool) -> Exit {
        Exit::NestedPageFault(NestedPageFault {
            gpa: Gpa::new(self.rip),
            gva: (self.vendor == Vendor::Intel).then(|| Gva::new(self.rip)),
            write: false,
            fetch: true,
            present,
            page_walk: false,
        })
    }
}
