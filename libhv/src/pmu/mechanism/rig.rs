//! A processor with a PMU and a host, for tests of the mechanism: `sim`'s PMU behind the seam, with the guest's
//! instructions as calls.

use crate::exit::Msr;
use crate::hw::{GlobalSwitch, Host, PmiHost, PmiRoute, PmuHardware};
use crate::pmu::slot::PmuSlot;
use crate::pmu::{CounterIndex, Maker, Pmu, PmuCapability, PmuPolicy, PmuRegister, Retired};
use crate::sim::pmu::{Config, Happened, Pmu as SimPmu, amd, intel};
use crate::time::{Frequency, Tsc};
use core::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

/// One instruction that takes a cycle.
pub(crate) const ONE: Happened = Happened {
    cycles: 1,
    ref_cycles: 1,
    instructions: 1,
    branches: 0,
    conditional: 0,
    mispredicted: 0,
    llc_references: 0,
    llc_misses: 0,
};
/// A branch that takes a cycle.
pub(crate) const BRANCH: Happened = Happened { branches: 1, ..ONE };

/// Whether reading and writing each register leaves the guest.
type Passed = BTreeMap<PmuRegister, (bool, bool)>;

/// The registers and the switch of IA32_PERF_GLOBAL_CTRL.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) pmu: SimPmu,
    maker: Maker,
    switch: GlobalSwitch,
    switched: bool,
    guest_control: u64,
    /// The guest's IA32_LBR_CTL, where it is switched.
    branch_control: Option<u64>,
    passed: Passed,
    passes_rdpmc: bool,
    /// NMIs do not leave the guest.
    pub(crate) nmis_passed: bool,
    /// RDMSR, WRMSR and RDPMC of the hypervisor.
    pub(crate) accesses: Rc<Cell<u64>>,
    pub(crate) writes: u64,
}

impl Registers {
    fn msr(&self, register: PmuRegister) -> u32 {
        register.msr(self.maker).expect("a register of this maker's").0
    }
    fn touch(&self) {
        self.accesses.set(self.accesses.get() + 1);
    }
}

impl PmuHardware for Registers {
    fn global_switch(&self) -> GlobalSwitch {
        self.switch
    }
    fn read_pmu(&self, register: PmuRegister) -> u64 {
        self.touch();
        self.pmu.host_read(self.msr(register))
    }
    fn write_pmu(&mut self, register: PmuRegister, value: u64) {
        self.touch();
        self.writes += 1;
        self.pmu.host_write(self.msr(register), value);
    }
    fn read_counter(&self, counter: CounterIndex) -> u64 {
        self.touch();
        self.pmu.host_read_counter(counter.ecx())
    }
    fn switch_global_control(&mut self, on: bool, host: u64) {
        assert_eq!(host, 0, "nobody counts the host here");
        self.switched = on;
    }
    fn guest_global_control(&self) -> u64 {
        self.guest_control
    }
    fn set_guest_global_control(&mut self, value: u64) {
        if self.switch == GlobalSwitch::Hardware {
            self.guest_control = value;
        }
    }
    fn switches_branch_control(&self) -> bool {
        self.maker == Maker::Intel
    }
    fn switch_branch_control(&mut self, on: bool) {
        self.branch_control = on.then_some(0);
    }
    fn guest_branch_control(&self) -> u64 {
        self.branch_control.unwrap_or(0)
    }
    fn set_guest_branch_control(&mut self, value: u64) {
        *self.branch_control.as_mut().expect("it is switched") = value;
    }
    fn passes_nmis(&self) -> bool {
        self.maker == Maker::Intel
    }
    fn pass_nmis(&mut self, pass: bool) {
        self.nmis_passed = pass;
    }
    fn pass_rdpmc(&mut self, pass: bool) {
        self.passes_rdpmc = pass;
    }
    fn pass_pmu(&mut self, register: PmuRegister, read: bool, write: bool) {
        assert!(!(read || write) || self.pmu.has(self.msr(register)), "{register:?} is passed and does not exist");
        self.passed.insert(register, (read, write));
    }
}

