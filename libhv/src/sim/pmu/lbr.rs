//! Architectural last branch records (SDM Vol. 3B chapter 19): the youngest is number 0.

use super::fault::{Fault, only};
use super::predictor::Branch;
use alloc::vec::Vec;

const INFO: u32 = 0x1200;
const CTL: u32 = 0x14CE;
const DEPTH: u32 = 0x14CF;
const FROM: u32 = 0x1500;
const TO: u32 = 0x1600;
const ENABLE: u64 = 1 << 0;
const OS: u64 = 1 << 1;
const USR: u64 = 1 << 2;
/// LBREn, OS, USR, CALL_STACK, and the seven filters by kind of branch.
const CTL_BITS: u64 = 0x007F_000F;
const CALL_STACK: u64 = 1 << 3;
/// CYC_CNT, BR_TYPE, CYC_CNT_VALID, TSX_ABORT, IN_TSX, MISPRED.
const INFO_BITS: u64 = 0xFF00_0000_0000_FFFF;

/// The kinds of branches that are told apart, by their bits in IA32_LBR_CTL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Jcc
    Conditional = 16,
    /// JMP to an address in the instruction.
    DirectJump = 17,
    /// JMP through a register or memory.
    IndirectJump = 18,
    /// CALL of an address in the instruction.
    DirectCall = 19,
    /// CALL through a register or memory.
    IndirectCall = 20,
    /// RET
    Return = 21,
    /// Interrupts, exceptions, IRET and other far transfers.
    Other = 22,
}

impl Kind {
    /// Returns what the predictor makes of it; `None` for what it does not look at.
    pub fn predicted(self) -> Option<Branch> {
        match self {
            Self::Conditional => Some(Branch::Conditional),
            Self::DirectJump | Self::DirectCall => Some(Branch::Direct),
            Self::IndirectJump | Self::IndirectCall | Self::Return => Some(Branch::Indirect),
            Self::Other => None,
        }
    }

    /// The encoding in LBR_INFO.BR_TYPE (SDM Vol. 3B table 19-2).
    fn code(self) -> u64 {
        match self {
            Self::Conditional => 0,
            Self::IndirectJump => 1,
            Self::DirectJump => 2,
            Self::IndirectCall => 3,
            Self::DirectCall => 4,
            Self::Return => 5,
            Self::Other => 8,
        }
    }
}

/// A branch that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Its own address.
    pub from: u64,
    /// Where it went.
    pub to: u64,
    /// What it was.
    pub kind: Kind,
    /// It had not been predicted to go there.
    pub mispredicted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Record {
    from: u64,
    to: u64,
    info: u64,
}

/// The records and their two controls.
#[derive(Clone, Debug)]
pub(super) struct Lbr {
    control: u64,
    most: u8,
    records: Vec<Record>,
}

impl Lbr {
    pub(super) fn new(depth: u8) -> Self {
        Self { control: 0, most: depth, records: alloc::vec![Record::default(); depth.into()] }
    }

    /// Records beyond the depth do not exist.
    fn slot(&self, msr: u32) -> Result<usize, Fault> {
        let slot = (msr & 0xFF) as usize;
        if slot < self.records.len() { Ok(slot) } else { Err(Fault::NoRegister) }
    }

    pub(super) fn read(&self, msr: u32) -> Result<u64, Fault> {
        Ok(match (msr, msr & !0xFF) {
            (CTL, _) => self.control,
            (DEPTH, _) => self.records.len() as u64,
            (_, INFO) => self.records[self.slot(msr)?].info,
            (_, FROM) => self.records[self.slot(msr)?].from,
            (_, TO) => self.records[self.slot(msr)?].to,
            _ => return Err(Fault::NoRegister),
        })
    }

    pub(super) fn write(&mut self, msr: u32, value: u64) -> Result<(), Fault> {
        let address = |value: u64| {
            if (value as i64) << 16 >> 16 == value as i64 { Ok(value) } else { Err(Fault::Value(value)) }
        };
        match (msr, msr & !0xFF) {
            (CTL, _) => self.control = only(CTL_BITS, value)?,
            // A write clears all records, also when it changes nothing; those beyond the depth do not exist any more.
            (DEPTH, _) if value != 0 && value <= u64::from(self.most) && value.is_multiple_of(8) => {
                self.records = alloc::vec![Record::default(); value as usize];
            }
            (DEPTH, _) => return Err(Fault::Value(value)),
            (_, INFO) => {
                let slot = self.slot(msr)?;
                self.records[slot].info = only(INFO_BITS, value)?;
            }
            (_, FROM) => {
                let slot = self.slot(msr)?;
                self.records[slot].from = address(value)?;
            }
            (_, TO) => {
                let slot = self.slot(msr)?;
                self.records[slot].to = address(value)?;
            }
            _ => return Err(Fault::NoRegister),
        }
        Ok(())
    }

