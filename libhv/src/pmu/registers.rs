//! The registers of a PMU by name, and what their bits mean (SDM Vol. 3B "Performance Monitoring", Vol. 4; APM Vol. 2
//! 13.2 and App. A.3).

use crate::exit::Msr;
use bit_field::BitField;

/// Counters of any one kind at most: what the registers' layout has room for here.
pub const MAX_COUNTERS: u8 = 8;
/// Last-branch records at most (SDM Vol. 3B 19.1.1).
pub const MAX_BRANCHES: u8 = 64;

/// A register of a PMU. None of them holds an address, or reaches memory by itself: the debug store, PEBS and their like
/// are not among them (requirement A15).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PmuRegister {
    /// IA32_PMCn, which sign-extends 32 bits on writing. PERF_CTRn of the first generation on AMD's processors.
    Counter(u8),
    /// IA32_A_PMCn, all bits of which are written. PERF_CTRn of the core extensions on AMD's processors.
    FullCounter(u8),
    /// IA32_PERFEVTSELn. PERF_CTLn of the first generation on AMD's processors.
    Selector(u8),
    /// PERF_CTLn of AMD's core extensions.
    CoreSelector(u8),
    /// IA32_FIXED_CTRn
    Fixed(u8),
    /// IA32_FIXED_CTR_CTRL
    FixedControl,
    /// IA32_PERF_GLOBAL_CTRL; PerfCntrGlobalCtl
    GlobalControl,
    /// IA32_PERF_GLOBAL_STATUS, read-only; PerfCntrGlobalStatus
    GlobalStatus,
    /// IA32_PERF_GLOBAL_STATUS_RESET (IA32_PERF_GLOBAL_OVF_CTRL before version 4), which clears what is written as 1;
    /// PerfCntrGlobalStatusClr
    StatusReset,
    /// IA32_PERF_GLOBAL_STATUS_SET, which sets what is written as 1; PerfCntrGlobalStatusSet
    StatusSet,
    /// IA32_PERF_GLOBAL_INUSE, read-only
    InUse,
    /// IA32_PERF_CAPABILITIES, read-only for the guest
    Capabilities,
    /// A register of the last-branch records.
    Branch(BranchRegister),
}

/// A register of the last-branch records (SDM Vol. 3B chapter 19).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BranchRegister {
    /// IA32_LBR_CTL
    Control,
    /// IA32_LBR_DEPTH, whose writing clears the records
    Depth,
    /// IA32_LBR_x_FROM_IP
    From(u8),
    /// IA32_LBR_x_TO_IP
    To(u8),
    /// IA32_LBR_x_INFO
    Info(u8),
}

/// Whose registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Maker {
    /// Intel's architectural performance monitoring.
    Intel,
    /// AMD's performance-monitoring counters.
    Amd,
}

impl PmuRegister {
    /// Returns the register that an MSR index names, whether or not the processor at hand has it.
    #[inline]
    pub const fn of(msr: Msr, maker: Maker) -> Option<Self> {
        let index = msr.0;
        match maker {
            Maker::Intel => Some(match index {
                0xC1..=0xC8 => Self::Counter((index - 0xC1) as u8),
                0x186..=0x18D => Self::Selector((index - 0x186) as u8),
                0x309..=0x310 => Self::Fixed((index - 0x309) as u8),
                0x345 => Self::Capabilities,
                0x38D => Self::FixedControl,
                0x38E => Self::GlobalStatus,
                0x38F => Self::GlobalControl,
                0x390 => Self::StatusReset,
                0x391 => Self::StatusSet,
                0x392 => Self::InUse,
                0x4C1..=0x4C8 => Self::FullCounter((index - 0x4C1) as u8),
                0x14CE => Self::Branch(BranchRegister::Control),
                0x14CF => Self::Branch(BranchRegister::Depth),
                0x1200..=0x123F => Self::Branch(BranchRegister::Info((index - 0x1200) as u8)),
                0x1500..=0x153F => Self::Branch(BranchRegister::From((index - 0x1500) as u8)),
                0x1600..=0x163F => Self::Branch(BranchRegister::To((index - 0x1600) as u8)),
                _ => return None,
            }),
            Maker::Amd => Some(match index {
                0xC001_0000..=0xC001_0003 => Self::Selector((index - 0xC001_0000) as u8),
                0xC001_0004..=0xC001_0007 => Self::Counter((index - 0xC001_0004) as u8),
                0xC001_0200..=0xC001_020F if index & 1 == 0 => Self::CoreSelector(((index - 0xC001_0200) / 2) as u8),
                0xC001_0200..=0xC001_020F => Self::FullCounter(((index - 0xC001_0201) / 2) as u8),
                0xC000_0300 => Self::GlobalStatus,
                0xC000_0301 => Self::GlobalControl,
                0xC000_0302 => Self::StatusReset,
                0xC000_0303 => Self::StatusSet,
                _ => return None,
            }),
        }
    }

