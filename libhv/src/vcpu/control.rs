//! MOV to and from control registers, CLTS and LMSW where they leave the guest: what is legal, and what follows from it
//! (SDM Vol. 2B "MOV—Move to/from Control Registers", Vol. 3A 2.5, 4.1).

use super::Backend;
use super::cpuid::{CpuidTable, Feature};
use crate::address::Gpa;
use crate::exit::{ControlAccess, Event, Resolution, Width};
use crate::memory::GuestMemory;
use crate::registers::{
    CR0_ET, CR0_PE, CR0_PG, CR0_WP, CR4_LA57, CR4_OSXSAVE, CR4_PAE, CR4_PKE, CR4_PSE, CR4_SMAP, CR4_SMEP,
    ControlRegister, EFER_LMA, EFER_LME, Gpr, GuestState, SegmentRegister,
};
use bit_field::BitField;

/// CR0.TS: the x87 and vector registers are another task's.
const CR0_TS: u64 = 1 << 3;
/// CR0.NW: not write-through.
const CR0_NW: u64 = 1 << 29;
/// CR0.CD: caches off.
const CR0_CD: u64 = 1 << 30;
/// The bits of CR0 that exist; MOV to CR0 ignores the others of the low half.
const CR0_EXISTING: u64 = 0xE005_003F;
/// CR0 bits that LMSW writes: PE, MP, EM and TS.
const CR0_LMSW: u64 = 0xF;
/// CR4.PGE: global pages.
const CR4_PGE: u64 = 1 << 7;
/// CR4.PCIDE: process-context identifiers.
const CR4_PCIDE: u64 = 1 << 17;
/// CR4.CET: control-flow enforcement.
const CR4_CET: u64 = 1 << 23;
/// Bit 63 of MOV to CR3's operand, under CR4.PCIDE: translations are kept.
const CR3_KEEP: u64 = 1 << 63;
/// CR4 bits whose change makes translations untrue (SDM Vol. 3A 4.10.4.1), and those after which they mean another
/// thing.
const CR4_TRANSLATION: u64 = CR4_PSE | CR4_PAE | CR4_PGE | CR4_LA57 | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
/// CR4 bits whose change reloads the PDPTEs in PAE paging (SDM Vol. 3A 4.4.1).
const CR4_PDPTES: u64 = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP;
/// CR0 bits whose change reloads the PDPTEs in PAE paging.
const CR0_PDPTES: u64 = CR0_PG | CR0_CD | CR0_NW;
/// The type of a busy 16-bit task-state segment.
const TSS16_BUSY: u8 = 3;

/// What the guest's processor offers, as CPUID says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlRules {
    /// Bits of CR4 that exist for the guest.
    pub cr4: u64,
    /// Bits of a physical address, 32 to 52.
    pub physical_bits: u8,
}

impl ControlRules {
    /// Returns the rules that go with what CPUID shows the guest (SDM Vol. 3A 2.5, the bits of CR4).
    pub fn of(cpuid: &CpuidTable) -> Self {
        let bits = [
            (Feature::VME, 0b11),
            (Feature::TSC, 1 << 2),
            (Feature::DE, 1 << 3),
            (Feature::PSE, CR4_PSE),
            (Feature::PAE, CR4_PAE),
            (Feature::MCE, 1 << 6),
            (Feature::PGE, CR4_PGE),
            // CR4.PCE concerns RDPMC, which leaves the guest.
            (Feature::MSR, 1 << 8),
            (Feature::FXSR, 1 << 9),
            (Feature::SSE, 1 << 10),
            (Feature::UMIP, 1 << 11),
            (Feature::FSGSBASE, 1 << 16),
            (Feature::PCID, CR4_PCIDE),
            (Feature::XSAVE, CR4_OSXSAVE),
            (Feature::SMEP, CR4_SMEP),
            (Feature::SMAP, CR4_SMAP),
            (Feature::PKU, CR4_PKE),
        ];
        let offered = bits.into_iter().filter(|&(feature, _)| cpuid.offers(feature));
        Self { cr4: offered.fold(0, |all, (_, bit)| all | bit), physical_bits: cpuid.physical_address_bits() as u8 }
    }

    /// Returns the bits of a 64-bit word above the physical addresses.
    fn above_addresses(&self) -> u64 {
        u64::MAX.checked_shl(self.physical_bits.into()).unwrap_or(0)
    }

