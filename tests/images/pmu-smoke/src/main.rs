//! A test image: the seam to the PMU on VMX, without the run loop, on a machine that really counts.
#![no_std]
#![no_main]

mod guest;

use libhv::address::Gpa;
use libhv::error::EntryFailure;
use libhv::exit::{Exit, Msr, StopReason, Width};
use libhv::hw::{GlobalSwitch, Host, PmiHost, PmiRoute, PmuHardware, bare};
use libhv::log;
use libhv::memory::GuestMemory;
use libhv::memory::nested::NestedTables;
use libhv::platform::{Machine, interrupts};
use libhv::pmu::registers::{CounterIndex, PmuRegister};
use libhv::registers::{EntryState, Gpr, GuestState};
use libhv::vcpu::Backend;
use libhv::vmx::{EptEntry, Vmx};

libhv::entry!(main);

/// Why a step was not the one expected.
type Step = Result<(), &'static str>;

const DEBUGCTL: Msr = Msr(0x1D9);
const COUNTER: Msr = Msr(0xC1);
const FREEZE_WHILE_SMM: u64 = 1 << 14;
/// IA32_PERF_CAPABILITIES.FREEZE_WHILE_SMM
const CAN_FREEZE_WHILE_SMM: u64 = 1 << 12;
/// The vector of the guest's counters' interrupt.
const GUEST_PMI: u8 = 0x33;
/// What the host has in IA32_PERF_GLOBAL_CTRL: a counter that nobody programs.
const HOST_CONTROL: u64 = 2;
/// A bit that IA32_PERF_GLOBAL_CTRL does not have.
const RESERVED: u64 = 1 << 63;
/// VM-instruction error: invalid host state.
const INVALID_HOST_STATE: u32 = 8;

fn main(mut machine: Machine) -> libhv::Result<StopReason> {
    let Some(pmu) = machine.pmu_capability() else {
        log!("fail pmu-smoke: the processor has no PMU");
        return Ok(StopReason::PowerOff);
    };
    log!("PMU version {}, {} counters, fixed ones {:#x}", pmu.version, pmu.counters, pmu.fixed);
    let freezes = pmu.capabilities & CAN_FREEZE_WHILE_SMM != 0;
    if freezes {
        // SAFETY: IA32_PERF_CAPABILITIES says that the bit exists.
        #[expect(unsafe_code, reason = "the image is the host")]
        unsafe {
            bare::write_msr(DEBUGCTL, FREEZE_WHILE_SMM);
        }
    }
    let capabilities = Vmx::check()?;
    log!("IA32_PERF_GLOBAL_CTRL is switched by {:?}", capabilities.global_control());
    log!("IA32_DEBUGCTL.FREEZE_WHILE_SMM {}", if freezes { "is set" } else { "does not exist" });
    let mut memory = machine.guest_memory(0x1_0000)?;
    memory.write(Gpa::new(guest::CODE), guest::code()).expect("guest memory");
    let mut frames = machine.frames();
    let mut tables = NestedTables::<EptEntry>::new(&mut frames, capabilities.largest_page())?;
    tables.map_all(&mut frames, &memory)?;
    let mut vmx = machine.vmx(tables)?;
    vmx.load(&EntryState::real_mode(0, guest::CODE as u16));
    let mut test = Test { vmx, memory, machine, last: None, pmis: 0, nmis: 0, freezes };
    match test.run() {
        Ok(()) => log!("pass pmu-smoke"),
        Err(why) => log!("fail pmu-smoke: {why}; last {:x?}, {:x?}", test.last, test.vmx.raw_exit()),
    }
    Ok(StopReason::PowerOff)
}

struct Test {
    vmx: Vmx,
    memory: GuestMemory,
    machine: Machine,
    last: Option<Exit>,
    /// Interrupts of the guest's counters, and NMIs, that have ended a run of the guest's.
    pmis: u64,
    nmis: u64,
    freezes: bool,
}

