//! What a guest is shown of the PMU: one value from which CPUID, every answer to RDMSR, WRMSR and RDPMC, and what may
//! be reached without an exit all follow. Pure.
//!
//! What passes is judged by the processor, not by this view, and a processor may be newer than what is shown of it:
//! it takes bits in a passed register that the view calls reserved (IN_TX, adaptive PEBS, IA32_PERF_GLOBAL_CTRL\[48\]).
//! None of them shows a guest, or counts, anything but itself; where one could, the register does not pass. A snapshot
//! leaves them out.

mod kept;
mod passing;
#[cfg(test)]
pub(in crate::pmu) mod tests;

use super::capability::{FULL_WIDTH_WRITES, PmuCapability};
use super::policy::{Means, PmuShare};
use super::registers::{
    BranchRegister, CounterIndex, EventSelector, FixedControl, MAX_BRANCHES, MAX_COUNTERS, Maker, PmuRegister,
};
use crate::hw::pmu::GlobalSwitch;
use crate::vcpu::cpuid::{CpuidSource, CpuidTable, Feature, Leaf};

/// The latest version of architectural performance monitoring that is shown: the one after it has leaf 23H.
const LATEST_VERSION: u8 = 5;
/// Counters of AMD's processors that CPUID says nothing about, with and without the core extensions.
const AMD_COUNTERS: u8 = 4;
const AMD_CORE_COUNTERS: u8 = 6;
/// IA32_PERF_CAPABILITIES.LBR_FMT: all set for the architectural last-branch records.
const LBR_FORMAT: u64 = 0x3F;
const CR4_PCE: u64 = 1 << 8;
/// PC (pin control), which no processor with these registers has pins for: "reserved, not writeable".
const PIN_CONTROL: u64 = 1 << 19;
/// IA32_MISC_ENABLE: performance monitoring available; branch trace storage unavailable; PEBS unavailable.
const MISC_ENABLE_AVAILABLE: u64 = 1 << 7;
const MISC_ENABLE_UNAVAILABLE: u64 = 1 << 11 | 1 << 12;
/// IA32_DEBUGCTL.FREEZE_LBRS_ON_PMI
const FREEZE_LBRS_ON_PMI: u64 = 1 << 11;
/// IA32_DEBUGCTL.FREEZE_PERFMON_ON_PMI
const FREEZE_PERFMON_ON_PMI: u64 = 1 << 12;
/// IA32_PERF_GLOBAL_STATUS: OvfBuf, and from version 3 on Ovf_Uncore.
const STATUS_BUFFER: u64 = 1 << 62;
const STATUS_UNCORE: u64 = 1 << 61;
/// IA32_PERF_GLOBAL_STATUS from version 4 on: LBR_Frz, and CTR_Frz.
const STATUS_BRANCHES_FROZEN: u64 = 1 << 58;
const STATUS_COUNTERS_FROZEN: u64 = 1 << 59;
/// IA32_PERF_GLOBAL_STATUS: CondChgd, which can be cleared and not set.
const STATUS_CHANGED: u64 = 1 << 63;
/// IA32_LBR_CTL: LBREn, OS, USR, CALL_STACK, and the seven filters by kind of branch.
const BRANCH_CONTROL: u64 = 0x007F_000F;
/// IA32_LBR_x_INFO: CYC_CNT, BR_TYPE, CYC_CNT_VALID, TSX_ABORT, IN_TSX, MISPRED.
const BRANCH_INFO: u64 = 0xFF00_0000_0000_FFFF;

/// Events with a number in CPUID.0AH:EBX, as selectors (SDM Vol. 3B "Pre-defined Architectural Performance Events").
pub const ARCHITECTURAL: [EventSelector; 8] = [
    EventSelector(0x003C),
    EventSelector(0x00C0),
    EventSelector(0x013C),
    EventSelector(0x4F2E),
    EventSelector(0x412E),
    EventSelector(0x00C4),
    EventSelector(0x00C5),
    EventSelector(0x01A4),
];

/// Why an access is #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The guest has no such register or counter.
    Absent,
    /// The register can be read and not written.
    ReadOnly,
    /// These bits of the value are reserved.
    Reserved(u64),
    /// RDPMC above privilege level 0 with CR4.PCE clear.
    Privilege,
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Absent => f.write_str("it does not exist"),
            Self::ReadOnly => f.write_str("it is read-only"),
            Self::Reserved(bits) => write!(f, "bits {bits:#x} are reserved"),
            Self::Privilege => f.write_str("CR4.PCE is clear"),
        }
    }
}

