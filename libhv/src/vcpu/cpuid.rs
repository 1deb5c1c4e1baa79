//! The guest's CPUID: computed once from the host's by an allow-list, then looked up in a few instructions.
//!
//! Bits that say what a leaf means to a guest's speculation controls, extended state or performance counters are
//! shown when somebody answers for the MSRs behind them, see [`Settings`]; IBRS, IBPB, STIBP and SSBD are hidden by
//! default, and the PMU, VMX, SVM, MONITOR, SMX, SGX, Processor Trace, CET, MPX, TSX, APX and five-level paging always.
//! The hypervisor leaves are 4000_0000H with the signature "LibhvLibhv  " in EBX, ECX and EDX, and 4000_0010H with
//! the frequencies of TSC (EAX) and local APIC timer (EBX) in kHz; a guest that has paravirtual events is told of them
//! by leaf 4000_0011H, see [`pmu::paravirt`](crate::pmu::paravirt).

mod feature;
#[cfg(test)]
mod tests;
mod xstate;

pub use feature::{Feature, Register};

use crate::registers::{CR4_OSXSAVE, CR4_PKE};
use crate::time::Frequency;
use xstate::ExtendedState;

/// EAX, EBX, ECX and EDX as CPUID returns them.
pub type Leaf = [u32; 4];

/// The clock of the guest's local APIC timer and the "crystal" of leaf 15H, in hertz.
pub const APIC_TIMER_HZ: u32 = 1_000_000_000;

const BASIC: usize = 0x20;
const EXTENDED: usize = 0x23;
const EXTENDED_FIRST: u32 = 0x8000_0000;
const HYPERVISOR_FIRST: u32 = 0x4000_0000;
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
const HYPERVISOR_EVENTS: u32 = crate::pmu::paravirt::abi::CPUID_LEAF;
/// The hypervisor's signature, in EBX, ECX and EDX.
const SIGNATURE: [u32; 3] = [u32::from_le_bytes(*b"Libh"), u32::from_le_bytes(*b"vLib"), u32::from_le_bytes(*b"hv  ")];
/// Basic leaves whose answer depends on the subleaf or on the state of the processor.
const VARYING: u32 = 1 << 0x1 | 1 << 0x4 | 1 << 0x7 | 1 << 0xB | 1 << 0xD | 1 << 0x1D | 1 << 0x1E | 1 << 0x1F;
/// The largest numerator in leaf 15H: times the crystal in kHz it fits in 32 bits, in which guests multiply.
const MAX_NUMERATOR: u64 = (u32::MAX / (APIC_TIMER_HZ / 1000)) as u64;

/// Executes CPUID, or says what it would return.
pub trait CpuidSource {
    /// Returns EAX, EBX, ECX and EDX for a leaf (EAX) and a subleaf (ECX).
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Leaf;
}

/// The processor this runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostCpuid;

impl CpuidSource for HostCpuid {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Leaf {
        let result = raw_cpuid::native_cpuid::cpuid_count(leaf, subleaf);
        [result.eax, result.ebx, result.ecx, result.edx]
    }
}

/// What a guest's CPUID depends on beside the host's.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Virtual processors, 1 to 254: cores of one package, with APIC identifiers from 0 on.
    pub processors: u32,
    /// The guest's time-stamp counter.
    pub tsc: Frequency,
    /// RDTSCP and RDPID work in the guest (VMX: "enable RDTSCP"), and IA32_TSC_AUX is switched with it.
    pub rdtscp: bool,
    /// INVPCID works in the guest (VMX: "enable INVPCID").
    pub invpcid: bool,
    /// XSAVES and XRSTORS work in the guest (VMX: "enable XSAVES/XRSTORS").
    pub xsaves: bool,
    /// Components of XCR0 the guest may have; those the host lacks are left out.
    pub xcr0: u64,
    /// Components of IA32_XSS the guest may have; without `xsaves` there are none.
    pub xss: u64,
    /// IA32_XFD and IA32_XFD_ERR are switched with the guest. Without, AMX is hidden.
    pub xfd: bool,
    /// IA32_SPEC_CTRL and IA32_PRED_CMD are switched with the guest. Without, IBRS, IBPB, STIBP and SSBD are hidden.
    pub speculation_control: bool,
    /// The guest may read IA32_ARCH_CAPABILITIES.
    pub arch_capabilities: bool,
}