impl Test {
    /// Enters until the guest leaves by itself.
    fn enter(&mut self) -> Result<Exit, &'static str> {
        loop {
            let exit = self.vmx.enter().map_err(|failure| {
                log!("entry failure: {failure}");
                "the processor refused to enter"
            })?;
            self.last = Some(exit);
            match exit {
                Exit::ExternalInterrupt(vector) => {
                    self.pmis += u64::from(vector == Some(GUEST_PMI));
                    self.machine.processor().serve_interrupts(vector);
                }
                Exit::Nmi => self.nmis += 1,
                _ => return Ok(exit),
            }
        }
    }

    fn expect(&mut self, wanted: Exit, otherwise: &'static str) -> Step {
        if self.enter()? == wanted { Ok(()) } else { Err(otherwise) }
    }

    fn advance(&mut self) {
        self.vmx.advance(&self.memory);
    }

    fn result(&self, offset: u64) -> u64 {
        self.memory.read_number(Gpa::new(guest::RESULTS + offset), Width::Qword).unwrap_or(u64::MAX)
    }

    fn run(&mut self) -> Step {
        self.open()?;
        self.counted_loops()?;
        self.hosts_values()?;
        self.refusals()?;
        self.expect(Exit::Hypercall, "VMCALL after IA32_PERF_GLOBAL_CTRL was read")?;
        if self.result(16) != 5 {
            return Err("what the host put into the guest's IA32_PERF_GLOBAL_CTRL");
        }
        self.advance();
        self.overflows()?;
        self.closed()
    }

    /// Gives the guest all it uses, as a mechanism does.
    fn open(&mut self) -> Step {
        if self.vmx.global_switch() != GlobalSwitch::Hardware {
            return Err("IA32_PERF_GLOBAL_CTRL is not switched by hardware");
        }
        self.vmx.write_pmu(PmuRegister::GlobalControl, HOST_CONTROL);
        self.vmx.switch_global_control(true, HOST_CONTROL);
        self.vmx.set_guest_global_control(0);
        let (counter, selector) = (PmuRegister::Counter(0), PmuRegister::Selector(0));
        for register in [counter, selector, PmuRegister::GlobalControl] {
            self.vmx.pass_pmu(register, true, true);
        }
        self.vmx.pass_pmu(PmuRegister::GlobalStatus, true, false);
        self.vmx.pass_pmu(PmuRegister::StatusReset, false, true);
        self.vmx.pass_rdpmc(true);
        Ok(())
    }

    /// The same loop with NOP, which does not leave, and with CPUID, which leaves and does not retire.
    fn counted_loops(&mut self) -> Step {
        self.expect(Exit::Hypercall, "VMCALL after the loop of NOPs: nothing in it leaves")?;
        let calm = self.result(0);
        self.advance();
        for _ in 0..guest::ROUNDS {
            if !matches!(self.enter()?, Exit::Cpuid { .. }) {
                return Err("CPUID in the counted loop");
            }
            // A17: the guest's counter stands still while the host runs, with the host's value in the register.
            let before = self.vmx.read_counter(CounterIndex::General(0));
            let (host, guest) = (self.vmx.read_pmu(PmuRegister::GlobalControl), self.vmx.guest_global_control());
            if (host, guest) != (HOST_CONTROL, 1) {
                log!("IA32_PERF_GLOBAL_CTRL: the host's {host:#x}, the guest's {guest:#x}");
                return Err("an exit saves the guest's IA32_PERF_GLOBAL_CTRL and loads the host's");
            }
            for register in [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx] {
                self.vmx.set_gpr(register, 0);
            }
            self.advance();
            if self.vmx.read_counter(CounterIndex::General(0)) != before {
                return Err("the host has been counted");
            }
        }
        self.expect(Exit::Hypercall, "VMCALL after the loop of CPUIDs")?;
        let left = self.result(8);
        log!("{} rounds: {calm} instructions with NOP, {left} with CPUID, which leaves", guest::ROUNDS);
        self.advance();
        // Behind the loop, MOV three times; the WRMSRs at both ends count or not.
        if !(4 * guest::ROUNDS + 3..=4 * guest::ROUNDS + 5).contains(&calm) {
            return Err("the count of the loop of NOPs");
        }
        if left != calm - guest::ROUNDS {
            return Err("the count of the loop of CPUIDs");
        }
        Ok(())
    }

    fn hosts_values(&mut self) -> Step {
        if self.vmx.guest_global_control() != 0 {
            return Err("what the guest left in IA32_PERF_GLOBAL_CTRL");
        }
        if self.freezes {
            // SAFETY: as in `main`.
            #[expect(unsafe_code, reason = "the image is the host")]
            let debugctl = unsafe { bare::read_msr(DEBUGCTL) };
            if debugctl != FREEZE_WHILE_SMM {
                log!("IA32_DEBUGCTL: {debugctl:#x}");
                return Err("an exit brings the host's IA32_DEBUGCTL back");
            }
        }
        Ok(())
    }

    /// Values that the processor refuses end in an error that says so, and another value goes on.
    fn refusals(&mut self) -> Step {
        self.vmx.set_guest_global_control(RESERVED);
        let guests = self.vmx.enter();
        let Err(EntryFailure::InvalidState(_)) = guests else {
            log!("{guests:x?}");
            return Err("an illegal IA32_PERF_GLOBAL_CTRL of the guest's");
        };
        if let Err(failure) = guests {
            log!("an illegal value of the guest's: {failure}");
        }
        self.vmx.set_guest_global_control(5);
        self.vmx.switch_global_control(true, RESERVED);
        let hosts = self.vmx.enter();
        if hosts != Err(EntryFailure::VmInstruction(INVALID_HOST_STATE)) {
            log!("{hosts:x?}");
            return Err("an illegal IA32_PERF_GLOBAL_CTRL of the host's");
        }
        self.vmx.switch_global_control(true, HOST_CONTROL);
        Ok(())
    }

    /// A22, A24: an overflow comes as an interrupt of the guest's, not at all, or as an NMI.
    fn overflows(&mut self) -> Step {
        for (route, pmis, nmis) in [(PmiRoute::Guest, 1, 0), (PmiRoute::Masked, 0, 0), (PmiRoute::Host, 0, 1)] {
            (self.pmis, self.nmis) = (0, 0);
            let before = interrupts::counts();
            self.machine.processor().route_pmi(route);
            self.expect(Exit::Hypercall, "VMCALL after an overflow")?;
            if (self.pmis, self.nmis) != (pmis, nmis) {
                log!("{route:?}: {} interrupts, {} NMIs", self.pmis, self.nmis);
                return Err("how an overflow comes to the host");
            }
            let counted = interrupts::counts().guest_pmi - before.guest_pmi;
            let processor = self.machine.processor();
            if (processor.take_guest_pmi(), processor.take_guest_pmi(), counted) != (pmis == 1, false, pmis) {
                return Err("whether the guest's counters have interrupted");
            }
            if self.result(24) != 1 {
                return Err("IA32_PERF_GLOBAL_STATUS after an overflow");
            }
            self.advance();
        }
        log!("overflows: one interrupt of the guest's, one masked, one NMI");
        Ok(())
    }

    /// T-A16: what has been passed is closed again, both ways. T-A23: IA32_DEBUGCTL's bit is not the guest's.
    fn closed(&mut self) -> Step {
        self.vmx.pass_rdpmc(false);
        self.vmx.pass_pmu(PmuRegister::Counter(0), false, false);
        self.expect(Exit::Rdpmc(0), "RDPMC leaves again")?;
        self.advance();
        self.expect(Exit::Rdmsr(COUNTER), "RDMSR of a counter leaves again")?;
        self.vmx.set_edx_eax(0);
        self.advance();
        self.expect(Exit::Wrmsr(COUNTER, 0), "WRMSR of a counter leaves again")?;
        self.advance();
        self.expect(Exit::Rdmsr(DEBUGCTL), "RDMSR of IA32_DEBUGCTL")?;
        if self.vmx.switched_msr(DEBUGCTL) != Some(0) {
            return Err("IA32_DEBUGCTL as the guest reads it");
        }
        self.vmx.set_edx_eax(FREEZE_WHILE_SMM);
        self.advance();
        self.expect(Exit::Wrmsr(DEBUGCTL, FREEZE_WHILE_SMM), "WRMSR of IA32_DEBUGCTL")?;
        self.vmx.set_switched_msr(DEBUGCTL, FREEZE_WHILE_SMM);
        if self.vmx.switched_msr(DEBUGCTL) != Some(0) {
            return Err("IA32_DEBUGCTL after the guest has written it");
        }
        self.advance();
        self.expect(Exit::Halt, "HLT")?;
        self.hosts_values()
    }
}
