//! Last-branch records: taken out of a processor, and put into one, when the owner of its PMU changes (SDM Vol. 3B
//! chapter 19).
//!
//! They hold addresses and reach nothing. IA32_LBR_CTL is switched with the world: no branch of the host is ever among
//! them.

use super::registers::{BranchRegister, MAX_BRANCHES, PmuRegister};
use crate::hw::PmuHardware;
use alloc::vec::Vec;

/// The records of one guest, the youngest first; none where it uses none, or where all are empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Branches(Vec<[u64; 3]>);

/// The registers of a guest's last-branch records, for a snapshot. What a guest has not is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BranchState {
    /// IA32_LBR_CTL
    pub control: u64,
    /// IA32_LBR_DEPTH
    pub depth: u8,
    /// IA32_LBR_x_FROM_IP, IA32_LBR_x_TO_IP and IA32_LBR_x_INFO, the youngest first.
    pub records: [[u64; 3]; MAX_BRANCHES as usize],
}

impl Default for BranchState {
    fn default() -> Self {
        Self { control: 0, depth: 0, records: [[0; 3]; MAX_BRANCHES as usize] }
    }
}

impl BranchState {
    /// Returns the registers of the records, and what they hold.
    pub fn registers(&mut self) -> impl Iterator<Item = (PmuRegister, &mut u64)> {
        (0..).zip(&mut self.records).flat_map(|(n, record)| registers(n).into_iter().zip(record))
    }
}

const fn registers(n: u8) -> [PmuRegister; 3] {
    [
        PmuRegister::Branch(BranchRegister::From(n)),
        PmuRegister::Branch(BranchRegister::To(n)),
        PmuRegister::Branch(BranchRegister::Info(n)),
    ]
}

impl Branches {
    /// Takes `depth` records out of the processor.
    pub fn take(depth: u8, hardware: &impl PmuHardware) -> Self {
        Self::of((0..depth).map(|n| registers(n).map(|register| hardware.read_pmu(register))).collect())
    }

    fn of(mut records: Vec<[u64; 3]>) -> Self {
        // The oldest are the first to be empty.
        while records.last() == Some(&[0; 3]) {
            records.pop();
        }
        Self(records)
    }

    /// Puts the records into a processor that has `depth`, with all others empty; returns how many registers were written.
    pub fn put(&self, depth: u8, hardware: &mut impl PmuHardware) -> u32 {
        hardware.write_pmu(PmuRegister::Branch(BranchRegister::Depth), depth.into());
        let mut writes = 1;
        for (n, record) in (0..depth).zip(&self.0) {
            for (register, value) in registers(n).into_iter().zip(*record).filter(|(_, value)| *value != 0) {
                hardware.write_pmu(register, value);
                writes += 1;
            }
        }
        writes
    }
}

impl From<&BranchState> for Branches {
    fn from(state: &BranchState) -> Self {
        Self::of(state.records.to_vec())
    }
}

impl From<&Branches> for [[u64; 3]; MAX_BRANCHES as usize] {
    fn from(branches: &Branches) -> Self {
        core::array::from_fn(|n| branches.0.get(n).copied().unwrap_or_default())
    }
}
