//! What happens in a clock period, which of it an event means, and how many times a counter advances by it.

/// What happened in one step: a clock period, or several of which the first has the events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Happened {
    /// Core clock cycles, which are as many periods. With 0 the events still have a period, and it has no cycle.
    pub cycles: u64,
    /// Reference clock cycles.
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

    /// How often it happened in the first period, and in each that follows.
    fn in_periods(self, happened: &Happened) -> (u64, u64) {
        let cycle = happened.cycles.min(1);
        match self {
            Self::Cycles => (cycle, cycle),
            Self::Slots => (4 * cycle, 4 * cycle),
            Self::RefCycles => (happened.ref_cycles, 0),
            Self::Instructions => (happened.instructions, 0),
            Self::Branches => (happened.branches, 0),
            Self::Conditional => (happened.conditional, 0),
            Self::Mispredicted => (happened.mispredicted, 0),
            Self::LlcReferences => (happened.llc_references, 0),
            Self::LlcMisses => (happened.llc_misses, 0),
            Self::Nothing => (0, 0),
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
        let (first, each) = self.source.in_periods(happened);
        let more = happened.cycles.saturating_sub(1);
        let (at_first, later) = (self.holds(first), self.holds(each));
        let at_end = if more > 0 { later } else { at_first };
        let amount = if self.edge {
            u64::from(!held && at_first) + u64::from(more > 0 && !at_first && later)
        } else if self.mask == 0 {
            first.wrapping_add(each.wrapping_mul(more))
        } else {
            u64::from(at_first) + if later { more } else { 0 }
        };
        (amount, at_end)
    }
}