impl core::error::Error for Fault {}

/// Why a guest has no PMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPmu {
    /// The processor has none that this pillar knows.
    Processor,
    /// The policy hides it, or shares no counter.
    Policy,
    /// Nothing would stop the guest's counters outside the guest.
    NothingStopsIt,
    /// CPUID cannot say that there are so few counters: AMD's processors without PerfMonV2 always have four.
    TooFewCounters,
}

impl core::fmt::Display for NoPmu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Processor => "the processor has none",
            Self::Policy => "the policy gives none",
            Self::NothingStopsIt => "nothing would stop its counters outside the guest",
            Self::TooFewCounters => "there is no processor of this kind with so few counters",
        })
    }
}

impl core::error::Error for NoPmu {}

/// Which of a register's accesses do not leave the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Passed {
    /// RDMSR
    pub read: bool,
    /// WRMSR
    pub write: bool,
}

/// What a guest is shown of the PMU. There is a view only where there is a PMU in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmuView {
    guest: PmuCapability,
    host: PmuCapability,
    means: Means,
    switch: GlobalSwitch,
    filters: bool,
    freezes: bool,
    beside: bool,
    listed: bool,
}

/// Returns the counters from 0 on that have no gap between them.
const fn contiguous(fixed: u8) -> u8 {
    ((1u16 << fixed.trailing_ones()) - 1) as u8
}

/// Returns whether an address is canonical with 48 bits, as a guest's are.
fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

fn only(legal: u64, value: u64) -> Result<u64, Fault> {
    if value & !legal == 0 { Ok(value) } else { Err(Fault::Reserved(value & !legal)) }
}

impl PmuView {
    /// Decides what a guest is shown of `host`; see [`decide`](Self::decide). `None` when it has no PMU.
    pub fn new(host: &PmuCapability, share: &PmuShare, means: Means, switch: GlobalSwitch) -> Option<Self> {
        Self::decide(host, share, means, switch).ok()
    }

    /// Decides what a guest is shown of `host`.
    ///
    /// Counters are as wide as the processor's, AnyThread is gone (it counts another guest), and of
    /// IA32_PERF_CAPABILITIES full-width writes are left, with the format of architectural last-branch records where they
    /// are shared (requirements A5, A7, A8, T-A5).
    ///
    /// # Errors
    /// Why the guest has no PMU.
    pub fn decide(host: &PmuCapability, share: &PmuShare, means: Means, switch: GlobalSwitch) -> Result<Self, NoPmu> {
        let stops = match (host.maker, switch) {
            (_, GlobalSwitch::Missing) | (Maker::Intel, GlobalSwitch::Selectors) => false,
            (Maker::Intel, GlobalSwitch::Hardware) => host.has_global_control(),
            (Maker::Amd, _) => true,
        };
        let counters = share.counters.min(host.counters);
        match means {
            Means::Hidden => return Err(NoPmu::Policy),
            _ if counters == 0 => return Err(NoPmu::Policy),
            Means::Passed if !stops => return Err(NoPmu::NothingStopsIt),
            Means::Passed | Means::Emulated => {}
        }
        let guest = match host.maker {
            Maker::Intel => Self::intel(host, share, counters, means),
            Maker::Amd => Self::amd(host, counters).ok_or(NoPmu::TooFewCounters)?,
        };
        Ok(Self { guest, host: *host, means, switch, filters: false, freezes: true, beside: false, listed: false })
    }

    fn intel(host: &PmuCapability, share: &PmuShare, counters: u8, means: Means) -> PmuCapability {
        let version = host.version.min(LATEST_VERSION);
        let shared = host.fixed & share.fixed;
        let fixed = match version {
            0..2 => 0,
            2..5 => contiguous(shared),
            _ => shared,
        };
        let architectural = host.lbr_depth != 0 && host.capabilities & LBR_FORMAT == LBR_FORMAT;
        let lbr = share.lbr && means == Means::Passed && architectural;
        PmuCapability {
            maker: Maker::Intel,
            version,
            counters,
            width: host.width,
            fixed,
            fixed_width: if fixed == 0 { 0 } else { host.fixed_width },
            missing_events: host.missing_events & 0xFF,
            capabilities: host.capabilities & if lbr { FULL_WIDTH_WRITES | LBR_FORMAT } else { FULL_WIDTH_WRITES },
            any_thread_deprecated: true,
            core_extensions: false,
            lbr_depth: if lbr { host.lbr_depth } else { 0 },
            has_more: false,
        }
    }

