//! What the processor's PMU has: CPUID and IA32_PERF_CAPABILITIES, judged (requirement A6). Pure.

use super::registers::{BranchRegister, EventSelector, MAX_COUNTERS, Maker, PmuRegister};
use crate::vcpu::cpuid::CpuidSource;
use bit_field::BitField;

/// IA32_PERF_CAPABILITIES.FW_WRITE: IA32_A_PMCn exist.
pub const FULL_WIDTH_WRITES: u64 = 1 << 13;
/// IA32_PERF_CAPABILITIES.PERF_METRICS_AVAILABLE
pub const PERF_METRICS: u64 = 1 << 15;
/// IA32_PERF_CAPABILITIES.FREEZE_WHILE_SMM: IA32_DEBUGCTL.FREEZE_WHILE_SMM exists.
pub const FREEZE_IN_SMM: u64 = 1 << 12;
/// Architectural events that CPUID.0AH:EBX speaks of: those with a number here, 0 to 7.
pub const ARCHITECTURAL_EVENTS: u32 = 8;

/// What a PMU has: that of the processor, or that which a guest is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmuCapability {
    /// Whose registers it has.
    pub maker: Maker,
    /// Version of architectural performance monitoring (Intel, 1 to 6), or of PerfMon (AMD: 1 without, 2 with global
    /// registers).
    pub version: u8,
    /// General-purpose counters, 1 to 8.
    pub counters: u8,
    /// Bits of a general-purpose counter, 32 to 64.
    pub width: u8,
    /// A bit for each fixed-function counter.
    pub fixed: u8,
    /// Bits of a fixed-function counter, 32 to 64; 0 where there is none.
    pub fixed_width: u8,
    /// A bit for each architectural event that is *not* there, [`ARCHITECTURAL_EVENTS`] of them (CPUID.0AH:EBX).
    pub missing_events: u32,
    /// IA32_PERF_CAPABILITIES; 0 where there is none.
    pub capabilities: u64,
    /// The AnyThread bits are gone (CPUID.0AH:EDX\[15\]).
    pub any_thread_deprecated: bool,
    /// AMD's core extensions: PERF_CTLn and PERF_CTRn at C001_0200H.
    pub core_extensions: bool,
    /// The architectural last-branch records' greatest depth (CPUID.1CH); 0 without, and where the records lack a filter or
    /// a field, so that IA32_LBR_CTL and IA32_LBR_x_INFO have the same bits wherever there are any.
    pub lbr_depth: u8,
    /// The processor has counters beside these, which are nobody's: more of a kind than there is room for here, or such
    /// as leaf 23H alone tells of. Registers that speak of all counters, and RDPMC, reach them too (A12).
    pub has_more: bool,
}

impl PmuCapability {
    /// Judges what CPUID says; `capabilities` reads IA32_PERF_CAPABILITIES and is asked where CPUID says that it exists.
    /// `None` when there is no PMU that this pillar knows.
    pub fn of(cpuid: &impl CpuidSource, capabilities: impl FnOnce() -> u64) -> Option<Self> {
        let [max, vendor @ ..] = cpuid.cpuid(0, 0);
        let amd = matches!(vendor.map(u32::to_le_bytes).as_flattened(), b"AuthcAMDenti" | b"HygouinenGen");
        if amd { Self::of_amd(cpuid) } else { Self::of_intel(cpuid, max, capabilities) }
    }

    fn of_intel(cpuid: &impl CpuidSource, max: u32, capabilities: impl FnOnce() -> u64) -> Option<Self> {
        if max < 0xA {
            return None;
        }
        let [eax, ebx, ecx, edx] = cpuid.cpuid(0xA, 0);
        let (version, counters) = (eax.get_bits(0..8) as u8, eax.get_bits(8..16) as u8);
        if version == 0 || counters == 0 {
            return None;
        }
        let contiguous = if version >= 2 { edx.get_bits(0..5) } else { 0 };
        let listed = if version >= 5 { ecx } else { 0 };
        let all_fixed = ((1u32 << contiguous) - 1) | listed;
        let fixed = all_fixed as u8;
        let known = eax.get_bits(24..32).min(ARCHITECTURAL_EVENTS);
        let beyond = u32::MAX << known & ((1 << ARCHITECTURAL_EVENTS) - 1);
        let has_capabilities = cpuid.cpuid(1, 0)[2].get_bit(15);
        let [more_counters, more_fixed] = Self::listed_by_leaf_23(cpuid, max);
        let within = u32::MAX >> (32 - counters.min(MAX_COUNTERS));
        let has_more = counters > MAX_COUNTERS || more_counters & !within != 0;
        let has_more_fixed = (all_fixed | more_fixed) & !u32::from(fixed) != 0;
        let has_lbr = max >= 0x1C && cpuid.cpuid(7, 0)[3].get_bit(19);
        let [depths, filters, fields, _] = if has_lbr { cpuid.cpuid(0x1C, 0) } else { [0; 4] };
        let depths = if filters & fields & 0b111 == 0b111 { depths as u8 } else { 0 };
        Some(Self {
            maker: Maker::Intel,
            version,
            counters: counters.min(MAX_COUNTERS),
            width: eax.get_bits(16..24).clamp(32, 64) as u8,
            fixed,
            fixed_width: if fixed == 0 { 0 } else { edx.get_bits(5..13).clamp(32, 64) as u8 },
            missing_events: ebx & ((1 << ARCHITECTURAL_EVENTS) - 1) | beyond,
            capabilities: if has_capabilities { capabilities() } else { 0 },
            any_thread_deprecated: edx.get_bit(15),
            core_extensions: false,
            lbr_depth: if depths == 0 { 0 } else { 8 * (8 - depths.leading_zeros() as u8) },
            has_more: has_more || has_more_fixed,
        })
    }

