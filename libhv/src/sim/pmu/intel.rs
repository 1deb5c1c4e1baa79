//! Intel's architectural performance monitoring, versions 1 to 5 (SDM Vol. 3B 20.2), and what a step does to it.

mod registers;
#[cfg(test)]
mod tests;

use super::counter::Counter;
use super::happened::{Condition, Happened, Source};
use super::lbr::Lbr;
use alloc::vec::Vec;

pub(super) const STATUS_LBR_FROZEN: u64 = 1 << 58;
pub(super) const STATUS_FROZEN: u64 = 1 << 59;
const STATUS_UNCORE: u64 = 1 << 61;
const STATUS_BUFFER: u64 = 1 << 62;
const STATUS_CHANGED: u64 = 1 << 63;
const DEBUGCTL_BTF: u64 = 1 << 1;
pub(super) const DEBUGCTL_FREEZE_LBRS: u64 = 1 << 11;
pub(super) const DEBUGCTL_FREEZE: u64 = 1 << 12;
const DEBUGCTL_FREEZE_IN_SMM: u64 = 1 << 14;
const SELECT_USR: u64 = 1 << 16;
const SELECT_OS: u64 = 1 << 17;
const SELECT_INT: u64 = 1 << 20;
const SELECT_ANY_THREAD: u64 = 1 << 21;
const SELECT_EN: u64 = 1 << 22;
const SELECT_IN_TX: u64 = 1 << 32;
const SELECT_IN_TXCP: u64 = 1 << 33;
const CAPABILITY_SMM_FREEZE: u64 = 1 << 12;
const CAPABILITY_FULL_WIDTH: u64 = 1 << 13;
/// The LBR format of PERF_CAPABILITIES that says: architectural.
const LBR_FORMAT_ARCHITECTURAL: u64 = 0x3F;

/// What a processor's PMU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The version of architectural performance monitoring, 1 to 5.
    pub version: u8,
    /// General-purpose counters, up to 8.
    pub general: u8,
    /// Fixed-function counters from 0 on, up to 4; none in version 1.
    pub fixed: u8,
    /// Bits of each counter, 32 to 63.
    pub width: u8,
    /// The counters can be written whole, at 4C1H and on.
    pub full_width_writes: bool,
    /// IA32_DEBUGCTL.FREEZE_WHILE_SMM exists.
    pub freeze_in_smm: bool,
    /// There is transactional memory: IN_TX, and IN_TXCP on counter 2.
    pub transactions: bool,
    /// The most last branch records, a multiple of 8 up to 64; 0 without architectural LBRs.
    pub lbr_depth: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: 5,
            general: 8,
            fixed: 4,
            width: 48,
            full_width_writes: true,
            freeze_in_smm: true,
            transactions: false,
            lbr_depth: 0,
        }
    }
}

impl Config {
    /// Returns whether AnyThread exists: from version 3 on, until version 5 takes it away again (CPUID.0AH:EDX[15]).
    fn any_thread(&self) -> bool {
        matches!(self.version, 3 | 4)
    }

    /// Returns the bits of the counters in GLOBAL_CTRL and GLOBAL_STATUS.
    fn counters(&self) -> u64 {
        ((1 << self.general) - 1) | ((1 << self.fixed) - 1) << 32
    }

    /// Returns CPUID leaf 0AH: EAX, EBX, ECX, EDX.
    pub fn leaf_0a(&self) -> [u32; 4] {
        let (version, general, fixed) = (u32::from(self.version), u32::from(self.general), u32::from(self.fixed));
        let width = u32::from(self.width);
        // Eight bits of EBX: seven architectural events and, in version 5 without the general-purpose form, slots.
        let eax = version | general << 8 | width << 16 | 8 << 24;
        let slots_missing = 1 << 7;
        let edx = if self.version > 1 { fixed | width << 5 } else { 0 };
        let deprecated = if self.version >= 5 { 1 << 15 } else { 0 };
        let bitmap = if self.version >= 5 { (1 << fixed) - 1 } else { 0 };
        [eax, slots_missing, bitmap, edx | deprecated]
    }

    /// Returns CPUID leaf 1CH, architectural LBRs: all depths up to the greatest, all filters, and all fields of a record.
    pub fn leaf_1c(&self) -> [u32; 4] {
        match self.lbr_depth {
            0 => [0; 4],
            depth => [((1 << (depth / 8)) - 1) | (1 << 31), 0b111, 0b111, 0],
        }
    }

    /// Returns IA32_PERF_CAPABILITIES.
    pub fn capabilities(&self) -> u64 {
        let lbr = if self.lbr_depth > 0 { LBR_FORMAT_ARCHITECTURAL } else { 0 };
        let if_set = |is: bool, bit| if is { bit } else { 0 };
        lbr | if_set(self.full_width_writes, CAPABILITY_FULL_WIDTH) | if_set(self.freeze_in_smm, CAPABILITY_SMM_FREEZE)
    }
}