    /// Returns the MSR; `None` for a register that this maker's processors do not have.
    #[inline]
    pub const fn msr(self, maker: Maker) -> Option<Msr> {
        Some(Msr(match (maker, self) {
            (
                _,
                Self::Counter(n) | Self::FullCounter(n) | Self::Selector(n) | Self::CoreSelector(n) | Self::Fixed(n),
            ) if n >= MAX_COUNTERS => {
                return None;
            }
            (Maker::Intel, Self::Counter(n)) => 0xC1 + n as u32,
            (Maker::Intel, Self::FullCounter(n)) => 0x4C1 + n as u32,
            (Maker::Intel, Self::Selector(n)) => 0x186 + n as u32,
            (Maker::Intel, Self::Fixed(n)) => 0x309 + n as u32,
            (Maker::Intel, Self::FixedControl) => 0x38D,
            (Maker::Intel, Self::GlobalStatus) => 0x38E,
            (Maker::Intel, Self::GlobalControl) => 0x38F,
            (Maker::Intel, Self::StatusReset) => 0x390,
            (Maker::Intel, Self::StatusSet) => 0x391,
            (Maker::Intel, Self::InUse) => 0x392,
            (Maker::Intel, Self::Capabilities) => 0x345,
            (
                _,
                Self::Branch(BranchRegister::From(n))
                | Self::Branch(BranchRegister::To(n))
                | Self::Branch(BranchRegister::Info(n)),
            ) if n >= MAX_BRANCHES => return None,
            (Maker::Intel, Self::Branch(BranchRegister::Control)) => 0x14CE,
            (Maker::Intel, Self::Branch(BranchRegister::Depth)) => 0x14CF,
            (Maker::Intel, Self::Branch(BranchRegister::Info(n))) => 0x1200 + n as u32,
            (Maker::Intel, Self::Branch(BranchRegister::From(n))) => 0x1500 + n as u32,
            (Maker::Intel, Self::Branch(BranchRegister::To(n))) => 0x1600 + n as u32,
            (Maker::Intel, Self::CoreSelector(_)) => return None,
            (Maker::Amd, Self::Selector(n)) if n < 4 => 0xC001_0000 + n as u32,
            (Maker::Amd, Self::Counter(n)) if n < 4 => 0xC001_0004 + n as u32,
            (Maker::Amd, Self::CoreSelector(n)) => 0xC001_0200 + 2 * n as u32,
            (Maker::Amd, Self::FullCounter(n)) => 0xC001_0201 + 2 * n as u32,
            (Maker::Amd, Self::GlobalStatus) => 0xC000_0300,
            (Maker::Amd, Self::GlobalControl) => 0xC000_0301,
            (Maker::Amd, Self::StatusReset) => 0xC000_0302,
            (Maker::Amd, Self::StatusSet) => 0xC000_0303,
            (Maker::Amd, _) => return None,
        }))
    }
}

/// What a general-purpose counter counts: IA32_PERFEVTSELn or PERF_CTLn, any bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EventSelector(pub u64);

impl EventSelector {
    /// Bits that AMD's selectors have for whom they count: GuestOnly.
    pub const GUEST_ONLY: u64 = 1 << 40;
    /// HostOnly
    pub const HOST_ONLY: u64 = 1 << 41;
    /// EN
    pub const ENABLE: u64 = 1 << 22;
    /// INT: an overflow interrupts.
    pub const INTERRUPT: u64 = 1 << 20;
    /// AnyThread, which counts the core's other thread too.
    pub const ANY_THREAD: u64 = 1 << 21;

    /// Returns the event number: 8 bits, on AMD's processors 12.
    #[inline]
    pub fn event(self, maker: Maker) -> u16 {
        let high = if maker == Maker::Amd { self.0.get_bits(32..36) as u16 } else { 0 };
        self.0.get_bits(0..8) as u16 | high << 8
    }
    /// Returns the unit mask.
    #[inline]
    pub fn unit_mask(self) -> u8 {
        self.0.get_bits(8..16) as u8
    }
    /// Returns whether it counts at privilege levels above 0.
    #[inline]
    pub fn user(self) -> bool {
        self.0.get_bit(16)
    }
    /// Returns whether it counts at privilege level 0.
    #[inline]
    pub fn system(self) -> bool {
        self.0.get_bit(17)
    }
    /// Returns whether an overflow interrupts.
    #[inline]
    pub fn interrupts(self) -> bool {
        self.0 & Self::INTERRUPT != 0
    }
    /// Returns whether it is enabled.
    #[inline]
    pub fn enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }
    /// Returns whether it counts at a privilege level.
    #[inline]
    pub fn counts_at(self, cpl: u8) -> bool {
        if cpl == 0 { self.system() } else { self.user() }
    }
}