    /// Returns the general-purpose and the fixed-function counters that leaf 23H lists; 0 without such a leaf.
    fn listed_by_leaf_23(cpuid: &impl CpuidSource, max: u32) -> [u32; 2] {
        const LISTS_COUNTERS: usize = 1;
        if max < 0x23 || !cpuid.cpuid(0x23, 0)[0].get_bit(LISTS_COUNTERS) {
            return [0; 2];
        }
        let [general, fixed, ..] = cpuid.cpuid(0x23, 1);
        [general, fixed]
    }

    fn of_amd(cpuid: &impl CpuidSource) -> Option<Self> {
        const PERF_CTR_EXT_CORE: usize = 23;
        let max = cpuid.cpuid(0x8000_0000, 0)[0];
        let core_extensions = max >= 0x8000_0001 && cpuid.cpuid(0x8000_0001, 0)[2].get_bit(PERF_CTR_EXT_CORE);
        let monitoring = if max >= 0x8000_0022 { cpuid.cpuid(0x8000_0022, 0) } else { [0; 4] };
        let second = monitoring[0].get_bit(0);
        let counters = match (second, core_extensions) {
            (true, _) => monitoring[1].get_bits(0..4) as u8,
            (false, true) => 6,
            (false, false) => 4,
        };
        (counters > 0).then_some(Self {
            maker: Maker::Amd,
            version: if second { 2 } else { 1 },
            counters: counters.min(MAX_COUNTERS),
            width: 48,
            fixed: 0,
            fixed_width: 0,
            missing_events: 0,
            capabilities: 0,
            any_thread_deprecated: true,
            core_extensions: core_extensions || second,
            lbr_depth: 0,
            has_more: counters > MAX_COUNTERS,
        })
    }

    /// Returns the bits of a general-purpose counter.
    #[inline]
    pub const fn counter_mask(&self) -> u64 {
        u64::MAX >> (64 - self.width as u32 % 65)
    }
    /// Returns the bits of a fixed-function counter; 0 where there is none.
    #[inline]
    pub const fn fixed_mask(&self) -> u64 {
        if self.fixed_width == 0 { 0 } else { u64::MAX >> (64 - self.fixed_width as u32 % 65) }
    }
    /// Returns whether IA32_A_PMCn exist.
    #[inline]
    pub const fn full_width_writes(&self) -> bool {
        self.capabilities & FULL_WIDTH_WRITES != 0
    }
    /// Returns whether there are registers that control all counters at once.
    #[inline]
    pub const fn has_global_control(&self) -> bool {
        self.version >= 2
    }
    /// Returns whether IA32_PERF_GLOBAL_STATUS can be set: without, what it shows cannot be restored (A18).
    #[inline]
    pub const fn has_status_set(&self) -> bool {
        match self.maker {
            Maker::Intel => self.version >= 4,
            Maker::Amd => self.version >= 2,
        }
    }
    /// Returns whether all that the registers can come to hold can be put into them again, so that guests can take turns: on
    /// Intel's processors with full-width writes and from version 4 on.
    #[inline]
    pub const fn restores_all(&self) -> bool {
        match self.maker {
            Maker::Intel => self.full_width_writes() && self.has_status_set(),
            Maker::Amd => true,
        }
    }
    /// Returns the general-purpose counters' bits in the global registers, which are what IA32_PERF_GLOBAL_CTRL holds
    /// after a reset (T-A3).
    #[inline]
    pub const fn counter_bits(&self) -> u64 {
        (1u64 << (self.counters & 63)) - 1
    }
    /// Returns the bits of IA32_PERF_GLOBAL_CTRL that exist.
    #[inline]
    pub const fn control_bits(&self) -> u64 {
        self.counter_bits() | (self.fixed as u64) << 32
    }
    /// Returns whether there is a general-purpose counter `n`.
    #[inline]
    pub const fn has_counter(&self, n: u8) -> bool {
        n < self.counters
    }
    /// Returns whether there is a fixed-function counter `n`.
    #[inline]
    pub const fn has_fixed(&self, n: u8) -> bool {
        n < MAX_COUNTERS && self.fixed >> n & 1 != 0
    }