    pub(super) fn record(&mut self, cpl: u8, taken: &Taken) {
        let level = if cpl == 0 { OS } else { USR };
        let wanted = ENABLE | level | 1 << taken.kind as u32;
        if self.control & wanted != wanted {
            return;
        }
        // In call-stack mode a return takes the record of its call away (SDM Vol. 3B 19.1.2.4).
        if self.control & CALL_STACK != 0 && taken.kind == Kind::Return {
            self.records.rotate_left(1);
            if let Some(last) = self.records.last_mut() {
                *last = Record::default();
            }
            return;
        }
        let info = taken.kind.code() << 56 | u64::from(taken.mispredicted) << 63;
        self.records.rotate_right(1);
        if let Some(first) = self.records.first_mut() {
            *first = Record { from: taken.from, to: taken.to, info };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(from: u64, kind: Kind) -> Taken {
        Taken { from, to: from + 0x100, kind, mispredicted: kind == Kind::Conditional }
    }

    #[test]
    fn the_youngest_record_is_number_0_and_the_filters_decide_what_is_recorded() {
        let mut lbr = Lbr::new(8);
        lbr.record(0, &taken(1, Kind::Conditional));
        lbr.write(CTL, ENABLE | OS | 1 << 16 | 1 << 17).unwrap();
        lbr.record(0, &taken(2, Kind::Conditional));
        lbr.record(3, &taken(3, Kind::Conditional));
        lbr.record(0, &taken(4, Kind::Return));
        lbr.record(0, &taken(5, Kind::DirectJump));
        let read = |msr| lbr.read(msr);
        assert_eq!([read(FROM), read(TO), read(INFO)], [Ok(5), Ok(0x105), Ok(2 << 56)]);
        assert_eq!([read(FROM + 1), read(TO + 1), read(INFO + 1)], [Ok(2), Ok(0x102), Ok(1 << 63)]);
        assert_eq!(read(FROM + 2), Ok(0));
    }

    #[test]
    fn call_stack_mode_keeps_the_calls_that_have_not_returned() {
        let mut lbr = Lbr::new(8);
        lbr.write(CTL, 0x3A_000F & CTL_BITS).unwrap();
        for (from, kind) in [(1, Kind::DirectCall), (2, Kind::DirectCall), (3, Kind::Return), (4, Kind::DirectCall)] {
            lbr.record(0, &taken(from, kind));
        }
        assert_eq!([0, 1, 2].map(|slot| lbr.read(FROM + slot)), [Ok(4), Ok(1), Ok(0)]);
    }

    #[test]
    fn what_is_reserved_faults_and_the_depth_clears_the_records() {
        let mut lbr = Lbr::new(16);
        assert_eq!(lbr.write(CTL, 1 << 4), Err(Fault::Reserved(1 << 4)));
        assert_eq!(lbr.write(FROM, 1 << 47), Err(Fault::Value(1 << 47)));
        assert_eq!(lbr.write(INFO, 1 << 16), Err(Fault::Reserved(1 << 16)));
        assert_eq!([lbr.read(FROM + 16), lbr.read(0x1300), lbr.read(0x14D0)], [Err(Fault::NoRegister); 3]);
        lbr.write(FROM + 15, 7).unwrap();
        assert_eq!([0, 12, 24].map(|depth| lbr.write(DEPTH, depth)), [0, 12, 24].map(|depth| Err(Fault::Value(depth))));
        assert_eq!(lbr.read(FROM + 15), Ok(7));
        assert_eq!(lbr.write(DEPTH, 16), Ok(()));
        assert_eq!(lbr.read(FROM + 15), Ok(0));
        assert_eq!(lbr.write(DEPTH, 8), Ok(()));
        assert_eq!([lbr.read(FROM + 7), lbr.read(FROM + 8), lbr.read(DEPTH)], [Ok(0), Err(Fault::NoRegister), Ok(8)]);
    }
}
