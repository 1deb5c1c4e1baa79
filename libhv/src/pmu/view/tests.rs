//! The view against a model that knows of a guest's PMU what CPUID and IA32_PERF_CAPABILITIES say, and nothing else.

use super::*;
use crate::exit::Msr;
use crate::pmu::capability::FULL_WIDTH_WRITES;
use crate::pmu::capability::processors::{AMD, INTEL};
use crate::sim::pmu::intel;
use proptest::prelude::*;

/// What CPUID says of a PMU.
#[derive(Clone, Copy, Debug)]
struct Said {
    intel: bool,
    leaf_0a: Leaf,
    leaf_8000_0022: Leaf,
    pdcm: bool,
    capabilities: u64,
    core_extensions: bool,
    leaf_1c: Leaf,
}

impl Said {
    fn by(view: &PmuView) -> Self {
        Self {
            intel: view.guest().maker == Maker::Intel,
            leaf_0a: view.cpuid_leaf_0a(),
            leaf_8000_0022: view.cpuid_leaf_8000_0022(),
            pdcm: view.shows_capabilities(),
            capabilities: view.perf_capabilities(),
            core_extensions: view.shows_core_extensions(),
            // A processor with all depths and filters.
            leaf_1c: if view.shows_lbr() { view.cpuid_leaf_1c([0xFF, 7, 7, 0]) } else { [0; 4] },
        }
    }
    fn version(&self) -> u32 {
        if self.intel { self.leaf_0a[0] & 0xFF } else { 1 + (self.leaf_8000_0022[0] & 1) }
    }
    fn counters(&self) -> u32 {
        match (self.intel, self.leaf_8000_0022[0] & 1 != 0) {
            (true, _) => self.leaf_0a[0] >> 8 & 0xFF,
            (_, true) => self.leaf_8000_0022[1] & 0xF,
            _ if self.core_extensions => 6,
            _ => 4,
        }
    }
    fn width(&self) -> u32 {
        if self.intel { self.leaf_0a[0] >> 16 & 0xFF } else { 48 }
    }
    /// FxCtr\[i\]_is_supported := ECX\[i\] || (EDX\[4:0\] > i)
    fn has_fixed(&self, n: u32) -> bool {
        n < 32 && self.version() >= 2 && (self.leaf_0a[2] >> n & 1 != 0 || self.leaf_0a[3] & 0x1F > n)
    }
    fn fixed_mask(&self) -> u64 {
        (0..32).filter(|n| self.has_fixed(*n)).fold(0, |mask, n| mask | 1 << n)
    }
    fn enables(&self) -> u64 {
        ((1 << self.counters()) - 1) | (self.fixed_mask() << 32)
    }

    /// The one depth that is shown.
    fn records(&self) -> u32 {
        8 * (32 - (self.leaf_1c[0] & 0xFF).leading_zeros())
    }