    /// Returns whether there is a register.
    pub const fn has(&self, register: PmuRegister) -> bool {
        let intel = matches!(self.maker, Maker::Intel);
        match register {
            PmuRegister::Counter(n) | PmuRegister::Selector(n) => self.has_counter(n) && (intel || n < 4),
            PmuRegister::FullCounter(n) => {
                self.has_counter(n) && if intel { self.full_width_writes() } else { self.core_extensions }
            }
            PmuRegister::CoreSelector(n) => !intel && self.core_extensions && self.has_counter(n),
            PmuRegister::Fixed(n) => self.has_fixed(n),
            PmuRegister::FixedControl => intel && self.version >= 2,
            PmuRegister::GlobalControl | PmuRegister::GlobalStatus | PmuRegister::StatusReset => {
                self.has_global_control()
            }
            PmuRegister::StatusSet => self.has_status_set(),
            PmuRegister::InUse => intel && self.version >= 4,
            PmuRegister::Capabilities => intel && self.capabilities != 0,
            PmuRegister::Branch(BranchRegister::Control) | PmuRegister::Branch(BranchRegister::Depth) => {
                self.lbr_depth != 0
            }
            PmuRegister::Branch(BranchRegister::From(n))
            | PmuRegister::Branch(BranchRegister::To(n))
            | PmuRegister::Branch(BranchRegister::Info(n)) => n < self.lbr_depth,
        }
    }

    /// Returns the bits that a selector may have (T-A18): for Intel without TSX, PEBS and, where it is gone, AnyThread.
    #[inline]
    pub const fn selector_bits(&self) -> u64 {
        match self.maker {
            Maker::Intel => {
                let any = if self.version >= 3 && !self.any_thread_deprecated { EventSelector::ANY_THREAD } else { 0 };
                0xFFDF_FFFF | any
            }
            // Bits 63:42, 39:36, 21 and 19 are reserved (APM Vol. 2 13.2.1).
            Maker::Amd => 0x0000_030F_FFD7_FFFF,
        }
    }

    /// Returns the bits that IA32_FIXED_CTR_CTRL may have.
    #[inline]
    pub const fn fixed_control_bits(&self) -> u64 {
        let each = if self.version >= 3 && !self.any_thread_deprecated { 0xF } else { 0xB };
        let mut bits = 0;
        let mut n = 0;
        while n < MAX_COUNTERS {
            if self.has_fixed(n) {
                bits |= each << (4 * n);
            }
            n += 1;
        }
        bits
    }
}