    fn amd(host: &PmuCapability, counters: u8) -> Option<PmuCapability> {
        let (counters, core_extensions) = match counters {
            _ if host.version >= 2 => (counters, true),
            AMD_CORE_COUNTERS.. if host.core_extensions => (AMD_CORE_COUNTERS, true),
            AMD_COUNTERS.. => (AMD_COUNTERS, false),
            _ => return None,
        };
        let version = host.version.min(2);
        Some(PmuCapability {
            version,
            counters,
            core_extensions,
            has_more: false,
            capabilities: 0,
            lbr_depth: 0,
            fixed: 0,
            ..*host
        })
    }

    /// Hides the architectural events that a filter denies (CPUID.0AH:EBX), and keeps what the filter must see from
    /// passing. `permits` is asked for each of the events, counting at all privilege levels.
    #[must_use]
    pub fn filtered_by(mut self, permits: impl Fn(EventSelector) -> bool) -> Self {
        const ALL_LEVELS: u64 = 1 << 16 | 1 << 17 | EventSelector::ENABLE;
        self.filters = true;
        for (n, event) in ARCHITECTURAL.iter().enumerate() {
            if self.guest.maker == Maker::Intel && !permits(EventSelector(event.0 | ALL_LEVELS)) {
                self.guest.missing_events |= 1 << n;
            }
        }
        self
    }

    /// Keeps the guest from freezing counters: those that are frozen are all the processor's, and not all are the guest's.
    #[must_use]
    pub fn without_freezing(self) -> Self {
        Self { freezes: false, ..self }
    }

    /// Puts the guest beside a host that counts: it cannot freeze counters, and its status is not the processor's, by which
    /// the host tells whose an interrupt is (A22).
    #[must_use]
    pub fn beside_host(self) -> Self {
        Self { beside: true, ..self.without_freezing() }
    }

    /// Notes whether entries and exits find IA32_PERF_GLOBAL_CTRL in a list of MSRs.
    #[must_use]
    pub fn switched_by_list(self, listed: bool) -> Self {
        Self { listed, ..self }
    }

    /// Returns what the guest's PMU has.
    #[inline]
    pub fn guest(&self) -> &PmuCapability {
        &self.guest
    }
    /// Returns what the processor's PMU has.
    #[inline]
    pub fn host(&self) -> &PmuCapability {
        &self.host
    }
    /// Returns how the guest's counters come to count; never [`Means::Hidden`].
    #[inline]
    pub fn means(&self) -> Means {
        self.means
    }
    /// Returns how IA32_PERF_GLOBAL_CTRL is switched.
    #[inline]
    pub fn switch(&self) -> GlobalSwitch {
        self.switch
    }
    /// Returns whether entries and exits find IA32_PERF_GLOBAL_CTRL in a list of MSRs, not in a field of the VMCS.
    #[inline]
    pub fn switches_by_list(&self) -> bool {
        self.listed
    }
    /// Returns whether a filter sees what the guest wants to count.
    #[inline]
    pub fn filters(&self) -> bool {
        self.filters
    }

    /// Returns whether the guest may freeze its counters, where its PMU can.
    #[inline]
    pub fn freezes(&self) -> bool {
        self.freezes
    }

    // CPUID and what goes with it

    /// Has CPUID tell the guest of its PMU; `host` is the processor's.
    pub fn describe(&self, cpuid: &mut CpuidTable, host: &impl CpuidSource) {
        cpuid.replace(0xA, self.cpuid_leaf_0a());
        let features = [
            (Feature::PDCM, self.shows_capabilities()),
            (Feature::PERF_CTR_EXT_CORE, self.shows_core_extensions()),
            (Feature::ARCH_LBR, self.shows_lbr()),
        ];
        for (feature, _) in features.into_iter().filter(|(_, shown)| *shown) {
            cpuid.offer(feature);
        }
        if self.shows_lbr() {
            cpuid.replace(0x1C, self.cpuid_leaf_1c(host.cpuid(0x1C, 0)));
        }
        cpuid.replace(0x8000_0022, self.cpuid_leaf_8000_0022());
    }

