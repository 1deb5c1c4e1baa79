//! The guest's page tables in every format the processor knows: where an address leads, and what each entry allows.
//! Nothing is judged and nothing is changed here (SDM Vol. 3A 4.3 to 4.5, APM Vol. 2 5.2 and 5.3).

use crate::address::Gpa;
use crate::exit::Width;
use crate::memory::{GuestMemory, NotMemory};
use crate::registers::{CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA};

/// Entry bit 0: present.
pub(super) const PRESENT: u64 = 1 << 0;
/// Entry bit 1: writable.
pub(super) const WRITABLE: u64 = 1 << 1;
/// Entry bit 2: user.
pub(super) const USER: u64 = 1 << 2;
/// Entry bit 5: accessed.
pub(super) const ACCESSED: u64 = 1 << 5;
/// Entry bit 6: dirty, in entries that map a page.
pub(super) const DIRTY: u64 = 1 << 6;
/// Entry bit 7: maps a large page.
pub(super) const LARGE: u64 = 1 << 7;
/// Entry bit 63: no instruction fetches, where IA32_EFER.NXE is set.
pub(super) const EXECUTE_DISABLE: u64 = 1 << 63;
/// Bits 51:12, the physical address of a table or a page.
pub(super) const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// Bits that a page-directory-pointer-table entry of PAE paging must have 0 whatever the address width (4.4.1). Bit 5
/// is one of them too, but QEMU's TCG sets it where other formats have the accessed bit; a guest that sets it has got
/// its #GP from MOV to CR3.
const PAE_POINTER_RESERVED: u64 = 0x1C6 | 0xFFF0_0000_0000_0000;
/// Bits 62:52, ignored in IA-32e mode and reserved in PAE paging.
const PAE_RESERVED: u64 = 0x7FF << 52;

/// Returns the present entry of 64 bits in the table at `table` (a multiple of 4096) that bits 11:3 of `index` choose.
#[inline]
pub(super) fn entry_at(memory: &GuestMemory, table: u64, index: u64) -> Option<u64> {
    memory.word(Gpa::new(table | index & 0xFF8)).filter(|entry| entry & PRESENT != 0)
}

/// Returns where `address` lies in the page of 2^`shift` bytes that `entry` maps.
#[inline]
pub(super) fn in_page(entry: u64, address: u64, shift: u32) -> Gpa {
    let offset = (1 << shift) - 1;
    Gpa::new(entry & ADDRESS & !offset | address & offset)
}

/// The format of the tables that are in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// No paging: linear addresses are physical.
    Off,
    /// 32-bit paging; whether CR4.PSE allows 4 MiB pages.
    Bits32 {
        /// CR4.PSE
        large: bool,
    },
    /// PAE paging.
    Pae,
    /// IA-32e paging with 4 levels, or 5 with CR4.LA57.
    Long {
        /// 4 or 5
        levels: u32,
    },
}

impl Format {
    /// Returns the format that the control registers and IA32_EFER select (SDM Vol. 3A 4.1.1).
    #[inline]
    pub(super) fn of(cr0: u64, cr4: u64, efer: u64) -> Self {
        if cr0 & CR0_PG == 0 {
            Self::Off
        } else if efer & EFER_LMA != 0 {
            Self::Long { levels: if cr4 & CR4_LA57 != 0 { 5 } else { 4 } }
        } else if cr4 & CR4_PAE != 0 {
            Self::Pae
        } else {
            Self::Bits32 { large: cr4 & CR4_PSE != 0 }
        }
    }
}

/// Tables to walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tables {
    /// Their format.
    pub(super) format: Format,
    /// CR3.
    pub(super) root: u64,
    /// Bits 51:MAXPHYADDR, and bit 63 where IA32_EFER.NXE is clear: they must be 0 in every entry.
    pub(super) reserved: u64,
    /// The processor has 1 GiB pages.
    pub(super) gigabyte_pages: bool,
}

/// An entry that the walk used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Step {
    /// Where it is.
    pub(super) at: Gpa,
    /// What it held.
    pub(super) entry: u64,
}

/// What a walk that reached a page has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    /// Where the address leads.
    pub(super) gpa: Gpa,
    /// The AND of all entries that carry permissions: a permission holds where all grant it.
    pub(super) all: u64,
    /// The OR of all entries: one execute-disable suffices.
    pub(super) any: u64,
    /// The entry that maps the page.
    pub(super) leaf: u64,
}

/// A walk with what it takes to change the entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Walk {
    pub(super) seen: Seen,
    /// The entries that carry permissions and accessed bits, from the top; `count` of them.
    pub(super) steps: [Step; 5],
    /// 0 to 5; 0 only without paging.
    pub(super) count: usize,
    /// Bytes in an entry.
    pub(super) width: Width,
}

/// Why a walk reached no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Miss {
    /// An entry is not present.
    NotPresent,
    /// An entry has a reserved bit set.
    Reserved,
    /// A table lies where the guest has no memory.
    NotMemory,
}

impl From<NotMemory> for Miss {
    fn from(_: NotMemory) -> Self {
        Self::NotMemory
    }
}

impl Walk {
    #[inline]
    fn start(width: Width) -> Self {
        let seen = Seen { gpa: Gpa::new(0), all: u64::MAX, any: 0, leaf: 0 };
        Self { seen, steps: [Step::default(); 5], count: 0, width }
    }