impl Settings {
    /// What every backend can do, for `processors` virtual processors.
    pub const fn new(processors: u32, tsc: Frequency) -> Self {
        Self {
            processors,
            tsc,
            rdtscp: false,
            invpcid: false,
            xsaves: false,
            xcr0: u64::MAX,
            xss: 0,
            xfd: false,
            speculation_control: false,
            arch_capabilities: false,
        }
    }
}

/// The state of a virtual processor that shows in its CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dynamic {
    /// CR4 as the guest reads it.
    pub cr4: u64,
    /// XCR0
    pub xcr0: u64,
    /// IA32_XSS
    pub xss: u64,
    /// The identifier of the local APIC.
    pub apic_id: u32,
}

/// The guest's CPUID.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuidTable {
    amd: bool,
    processors: u32,
    /// Which of the leaves below 20H are always the same.
    constant: [bool; BASIC],
    basic: [Leaf; BASIC],
    extended: [Leaf; EXTENDED],
    /// Leaf 7.
    structured: [Leaf; 3],
    /// Leaf 4 (Intel) or 8000_001DH (AMD).
    caches: [Leaf; 8],
    /// Leaf 1DH, subleaf 1: the palette.
    palette: Leaf,
    xstate: ExtendedState,
    timing: Leaf,
    /// Leaf 4000_0011H; all 0 where there is none.
    events: Leaf,
}

impl CpuidTable {
    /// Computes what a guest sees of the processor that `host` describes.
    pub fn new(host: &impl CpuidSource, settings: &Settings) -> Self {
        let [max_basic, vendor @ ..] = host.cpuid(0, 0);
        // The name's second word is in EDX, its third in ECX.
        let amd = matches!(vendor.map(u32::to_le_bytes).as_flattened(), b"AuthcAMDenti" | b"HygouinenGen");
        let has = |leaf: u32| match leaf {
            EXTENDED_FIRST.. => host.cpuid(EXTENDED_FIRST, 0)[0] >= leaf,
            _ => max_basic >= leaf,
        };
        let raw = |leaf: u32, subleaf: u32| if has(leaf) { host.cpuid(leaf, subleaf) } else { [0; 4] };
        let processors = settings.processors.clamp(1, 254);
        let mut table = Self {
            amd,
            processors,
            constant: [false; BASIC],
            basic: [[0; 4]; BASIC],
            extended: [[0; 4]; EXTENDED],
            structured: core::array::from_fn(|subleaf| feature::allowed(7, subleaf as u32, raw(7, subleaf as u32))),
            caches: [[0; 4]; 8],
            palette: [0; 4],
            xstate: ExtendedState::new(&raw, settings),
            timing: [0; 4],
            events: [0; 4],
        };
        table.fill_basic(&raw, settings, vendor, max_basic);
        table.fill_extended(&raw, vendor);
        table.fill_caches(&raw);
        table.keep_consistent(settings);
        if table.offers(Feature::AMX_TILE) {
            // Tile shapes: 16 bits a field, sizes of architecture, no features.
            table.basic[0x1D] = [raw(0x1D, 0)[0].min(1), 0, 0, 0];
            table.palette = raw(0x1D, 1);
            table.palette[2] &= 0xFFFF;
            table.palette[3] = 0;
            table.basic[0x1E] = [0, raw(0x1E, 0)[1] & 0xFF_FFFF, 0, 0];
        }
        table
    }

    fn fill_basic(&mut self, raw: &impl Fn(u32, u32) -> Leaf, settings: &Settings, vendor: [u32; 3], max: u32) {
        // Leaf 15H is worth the empty leaves before it; AMD's processors do not have it.
        let least = if self.amd { 0xD } else { 0x16 };
        let last = max.clamp(least, BASIC as u32 - 1);
        self.basic[0] = [last, vendor[0], vendor[1], vendor[2]];
        self.constant = core::array::from_fn(|leaf| !VARYING & u32::MAX >> (31 - last) & 1 << leaf != 0);
        let [signature, details, ..] = raw(1, 0);
        let [_, _, ecx, edx] = feature::allowed(1, 0, raw(1, 0));
        // EBX: processors (a power of two) and bytes in a cache line; brand and APIC identifier come from elsewhere.
        let count = self.processors.next_power_of_two().min(255);
        self.basic[1] = [signature & 0x0FFF_3FFF, details & 0xFF00 | count << 16, ecx, edx];
        for feature in [Feature::X2APIC, Feature::TSC_DEADLINE, Feature::HYPERVISOR, Feature::APIC] {
            self.offer(feature);
        }
        if self.processors > 1 {
            self.offer(Feature::HTT);
        }
        self.offer(Feature::ARAT);
        self.structured[0][0] = raw(7, 0)[0].min(self.structured.len() as u32 - 1);
        let (khz, mhz) = (settings.tsc.hz() / 1000, settings.tsc.hz() / 1_000_000);
        self.timing = [u32::try_from(khz).unwrap_or(u32::MAX), APIC_TIMER_HZ / 1000, 0, 0];
        if !self.amd {
            self.basic[2] = raw(2, 0);
            let (numerator, denominator) = ratio(settings.tsc.hz(), APIC_TIMER_HZ.into());
            self.basic[0x15] = [denominator, numerator, APIC_TIMER_HZ, 0];
            self.basic[0x16] = [mhz.min(0xFFFF) as u32, mhz.min(0xFFFF) as u32, 100, 0];
        }
    }

