//! A test image: the VMX backend without the run loop, one feature after the other, on the machine itself.
#![no_std]
#![no_main]

mod guest;
mod machine;

use core::num::NonZeroU16;
use libhv::address::Gpa;
use libhv::exit::{ControlAccess, Event, Exit, Msr, Resolution, StopReason, Width};
use libhv::hw::bare::read_tsc;
use libhv::memory::nested::{Access, NestedTables};
use libhv::memory::{FrameSource, GuestMemory};
use libhv::platform::Machine;
use libhv::registers::{EFER_LME, EntryState, Gpr, GuestState};
use libhv::time::Tsc;
use libhv::vcpu::Backend;
use libhv::vcpu::control::{self, ControlRules};
use libhv::vmx::{EptEntry, Vmx};

libhv::entry!(main);

/// Why a guest's step was not the one expected.
type Step = Result<(), &'static str>;

/// What CPUID 4000_0000H answers in EBX: "libh".
const SIGNATURE: u64 = 0x6862_696C;
const EFER: Msr = Msr(0xC000_0080);
const RULES: ControlRules = ControlRules { cr4: 0x6F0, physical_bits: 39 };

fn main(_machine: Machine) -> libhv::Result<StopReason> {
    machine::load_task_register();
    // SAFETY: called once.
    #[expect(unsafe_code, reason = "the one pool")]
    let mut pool = unsafe { machine::Pool::new() };
    let capabilities = Vmx::check()?;
    libhv::log!(
        "vmx revision {:#x}, pages up to {:?}, timer shift {:?}",
        capabilities.revision(),
        capabilities.largest_page(),
        capabilities.preemption_timer_shift()
    );
    let frames = pool.allocate(16).expect("the pool has more");
    let mut memory = machine::guest_memory(frames);
    let mut tables = NestedTables::<EptEntry>::new(&mut pool, capabilities.largest_page())?;
    tables.map_all(&mut pool, &memory)?;
    let _new = tables.protect(&mut pool, Gpa::new(guest::STACK), 4096, Access::READ_EXECUTE)?;
    build(&mut memory);
    // SAFETY: the image's descriptor tables and mappings are final, TR is loaded, nobody else uses
    // VMX, interrupts are off.
    #[expect(unsafe_code, reason = "the image is the host")]
    let mut vmx = unsafe { Vmx::new(&mut pool, tables, NonZeroU16::MIN) }?;
    vmx.load(&EntryState::real_mode(0, guest::CODE as u16));
    let mut test = Test { vmx, memory, last: None };
    match test.run(&mut pool) {
        Ok(()) => libhv::log!("pass vmx-smoke"),
        Err(why) => libhv::log!("fail vmx-smoke: {why}; last {:?}, {:x?}", test.last, test.vmx.raw_exit()),
    }
    drop(test);
    libhv::log!("left VMX operation");
    Ok(StopReason::PowerOff)
}

/// Puts code and page tables into guest memory.
fn build(memory: &mut GuestMemory) {
    let [level4, level3, level2] = guest::TABLES;
    let mut put = |address, value| memory.write_number(Gpa::new(address), Width::Qword, value).expect("guest memory");
    put(level4, level3 | 3);
    put(level3, level2 | 3);
    put(level2, 0x83);
    memory.write(Gpa::new(guest::CODE), guest::code()).expect("guest memory");
}

struct Test {
    vmx: Vmx,
    memory: GuestMemory,
    last: Option<Exit>,
}