    /// Returns whether a page-directory-pointer-table entry has reserved bits set (SDM Vol. 3A 4.4.1).
    fn refuses_pdpte(&self, entry: u64) -> bool {
        const RESERVED: u64 = 0b1_1110_0110;
        entry.get_bit(0) && entry & (RESERVED | self.above_addresses()) != 0
    }
}

/// The registers that decide how the guest pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paging {
    /// CR0
    pub cr0: u64,
    /// CR3
    pub cr3: u64,
    /// CR4
    pub cr4: u64,
    /// IA32_EFER
    pub efer: u64,
    /// CS.L
    pub long_code: bool,
    /// TR holds a 16-bit task-state segment.
    pub tss16: bool,
}

impl Paging {
    /// Reads them from the guest.
    pub fn of(guest: &impl GuestState) -> Self {
        Self {
            cr0: guest.control(ControlRegister::Cr0),
            cr3: guest.control(ControlRegister::Cr3),
            cr4: guest.control(ControlRegister::Cr4),
            efer: guest.efer(),
            long_code: guest.segment(SegmentRegister::Cs).attributes.long(),
            tss16: guest.segment(SegmentRegister::Tr).attributes.segment_type() == TSS16_BUSY,
        }
    }

    fn in_64_bit_mode(&self) -> bool {
        self.efer & EFER_LMA != 0 && self.long_code
    }

    /// Returns whether the guest pages with PAE, where the processor holds four page-directory-pointer-table entries.
    pub fn has_pdptes(&self) -> bool {
        self.cr0 & CR0_PG != 0 && self.cr4 & CR4_PAE != 0 && self.efer & EFER_LMA == 0
    }

    /// Returns the state after MOV to CR0; `None` stands for #GP(0).
    #[must_use]
    pub fn with_cr0(self, value: u64) -> Option<Self> {
        let set = |bits| value & bits == bits;
        let activates = set(CR0_PG) && self.cr0 & CR0_PG == 0;
        let refused = value >> 32 != 0
            || (set(CR0_PG) && !set(CR0_PE))
            || (set(CR0_NW) && !set(CR0_CD))
            || (!set(CR0_WP) && self.cr4 & CR4_CET != 0)
            || (!set(CR0_PG) && (self.cr4 & CR4_PCIDE != 0 || self.in_64_bit_mode()))
            || (activates && self.efer & EFER_LME != 0 && (self.cr4 & CR4_PAE == 0 || self.long_code || self.tss16));
        if refused {
            return None;
        }
        let active = set(CR0_PG) && self.efer & EFER_LME != 0;
        let efer = if active { self.efer | EFER_LMA } else { self.efer & !EFER_LMA };
        Some(Self { cr0: value & CR0_EXISTING | CR0_ET, efer, ..self })
    }

    /// Returns the state after MOV to CR3; `None` stands for #GP(0).
    #[must_use]
    pub fn with_cr3(self, value: u64, rules: &ControlRules) -> Option<Self> {
        let operand = if self.cr4 & CR4_PCIDE != 0 { value & !CR3_KEEP } else { value };
        let long = self.efer & EFER_LMA != 0;
        (!long || operand & rules.above_addresses() == 0).then_some(Self { cr3: operand, ..self })
    }

    /// Returns the state after MOV to CR4; `None` stands for #GP(0).
    #[must_use]
    pub fn with_cr4(self, value: u64, rules: &ControlRules) -> Option<Self> {
        let set = |bits| value & bits == bits;
        let long = self.efer & EFER_LMA != 0;
        let refused = value & !rules.cr4 != 0
            || (long && !set(CR4_PAE))
            || (long && (value ^ self.cr4) & CR4_LA57 != 0)
            || (set(CR4_PCIDE) && self.cr4 & CR4_PCIDE == 0 && (!long || self.cr3 & 0xFFF != 0))
            || (set(CR4_CET) && self.cr0 & CR0_WP == 0);
        (!refused).then_some(Self { cr4: value, ..self })
    }

    /// Returns whether translations made in state `before` are untrue in this one.
    fn forgets(&self, before: &Self) -> bool {
        (self.cr0 ^ before.cr0) & CR0_PG != 0 || (self.cr4 ^ before.cr4) & CR4_TRANSLATION != 0
    }