/// The host's side: one LVTPC.
#[derive(Debug, Default)]
pub(crate) struct TestHost {
    route: Option<PmiRoute>,
    masks: bool,
    pending: bool,
    pub(crate) arrived: bool,
    /// An NMI has masked the entry that is routed to the guest as one.
    nmi_delivered: bool,
    /// An NMI waits for the IRET of the guest's handler.
    pub(crate) nmi_waits: bool,
    nmi_met_host: bool,
    /// How many registers the hypervisor reads or writes from an overflow to its interrupt; of how many it has.
    pub(crate) skid: u64,
    clock: Rc<Cell<u64>>,
    arrives_at: Option<u64>,
    slot: PmuSlot,
}

impl TestHost {
    pub(crate) fn new(maker: Maker, clock: Rc<Cell<u64>>) -> Self {
        Self { masks: maker == Maker::Intel, clock, ..Self::default() }
    }
    /// The PMU asks for an interrupt.
    fn request(&mut self) {
        self.arrives_at = Some(self.clock.get() + self.skid);
        self.arrive();
    }
    /// Has an interrupt on its way arrive that has been long enough.
    fn arrive(&mut self) {
        if self.arrives_at.take_if(|at| *at <= self.clock.get()).is_none() {
            return;
        }
        match self.route {
            Some(PmiRoute::Guest) => {
                self.pending = true;
                if self.masks {
                    self.route = Some(PmiRoute::Masked);
                }
            }
            Some(PmiRoute::GuestNmi) => self.nmi_delivered = true,
            Some(PmiRoute::Host) => panic!("a guest's overflow is an NMI for the host"),
            _ => {}
        }
    }
}

impl PmiHost for TestHost {
    fn route_pmi(&mut self, route: PmiRoute) {
        self.arrive();
        (self.route, self.nmi_delivered) = (Some(route), false);
    }
    fn guest_nmi_delivered(&self) -> bool {
        self.nmi_delivered
    }
    fn take_guest_pmi(&mut self) -> bool {
        core::mem::take(&mut self.arrived)
    }
    fn take_guest_nmi(&mut self) -> bool {
        core::mem::take(&mut self.nmi_met_host)
    }
    fn open_nmis(&mut self) {
        self.nmi_met_host |= core::mem::take(&mut self.nmi_waits);
    }
    fn pmu_slot(&mut self) -> &mut PmuSlot {
        &mut self.slot
    }
}

impl Host for TestHost {
    fn now(&self) -> Tsc {
        Tsc(0)
    }
    fn frequency(&self) -> Frequency {
        Frequency::from_hz(1_000_000_000)
    }
    fn arm(&mut self, _: Option<Tsc>) {}
    fn serve_interrupts(&mut self, _: Option<u8>) {
        self.arrive();
        self.arrived |= core::mem::take(&mut self.pending);
    }
    fn wait(&mut self) {}
}

/// What became of an instruction of the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault;

/// A guest on a processor of its own, or on one that it shares.
#[derive(Debug)]
pub(crate) struct TestGuest<P> {
    pub(crate) mechanism: Pmu<P>,
    /// Exits so far.
    pub(crate) exits: u64,
    /// Interrupts that its local APIC got; it never masks its entry for long.
    pub(crate) interrupts: u64,
    controls: (u64, Option<u64>),
    passed: Option<(Passed, bool)>,
}

/// The processor.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) registers: Registers,
    pub(crate) host: TestHost,
    pub(crate) capability: PmuCapability,
}

impl Rig {
    pub(crate) fn intel(config: intel::Config) -> Self {
        let leaf = config.leaf_0a();
        let records = u32::from(config.lbr_depth != 0) << 19;
        let leaves = [(0xA, leaf), (1, [0, 0, 1 << 15, 0]), (7, [0, 0, 0, records]), (0x1C, config.leaf_1c())];
        let capability = capability_of(0x1C, &leaves, config.capabilities());
        Self::new(SimPmu::new(Config::Intel(config)), Maker::Intel, GlobalSwitch::Hardware, capability)
    }

