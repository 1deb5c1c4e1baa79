//! The simulated processor's side of the PMU: what the pillar asks of a backend, and the switch at entry and exit.

use super::counting::Controls;
use super::pmu::Pmu;
use super::pmu::amd::Slots;
use super::processor::{Processor, Shadow, Vendor};
use crate::error::EntryFailure;
use crate::exit::{Msr, RawExit, Width};
use crate::hw::{GlobalSwitch, PmuHardware};
use crate::pmu::{CounterIndex, Maker, PmuRegister};

const DEBUGCTL: u32 = 0x1D9;

impl Processor {
    /// VM entry, where the PMU is concerned.
    ///
    /// # Errors
    /// When VMRUN is refused because the host's counters are on while the guest's are virtualized (T-A14).
    pub(super) fn enter_counting(&mut self) -> Result<(), EntryFailure> {
        let guest = Controls {
            debug: self.switched.get(&DEBUGCTL).copied().unwrap_or(0),
            global: self.host_global_control.map(|_| self.guest_global_control),
            lbr: self.guest_lbr_control,
        };
        let slots = self.virtual_counters.as_ref();
        let loaded = self.wires.if_counting(|counting| counting.enter(&guest, slots)).unwrap_or(Ok(()));
        loaded.map_err(|code| {
            EntryFailure::InvalidState(RawExit { code: code as u64, rip: self.rip, ..RawExit::default() })
        })
    }

    /// VM exit, where the PMU is concerned. Only an exit by an NMI blocks them; else blocking is as it was in the guest
    /// (SDM Vol. 3C 28.5.6).
    pub(super) fn exit_counting(&mut self, by_nmi: bool) {
        let nmis_blocked = by_nmi || self.gets_nmis() && self.nmi_blocked;
        if let Some(slots) = &mut self.virtual_counters {
            self.wires.if_counting(|counting| {
                if let Pmu::Amd(pmu) = &mut counting.pmu {
                    *slots = pmu.save();
                }
            });
        }
        let host = Controls { debug: 0, global: self.host_global_control, lbr: self.guest_lbr_control.map(|_| 0) };
        if let Some(guest) = self.wires.if_counting(|counting| counting.exit(&host, nmis_blocked)) {
            self.switched.insert(DEBUGCTL, guest.debug);
            self.guest_global_control = guest.global.unwrap_or(self.guest_global_control);
            self.guest_lbr_control = guest.lbr;
        }
    }

    /// Has entries load IA32_LBR_CTL with `guest`, and exits save it and clear it: no branch of the hypervisor is
    /// recorded. `None` leaves it as it is.
    pub fn switch_lbr_control(&mut self, guest: Option<u64>) {
        self.guest_lbr_control = guest;
    }

    /// Returns the guest's IA32_LBR_CTL, where it is switched.
    pub fn guest_lbr_control(&self) -> Option<u64> {
        self.guest_lbr_control
    }

    /// Has VMRUN load the guest's counters from the VMCB and #VMEXIT save them there, with interrupts delivered as
    /// virtual NMIs; or no longer.
    pub fn virtualize_counters(&mut self, slots: Option<Slots>) {
        self.virtual_counters = slots;
    }

    /// Returns the guest's counters as the VMCB holds them, where they are virtualized.
    pub fn virtual_counters(&self) -> Option<&Slots> {
        self.virtual_counters.as_ref()
    }

    /// A virtual interrupt of the guest's own counters is taken as a virtual NMI (APM Vol. 2 15.39).
    pub(super) fn take_virtual_interrupt(&mut self) -> bool {
        let open = !self.nmi_blocked && self.shadow == Shadow::None;
        open && self.virtual_counters.is_some()
            && self.wires.if_counting(|counting| core::mem::take(&mut counting.to_guest)).unwrap_or(false)
    }

