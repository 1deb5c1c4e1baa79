//! The stated branch predictor and the stated caches: small enough to be said in words, and the same everywhere.
//!
//! Conditional branches: 4096 two-bit saturating counters, by the low 12 bits of the branch's address, at first 1; taken
//! is predicted from 2 on. Indirect branches and returns: 1024 last targets, by the low 10 bits of the address, at first
//! 0. Direct branches are never mispredicted. Caches know physical addresses in lines of 64 bytes, both direct-mapped:
//! 32 KiB, whose misses are references to the last level of 2 MiB.

use alloc::vec::Vec;

/// What kind of branch an instruction is, where the predictor is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Branch {
    /// Jcc, LOOP, JCXZ.
    Conditional,
    /// A jump or call whose target stands in the instruction.
    Direct,
    /// A jump or call through a register or memory, and a return.
    Indirect,
}

/// Where a memory access was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// By the first level.
    First,
    /// By the last level: a reference.
    Last,
    /// By memory: a reference that missed.
    Memory,
}

/// The branch predictor.
#[derive(Clone, Debug)]
pub struct Predictor {
    counters: Vec<u8>,
    targets: Vec<u64>,
}

impl Default for Predictor {
    fn default() -> Self {
        Self { counters: alloc::vec![1; 4096], targets: alloc::vec![0; 1024] }
    }
}

impl Predictor {
    /// Learns from a branch at `address` and returns whether it was mispredicted. `taken` counts for conditional
    /// branches, `target` for indirect ones.
    pub fn branch(&mut self, kind: Branch, address: u64, target: u64, taken: bool) -> bool {
        match kind {
            Branch::Direct => false,
            Branch::Conditional => {
                let counter = &mut self.counters[(address & 4095) as usize];
                let predicted = *counter >= 2;
                *counter = if taken { (*counter + 1).min(3) } else { counter.saturating_sub(1) };
                predicted != taken
            }
            Branch::Indirect => core::mem::replace(&mut self.targets[(address & 1023) as usize], target) != target,
        }
    }
}

/// The caches, which hold the numbers of lines.
#[derive(Clone, Debug)]
pub struct Caches {
    first: Vec<Option<u64>>,
    last: Vec<Option<u64>>,
}

impl Default for Caches {
    fn default() -> Self {
        Self { first: alloc::vec![None; 512], last: alloc::vec![None; 32768] }
    }
}

impl Caches {
    /// Accesses the line that holds a physical address.
    pub fn access(&mut self, physical: u64) -> Answered {
        let line = physical >> 6;
        let held = |cache: &mut Vec<Option<u64>>| {
            let slot = (line % cache.len() as u64) as usize;
            cache[slot].replace(line) == Some(line)
        };
        if held(&mut self.first) {
            Answered::First
        } else if held(&mut self.last) {
            Answered::Last
        } else {
            Answered::Memory
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_mispredicted_once_at_each_end() {
        let mut predictor = Predictor::default();
        let mut pass = || {
            let runs = (0..10).map(|turn| turn < 9);
            runs.filter(|&taken| predictor.branch(Branch::Conditional, 0x1234, 0x1000, taken)).count()
        };
        assert_eq!([pass(), pass(), pass()], [2, 1, 1]);
        assert!(predictor.branch(Branch::Conditional, 0x2235, 0, true), "another counter");
        assert!(!predictor.branch(Branch::Conditional, 0x2234, 0, true), "the same counter: 4096 apart");
    }

    #[test]
    fn an_indirect_branch_is_predicted_to_go_where_it_went_last() {
        let mut predictor = Predictor::default();
        let went: Vec<bool> =
            [5, 5, 6, 5].iter().map(|&target| predictor.branch(Branch::Indirect, 0x400, target, true)).collect();
        assert_eq!(went, [true, false, true, true]);
        assert!(!predictor.branch(Branch::Indirect, 0, 5, true), "the same entry: 1024 apart");
        assert!(!predictor.branch(Branch::Direct, 0, 9, true));
    }

    #[test]
    fn a_line_is_answered_by_the_nearest_cache_that_still_holds_it() {
        let mut caches = Caches::default();
        assert_eq!(
            [0x1000, 0x103F, 0x1040].map(|at| caches.access(at)),
            [Answered::Memory, Answered::First, Answered::Memory]
        );
        assert_eq!(caches.access(0x9000), Answered::Memory, "32 KiB on: it displaces the first");
        assert_eq!(caches.access(0x1000), Answered::Last);
        assert_eq!(caches.access(0x20_1000), Answered::Memory, "2 MiB on: it displaces both");
        assert_eq!(caches.access(0x1000), Answered::Memory);
    }
}