    pub(crate) fn amd(config: amd::Config) -> Self {
        let max = if config.global { 0x8000_0022 } else { 0x8000_0008 };
        let extended = [0, 0, u32::from(config.extended) << 23, 0];
        let leaves = [(0x8000_0000, [max, 0, 0, 0]), (0x8000_0001, extended), (0x8000_0022, config.leaf_8000_0022())];
        let capability = amd_capability_of(&leaves);
        let mut pmu = SimPmu::new(Config::Amd(config));
        if let SimPmu::Amd(pmu) = &mut pmu {
            pmu.set_svme(true);
        }
        Self::new(pmu, Maker::Amd, GlobalSwitch::Selectors, capability)
    }

    fn new(pmu: SimPmu, maker: Maker, switch: GlobalSwitch, capability: PmuCapability) -> Self {
        let registers = Registers {
            pmu,
            maker,
            switch,
            switched: false,
            guest_control: 0,
            branch_control: None,
            passed: BTreeMap::new(),
            passes_rdpmc: false,
            nmis_passed: false,
            accesses: Rc::default(),
            writes: 0,
        };
        let host = TestHost::new(maker, registers.accesses.clone());
        Self { registers, host, capability }
    }

    pub(crate) fn guest<P: PmuPolicy>(&mut self, policy: P) -> TestGuest<P> {
        let mechanism = Pmu::new(policy, Some(self.capability), &self.registers);
        TestGuest { mechanism, exits: 0, interrupts: 0, controls: (0, None), passed: None }
    }

    /// The host works: nothing of it may count.
    fn host_works(&mut self) {
        for _ in 0..17 {
            assert!(!self.registers.pmu.step(0, false, &BRANCH), "the host's work overflows a counter");
        }
    }