    /// What a write keeps; `None` is #GP.
    fn write(&self, msr: u32, value: u64) -> Option<u64> {
        let below = |width: u32| (1u64 << (width - 1) << 1).wrapping_sub(1);
        let only = |bits: u64| (value & !bits == 0).then_some(value);
        let (version, counters) = (self.version(), self.counters());
        if !self.intel {
            let first = counters.min(4);
            return match msr {
                0xC001_0000..=0xC001_0003 if msr - 0xC001_0000 < first => Some(value & 0x30F_FFD7_FFFF),
                0xC001_0004..=0xC001_0007 if msr - 0xC001_0004 < first => Some(value & below(48)),
                0xC001_0200..=0xC001_021F if self.core_extensions && (msr - 0xC001_0200) / 2 < counters => {
                    Some(value & if msr & 1 == 0 { 0x30F_FFD7_FFFF } else { below(48) })
                }
                0xC000_0301..=0xC000_0303 if version >= 2 => Some(value & self.enables()),
                _ => None,
            };
        }
        let control = || (0..8).filter(|n| self.has_fixed(*n)).fold(0, |bits, n| bits | 0b1011 << (4 * n));
        let uncore = if version >= 3 { 1 << 61 } else { 0 };
        let status = self.enables() | 1 << 62 | uncore | if version >= 4 { 3 << 58 } else { 0 };
        let canonical = ((value as i64) << 16 >> 16 == value as i64).then_some(value);
        let full_width = self.pdcm && self.capabilities >> 13 & 1 != 0;
        match msr {
            0xC1.. if msr - 0xC1 < counters => Some(i64::from(value as i32) as u64 & below(self.width())),
            0x186.. if msr - 0x186 < counters => only(0xFFD7_FFFF),
            0x309..0x345 if self.has_fixed(msr - 0x309) => only(below(self.leaf_0a[3] >> 5 & 0xFF)),
            0x4C1.. if full_width && msr - 0x4C1 < counters => only(below(self.width())),
            0x38D if version >= 2 => only(control()),
            0x38F if version >= 2 => only(self.enables()),
            0x390 if version >= 2 => only(status | 1 << 63),
            0x391 if version >= 4 => only(status),
            0x14CE if self.records() != 0 => only(0x7F_000F),
            0x14CF if self.records() != 0 => (value == self.records().into()).then_some(value),
            0x1200.. if msr - 0x1200 < self.records() => only(0xFF00_0000_0000_FFFF),
            0x1500.. if msr - 0x1500 < self.records() => canonical,
            0x1600.. if msr - 0x1600 < self.records() => canonical,
            _ => None,
        }
    }
    fn reads(&self, msr: u32) -> bool {
        let read_only = match msr {
            0x345 => self.intel && self.pdcm,
            0x38E => self.intel && self.version() >= 2,
            0x392 => self.intel && self.version() >= 4,
            0x14CF => self.records() != 0,
            0xC000_0300 => !self.intel && self.version() >= 2,
            _ => false,
        };
        read_only || self.write(msr, 0).is_some()
    }
    fn rdpmc(&self, ecx: u32) -> bool {
        match ecx >> 16 {
            0 => ecx < self.counters(),
            0x4000 => self.intel && self.has_fixed(ecx & 0xFFFF),
            _ => false,
        }
    }
}

pub(in crate::pmu) fn any_host() -> impl Strategy<Value = PmuCapability> {
    let intel =
        (1u8..=7, 1u8..=8, 32u8..=64, any::<u8>(), 32u8..=64, any::<u32>(), any::<u64>(), any::<[bool; 2]>(), 0u8..=8)
            .prop_map(
                |(version, counters, width, fixed, fixed_width, missing, capabilities, [deprecated, has_more], lbr)| {
                    let fixed = match version {
                        1 => 0,
                        2..5 => contiguous(fixed),
                        _ => fixed,
                    };
                    PmuCapability {
                        version,
                        counters,
                        width,
                        fixed,
                        fixed_width: if fixed == 0 { 0 } else { fixed_width },
                        missing_events: missing & 0xFF,
                        capabilities,
                        any_thread_deprecated: deprecated,
                        lbr_depth: 8 * lbr,
                        has_more,
                        ..INTEL
                    }
                },
            );
    let amd =
        (any::<bool>(), any::<bool>(), 1u8..=8, any::<bool>()).prop_map(|(second, extended, counters, has_more)| {
            PmuCapability {
                version: if second { 2 } else { 1 },
                counters: match (second, extended) {
                    (true, _) => counters,
                    (_, true) => 6,
                    _ => 4,
                },
                core_extensions: second || extended,
                has_more,
                ..AMD
            }
        });
    prop_oneof![3 => intel, 1 => amd]
}

fn any_share() -> impl Strategy<Value = PmuShare> {
    let counters = prop_oneof![0u8..=9, Just(8), any::<u8>()];
    let fixed = prop_oneof![any::<u8>(), Just(0xFF)];
    (counters, fixed, any::<bool>()).prop_map(|(counters, fixed, lbr)| PmuShare { counters, fixed, lbr })
}

fn any_view_of(host: PmuCapability) -> impl Strategy<Value = Option<PmuView>> {
    let means = prop_oneof![3 => Just(Means::Passed), 1 => Just(Means::Emulated)];
    let switch = match host.maker {
        Maker::Intel => GlobalSwitch::Hardware,
        Maker::Amd => GlobalSwitch::Selectors,
    };
    (any_share(), means, any::<bool>()).prop_map(move |(share, means, filters)| {
        let view = PmuView::new(&host, &share, means, switch)?;
        Some(if filters { view.filtered_by(|selector| selector.unit_mask() == 0) } else { view })
    })
}

/// A view of any processor.
pub(in crate::pmu) fn any_view() -> impl Strategy<Value = PmuView> {
    any_host().prop_flat_map(any_view_of).prop_filter_map("no PMU", |view| view)
}