    fn fill_extended(&mut self, raw: &impl Fn(u32, u32) -> Leaf, vendor: [u32; 3]) {
        let (first, last) = if self.amd { (vendor, 0x8000_0021) } else { ([0; 3], 0x8000_0008) };
        let max = raw(EXTENDED_FIRST, 0)[0].clamp(0x8000_0008, last);
        self.extended[0] = [max, first[0], first[1], first[2]];
        for (number, leaf) in (EXTENDED_FIRST..=max).zip(&mut self.extended).skip(1) {
            *leaf = match number {
                0x8000_0001 => feature::allowed(number, 0, raw(number, 0)),
                0x8000_0002..=0x8000_0006 => raw(number, 0),
                0x8000_0008 => {
                    let sizes = raw(number, 0)[0];
                    let [_, ebx, ..] = feature::allowed(number, 0, raw(number, 0));
                    let linear = (sizes >> 8 & 0xFF).min(48);
                    [sizes & 0xFF | linear << 8, ebx, 0, 0]
                }
                0x8000_0019 => [raw(number, 0)[0], raw(number, 0)[1], 0, 0],
                0x8000_001A => [raw(number, 0)[0] & 0b111, 0, 0, 0],
                _ => feature::allowed(number, 0, raw(number, 0)),
            };
        }
        if self.amd {
            self.extended[1][0] = raw(0x8000_0001, 0)[0] & 0x0FFF_3FFF;
            self.extended[1][1] = raw(0x8000_0001, 0)[1] & 0xF000_FFFF;
            self.extended[8][2] = (self.processors - 1) | (self.processors.next_power_of_two().ilog2() << 12);
            if self.processors > 1 {
                self.offer(Feature::CMP_LEGACY);
            }
        }
    }

    fn fill_caches(&mut self, raw: &impl Fn(u32, u32) -> Leaf) {
        let offered = !self.amd || self.offers(Feature::TOPOLOGY_EXTENSIONS);
        let number = if self.amd { 0x8000_001D } else { 4 };
        for (subleaf, leaf) in (0..).zip(&mut self.caches) {
            let [eax, ebx, ecx, edx] = raw(number, subleaf);
            if eax & 0x1F == 0 || !offered {
                break;
            }
            // Caches of level 3 on are shared by all processors, others by none: a core has one thread.
            let processors = self.processors.next_power_of_two() - 1;
            let sharing = if eax >> 5 & 7 >= 3 { processors } else { 0 };
            let cores = if self.amd { 0 } else { processors.min(63) };
            *leaf = [eax & 0x3FF | sharing << 14 | cores << 26, ebx, ecx, edx & 7];
        }
    }

    /// Withdraws what others need to be of use.
    fn keep_consistent(&mut self, settings: &Settings) {
        let (xcr0, xfd) = (self.xstate.xcr0(), self.xstate.xfd());
        let mut withdraw = |condition: bool, features: &[Feature]| {
            if condition {
                features.iter().for_each(|feature| self.withdraw(*feature));
            }
        };
        withdraw(!settings.rdtscp, &[Feature::RDTSCP, Feature::RDPID]);
        withdraw(!settings.invpcid, &[Feature::INVPCID]);
        withdraw(!settings.speculation_control, Feature::NEED_SPECULATION_CONTROL);
        withdraw(!settings.arch_capabilities, &[Feature::ARCH_CAPABILITIES]);
        withdraw(xcr0 == 0, &[Feature::XSAVE]);
        withdraw(xcr0 & xstate::AVX == 0, Feature::NEED_AVX);
        withdraw(xcr0 & xstate::AVX512 == 0, Feature::NEED_AVX512);
        withdraw(xcr0 & xstate::PKRU == 0, &[Feature::PKU]);
        withdraw(xcr0 & xstate::AMX == 0 || !xfd, Feature::NEED_AMX);
        if !self.offers(Feature::ERMS) {
            self.withdraw(Feature::FSRM);
        }
    }

