//! The registers of the PMU, with each access counted.

use core::cell::Cell;
use libhv::hw::{GlobalSwitch, PmuHardware};
use libhv::pmu::{CounterIndex, PmuRegister};
use libhv::vmx::Vmx;

pub(crate) struct Tally<'a> {
    vmx: &'a mut Vmx,
    pub(crate) reads: Cell<u64>,
    pub(crate) writes: u64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(vmx: &'a mut Vmx) -> Self {
        Self { vmx, reads: Cell::new(0), writes: 0 }
    }
}

impl PmuHardware for Tally<'_> {
    fn global_switch(&self) -> GlobalSwitch {
        self.vmx.global_switch()
    }
    fn read_pmu(&self, register: PmuRegister) -> u64 {
        self.reads.update(|reads| reads + 1);
        self.vmx.read_pmu(register)
    }
    fn write_pmu(&mut self, register: PmuRegister, value: u64) {
        self.writes += 1;
        self.vmx.write_pmu(register, value);
    }
    fn read_counter(&self, counter: CounterIndex) -> u64 {
        self.reads.update(|reads| reads + 1);
        self.vmx.read_counter(counter)
    }
    fn switch_global_control(&mut self, on: bool, host: u64) {
        self.vmx.switch_global_control(on, host);
    }
    fn guest_global_control(&self) -> u64 {
        self.vmx.guest_global_control()
    }
    fn set_guest_global_control(&mut self, value: u64) {
        self.vmx.set_guest_global_control(value);
    }
    fn pass_rdpmc(&mut self, pass: bool) {
        self.vmx.pass_rdpmc(pass);
    }
    fn pass_pmu(&mut self, register: PmuRegister, read: bool, write: bool) {
        self.vmx.pass_pmu(register, read, write);
    }
}
