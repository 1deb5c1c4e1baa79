//! Guest-linear to guest-physical addresses, as the processor would have translated them: permissions, page faults,
//! accessed and dirty bits (SDM Vol. 3A 4.6 to 4.8).

use super::walk::{
    ACCESSED, ADDRESS, DIRTY, EXECUTE_DISABLE, Format, LARGE, Miss, Seen, Tables, USER, WRITABLE, Walk, entry_at,
    in_page,
};
use crate::address::{Gpa, Gva};
use crate::exit::PageFault;
use crate::memory::{GuestMemory, NotMemory};
use crate::registers::{
    CR0_WP, CR4_LA57, CR4_PAE, CR4_PKE, CR4_PKS, CR4_SMAP, CR4_SMEP, ControlRegister, EFER_LMA, EFER_NXE, GuestState,
    RFLAGS_AC, VectorState,
};

/// Page-fault error code: the page was present.
const FAULT_PRESENT: u32 = 1 << 0;
const FAULT_WRITE: u32 = 1 << 1;
const FAULT_USER: u32 = 1 << 2;
const FAULT_RESERVED: u32 = 1 << 3;
const FAULT_FETCH: u32 = 1 << 4;
const FAULT_KEY: u32 = 1 << 5;

/// How often a walk begins anew because another processor changed an entry under it.
const ATTEMPTS: u32 = 16;

/// What the guest's processor has, as its CPUID says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagingFeatures {
    /// MAXPHYADDR, 32 to 52: CPUID.80000008H:EAX\[7:0\].
    pub physical_bits: u8,
    /// 1 GiB pages: CPUID.80000001H:EDX\[26\].
    pub gigabyte_pages: bool,
}

/// What an access does, and on whose behalf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// It writes.
    pub write: bool,
    /// It fetches an instruction.
    pub fetch: bool,
    /// The processor makes it by itself, as to a descriptor table: a supervisor access at any privilege level.
    pub implicit: bool,
}

impl Access {
    /// A data read by the instruction.
    pub const READ: Self = Self { write: false, fetch: false, implicit: false };
    /// A data write by the instruction.
    pub const WRITE: Self = Self { write: true, fetch: false, implicit: false };
    /// An instruction fetch.
    pub const FETCH: Self = Self { write: false, fetch: true, implicit: false };
    /// A read of a system structure: GDT, LDT, IDT or TSS.
    pub const SYSTEM: Self = Self { write: false, fetch: false, implicit: true };
}

/// Why an address has no translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkError {
    /// The guest gets a page fault.
    Fault(PageFault),
    /// The address is not canonical: the guest gets #GP, or #SS for an access through SS.
    NotCanonical,
    /// Other processors kept changing the entries: the instruction may be tried again.
    Contended,
    /// The answer hangs on protection keys that are not known: CR4.PKS, or CR4.PKE with a PKRU the host cannot read.
    UnknownKeys,
}

/// Paging as the guest has it at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paging {
    tables: Tables,
    cr0: u64,
    cr4: u64,
    no_execute: bool,
    user: bool,
    alignment_check: bool,
    pkru: Option<u32>,
}

impl Paging {
    /// Takes the guest's paging from its registers.
    #[inline]
    pub fn of(cpu: &(impl GuestState + VectorState + ?Sized), features: PagingFeatures) -> Self {
        let (cr0, cr4, efer) = (cpu.control(ControlRegister::Cr0), cpu.control(ControlRegister::Cr4), cpu.efer());
        let format = Format::of(cr0, cr4, efer);
        let no_execute = efer & EFER_NXE != 0 && matches!(format, Format::Pae | Format::Long { .. });
        let width = u32::from(features.physical_bits).clamp(32, 52);
        let reserved = ADDRESS & !((1u64 << width) - 1) | if no_execute { 0 } else { EXECUTE_DISABLE };
        let root = cpu.control(ControlRegister::Cr3);
        Self {
            tables: Tables { format, root, reserved, gigabyte_pages: features.gigabyte_pages },
            cr0,
            cr4,
            no_execute,
            user: cpu.cpl() == 3,
            alignment_check: cpu.rflags() & RFLAGS_AC != 0,
            pkru: if cr4 & CR4_PKE != 0 { cpu.pkru() } else { None },
        }
    }

    /// Returns whether `address` is canonical (SDM Vol. 1 3.3.7.1); outside IA-32e mode every address is.
    #[inline]
    pub fn canonical(&self, address: u64) -> bool {
        match self.tables.format {
            Format::Long { levels } => {
                let unused = 64 - (12 + 9 * levels);
                (address << unused) as i64 >> unused == address as i64
            }
            _ => true,
        }
    }

    /// Translates `address` for one access to one page, and sets accessed and dirty bits as the processor does.
    ///
    /// # Errors
    /// See [`WalkError`]. No entry is changed when the access faults.
    #[inline]
    pub fn translate(&self, memory: &mut GuestMemory, address: Gva, access: Access) -> Result<Gpa, WalkError> {
        let linear = address.as_u64();
        if !self.canonical(linear) {
            return Err(WalkError::NotCanonical);
        }
        if let Some(seen) = self.tables.walk_quickly(memory, linear)
            && seen.all & ACCESSED != 0
            && (!access.write || seen.leaf & DIRTY != 0)
        {
            self.judge(&seen, address, access)?;
            return Ok(seen.gpa);
        }
        self.translate_and_mark(memory, address, access)
    }