    /// Returns leaf 0AH; all 0 on AMD's processors. There is no leaf 23H.
    pub fn cpuid_leaf_0a(&self) -> Leaf {
        let PmuCapability { maker, version, counters, width, fixed, fixed_width, missing_events, .. } = self.guest;
        if maker != Maker::Intel {
            return [0; 4];
        }
        let eax = u32::from(version) | u32::from(counters) << 8 | u32::from(width) << 16 | 8 << 24;
        let (ecx, edx) = match version {
            0..2 => (0, 0),
            _ => {
                let bitmap = if version >= 5 { fixed.into() } else { 0 };
                (bitmap, fixed.trailing_ones() | u32::from(fixed_width) << 5 | 1 << 15)
            }
        };
        [eax, missing_events, ecx, edx]
    }
    /// Returns leaf 8000_0022H; all 0 without PerfMonV2.
    pub fn cpuid_leaf_8000_0022(&self) -> Leaf {
        let second = self.guest.maker == Maker::Amd && self.guest.version >= 2;
        if second { [1, self.guest.counters.into(), 0, 0] } else { [0; 4] }
    }
    /// Returns leaf 1CH of a processor that shows `host` there: of the depths the greatest, and filters that need
    /// nothing but the records. All 0 where the guest has no last-branch records.
    pub fn cpuid_leaf_1c(&self, host: Leaf) -> Leaf {
        match self.guest.lbr_depth / 8 {
            0 => [0; 4],
            eighth => [host[0] & (1 << 30 | 1 << 31) | 1 << ((eighth - 1) & 7), host[1] & 0b111, host[2] & 0b111, 0],
        }
    }
    /// Returns CPUID.01H:ECX.PDCM (bit 15): IA32_PERF_CAPABILITIES exists.
    pub fn shows_capabilities(&self) -> bool {
        self.guest.capabilities != 0
    }
    /// Returns CPUID.(07H,0):EDX\[19\]: architectural last-branch records.
    pub fn shows_lbr(&self) -> bool {
        self.guest.lbr_depth != 0
    }
    /// Returns CPUID.80000001H:ECX\[23\], PerfCtrExtCore.
    pub fn shows_core_extensions(&self) -> bool {
        self.guest.core_extensions
    }
    /// Returns IA32_PERF_CAPABILITIES.
    pub fn perf_capabilities(&self) -> u64 {
        self.guest.capabilities
    }
    /// Returns the bits of IA32_MISC_ENABLE that are set, and that writing does not change: a PMU there is, branch
    /// trace storage and PEBS there are not (T-A21). 0 on AMD's processors, which have no such register.
    pub fn misc_enable_bits(&self) -> u64 {
        match self.guest.maker {
            Maker::Intel => MISC_ENABLE_AVAILABLE | MISC_ENABLE_UNAVAILABLE,
            Maker::Amd => 0,
        }
    }
    // Registers

    /// Returns whether the guest has a register.
    #[inline]
    pub fn exists(&self, register: PmuRegister) -> bool {
        self.guest.has(register)
    }