    /// Puts the guest in the processor, which is another's when guests share it.
    pub(crate) fn resume<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>) {
        (self.registers.guest_control, self.registers.branch_control) = guest.controls;
        match guest.passed.take() {
            Some(passed) => (self.registers.passed, self.registers.passes_rdpmc) = passed,
            None => guest.mechanism.arrange(&mut self.registers),
        }
        self.enter(guest);
    }

    /// Opens to a guest what it may reach.
    pub(crate) fn arrange<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>) {
        guest.mechanism.arrange(&mut self.registers);
    }

    /// Has a guest run next.
    pub(crate) fn enter<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>) {
        guest.mechanism.acquire(&mut self.registers, &mut self.host).expect("a PMU that can be restored");
        self.mirror(guest, true);
        self.hear(guest);
    }

    /// Another guest is next: its VMCS has its own IA32_PERF_GLOBAL_CTRL and IA32_LBR_CTL, and its own MSR bitmaps.
    pub(crate) fn pause<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>) {
        guest.controls = (self.registers.guest_control, self.registers.branch_control);
        guest.passed = Some((self.registers.passed.clone(), self.registers.passes_rdpmc));
    }

    fn hear<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>) {
        self.host.serve_interrupts(None);
        if guest.mechanism.take_interrupt(&mut self.host) {
            guest.interrupts += 1;
            guest.mechanism.settle(&mut self.registers);
            self.mirror(guest, false);
            self.mirror(guest, true);
        }
    }

    /// The guest's LVTPC is an NMI, masked or not.
    pub(crate) fn mirror<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>, unmasked: bool) {
        let route = match unmasked {
            true if guest.mechanism.is_direct() => PmiRoute::GuestNmi,
            true => PmiRoute::Guest,
            false => PmiRoute::Masked,
        };
        guest.mechanism.mirror(route, &mut self.registers, &mut self.host);
    }

    fn in_guest<T>(&mut self, act: impl FnOnce(&mut SimPmu) -> T) -> T {
        const GLOBAL_CONTROL: u32 = 0x38F;
        const BRANCH_CONTROL: u32 = 0x14CE;
        if let Some(control) = self.registers.branch_control {
            self.registers.pmu.host_write(BRANCH_CONTROL, control);
        }
        let switches = self.registers.switched && self.registers.switch == GlobalSwitch::Hardware;
        if switches {
            self.registers.pmu.host_write(GLOBAL_CONTROL, self.registers.guest_control);
        }
        let answer = act(&mut self.registers.pmu);
        if switches {
            self.registers.guest_control = self.registers.pmu.host_read(GLOBAL_CONTROL);
            self.registers.pmu.host_write(GLOBAL_CONTROL, 0);
        }
        if let Some(control) = &mut self.registers.branch_control {
            *control = self.registers.pmu.host_read(BRANCH_CONTROL);
            self.registers.pmu.host_write(BRANCH_CONTROL, 0);
        }
        answer
    }

    /// The guest executes what does not leave.
    pub(crate) fn step<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>, cpl: u8, happened: &Happened) {
        if self.in_guest(|pmu| pmu.step(cpl, true, happened)) {
            self.host.request();
            if self.host.nmi_delivered && self.registers.nmis_passed {
                guest.interrupts += 1;
                return;
            }
            guest.exits += 1;
            self.host_works();
            self.hear(guest);
        }
    }

    /// The guest executes an instruction that leaves, and that the hypervisor carries out.
    pub(crate) fn exit<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>, cpl: u8, branch: bool) {
        guest.exits += 1;
        self.host_works();
        if guest.mechanism.retire(Retired { cpl, branch }, &mut self.registers, |_| 0) {
            guest.interrupts += 1;
        }
        self.host_works();
    }

    /// WRMSR of the guest.
    pub(crate) fn wrmsr<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>, msr: u32, value: u64) -> Result<(), Fault> {
        let passed = self.passed(msr).is_some_and(|(_, write)| write);
        if passed {
            return self.in_guest(|pmu| pmu.write(msr, value)).map_err(|_| Fault);
        }
        guest.exits += 1;
        self.host_works();
        guest.mechanism.write(Msr(msr), value, &mut self.registers).ok_or(Fault)
    }

    /// RDMSR of the guest.
    pub(crate) fn rdmsr<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>, msr: u32) -> Result<u64, Fault> {
        let passed = self.passed(msr).is_some_and(|(read, _)| read);
        if passed {
            return self.in_guest(|pmu| pmu.read(msr)).map_err(|_| Fault);
        }
        guest.exits += 1;
        self.host_works();
        guest.mechanism.read(Msr(msr), &self.registers).ok_or(Fault)
    }

    /// RDPMC of the guest at privilege level 0.
    pub(crate) fn rdpmc<P: PmuPolicy>(&mut self, guest: &mut TestGuest<P>, ecx: u32) -> Result<u64, Fault> {
        if self.registers.passes_rdpmc {
            return self.in_guest(|pmu| pmu.read_counter(ecx)).map_err(|_| Fault);
        }
        guest.exits += 1;
        self.host_works();
        guest.mechanism.read_counter(ecx, 0, 0, &self.registers).ok_or(Fault)
    }

    fn passed(&self, msr: u32) -> Option<(bool, bool)> {
        let register = PmuRegister::of(Msr(msr), self.registers.maker)?;
        self.registers.passed.get(&register).copied()
    }
}

type Leaves = Vec<(u32, [u32; 4])>;

struct Cpuid(Leaves);
impl crate::vcpu::cpuid::CpuidSource for Cpuid {
    fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
        self.0.iter().find(|(number, _)| *number == leaf).map_or([0; 4], |(_, words)| *words)
    }
}

fn capability_of(max: u32, leaves: &[(u32, [u32; 4])], capabilities: u64) -> PmuCapability {
    let vendor = (0, [max, 0x756E_6547, 0x6C65_746E, 0x4965_6E69]);
    let all = leaves.iter().copied().chain([vendor]).collect();
    PmuCapability::of(&Cpuid(all), || capabilities).expect("a PMU")
}

fn amd_capability_of(leaves: &[(u32, [u32; 4])]) -> PmuCapability {
    let vendor = (0, [0x10, 0x6874_7541, 0x444D_4163, 0x6974_6E65]);
    let all = leaves.iter().copied().chain([vendor]).collect();
    PmuCapability::of(&Cpuid(all), || panic!("no such MSR")).expect("a PMU")
}