impl Test {
    fn enter(&mut self) -> Result<Exit, &'static str> {
        self.last = None;
        let exit = self.vmx.enter().map_err(|failure| {
            libhv::log!("entry failure: {failure}");
            "the processor refused to enter"
        })?;
        self.last = Some(exit);
        Ok(exit)
    }

    fn expect(&mut self, wanted: Exit, otherwise: &'static str) -> Step {
        if self.enter()? == wanted { Ok(()) } else { Err(otherwise) }
    }

    fn advance(&mut self) {
        self.vmx.advance(&self.memory);
    }

    fn result(&self, offset: u64, width: Width) -> u64 {
        self.memory.read_number(Gpa::new(guest::RESULTS + offset), width).unwrap_or(u64::MAX)
    }

    fn check(&self, offset: u64, width: Width, wanted: u64, otherwise: &'static str) -> Step {
        let found = self.result(offset, width);
        if found == wanted {
            return Ok(());
        }
        libhv::log!("{otherwise}: {found:#x}, not {wanted:#x}");
        Err(otherwise)
    }

    fn answer_cpuid(&mut self) {
        self.vmx.set_gpr(Gpr::Rax, 0x4000_0000);
        self.vmx.set_gpr(Gpr::Rbx, SIGNATURE);
        self.vmx.set_gpr(Gpr::Rcx, 0);
        self.vmx.set_gpr(Gpr::Rdx, 0);
        self.advance();
    }

    fn run(&mut self, pool: &mut machine::Pool) -> Step {
        self.real_mode()?;
        self.to_long_mode()?;
        self.round_trips()?;
        self.device()?;
        self.single_step()?;
        self.interrupted_delivery(pool)?;
        self.nmi()?;
        self.exceptions()?;
        self.timer()?;
        self.finish()
    }

    fn real_mode(&mut self) -> Step {
        self.expect(Exit::Cpuid { leaf: 0x4000_0000, subleaf: 0 }, "real mode: CPUID")?;
        self.answer_cpuid();
        let Exit::PortIo(port) = self.enter()? else { return Err("real mode: OUT") };
        if (port.port, port.width, port.input, port.string) != (0x80, Width::Byte, false, false) {
            return Err("real mode: what OUT says");
        }
        self.advance();
        self.check(0, Width::Dword, SIGNATURE, "real mode: CPUID's answer")?;
        if self.vmx.accepts_interrupt() {
            return Err("real mode: accepts an interrupt with RFLAGS.IF clear");
        }
        self.vmx.watch_interrupt_window(true);
        // STI's shadow covers HLT, whose exit comes first.
        self.expect(Exit::Halt, "real mode: HLT")?;
        if self.vmx.accepts_interrupt() {
            return Err("real mode: accepts an interrupt in the shadow of STI");
        }
        self.advance();
        if !self.vmx.accepts_interrupt() {
            return Err("real mode: accepts no interrupt after HLT");
        }
        self.expect(Exit::InterruptWindow, "real mode: interrupt window")?;
        self.vmx.watch_interrupt_window(false);
        self.vmx.inject(Event::Interrupt(0x20));
        Ok(())
    }

    fn to_long_mode(&mut self) -> Step {
        let access = ControlAccess::Write { number: 4, source: Gpr::Rax };
        self.expect(Exit::ControlRegister(access), "MOV to CR4")?;
        self.check(8, Width::Dword, 1, "interrupts taken in real mode")?;
        if control::resolve(access, &mut self.vmx, &self.memory, &RULES) != Resolution::Complete {
            return Err("MOV to CR4 is legal");
        }
        self.advance();
        self.vmx.own_cr4(RULES.cr4);
        self.expect(Exit::Rdmsr(EFER), "RDMSR of EFER")?;
        let efer = self.vmx.efer();
        self.vmx.set_edx_eax(efer);
        self.advance();
        self.expect(Exit::Wrmsr(EFER, EFER_LME), "WRMSR of EFER")?;
        self.vmx.set_efer(EFER_LME);
        self.advance();
        Ok(())
    }

    fn round_trips(&mut self) -> Step {
        for _ in 0..guest::ROUNDS {
            match self.vmx.enter() {
                Ok(Exit::Cpuid { leaf: 0x4000_0000, subleaf: 0 }) => self.answer_cpuid(),
                other => {
                    libhv::log!("{other:x?}");
                    return Err("64-bit mode: CPUID");
                }
            }
        }
        if self.vmx.code_bits() != 64 || self.vmx.cpl() != 0 {
            return Err("not in 64-bit mode at level 0");
        }
        Ok(())
    }

    fn device(&mut self) -> Step {
        let Exit::NestedPageFault(fault) = self.enter()? else { return Err("store to a device") };
        libhv::log!("CPUID round trip: {} ticks", self.result(16, Width::Qword));
        let place = (fault.gpa.as_u64(), fault.gva.map(|gva| gva.as_u64()));
        if place != (guest::DEVICE, Some(guest::DEVICE))
            || !fault.write
            || fault.fetch
            || fault.present
            || fault.page_walk
        {
            return Err("what the store to a device says");
        }
        if self.vmx.take_interrupted().is_some() {
            return Err("a store interrupts no delivery");
        }
        let next = self.vmx.rip() + 11;
        self.vmx.advance_to(next);
        Ok(())
    }

    fn single_step(&mut self) -> Step {
        if !matches!(self.enter()?, Exit::Cpuid { .. }) {
            return Err("CPUID under RFLAGS.TF");
        }
        self.answer_cpuid();
        // The first step, over CPUID, the backend has made itself.
        if self.vmx.injected() != Some(Event::Exception { vector: 1, error_code: None }) {
            return Err("the single step over CPUID");
        }
        for _ in 0..4 {
            self.expect(Exit::Exception { vector: 1, error_code: None }, "single step")?;
            self.vmx.inject(Event::Exception { vector: 1, error_code: None });
        }
        Ok(())
    }

    fn interrupted_delivery(&mut self, pool: &mut machine::Pool) -> Step {
        let Exit::NestedPageFault(fault) = self.enter()? else { return Err("delivery onto a missing stack") };
        self.check(24, Width::Dword, 5, "single steps")?;
        if self.result(32, Width::Qword) & 0x4000 == 0 {
            return Err("DR6.BS after a single step");
        }
        if !fault.write || !fault.present || fault.gpa.as_u64() >> 12 != guest::STACK >> 12 {
            return Err("what the delivery onto a missing stack says");
        }
        let event = self.vmx.take_interrupted();
        if event != Some(Event::Software { vector: 0x30, length: 2, exception: false }) {
            libhv::log!("interrupted: {event:?}");
            return Err("the event whose delivery was interrupted");
        }
        if self.vmx.take_interrupted().is_some() {
            return Err("an interrupted event is taken once");
        }
        let flush =
            self.vmx.nested().protect(pool, Gpa::new(guest::STACK), 4096, Access::ALL).map_err(|_| "protect")?;
        if !flush.needed {
            return Err("new permissions need a flush");
        }
        self.vmx.flush_nested();
        if let Some(event) = event {
            self.vmx.inject(event);
        }
        Ok(())
    }

    fn nmi(&mut self) -> Step {
        self.expect(Exit::Hypercall, "VMCALL")?;
        self.check(48, Width::Dword, 1, "software interrupts taken")?;
        self.advance();
        if !self.vmx.accepts_nmi() {
            return Err("accepts no NMI");
        }
        self.vmx.inject(Event::Nmi);
        self.expect(Exit::Hypercall, "VMCALL in the NMI's handler")?;
        if self.vmx.gpr(Gpr::Rax) != 2 || self.vmx.accepts_nmi() {
            return Err("accepts an NMI in an NMI's handler");
        }
        self.vmx.watch_nmi_window(true);
        self.advance();
        self.expect(Exit::NmiWindow, "NMI window after IRET")?;
        self.vmx.watch_nmi_window(false);
        if !self.vmx.accepts_nmi() {
            return Err("accepts no NMI after IRET");
        }
        self.check(40, Width::Dword, 1, "NMIs taken")
    }

    fn exceptions(&mut self) -> Step {
        self.expect(Exit::Hypercall, "VMCALL after UD2")?;
        self.check(44, Width::Dword, 1, "invalid opcodes taken")?;
        self.advance();
        self.vmx.inject(Event::Exception { vector: 13, error_code: Some(0x1234) });
        Ok(())
    }

    fn timer(&mut self) -> Step {
        let now = read_tsc();
        if !self.vmx.arm_timer(now, Some(now + 20_000)) {
            return Err("no preemption timer");
        }
        self.expect(Exit::TimerExpired, "preemption timer")?;
        let late = read_tsc().since(now);
        libhv::log!("preemption timer asked for 20000 ticks, got {late}");
        if !(10_000..60_000).contains(&late) {
            return Err("the moment of the preemption timer");
        }
        self.vmx.arm_timer(Tsc(0), None);
        self.check(72, Width::Qword, 0x1234, "#GP's error code")?;
        let next = self.vmx.rip() + 2;
        self.vmx.advance_to(next);
        Ok(())
    }

    fn finish(&mut self) -> Step {
        self.expect(Exit::Halt, "HLT")?;
        self.check(56, Width::Qword, 0x8000_0011, "CR0 as the guest reads it")?;
        self.check(64, Width::Qword, 0x20, "CR4 as the guest reads it")
    }
}