/// The PMU of a logical processor.
#[derive(Clone, Debug)]
pub struct Pmu {
    config: Config,
    selectors: Vec<u64>,
    general: Vec<Counter>,
    fixed: Vec<Counter>,
    fixed_control: u64,
    global_control: u64,
    status: u64,
    debug_control: u64,
    lbr: Option<Lbr>,
    skid: u64,
    /// Instructions that retire until an interrupt under way is requested.
    on_its_way: Option<u64>,
}

impl Pmu {
    /// Makes a PMU as it is after RESET.
    ///
    /// # Panics
    /// When no processor is like `config`.
    pub fn new(config: Config) -> Self {
        let Config { version, general, fixed, width, full_width_writes, lbr_depth, .. } = config;
        assert!((1..=5).contains(&version), "architectural performance monitoring has no version {version}");
        assert!(general <= 8 && fixed <= 4, "{general} general-purpose and {fixed} fixed counters");
        assert!(version > 1 || fixed == 0 && !full_width_writes && lbr_depth == 0, "version 1 has less");
        assert!(lbr_depth.is_multiple_of(8) && lbr_depth <= 64, "{lbr_depth} last branch records");
        Self {
            config,
            selectors: alloc::vec![0; general.into()],
            general: alloc::vec![Counter::new(width); general.into()],
            fixed: alloc::vec![Counter::new(width); fixed.into()],
            fixed_control: 0,
            global_control: (1 << general) - 1,
            status: 0,
            debug_control: 0,
            lbr: (lbr_depth > 0).then(|| Lbr::new(lbr_depth)),
            skid: 0,
            on_its_way: None,
        }
    }

    /// Has interrupts come this many retired instructions after their overflow. Overflows on the way share the interrupt.
    pub fn set_skid(&mut self, instructions: u64) {
        self.skid = instructions;
    }

    /// Returns what the processor has.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Counts a step at privilege level `cpl`; returns whether it requested a performance monitoring interrupt.
    pub fn step(&mut self, cpl: u8, happened: &Happened) -> bool {
        let enabled = if self.status & STATUS_FROZEN != 0 { 0 } else { self.global_control };
        let (mut overflowed, mut interrupts) = (0, false);
        for (index, (&selector, counter)) in self.selectors.iter().zip(&mut self.general).enumerate() {
            let level = if cpl == 0 { SELECT_OS } else { SELECT_USR };
            if enabled >> index & 1 == 0 || selector & SELECT_EN == 0 || selector & level == 0 {
                counter.look_away();
                continue;
            }
            let source = Source::intel(selector as u8, (selector >> 8) as u8);
            if counter.count(&Condition::of(source, selector), happened) {
                overflowed |= 1 << index;
                interrupts |= selector & SELECT_INT != 0;
            }
        }
        const FIXED: [Source; 4] = [Source::Instructions, Source::Cycles, Source::RefCycles, Source::Slots];
        for (index, (counter, source)) in self.fixed.iter_mut().zip(FIXED).enumerate() {
            let control = self.fixed_control >> (4 * index);
            let level = if cpl == 0 { 1 } else { 2 };
            if enabled >> (32 + index) & 1 == 0 || control & level == 0 {
                continue;
            }
            if counter.count(&Condition::every(source), happened) {
                overflowed |= 1 << (32 + index);
                interrupts |= control & 8 != 0;
            }
        }
        self.status |= overflowed;
        if interrupts {
            self.freeze();
        }
        self.request(interrupts, happened.instructions)
    }

    /// Returns whether an interrupt comes in a step in which so many instructions retired, and a counter asked for one or
    /// not.
    fn request(&mut self, asked: bool, retired: u64) -> bool {
        let (comes, left) = match self.on_its_way {
            Some(left) => (retired >= left, left.saturating_sub(retired)),
            None => (asked && self.skid == 0, if asked { self.skid } else { 0 }),
        };
        self.on_its_way = (left > 0).then_some(left);
        comes
    }

    /// What IA32_DEBUGCTL asks for when a counter overflows that is to interrupt (SDM Vol. 3B 18.4.7): the interrupt may still
    /// be on its way when counting ends (SDM Vol. 4, IA32_PERF_GLOBAL_STATUS.CTR_Frz). Versions 2 and 3 clear
    /// GLOBAL_CTRL, later ones say so in GLOBAL_STATUS.
    fn freeze(&mut self) {
        let (counters, branches) =
            (self.debug_control & DEBUGCTL_FREEZE != 0, self.debug_control & DEBUGCTL_FREEZE_LBRS != 0);
        if counters {
            if self.config.version >= 4 {
                self.status |= STATUS_FROZEN;
            } else {
                self.global_control = 0;
            }
        }
        if branches && self.config.version >= 4 {
            self.status |= STATUS_LBR_FROZEN;
        }
    }

    /// Records a taken branch in the last branch records, where they are on.
    pub fn branch(&mut self, cpl: u8, taken: &super::lbr::Taken) {
        if self.status & STATUS_LBR_FROZEN == 0
            && let Some(lbr) = &mut self.lbr
        {
            lbr.record(cpl, taken);
        }
    }
}