/// Every number that a register of some PMU has, and those next to them.
fn numbers() -> impl Iterator<Item = u32> {
    let low = (0xC0..=0xD0).chain(0x180..=0x1AF).chain(0x1D9..=0x1DA).chain(0x300..=0x3FF).chain(0x4B0..=0x4E0);
    let records = (0x11F0..=0x1250).chain(0x14F0..=0x1550).chain(0x15F0..=0x1650);
    low.chain([0x600, 0x14CE, 0x14CF]).chain(records).chain(0xC000_02F0..=0xC000_0310).chain(0xC000_FFF0..=0xC001_0240)
}

/// A value that is legal now and then.
fn any_value() -> impl Strategy<Value = u64> {
    let bit = (0u32..64).prop_map(|bit| 1u64 << bit);
    let ones = (0u32..64).prop_map(|bit| u64::MAX >> bit);
    prop_oneof![
        bit,
        ones,
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        (0u64..256, 0u64..16).prop_map(|(a, b)| a | b << 32)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Requirement 1.4.5, A12, A14, T-A4, T-A6, T-A18.
    /// Also T-A17.
    #[test]
    fn every_register_answers_as_cpuid_says(view in any_view(), value in any_value()) {
        let said = Said::by(&view);
        for number in numbers() {
            let register = PmuRegister::of(Msr(number), view.guest().maker);
            let reads = register.is_some_and(|register| view.exists(register));
            prop_assert_eq!(reads, said.reads(number), "RDMSR of {:#x}, {:?}", number, said);
            for value in [19, 21, 32, 40, 58, 59, 60, 61, 62, 63].map(|bit| 1 << bit).into_iter().chain([value, 0]) {
                let kept = register.and_then(|register| view.validate_write(register, value).ok());
                prop_assert_eq!(kept, said.write(number, value), "WRMSR of {:#x} to {:#x}, {:?}", value, number, said);
            }
        }
    }

    /// T-A6, T-A7.
    #[test]
    fn rdpmc_answers_as_cpuid_says(view in any_view(), ecx: u32, cpl in 0u8..4, cr4: u64) {
        let said = Said::by(&view);
        let near = (0..70).flat_map(|n| [0, 0x2000, 0x4000, 0x8000, 0x4001].map(|kind| kind << 16 | n));
        for ecx in near.chain([ecx]) {
            let legal = (cpl == 0 || cr4 >> 8 & 1 != 0) && said.rdpmc(ecx);
            prop_assert_eq!(view.rdpmc(ecx, cpl, cr4).is_ok(), legal, "RDPMC of {:#x}, {:?}", ecx, said);
        }
    }
}

/// A processor of the simulator and what the pillar knows of it; without TSX, which CPUID.0AH does not speak of.
fn any_simulated() -> impl Strategy<Value = (intel::Config, PmuCapability)> {
    (2u8..=5, 1u8..=8, 0u8..=4, 32u8..=63, any::<bool>()).prop_map(
        |(version, general, fixed, width, full_width_writes)| {
            let rest = intel::Config::default();
            let config = intel::Config { version, general, fixed, width, full_width_writes, ..rest };
            let host = PmuCapability {
                version,
                counters: general,
                width,
                fixed: (1 << fixed) - 1,
                fixed_width: if fixed == 0 { 0 } else { width },
                capabilities: config.capabilities(),
                any_thread_deprecated: version == 5,
                ..INTEL
            };
            (config, host)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The simulator's processor is written from the manual and does not know the view: what the view lets through the
    /// processor takes and keeps so, whether the guest or the hypervisor writes it; and where writes pass, the processor
    /// refuses what the view does.
    /// Also T-A18.
    #[test]
    fn the_processor_takes_what_the_view_accepts(
        (config, host) in any_simulated(), share in any_share(), filters: bool, value in any_value()
    ) {
        let view = PmuView::new(&host, &share, Means::Passed, GlobalSwitch::Hardware);
        let Some(view) = view.map(|view| if filters { view.filtered_by(|_| false) } else { view }) else { return Ok(()) };
        for number in numbers() {
            let Some(register) = PmuRegister::of(Msr(number), Maker::Intel) else { continue };
            let mut processor = intel::Pmu::new(config);
            let written = processor.write(number, value);
            let passed = view.passes(register, false);
            match view.validate_write(register, value) {
                Ok(kept) => {
                    prop_assert_eq!(written, Ok(()), "{:?} of {:#x}", register, value);
                    let shows_all = matches!(register, PmuRegister::StatusReset | PmuRegister::StatusSet);
                    prop_assert!(shows_all || processor.read(number) == Ok(kept), "{:?} of {:#x}", register, value);
                    // The hypervisor writes what is kept to the register in which all bits can be written.
                    if !matches!(register, PmuRegister::Counter(_)) {
                        prop_assert_eq!(intel::Pmu::new(config).write(number, kept), Ok(()));
                    }
                }
                Err(_) if passed.write => prop_assert!(written.is_err(), "{:?} of {:#x}", register, value),
                Err(_) => {}
            }
            prop_assert!(!passed.read || processor.read(number).is_ok());
        }
        for ecx in (0..10).flat_map(|n| [n, 0x4000_0000 | n]) {
            let (counted, shown) = (intel::Pmu::new(config).read_counter(ecx), view.rdpmc(ecx, 0, 0));
            prop_assert!(!view.passes_rdpmc() || counted.is_ok() == shown.is_ok(), "RDPMC of {:#x}", ecx);
            prop_assert!(shown.is_err() || counted.is_ok());
        }
    }

    /// A7, A9, A11, A12, A31: what the guest has not never passes, selectors pass where nothing looks at them and no bit
    /// counts another thread, and registers that speak of all counters where all are the guest's.
    /// Also A8, A10.
    #[test]
    fn nothing_passes_that_reaches_beyond_the_guest(view in any_view(), unaltered: bool) {
        let (guest, host) = (view.guest(), view.host());
        let intel = host.maker == Maker::Intel;
        let all = (guest.counters, guest.fixed) == (host.counters, host.fixed) && !host.has_more;
        let any_thread = intel && host.version >= 3 && !host.any_thread_deprecated;
        for number in numbers() {
            let Some(register) = PmuRegister::of(Msr(number), host.maker) else { continue };
            let passed = view.passes(register, unaltered);
            let counts = matches!(register, PmuRegister::Counter(_) | PmuRegister::FullCounter(_) | PmuRegister::Fixed(_));
            let selects = matches!(register, PmuRegister::Selector(_) | PmuRegister::CoreSelector(_));
            let (read, write) = match register {
                _ if view.means() == Means::Emulated || !view.exists(register) => (false, false),
                PmuRegister::Branch(BranchRegister::Depth) => (true, false),
                _ if counts || matches!(register, PmuRegister::Branch(_)) => (true, true),
                PmuRegister::FixedControl if guest.fixed != host.fixed => (false, false),
                PmuRegister::FixedControl | PmuRegister::Selector(_) if intel => {
                    (unaltered || !view.filters(), !view.filters() && !any_thread)
                }
                _ if selects || register == PmuRegister::Capabilities => (false, false),
                PmuRegister::GlobalStatus => (all, false),
                PmuRegister::InUse => (all && (unaltered || !view.filters()), false),
                _ => (all, all),
            };
            prop_assert_eq!(passed, Passed { read, write }, "{:?}", register);
        }
        let metrics = host.capabilities >> 15 & 1 != 0;
        let uncore = !intel && host.core_extensions;
        prop_assert_eq!(view.passes_rdpmc(), view.means() == Means::Passed && all && !metrics && !uncore);
        let numbered = numbers().filter_map(|number| PmuRegister::of(Msr(number), host.maker));
        prop_assert_eq!(view.registers().count(), numbered.filter(|register| view.exists(*register)).count());
    }

    /// T-A5, T-A21, A8: of what is not virtualized nothing is shown.
    #[test]
    fn nothing_is_shown_that_is_not_virtualized(view in any_view()) {
        let lbr = if view.shows_lbr() { 0x3F } else { 0 };
        prop_assert_eq!(view.perf_capabilities() & !(1 << 13), lbr);
        let intel = view.guest().maker == Maker::Intel;
        prop_assert_eq!(view.misc_enable_bits(), if intel { 0b1_1000_1000_0000 } else { 0 });
        prop_assert_eq!(view.debugctl_bits() & !(1 << 11 | 1 << 12), 0);
        let [eax, _, _, edx] = view.cpuid_leaf_0a();
        prop_assert!(!intel || eax & 0xFF <= 5 && eax >> 24 == 8 && (eax & 0xFF < 2 || edx >> 15 & 1 != 0));
        prop_assert_eq!(view.cpuid_leaf_1c([u32::MAX; 4]) != [0; 4], view.shows_lbr());
    }
}

/// With last-branch records and their format, and without the event of top-down slots.
pub(in crate::pmu) const HOST: PmuCapability =
    PmuCapability { missing_events: 1 << 7, capabilities: FULL_WIDTH_WRITES | 0x3F, lbr_depth: 32, ..INTEL };

#[test]
fn cpuid_counts_fixed_counters_and_lists_them_from_version_5_on() {
    let leaf = |version, fixed| {
        let host = PmuCapability { version, ..HOST };
        let share = PmuShare { counters: 6, fixed, lbr: true };
        PmuView::new(&host, &share, Means::Passed, GlobalSwitch::Hardware).expect("a PMU").cpuid_leaf_0a()
    };
    assert_eq!(leaf(5, 0xFF), [0x0830_0605, 1 << 7, 0b1111, 0x8604]);
    assert_eq!(leaf(5, 0b1011), [0x0830_0605, 1 << 7, 0b1011, 0x8602]);
    assert_eq!(
        leaf(4, 0b1011),
        [0x0830_0604, 1 << 7, 0, 0x8602],
        "version 4 has no word for the third without a second"
    );
    assert_eq!(leaf(4, 0b0010), [0x0830_0604, 1 << 7, 0, 0x8000]);
}

/// The architectural records have no other depth than the processor's; filters of branch types stay.
#[test]
fn last_branch_records_show_with_their_format() {
    let view = PmuView::new(&HOST, &PmuShare::all(&HOST), Means::Passed, GlobalSwitch::Hardware).expect("a PMU");
    assert_eq!((view.perf_capabilities(), view.shows_lbr()), (0x203F, true));
    assert_eq!(view.cpuid_leaf_1c([0x8000_000F, 7, 0xF_0007, 1]), [0x8000_0008, 7, 7, 0]);
}

/// A4, A17: where nothing stops the counters outside the guest they are not passed, and what CPUID cannot say is not
/// decided.
#[test]
fn a_guest_without_a_pmu_has_none_for_a_reason() {
    let amd = |version, counters, core_extensions| PmuCapability { version, counters, core_extensions, ..AMD };
    let decide = |host: &PmuCapability, counters, means, switch| {
        let share = PmuShare { counters, fixed: 0xFF, lbr: false };
        PmuView::decide(host, &share, means, switch).map(|view| view.guest().counters)
    };
    use GlobalSwitch::{Hardware, Missing, Selectors};
    let first = PmuCapability { version: 1, ..HOST };
    assert_eq!(decide(&HOST, 8, Means::Hidden, Hardware), Err(NoPmu::Policy));
    assert_eq!(decide(&HOST, 0, Means::Passed, Hardware), Err(NoPmu::Policy));
    assert_eq!(decide(&HOST, 8, Means::Passed, Missing), Err(NoPmu::NothingStopsIt));
    assert_eq!(decide(&HOST, 8, Means::Passed, Selectors), Err(NoPmu::NothingStopsIt));
    assert_eq!(decide(&first, 8, Means::Passed, Hardware), Err(NoPmu::NothingStopsIt));
    assert_eq!(decide(&HOST, 9, Means::Emulated, Missing), Ok(8));
    assert_eq!(decide(&amd(2, 6, true), 2, Means::Passed, Selectors), Ok(2));
    assert_eq!(decide(&amd(1, 6, true), 5, Means::Passed, Selectors), Ok(4));
    assert_eq!(decide(&amd(1, 8, false), 8, Means::Passed, Selectors), Ok(4));
    assert_eq!(decide(&amd(1, 4, false), 3, Means::Passed, Selectors), Err(NoPmu::TooFewCounters));
}

#[test]
fn in_use_tells_what_is_selected_and_whether_it_interrupts() {
    let view = PmuView::new(&HOST, &PmuShare::all(&HOST), Means::Passed, GlobalSwitch::Hardware).expect("a PMU");
    assert_eq!(view.in_use(&[0xC0, 0, 0x3C00], FixedControl(0x20)), 1 | 1 << 33);
    assert_eq!(view.in_use(&[0, 1 << 20], FixedControl(0)), 1 << 63);
    assert_eq!(view.in_use(&[], FixedControl(0x8000)), 1 << 63);
}