    /// Returns what CPUID gives the guest. `dynamic` is asked only where the answer depends on it.
    #[inline]
    pub fn lookup(&self, leaf: u32, subleaf: u32, dynamic: impl FnOnce() -> Dynamic) -> Leaf {
        match self.constant(leaf) {
            Some(answer) => *answer,
            None => self.lookup_varying(leaf, subleaf, dynamic),
        }
    }

    /// Returns what CPUID gives the guest for a leaf that is always the same; `None` for others, which
    /// [`lookup`](Self::lookup) answers.
    #[inline]
    pub fn constant(&self, leaf: u32) -> Option<&Leaf> {
        let leaf = leaf as usize;
        if self.constant.get(leaf).is_some_and(|constant| *constant) { self.basic.get(leaf) } else { None }
    }

    #[inline(never)]
    fn lookup_varying(&self, leaf: u32, subleaf: u32, dynamic: impl FnOnce() -> Dynamic) -> Leaf {
        let Some(leaf) = self.answered(leaf) else { return [0; 4] };
        let of = |leaves: &[Leaf]| leaves.get(subleaf as usize).copied().unwrap_or([0; 4]);
        match leaf {
            0x1 => {
                let [eax, ebx, ecx, edx] = self.basic[1];
                let Dynamic { cr4, apic_id, .. } = dynamic();
                let osxsave = if cr4 & CR4_OSXSAVE != 0 { Feature::OSXSAVE.mask() } else { 0 };
                [eax, ebx | apic_id << 24, ecx | osxsave, edx]
            }
            0x4 => {
                if self.amd {
                    [0; 4]
                } else {
                    of(&self.caches)
                }
            }
            0x7 if subleaf == 0 => {
                let [eax, ebx, ecx, edx] = self.structured[0];
                let ospke = if dynamic().cr4 & CR4_PKE != 0 { Feature::OSPKE.mask() } else { 0 };
                [eax, ebx, ecx | ospke, edx]
            }
            0x7 => {
                if subleaf <= self.structured[0][0] {
                    of(&self.structured)
                } else {
                    [0; 4]
                }
            }
            0xB | 0x1F => self.topology(subleaf, dynamic().apic_id),
            0xD => {
                let Dynamic { xcr0, xss, .. } = dynamic();
                self.xstate.leaf(subleaf, xcr0, xss)
            }
            0x1D => of(&[self.basic[0x1D], self.palette]),
            0x1E => of(&[self.basic[0x1E]]),
            HYPERVISOR_FIRST => [self.last_hypervisor(), SIGNATURE[0], SIGNATURE[1], SIGNATURE[2]],
            HYPERVISOR_TIMING => self.timing,
            HYPERVISOR_EVENTS => self.events,
            0x8000_001D => of(&self.caches),
            0x8000_001E if self.offers(Feature::TOPOLOGY_EXTENSIONS) => {
                let apic_id = dynamic().apic_id;
                [apic_id, apic_id & 0xFF, 0, 0]
            }
            EXTENDED_FIRST.. => self.extended.get((leaf - EXTENDED_FIRST) as usize).copied().unwrap_or([0; 4]),
            _ => self.basic.get(leaf as usize).copied().unwrap_or([0; 4]),
        }
    }

    /// Returns the leaf that answers for `leaf`: one out of range is the highest basic one on Intel's processors (SDM
    /// Vol. 2A, CPUID), and none on AMD's.
    fn answered(&self, leaf: u32) -> Option<u32> {
        let max_basic = self.basic[0][0];
        let known = leaf <= max_basic
            || (HYPERVISOR_FIRST..=self.last_hypervisor()).contains(&leaf)
            || (EXTENDED_FIRST..=self.extended[0][0]).contains(&leaf);
        if known { Some(leaf) } else { (!self.amd).then_some(max_basic) }
    }

    fn last_hypervisor(&self) -> u32 {
        if self.events == [0; 4] { HYPERVISOR_TIMING } else { HYPERVISOR_EVENTS }
    }

    /// Announces paravirtual events to the guest.
    pub fn announce_events(&mut self, leaf: Leaf) {
        self.events = leaf;
    }

