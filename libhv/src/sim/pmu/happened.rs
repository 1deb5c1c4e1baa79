//! What happens in a clock period, which of it an event means, and how many times a counter advances by it.

/// What happened in one step: a clock period, or several of which the first has the events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Happened {
    /// Core clock cycles, which are as many periods. With 0, events happened and no period went by.
    pub cycles: u64,
    /// Reference clock cycles, one in each period from the first on.
    pub ref_cycles: u64,
    /// Instructions that retired.
    pub instructions: u64,
    /// Branch instructions that retired, all kinds.
    pub branches: u64,
    /// Conditional branches among them, taken or not.
    pub conditional: u64,
    /// Mispredicted branches among them.
    pub mispredicted: u64,
    /// References to the last-level cache.
    pub llc_references: u64,
    /// Misses among them.
    pub llc_misses: u64,
}

/// An event that a counter can follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Cycles,
    RefCycles,
    Instructions,
    Branches,
    Conditional,
    Mispredicted,
    LlcReferences,
    LlcMisses,
    /// Four in each cycle.
    Slots,
    /// An event this processor does not know.
    Nothing,
}

impl Source {
    /// The architectural events, and conditional branches retired (SDM Vol. 3B 20.2.1.2, table 20-1).
    pub(super) fn intel(event: u8, unit_mask: u8) -> Self {
        match (event, unit_mask) {
            (0x3C, 0x00) => Self::Cycles,
            (0x3C, 0x01) => Self::RefCycles,
            (0xC0, 0x00) => Self::Instructions,
            (0x2E, 0x4F) => Self::LlcReferences,
            (0x2E, 0x41) => Self::LlcMisses,
            (0xC4, 0x00) => Self::Branches,
            (0xC4, 0x11) => Self::Conditional,
            (0xC5, 0x00) => Self::Mispredicted,
            _ => Self::Nothing,
        }
    }

    /// The events of family 17h and later that have no unit masks (PPR, core performance monitor counters).
    pub(super) fn amd(event: u16) -> Self {
        match event {
            0x76 => Self::Cycles,
            0xC0 => Self::Instructions,
            0xC2 => Self::Branches,
            0xC3 => Self::Mispredicted,
            0xD1 => Self::Conditional,
            _ => Self::Nothing,
        }
    }

    /// How often it happened in all.
    fn total(self, happened: &Happened) -> u64 {
        match self {
            Self::Cycles => happened.cycles,
            Self::Slots => happened.cycles.wrapping_mul(4),
            Self::RefCycles => happened.ref_cycles,
            Self::Instructions => happened.instructions,
            Self::Branches => happened.branches,
            Self::Conditional => happened.conditional,
            Self::Mispredicted => happened.mispredicted,
            Self::LlcReferences => happened.llc_references,
            Self::LlcMisses => happened.llc_misses,
            Self::Nothing => 0,
        }
    }

    /// In how many periods from the first on it happened equally often, and how often in each. In those that follow it
    /// did not happen.
    fn run(self, happened: &Happened) -> (u64, u64) {
        match self {
            Self::Cycles => (happened.cycles, 1),
            Self::Slots => (happened.cycles, 4),
            Self::RefCycles => (happened.cycles.min(happened.ref_cycles), 1),
            _ => (happened.cycles.min(1), self.total(happened)),
        }
    }
}

/// When a counter advances by an event (SDM Vol. 3B 20.2.1.1: E, INV, CMASK).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Condition {
    pub(super) source: Source,
    edge: bool,
    invert: bool,
    mask: u64,
}

impl Condition {
    /// Every occurrence counts.
    pub(super) fn every(source: Source) -> Self {
        Self { source, edge: false, invert: false, mask: 0 }
    }

    /// Takes E (18), INV (23) and CMASK (31:24) from a selector; they are in the same place for both vendors.
    pub(super) fn of(source: Source, selector: u64) -> Self {
        let bit = |number: u32| selector >> number & 1 != 0;
        Self { source, edge: bit(18), invert: bit(23), mask: selector >> 24 & 0xFF }
    }

    fn holds(&self, number: u64) -> bool {
        if self.mask == 0 { number > 0 } else { (number >= self.mask) != self.invert }
    }

    /// Returns by how much a counter advances, and whether the condition holds at the end; `held` is whether it held
    /// before.
    pub(super) fn advances(&self, happened: &Happened, held: bool) -> (u64, bool) {
        if self.mask == 0 && !self.edge {
            return (self.source.total(happened), false);
        }
        let (length, number) = self.source.run(happened);
        let (mut amount, mut held) = (0, held);
        for (periods, number) in [(length, number), (happened.cycles - length, 0)] {
            if periods == 0 {
                continue;
            }
            let holds = self.holds(number);
            amount += match (holds, self.edge) {
                (false, _) => 0,
                (true, true) => u64::from(!held),
                (true, false) => periods,
            };
            held = holds;
        }
        (amount, held)
    }
}
