//! A processor and a bus without hardware, for the tests of this and other rooms.

use super::Bus;
use crate::address::Gpa;
use crate::exit::Width;
use crate::registers::{ControlRegister, EntryState, Gpr, GuestState, Segment, SegmentRegister, VectorState};
use std::vec::Vec;

/// A processor that is nothing but its registers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FakeCpu {
    pub(crate) state: EntryState,
    pub(crate) cr2: u64,
    pub(crate) cpl: u8,
    pub(crate) vectors: [[u64; 4]; 16],
    pub(crate) pkru: Option<u32>,
}

impl FakeCpu {
    pub(crate) fn new(state: EntryState) -> Self {
        Self { state, cr2: 0, cpl: 0, vectors: [[0; 4]; 16], pkru: None }
    }

    /// Flat 32-bit code without paging.
    pub(crate) fn flat32(rip: u32) -> Self {
        Self::new(EntryState::protected_mode(rip))
    }
}

impl GuestState for FakeCpu {
    fn gpr(&self, register: Gpr) -> u64 {
        self.state.gprs[register as usize]
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.state.gprs[register as usize] = value;
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.state.rip = value;
    }
    fn rflags(&self) -> u64 {
        self.state.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.state.rflags = value;
    }
    fn control(&self, register: ControlRegister) -> u64 {
        match register {
            ControlRegister::Cr0 => self.state.cr0,
            ControlRegister::Cr2 => self.cr2,
            ControlRegister::Cr3 => self.state.cr3,
            ControlRegister::Cr4 => self.state.cr4,
        }
    }
    fn set_control(&mut self, register: ControlRegister, value: u64) {
        match register {
            ControlRegister::Cr0 => self.state.cr0 = value,
            ControlRegister::Cr2 => self.cr2 = value,
            ControlRegister::Cr3 => self.state.cr3 = value,
            ControlRegister::Cr4 => self.state.cr4 = value,
        }
    }
    fn efer(&self) -> u64 {
        self.state.efer
    }
    fn set_efer(&mut self, value: u64) {
        self.state.efer = value;
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.state.segments[register as usize]
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.state.segments[register as usize] = segment;
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
}

impl VectorState for FakeCpu {
    fn ymm(&self, number: u8) -> [u64; 4] {
        self.vectors[usize::from(number & 15)]
    }
    fn set_xmm(&mut self, number: u8, value: [u64; 2]) {
        self.vectors[usize::from(number & 15)][..2].copy_from_slice(&value);
    }
    fn set_ymm(&mut self, number: u8, value: [u64; 4]) {
        self.vectors[usize::from(number & 15)] = value;
    }
    fn pkru(&self) -> Option<u32> {
        self.pkru
    }
}

/// What reached a [`FakeBus`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    Read(u64, Width),
    Write(u64, Width, u64),
    In(u16, Width),
    Out(u16, Width, u32),
}

/// A bus that answers every read with the next value of `answers` (0 when there is none) and remembers all accesses.
#[derive(Clone, Default, Debug)]
pub(crate) struct FakeBus {
    pub(crate) answers: Vec<u64>,
    pub(crate) seen: Vec<Seen>,
}

impl FakeBus {
    pub(crate) fn answering(answers: &[u64]) -> Self {
        Self { answers: answers.iter().rev().copied().collect(), seen: Vec::new() }
    }
}

impl Bus for FakeBus {
    fn read(&mut self, gpa: Gpa, width: Width) -> u64 {
        self.seen.push(Seen::Read(gpa.as_u64(), width));
        self.answers.pop().unwrap_or(0)
    }
    fn write(&mut self, gpa: Gpa, width: Width, value: u64) {
        self.seen.push(Seen::Write(gpa.as_u64(), width, value));
    }
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.seen.push(Seen::In(port, width));
        self.answers.pop().unwrap_or(0) as u32
    }
    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.seen.push(Seen::Out(port, width, value));
    }
}