    /// Returns whether NMIs reach the guest without leaving it: while an NMI window is watched for, they leave.
    pub(super) fn gets_nmis(&self) -> bool {
        self.passes_nmis && !self.watches_nmi
    }

    /// The instruction at hand accesses memory, in one line or in two.
    pub(super) fn touch(&self, address: u64, width: Width) {
        let last = address.wrapping_add(width as u64 - 1);
        for line in [Some(address), (address >> 6 != last >> 6).then_some(last)].into_iter().flatten() {
            if let Some((references, misses)) = self.wires.if_counting(|counting| counting.touch(line)) {
                let (before, before_misses) = self.touched.get();
                self.touched.set((before + references, before_misses + misses));
            }
        }
    }

    fn maker(&self) -> Maker {
        match self.vendor {
            Vendor::Intel => Maker::Intel,
            Vendor::Amd => Maker::Amd,
        }
    }

    fn msr(&self, register: PmuRegister) -> u32 {
        let Msr(index) = register.msr(self.maker()).unwrap_or_else(|| panic!("{register:?} is not this vendor's"));
        index
    }
}

/// # Panics
/// Where a processor would fault, and where there is no PMU.
impl PmuHardware for Processor {
    fn global_switch(&self) -> GlobalSwitch {
        let switches = self.wires.if_counting(|counting| counting.switches).unwrap_or(false);
        match self.vendor {
            Vendor::Intel if switches => GlobalSwitch::Hardware,
            Vendor::Intel => GlobalSwitch::Missing,
            Vendor::Amd => GlobalSwitch::Selectors,
        }
    }

    fn read_pmu(&self, register: PmuRegister) -> u64 {
        self.wires.counting(|counting| counting.pmu.host_read(self.msr(register)))
    }

    fn write_pmu(&mut self, register: PmuRegister, value: u64) {
        self.wires.counting(|counting| counting.pmu.host_write(self.msr(register), value));
    }

    fn read_counter(&self, counter: CounterIndex) -> u64 {
        self.wires.counting(|counting| counting.pmu.host_read_counter(counter.ecx()))
    }

    fn switch_global_control(&mut self, on: bool, host: u64) {
        if self.vendor == Vendor::Intel {
            let has = self.global_switch() == GlobalSwitch::Hardware;
            assert!(has || !on, "this processor cannot switch IA32_PERF_GLOBAL_CTRL");
            self.host_global_control = on.then_some(host);
        }
    }

    fn guest_global_control(&self) -> u64 {
        self.guest_global_control
    }

    fn set_guest_global_control(&mut self, value: u64) {
        if self.vendor == Vendor::Intel {
            self.guest_global_control = value;
        }
    }

    fn switches_branch_control(&self) -> bool {
        self.vendor == Vendor::Intel
    }

    fn switch_branch_control(&mut self, on: bool) {
        self.switch_lbr_control(on.then_some(0));
    }

    fn guest_branch_control(&self) -> u64 {
        self.guest_lbr_control.unwrap_or(0)
    }

    fn set_guest_branch_control(&mut self, value: u64) {
        assert!(self.guest_lbr_control.is_some(), "IA32_LBR_CTL is not switched");
        self.guest_lbr_control = Some(value);
    }

    fn passes_nmis(&self) -> bool {
        self.vendor == Vendor::Intel
    }

    fn pass_nmis(&mut self, pass: bool) {
        assert!(self.vendor == Vendor::Intel || !pass, "this processor's NMIs leave the guest");
        self.passes_nmis = pass;
    }

    fn pass_rdpmc(&mut self, pass: bool) {
        self.passes_rdpmc = pass;
    }

    /// # Panics
    /// Also when the processor has no such register.
    fn pass_pmu(&mut self, register: PmuRegister, read: bool, write: bool) {
        let msr = self.msr(register);
        assert!(self.wires.counting(|counting| counting.pmu.has(msr)), "{register:?} is passed, and does not exist");
        self.passed_msrs.insert(msr, (read, write));
    }
}
