//! The two models of a PMU that the project has, behind one set of commands: that of `libhv::sim`, and that which its
//! Bochs is built with. They were written separately, from the manual; `tests/agree.rs` gives both the same programs.

mod ours;
mod theirs;

pub use ours::Ours;
pub use theirs::Theirs;

use core::fmt;
use libhv::sim::pmu::{Branch, Happened};

/// One command to a model. Its form as text is a line of the protocol of `targets/bochs/pmu_harness.cc`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// WRMSR: answered `ok` or `gp`.
    Write(u32, u64),
    /// RDMSR: answered by the value in hexadecimal, or `gp`.
    Read(u32),
    /// RDPMC: answered as RDMSR.
    ReadCounter(u32),
    /// A step at a privilege level: answered `pmi` or `-`.
    Step(u8, Happened),
    /// A branch: answered `1` when it was mispredicted, else `0`.
    Branch(Branch, u64, u64, bool),
    /// A memory access: answered `hit`, `ref` or `miss`.
    Access(u64),
    /// Interrupts come so many instructions late from now on: answered `ok`.
    Skid(u64),
    /// RESET: answered `ok`.
    Reset,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Write(msr, value) => write!(f, "wrmsr {msr:x} {value:x}"),
            Self::Read(msr) => write!(f, "rdmsr {msr:x}"),
            Self::ReadCounter(ecx) => write!(f, "rdpmc {ecx:x}"),
            Self::Step(cpl, happened) => {
                let Happened {
                    cycles,
                    ref_cycles,
                    instructions,
                    branches,
                    conditional,
                    mispredicted,
                    llc_references,
                    llc_misses,
                } = happened;
                write!(
                    f,
                    "step {cpl} {cycles} {ref_cycles} {instructions} {branches} {conditional} {mispredicted} \
                     {llc_references} {llc_misses}"
                )
            }
            Self::Branch(kind, address, target, taken) => {
                let kind = match kind {
                    Branch::Conditional => 'c',
                    Branch::Direct => 'd',
                    Branch::Indirect => 'i',
                };
                write!(f, "branch {address:x} {target:x} {kind} {}", u8::from(taken))
            }
            Self::Access(physical) => write!(f, "access {physical:x}"),
            Self::Skid(instructions) => write!(f, "skid {instructions}"),
            Self::Reset => f.write_str("reset"),
        }
    }
}

/// As the line it is: programs that fail are read by people.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
