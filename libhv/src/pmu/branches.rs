//! Last-branch records: taken out of a processor, and put into one, when the owner of its PMU changes (SDM Vol. 3B
//! chapter 19).
//!
//! They hold addresses and reach nothing. IA32_LBR_CTL is switched with the world: no branch of the host is ever among
//! them. A snapshot has none: a guest that comes back from one begins with empty records.

use super::registers::{BranchRegister, PmuRegister};
use crate::hw::PmuHardware;
use alloc::vec::Vec;

/// The records of one guest, the youngest first; none where it uses none, or where all are empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Branches(Vec<[u64; 3]>);

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
        let mut records: Vec<_> =
            (0..depth).map(|n| registers(n).map(|register| hardware.read_pmu(register))).collect();
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