#[cfg(test)]
pub(super) mod processors;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::cpuid::Leaf;

    /// CPUID by its leaves; those not listed are 0.
    struct Leaves<const N: usize>([(u32, Leaf); N]);
    impl<const N: usize> CpuidSource for Leaves<N> {
        fn cpuid(&self, leaf: u32, _: u32) -> Leaf {
            self.0.iter().find(|(number, _)| *number == leaf).map_or([0; 4], |(_, words)| *words)
        }
    }

    const INTEL: Leaf = [0x20, 0x756E_6547, 0x6C65_746E, 0x4965_6E69];
    const AMD: Leaf = [0x10, 0x6874_7541, 0x444D_4163, 0x6974_6E65];

    /// Requirement A6.
    #[test]
    fn sapphire_rapids_has_eight_counters_and_four_fixed_ones() {
        let cpuid = Leaves([(0, INTEL), (1, [0, 0, 1 << 15, 0]), (0xA, [0x0730_0805, 0, 0xF, 0x8604])]);
        let pmu = PmuCapability::of(&cpuid, || FULL_WIDTH_WRITES).expect("a PMU");
        assert_eq!((pmu.version, pmu.counters, pmu.width, pmu.fixed, pmu.fixed_width), (5, 8, 48, 0xF, 48));
        assert_eq!(pmu.missing_events, 1 << 7, "the vector is seven events long");
        assert!(pmu.full_width_writes() && pmu.any_thread_deprecated && pmu.has_status_set());
        assert_eq!((pmu.control_bits(), pmu.fixed_control_bits()), (0xF_0000_00FF, 0xBBBB));
    }

    #[test]
    fn any_thread_exists_from_version_3_until_it_is_deprecated() {
        let with = |version: u32| Leaves([(0, INTEL), (0xA, [0x0730_0400 | version, 0, 0, 0x603])]);
        let bits = |version| PmuCapability::of(&with(version), || 0).expect("a PMU").selector_bits();
        assert_eq!(bits(2) & EventSelector::ANY_THREAD, 0);
        assert_ne!(bits(3) & EventSelector::ANY_THREAD, 0);
    }

    /// A12, T-A6: what there is no room for is not forgotten, so that nothing passes that reaches it.
    /// Also A6.
    #[test]
    fn counters_beyond_the_eighth_and_those_of_leaf_23_are_known_of() {
        const LEAF_23: (u32, Leaf) = (0x23, [0b11, 0xFF, 0, 0]);
        let of = |leaf_0a, leaf_23: (u32, Leaf)| {
            // Leaf 23H says the same for each of its subleaves here: 0 and 1 are valid, counters 0 and 1, and 0 to 7.
            let max = [leaf_23.0.max(0x20), INTEL[1], INTEL[2], INTEL[3]];
            PmuCapability::of(&Leaves([(0, max), (0xA, leaf_0a), leaf_23]), || 0).expect("a PMU").has_more
        };
        let none = (1, [0; 4]);
        assert!(!of([0x0830_0805, 0, 0xFF, 0x8604], none));
        assert!(of([0x0830_0A05, 0, 0xF, 0x8604], none), "ten general-purpose counters");
        assert!(of([0x0830_0805, 0, 0x100, 0x8604], none), "a ninth fixed-function counter");
        assert!(of([0x0830_0805, 0, 0xF, 0x8609], none), "nine of them without a gap");
        assert!(!of([0x0830_0806, 0, 0xFF, 0x8604], LEAF_23));
        assert!(of([0x0830_0806, 0, 0xF, 0x8604], LEAF_23), "fixed-function counters 4 to 7 are in leaf 23H alone");
        assert!(of([0x0830_0106, 0, 0xFF, 0x8604], LEAF_23), "and so is the second general-purpose one");
        let amd = |counters| {
            let leaves = [(0, AMD), (0x8000_0000, [0x8000_0022, 0, 0, 0]), (0x8000_0022, [1, counters, 0, 0])];
            PmuCapability::of(&Leaves(leaves), || 0).expect("a PMU").has_more
        };
        assert!(!amd(8) && amd(12));
    }

    /// A18: IA32_LBR_CTL takes no bit of a filter that is not there, IA32_LBR_x_INFO none of a field.
    #[test]
    fn last_branch_records_have_all_filters_and_all_fields_or_are_none() {
        let depth = |filters, fields| {
            let max = [0x1C, INTEL[1], INTEL[2], INTEL[3]];
            let leaf_1c = (0x1C, [0x8000_000F, filters, fields, 0]);
            let leaves = [(0, max), (0xA, [0x0730_0805, 0, 0, 0]), (7, [0, 0, 0, 1 << 19]), leaf_1c];
            PmuCapability::of(&Leaves(leaves), || 0).expect("a PMU").lbr_depth
        };
        assert_eq!([depth(7, 7), depth(7, 0xF_0007), depth(3, 7), depth(7, 5), depth(0, 0)], [32, 32, 0, 0, 0]);
    }

    #[test]
    fn without_counters_there_is_no_pmu() {
        assert_eq!(PmuCapability::of(&Leaves([(0, INTEL)]), || 0), None);
        assert_eq!(PmuCapability::of(&Leaves([(0, [9, 0, 0, 0]), (0xA, [0x0730_0805, 0, 0, 0])]), || 0), None);
    }

    #[test]
    fn amd_has_four_counters_six_or_what_the_second_version_says() {
        let of = |leaves| PmuCapability::of(&Leaves(leaves), || panic!("AMD has no such MSR")).expect("a PMU");
        let oldest = of([(0, AMD), (0x8000_0000, [0x8000_0008, 0, 0, 0]), (0x8000_0001, [0; 4]), (1, [0; 4])]);
        assert_eq!((oldest.counters, oldest.version, oldest.core_extensions), (4, 1, false));
        let core =
            of([(0, AMD), (0x8000_0000, [0x8000_0008, 0, 0, 0]), (0x8000_0001, [0, 0, 1 << 23, 0]), (1, [0; 4])]);
        assert_eq!((core.counters, core.version, core.core_extensions), (6, 1, true));
        let second = of([(0, AMD), (0x8000_0000, [0x8000_0022, 0, 0, 0]), (0x8000_0022, [1, 6, 0, 0]), (1, [0; 4])]);
        assert_eq!((second.counters, second.version, second.has_status_set()), (6, 2, true));
    }
}