/// IA32_FIXED_CTR_CTRL, any bits: four for each counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FixedControl(pub u64);

impl FixedControl {
    /// Returns the four bits of a counter: OS, USR, Any, PMI. No bits for counters above 7.
    #[inline]
    pub fn of(self, counter: u8) -> u64 {
        if counter < MAX_COUNTERS { self.0 >> (4 * counter) & 0xF } else { 0 }
    }
    /// Returns whether a counter counts at a privilege level.
    #[inline]
    pub fn counts_at(self, counter: u8, cpl: u8) -> bool {
        self.of(counter) & if cpl == 0 { 1 } else { 2 } != 0
    }
    /// Returns whether an overflow of a counter interrupts.
    #[inline]
    pub fn interrupts(self, counter: u8) -> bool {
        self.of(counter) & 8 != 0
    }
}

/// A counter's number in RDPMC's ECX (SDM Vol. 2B "RDPMC").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CounterIndex {
    /// A general-purpose counter.
    General(u8),
    /// A fixed-function counter.
    Fixed(u8),
}

impl CounterIndex {
    /// Decodes ECX; `None` for what no counter has: other types, other numbers, the "fast" bit (T-A7).
    #[inline]
    pub const fn of_ecx(ecx: u32, maker: Maker) -> Option<Self> {
        let number = (ecx & 0xFFFF) as u8;
        match (ecx >> 16, maker) {
            _ if ecx & 0xFFFF >= MAX_COUNTERS as u32 => None,
            (0, _) => Some(Self::General(number)),
            (0x4000, Maker::Intel) => Some(Self::Fixed(number)),
            _ => None,
        }
    }
    /// Returns ECX.
    #[inline]
    pub const fn ecx(self) -> u32 {
        match self {
            Self::General(n) => n as u32,
            Self::Fixed(n) => 0x4000 << 16 | n as u32,
        }
    }
    /// Returns the counter's bit in IA32_PERF_GLOBAL_CTRL and IA32_PERF_GLOBAL_STATUS.
    #[inline]
    pub const fn bit(self) -> u32 {
        match self {
            Self::General(n) => (n & 7) as u32,
            Self::Fixed(n) => 32 + (n & 7) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Requirement A3.
        #[test]
        fn an_index_names_at_most_one_register_and_the_register_names_the_index(index: u32, near in 0u32..0x1700) {
            for index in [index, near, 0xC000_0000 + near, 0xC001_0000 + near] {
                for maker in [Maker::Intel, Maker::Amd] {
                    if let Some(register) = PmuRegister::of(Msr(index), maker) {
                        prop_assert_eq!(register.msr(maker), Some(Msr(index)));
                    }
                }
            }
        }

        /// Requirement A15: with the debug store, PEBS and off-core registers out of reach, the set is harmless.
        /// Also T-A5.
        #[test]
        fn no_register_that_reaches_memory_or_another_core_is_among_them(index in 0u32..0x2000) {
            let dangerous = matches!(index, 0x1A6 | 0x1A7 | 0x3F1..=0x3F7 | 0x560..=0x58B | 0x600 | 0x1D9 | 0x1A0);
            prop_assert!(!dangerous || PmuRegister::of(Msr(index), Maker::Intel).is_none());
        }

        #[test]
        fn what_rdpmc_accepts_comes_back_as_the_same_number(ecx: u32, low in 0u32..16) {
            for ecx in [ecx, low, 0x4000_0000 | low, 0x8000_0000 | low, 0x2000_0000 | low] {
                for maker in [Maker::Intel, Maker::Amd] {
                    if let Some(index) = CounterIndex::of_ecx(ecx, maker) {
                        prop_assert_eq!(index.ecx(), ecx);
                    }
                }
            }
        }
    }

    /// T-A7.
    #[test]
    fn rdpmc_has_no_counter_64_no_fast_mode_and_no_other_types() {
        for ecx in [64, 8, 0x8000_0000, 0x8000_0001, 0x2000_0000, 0x4000_0008, 0x4001_0000, u32::MAX] {
            assert_eq!(CounterIndex::of_ecx(ecx, Maker::Intel), None, "{ecx:#x}");
        }
        assert_eq!(CounterIndex::of_ecx(0x4000_0000, Maker::Amd), None);
    }
}