    #[inline]
    fn step(&mut self, at: Gpa, entry: u64) {
        if let Some(step) = self.steps.get_mut(self.count) {
            *step = Step { at, entry };
            self.count += 1;
        }
        self.seen.all &= entry;
        self.seen.any |= entry;
        self.seen.leaf = entry;
    }
}

impl Tables {
    /// Follows four levels of entries without reserved bits, which is nearly every walk there is; `None` for any other,
    /// which [`walk`](Self::walk) judges.
    #[inline]
    pub(super) fn walk_quickly(&self, memory: &GuestMemory, address: u64) -> Option<Seen> {
        if self.format != (Format::Long { levels: 4 }) {
            return None;
        }
        let top = entry_at(memory, self.root & ADDRESS, address >> 36)?;
        let second = entry_at(memory, top & ADDRESS, address >> 27)?;
        let (mut all, mut any) = (top & second, top | second);
        let mut leaf = second;
        let mut shift = 30;
        if second & LARGE == 0 {
            leaf = entry_at(memory, second & ADDRESS, address >> 18)?;
            (all, any) = (all & leaf, any | leaf);
            shift = 21;
            if leaf & LARGE == 0 {
                leaf = entry_at(memory, leaf & ADDRESS, address >> 9)?;
                (all, any) = (all & leaf, any | leaf);
                shift = 12;
            }
        }
        // Bits 12 and 7 of a 4 KiB page's entry are address and PAT; a large page's address begins at `shift`.
        let mut reserved = any & self.reserved | top & LARGE;
        if shift != 12 {
            reserved |= leaf & ((1 << shift) - (1 << 13));
            if shift == 30 && !self.gigabyte_pages {
                return None;
            }
        }
        if reserved != 0 {
            return None;
        }
        Some(Seen { gpa: in_page(leaf, address, shift), all, any, leaf })
    }

    /// Follows the tables to the page that holds `address`, whose canonical form is the caller's concern.
    pub(super) fn walk(&self, memory: &GuestMemory, address: u64) -> Result<Walk, Miss> {
        match self.format {
            Format::Off => {
                let mut walk = Walk::start(Width::Qword);
                walk.seen.gpa = Gpa::new(address & 0xFFFF_FFFF);
                Ok(walk)
            }
            Format::Bits32 { large } => self.walk32(memory, address & 0xFFFF_FFFF, large),
            Format::Pae => self.walk64(memory, address & 0xFFFF_FFFF, 3, self.root & 0xFFFF_FFE0, PAE_RESERVED),
            Format::Long { levels } => self.walk64(memory, address, levels, self.root & ADDRESS, 0),
        }
    }

    fn walk64(
        &self,
        memory: &GuestMemory,
        address: u64,
        levels: u32,
        root: u64,
        format_reserved: u64,
    ) -> Result<Walk, Miss> {
        let mut walk = Walk::start(Width::Qword);
        let mut table = root;
        let mut level = levels;
        loop {
            let shift = 3 + 9 * level;
            let at = Gpa::new(table | (address >> shift & 0x1FF) << 3);
            let entry = memory.read_number(at, Width::Qword)?;
            if entry & PRESENT == 0 {
                return Err(Miss::NotPresent);
            }
            let mut reserved = self.reserved | format_reserved;
            let mut large = false;
            if level == 3 && levels == 3 {
                if entry & (reserved | PAE_POINTER_RESERVED) != 0 {
                    return Err(Miss::Reserved);
                }
            } else {
                if entry & LARGE != 0 && level > 1 {
                    large = level == 2 || level == 3 && self.gigabyte_pages;
                    // A large page has address bits from `shift` on; bit 12 is its PAT bit.
                    reserved |= if large { (1 << shift) - (1 << 13) } else { LARGE };
                }
                if entry & reserved != 0 {
                    return Err(Miss::Reserved);
                }
                walk.step(at, entry);
            }
            if large || level == 1 {
                walk.seen.gpa = in_page(entry, address, shift);
                return Ok(walk);
            }
            table = entry & ADDRESS;
            level -= 1;
        }
    }

    fn walk32(&self, memory: &GuestMemory, address: u64, large: bool) -> Result<Walk, Miss> {
        let mut walk = Walk::start(Width::Dword);
        let at = Gpa::new(self.root & 0xFFFF_F000 | address >> 22 << 2);
        let entry = memory.read_number(at, Width::Dword)?;
        if entry & PRESENT == 0 {
            return Err(Miss::NotPresent);
        }
        if large && entry & LARGE != 0 {
            // PSE-36: bits 20:13 are address bits 39:32, as far as the processor has them; bit 21 is reserved.
            let high = (entry >> 13 & 0xFF) << 32;
            if entry & 1 << 21 != 0 || high & self.reserved != 0 {
                return Err(Miss::Reserved);
            }
            walk.step(at, entry);
            walk.seen.gpa = Gpa::new(high | entry & 0xFFC0_0000 | address & 0x3F_FFFF);
            return Ok(walk);
        }
        walk.step(at, entry);
        let at = Gpa::new(entry & 0xFFFF_F000 | (address >> 12 & 0x3FF) << 2);
        let entry = memory.read_number(at, Width::Dword)?;
        if entry & PRESENT == 0 {
            return Err(Miss::NotPresent);
        }
        walk.step(at, entry);
        walk.seen.gpa = Gpa::new(entry & 0xFFFF_F000 | address & 0xFFF);
        Ok(walk)
    }
}