    #[inline(never)]
    fn translate_and_mark(&self, memory: &mut GuestMemory, address: Gva, access: Access) -> Result<Gpa, WalkError> {
        for _ in 0..ATTEMPTS {
            let walk = self.tables.walk(memory, address.as_u64()).map_err(|miss| match miss {
                Miss::NotPresent => self.fault(address, access, 0),
                // Where nothing answers, all ones are read: an entry that is present, with reserved bits set.
                Miss::Reserved | Miss::NotMemory => self.fault(address, access, FAULT_PRESENT | FAULT_RESERVED),
            })?;
            if walk.count > 0 {
                self.judge(&walk.seen, address, access)?;
            }
            if mark(&walk, memory, access.write)? {
                return Ok(walk.seen.gpa);
            }
        }
        Err(WalkError::Contended)
    }

    #[cold]
    fn fault(&self, address: Gva, access: Access, cause: u32) -> WalkError {
        let mut error_code = cause;
        if access.write {
            error_code |= FAULT_WRITE;
        }
        if self.user && !access.implicit {
            error_code |= FAULT_USER;
        }
        if access.fetch && (self.no_execute || self.cr4 & CR4_SMEP != 0) {
            error_code |= FAULT_FETCH;
        }
        WalkError::Fault(PageFault { address, error_code })
    }

    /// Returns an error unless the access is permitted (SDM Vol. 3A 4.6.1).
    #[inline]
    fn judge(&self, seen: &Seen, address: Gva, access: Access) -> Result<(), WalkError> {
        let user_access = self.user && !access.implicit;
        let user_page = seen.all & USER != 0;
        let read_only = seen.all & WRITABLE == 0;
        let mut forbidden = access.fetch && self.no_execute && seen.any & EXECUTE_DISABLE != 0;
        if user_access {
            forbidden |= !user_page || access.write && read_only;
        } else {
            forbidden |= access.write && read_only && self.cr0 & CR0_WP != 0;
            if user_page {
                forbidden |= if access.fetch {
                    self.cr4 & CR4_SMEP != 0
                } else {
                    self.cr4 & CR4_SMAP != 0 && (access.implicit || !self.alignment_check)
                };
            }
        }
        let key = if self.cr4 & (CR4_PKE | CR4_PKS) != 0 && !access.fetch {
            self.key_forbids(seen, user_access, user_page, access.write)?
        } else {
            false
        };
        if forbidden || key {
            let key = if key { FAULT_KEY } else { 0 };
            return Err(self.fault(address, access, FAULT_PRESENT | key));
        }
        Ok(())
    }

    /// Returns whether the page's protection key forbids a data access (SDM Vol. 3A 4.6.2).
    #[cold]
    fn key_forbids(&self, seen: &Seen, user_access: bool, user_page: bool, write: bool) -> Result<bool, WalkError> {
        if !matches!(self.tables.format, Format::Long { .. }) {
            return Ok(false);
        }
        if !user_page {
            return if self.cr4 & CR4_PKS != 0 { Err(WalkError::UnknownKeys) } else { Ok(false) };
        }
        if self.cr4 & CR4_PKE == 0 {
            return Ok(false);
        }
        let rights = self.pkru.ok_or(WalkError::UnknownKeys)?;
        let rights = rights >> (2 * (seen.leaf >> 59 & 15));
        let write_disabled = rights & 2 != 0 && (user_access || self.cr0 & CR0_WP != 0);
        Ok(rights & 1 != 0 || write && write_disabled)
    }
}

/// Sets the accessed bits of a walk, and the dirty bit of its last entry for a write. Returns `false` when an entry
/// was no longer what the walk had read.
#[inline]
fn mark(walk: &Walk, memory: &mut GuestMemory, write: bool) -> Result<bool, WalkError> {
    for (position, step) in walk.steps.iter().take(walk.count).enumerate() {
        let last = position + 1 == walk.count;
        let marked = step.entry | ACCESSED | if write && last { DIRTY } else { 0 };
        if marked != step.entry {
            match memory.compare_exchange(step.at, walk.width, step.entry, marked) {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Ok(false),
                // It was read a moment ago, and memory does not go.
                Err(NotMemory(_)) => return Ok(false),
            }
        }
    }
    Ok(true)
}

/// Finds where code that the processor has just fetched lies. The processor has judged and marked the walk already, so
/// this one only follows it: four loads in 64-bit mode. `None` where the tables lead nowhere by now.
#[inline]
pub fn locate(cpu: &(impl GuestState + ?Sized), memory: &GuestMemory, address: Gva) -> Option<Gpa> {
    let linear = address.as_u64();
    if cpu.efer() & EFER_LMA == 0 || cpu.control(ControlRegister::Cr4) & (CR4_PAE | CR4_LA57) != CR4_PAE {
        return locate_slowly(cpu, memory, linear);
    }
    let entry = entry_at(memory, cpu.control(ControlRegister::Cr3) & ADDRESS, linear >> 36)?;
    let entry = entry_at(memory, entry & ADDRESS, linear >> 27)?;
    if entry & LARGE != 0 {
        return Some(in_page(entry, linear, 30));
    }
    let entry = entry_at(memory, entry & ADDRESS, linear >> 18)?;
    if entry & LARGE != 0 {
        return Some(in_page(entry, linear, 21));
    }
    Some(in_page(entry_at(memory, entry & ADDRESS, linear >> 9)?, linear, 12))
}

#[cold]
#[inline(never)]
fn locate_slowly(cpu: &(impl GuestState + ?Sized), memory: &GuestMemory, linear: u64) -> Option<Gpa> {
    let (cr0, cr4) = (cpu.control(ControlRegister::Cr0), cpu.control(ControlRegister::Cr4));
    let format = Format::of(cr0, cr4, cpu.efer());
    let root = cpu.control(ControlRegister::Cr3);
    Tables { format, root, reserved: 0, gigabyte_pages: true }.walk(memory, linear).ok().map(|walk| walk.seen.gpa)
}

#[cfg(test)]
mod tests;