    /// Returns every register that the guest has.
    pub fn registers(&self) -> impl Iterator<Item = PmuRegister> + '_ {
        const NUMBERED: [fn(u8) -> PmuRegister; 5] = [
            PmuRegister::Counter,
            PmuRegister::FullCounter,
            PmuRegister::Selector,
            PmuRegister::CoreSelector,
            PmuRegister::Fixed,
        ];
        const SINGLE: [PmuRegister; 7] = [
            PmuRegister::FixedControl,
            PmuRegister::GlobalControl,
            PmuRegister::GlobalStatus,
            PmuRegister::StatusReset,
            PmuRegister::StatusSet,
            PmuRegister::InUse,
            PmuRegister::Capabilities,
        ];
        const BRANCHES: [fn(u8) -> BranchRegister; 3] =
            [BranchRegister::From, BranchRegister::To, BranchRegister::Info];
        let numbered = NUMBERED.into_iter().flat_map(|register| (0..MAX_COUNTERS).map(register));
        let records = BRANCHES.into_iter().flat_map(|register| (0..MAX_BRANCHES).map(register));
        let branches = [BranchRegister::Control, BranchRegister::Depth].into_iter().chain(records);
        numbered.chain(SINGLE).chain(branches.map(PmuRegister::Branch)).filter(|register| self.exists(*register))
    }

    /// Returns the bits that IA32_PERF_GLOBAL_STATUS can have set by IA32_PERF_GLOBAL_STATUS_SET.
    #[inline]
    pub fn status_bits(&self) -> u64 {
        let more = match (self.guest.maker, self.guest.version) {
            (Maker::Amd, _) => 0,
            (Maker::Intel, 0..3) => STATUS_BUFFER,
            (Maker::Intel, 3) => STATUS_BUFFER | STATUS_UNCORE,
            (Maker::Intel, _) => {
                let frozen = if self.freezes { STATUS_COUNTERS_FROZEN } else { 0 };
                STATUS_BUFFER | STATUS_UNCORE | STATUS_BRANCHES_FROZEN | frozen
            }
        };
        self.guest.control_bits() | more
    }

    /// Judges a WRMSR, or a value out of a snapshot, and returns the value as the register keeps it; for
    /// [`StatusReset`](PmuRegister::StatusReset) and [`StatusSet`](PmuRegister::StatusSet) it is the bits to clear and
    /// to set. AMD's processors leave reserved bits away without a fault (KVM learnt it from guests that set HostOnly).
    ///
    /// # Errors
    /// What makes it #GP(0): see [`Fault`] (T-A4, T-A6, T-A18).
    #[inline]
    pub fn validate_write(&self, register: PmuRegister, value: u64) -> Result<u64, Fault> {
        if !self.exists(register) {
            return Err(Fault::Absent);
        }
        let guest = &self.guest;
        let intel = guest.maker == Maker::Intel;
        let legal = match register {
            // EDX does not count, and bit 31 of EAX fills the bits above it (SDM Vol. 3B "Full-Width Writes").
            PmuRegister::Counter(_) if intel => return Ok(value as u32 as i32 as u64 & guest.counter_mask()),
            PmuRegister::Counter(_) | PmuRegister::FullCounter(_) => guest.counter_mask(),
            PmuRegister::Fixed(_) => guest.fixed_mask(),
            PmuRegister::Selector(_) | PmuRegister::CoreSelector(_) => {
                guest.selector_bits() & if intel { !PIN_CONTROL } else { u64::MAX }
            }
            PmuRegister::FixedControl => guest.fixed_control_bits(),
            PmuRegister::GlobalControl => guest.control_bits(),
            PmuRegister::StatusReset if intel => self.status_bits() | STATUS_CHANGED,
            PmuRegister::StatusReset | PmuRegister::StatusSet => self.status_bits(),
            PmuRegister::GlobalStatus | PmuRegister::InUse | PmuRegister::Capabilities => return Err(Fault::ReadOnly),
            PmuRegister::Branch(BranchRegister::Control) => BRANCH_CONTROL,
            PmuRegister::Branch(BranchRegister::Depth) if value == guest.lbr_depth.into() => return Ok(value),
            PmuRegister::Branch(BranchRegister::Depth) => return Err(Fault::Reserved(value)),
            PmuRegister::Branch(BranchRegister::From(_)) | PmuRegister::Branch(BranchRegister::To(_))
                if is_canonical(value) =>
            {
                return Ok(value);
            }
            PmuRegister::Branch(BranchRegister::From(_)) | PmuRegister::Branch(BranchRegister::To(_)) => {
                return Err(Fault::Reserved(value));
            }
            PmuRegister::Branch(BranchRegister::Info(_)) => BRANCH_INFO,
        };
        if intel { only(legal, value) } else { Ok(value & legal) }
    }

    /// Returns IA32_PERF_GLOBAL_INUSE for these selectors and this IA32_FIXED_CTR_CTRL.
    pub fn in_use(&self, selectors: &[u64], fixed_control: FixedControl) -> u64 {
        let mut bits = 0;
        for (n, selector) in (0..self.guest.counters).zip(selectors) {
            let selector = EventSelector(*selector);
            bits |= u64::from(selector.0 & 0xFF != 0) << n | u64::from(selector.interrupts()) << 63;
        }
        for n in (0..MAX_COUNTERS).filter(|n| self.guest.has_fixed(*n)) {
            let counts = fixed_control.of(n) & 0b11 != 0;
            bits |= u64::from(counts) << (32 + n) | u64::from(fixed_control.interrupts(n)) << 63;
        }
        bits
    }

    /// Judges RDPMC with this ECX at a privilege level (0 in real-address mode) and with this CR4.
    ///
    /// # Errors
    /// [`Fault::Privilege`] where CR4.PCE does not let it, [`Fault::Absent`] for a counter that the guest has not: one
    /// that the processor hides, another type, the "fast" bit (T-A6, T-A7).
    #[inline]
    pub fn rdpmc(&self, ecx: u32, cpl: u8, cr4: u64) -> Result<CounterIndex, Fault> {
        if cpl != 0 && cr4 & CR4_PCE == 0 {
            return Err(Fault::Privilege);
        }
        match CounterIndex::of_ecx(ecx, self.guest.maker) {
            Some(CounterIndex::General(n)) if self.guest.has_counter(n) => Ok(CounterIndex::General(n)),
            Some(CounterIndex::Fixed(n)) if self.guest.has_fixed(n) => Ok(CounterIndex::Fixed(n)),
            _ => Err(Fault::Absent),
        }
    }
}
