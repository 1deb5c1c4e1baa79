//! The simulated processor's registers as a hypervisor reaches them.

use super::check;
use super::processor::Processor;
use crate::registers::{ControlRegister, Gpr, GuestState, Segment, SegmentRegister, VectorState};

impl GuestState for Processor {
    fn gpr(&self, register: Gpr) -> u64 {
        self.gprs[register as usize]
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs[register as usize] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.rip = value;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    /// # Panics
    /// When a reserved bit is not what it has to be.
    fn set_rflags(&mut self, value: u64) {
        check::rflags(value);
        self.rflags = value;
    }
    fn control(&self, register: ControlRegister) -> u64 {
        match register {
            ControlRegister::Cr0 => self.cr0,
            ControlRegister::Cr2 => self.cr2,
            ControlRegister::Cr3 => self.cr3,
            ControlRegister::Cr4 => self.cr4,
        }
    }
    /// # Panics
    /// When a reserved bit is set.
    fn set_control(&mut self, register: ControlRegister, value: u64) {
        match register {
            ControlRegister::Cr0 => {
                check::cr0(value);
                self.cr0 = value;
            }
            ControlRegister::Cr2 => self.cr2 = value,
            ControlRegister::Cr3 => self.cr3 = value,
            ControlRegister::Cr4 => {
                check::cr4(value);
                self.cr4 = value;
            }
        }
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    /// # Panics
    /// When a reserved bit is set.
    fn set_efer(&mut self, value: u64) {
        check::efer(value);
        self.efer = value;
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[register as usize]
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.segments[register as usize] = segment;
    }
    fn cpl(&self) -> u8 {
        self.segment(SegmentRegister::Ss).attributes.dpl()
    }
}

impl VectorState for Processor {
    fn ymm(&self, number: u8) -> [u64; 4] {
        self.vectors[usize::from(number & 15)]
    }
    fn set_xmm(&mut self, number: u8, value: [u64; 2]) {
        self.vectors[usize::from(number & 15)][..2].copy_from_slice(&value);
    }
    fn set_ymm(&mut self, number: u8, value: [u64; 4]) {
        self.vectors[usize::from(number & 15)] = value;
    }
}