    /// Returns leaf BH or 1FH: one thread a core, all cores in one package.
    fn topology(&self, subleaf: u32, apic_id: u32) -> Leaf {
        let level = subleaf & 0xFF;
        match level {
            0 => [0, 1, 1 << 8, apic_id],
            1 => [self.processors.next_power_of_two().ilog2(), self.processors, 2 << 8 | 1, apic_id],
            _ => [0, 0, level, apic_id],
        }
    }

    /// Returns whether the guest sees a feature. Those that follow the guest's CR4 are never offered here.
    pub fn offers(&self, feature: Feature) -> bool {
        self.stored(feature.leaf, feature.subleaf)
            .is_some_and(|leaf| leaf[feature.register as usize] & feature.mask() != 0)
    }

    /// Shows a feature to the guest. Whoever offers it answers for it.
    pub fn offer(&mut self, feature: Feature) {
        if let Some(leaf) = self.stored_mut(feature.leaf, feature.subleaf) {
            leaf[feature.register as usize] |= feature.mask();
        }
    }

    /// Hides a feature from the guest.
    pub fn withdraw(&mut self, feature: Feature) {
        if let Some(leaf) = self.stored_mut(feature.leaf, feature.subleaf) {
            leaf[feature.register as usize] &= !feature.mask();
        }
    }

    /// Replaces a leaf that is a plain value: the performance-monitoring leaf AH, for one. Returns false, and changes
    /// nothing, where `leaf` is none that the table holds or depends on the state of the processor.
    pub fn replace(&mut self, leaf: u32, value: Leaf) -> bool {
        let varying = leaf == 0 || leaf < BASIC as u32 && VARYING >> leaf & 1 != 0;
        match self.stored_mut(leaf, 0) {
            Some(place) if !varying => {
                *place = value;
                if leaf >= EXTENDED_FIRST && value != [0; 4] {
                    self.extended[0][0] = self.extended[0][0].max(leaf);
                }
                true
            }
            _ => false,
        }
    }

    /// Returns the components of XCR0 that the guest may enable.
    pub fn xcr0(&self) -> u64 {
        self.xstate.xcr0()
    }

    /// Returns the components of IA32_XSS that the guest may enable.
    pub fn xss(&self) -> u64 {
        self.xstate.xss()
    }

    /// Returns whether the guest's processor is AMD's or one that says it is like those.
    pub fn is_amd(&self) -> bool {
        self.amd
    }

    /// Returns the number of bits in a guest-physical address, 32 to 52.
    pub fn physical_address_bits(&self) -> u32 {
        (self.extended[8][0] & 0xFF).clamp(32, 52)
    }

    fn stored(&self, leaf: u32, subleaf: u32) -> Option<&Leaf> {
        match leaf {
            7 => self.structured.get(subleaf as usize),
            0xD => self.xstate.stored(subleaf),
            _ if subleaf != 0 => None,
            EXTENDED_FIRST.. => self.extended.get((leaf - EXTENDED_FIRST) as usize),
            _ => self.basic.get(leaf as usize),
        }
    }

    fn stored_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut Leaf> {
        match leaf {
            7 => self.structured.get_mut(subleaf as usize),
            0xD => self.xstate.stored_mut(subleaf),
            _ if subleaf != 0 => None,
            EXTENDED_FIRST.. => self.extended.get_mut((leaf - EXTENDED_FIRST) as usize),
            _ => self.basic.get_mut(leaf as usize),
        }
    }
}

/// Returns `hz` / `clock` as a fraction whose numerator is at most [`MAX_NUMERATOR`]: the last convergent of the
/// continued fraction that obeys it.
fn ratio(hz: u64, clock: u64) -> (u32, u32) {
    let (mut rest, mut divisor) = (hz, clock);
    let (mut last, mut now) = ((0u64, 1u64), (1u64, 0u64));
    while divisor != 0 {
        let quotient = rest / divisor;
        let next = (
            quotient.saturating_mul(now.0).saturating_add(last.0),
            quotient.saturating_mul(now.1).saturating_add(last.1),
        );
        if next.0 > MAX_NUMERATOR || next.1 > u32::MAX.into() {
            break;
        }
        (last, now, rest, divisor) = (now, next, divisor, rest % divisor);
    }
    // A clock more than `MAX_NUMERATOR` times as fast, or no speed at all, has no fraction: the guest measures it.
    if now.0 == 0 || now.1 == 0 { (0, 0) } else { (now.0 as u32, now.1 as u32) }
}