    /// Returns whether going from `before` to this state by MOV to CR0 or CR4 loads the PDPTEs.
    fn loads_pdptes(&self, before: &Self) -> bool {
        let changed = (self.cr0 ^ before.cr0) & CR0_PDPTES | (self.cr4 ^ before.cr4) & CR4_PDPTES;
        self.has_pdptes() && changed != 0
    }
}

/// Executes an access to CR0, CR3 or CR4 that left the guest. CR8, which is the local APIC's, and an access that is not
/// decoded are [`Resolution::NotMine`].
pub fn resolve(
    access: ControlAccess,
    guest: &mut impl Backend,
    memory: &GuestMemory,
    rules: &ControlRules,
) -> Resolution {
    const FAULT: Resolution = Resolution::Inject(Event::GENERAL_PROTECTION);
    let before = Paging::of(guest);
    if guest.cpl() != 0 {
        return FAULT;
    }
    let mut keeps = false;
    let mut loads_cr3 = false;
    let after = match access {
        ControlAccess::Read { number, destination } => return read(number, destination, guest),
        ControlAccess::Write { number: 8, .. } | ControlAccess::Undecoded => return Resolution::NotMine,
        ControlAccess::Clts => before.with_cr0(before.cr0 & !CR0_TS),
        ControlAccess::Lmsw(operand) => {
            let kept = before.cr0 & (!CR0_LMSW | CR0_PE);
            before.with_cr0(kept | u64::from(operand) & CR0_LMSW)
        }
        ControlAccess::Write { number, source } => {
            let operand = guest.gpr(source);
            let operand = if before.in_64_bit_mode() { operand } else { operand & 0xFFFF_FFFF };
            match number {
                0 => before.with_cr0(operand),
                3 => {
                    loads_cr3 = true;
                    keeps = before.cr4 & CR4_PCIDE != 0 && operand & CR3_KEEP != 0;
                    before.with_cr3(operand, rules)
                }
                4 => before.with_cr4(operand, rules),
                _ => return Resolution::Inject(Event::UNDEFINED),
            }
        }
    };
    let Some(after) = after else { return FAULT };
    if after.loads_pdptes(&before) || (loads_cr3 && after.has_pdptes()) {
        match read_pdptes(after.cr3, memory, rules) {
            Some(entries) => guest.set_pdptes(entries),
            None => return FAULT,
        }
    }
    apply(&before, &after, guest);
    if after.forgets(&before) || (loads_cr3 && !keeps) {
        guest.flush_linear();
    }
    Resolution::Complete
}

fn read(number: u8, destination: Gpr, guest: &mut impl Backend) -> Resolution {
    let register = match number {
        0 => ControlRegister::Cr0,
        2 => ControlRegister::Cr2,
        3 => ControlRegister::Cr3,
        4 => ControlRegister::Cr4,
        8 => return Resolution::NotMine,
        _ => return Resolution::Inject(Event::UNDEFINED),
    };
    let value = guest.control(register);
    guest.set_gpr(destination, value);
    Resolution::Complete
}

fn apply(before: &Paging, after: &Paging, guest: &mut impl Backend) {
    if after.cr0 != before.cr0 {
        guest.set_control(ControlRegister::Cr0, after.cr0);
    }
    if after.cr3 != before.cr3 {
        guest.set_control(ControlRegister::Cr3, after.cr3);
    }
    if after.cr4 != before.cr4 {
        guest.set_control(ControlRegister::Cr4, after.cr4);
    }
    if after.efer != before.efer {
        guest.set_efer(after.efer);
    }
}

/// Reads the four page-directory-pointer-table entries that CR3 points to; `None` when one is illegal or not memory.
fn read_pdptes(cr3: u64, memory: &GuestMemory, rules: &ControlRules) -> Option<[u64; 4]> {
    const TABLE: u64 = 0xFFFF_FFE0;
    let mut entries = [0; 4];
    for (index, entry) in (0..).zip(&mut entries) {
        let address = Gpa::new((cr3 & TABLE) + 8 * index);
        *entry = memory.read_number(address, Width::Qword).ok()?;
        if rules.refuses_pdpte(*entry) {
            return None;
        }
    }
    Some(entries)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
