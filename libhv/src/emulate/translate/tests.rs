//! Page walks against a model that knows no tables: a map from the level and the upper bits of an address to what the
//! guest wrote there, judged by the manual's sentences.

use super::*;
use crate::emulate::fake::FakeCpu;
use crate::exit::Width;
use crate::registers::EntryState;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

const TABLES: u64 = 0x1000;
const MEMORY: usize = 0x40000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Bits32,
    Pae,
    Long4,
    Long5,
}

impl Kind {
    /// Levels from the top, each with the lowest address bit that it decides.
    fn shifts(self) -> &'static [u32] {
        match self {
            Self::Bits32 => &[22, 12],
            Self::Pae => &[30, 21, 12],
            Self::Long4 => &[39, 30, 21, 12],
            Self::Long5 => &[48, 39, 30, 21, 12],
        }
    }
    fn long(self) -> bool {
        matches!(self, Self::Long4 | Self::Long5)
    }
    /// An entry of this kind that has no permissions of its own.
    fn bare_pointer(self, shift: u32) -> bool {
        self == Self::Pae && shift == 30
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    present: bool,
    writable: bool,
    user: bool,
    large: bool,
    no_execute: bool,
    accessed: bool,
    dirty: bool,
    key: u64,
    /// One of the bits that may be reserved here, by position.
    odd: Option<usize>,
    target: u64,
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    kind: Kind,
    wp: bool,
    nxe: bool,
    smep: bool,
    smap: bool,
    ac: bool,
    pse: bool,
    pke: bool,
    gigabyte: bool,
    user: bool,
    pkru: u32,
    bits: u8,
}

impl Setting {
    /// Whether an entry with the large bit maps a page at this level.
    fn maps(&self, shift: u32, entry: &Entry) -> bool {
        shift == 12
            || entry.large
                && match (self.kind, shift) {
                    (Kind::Bits32, 22) => self.pse,
                    (Kind::Pae | Kind::Long4 | Kind::Long5, 21) => true,
                    (Kind::Long4 | Kind::Long5, 30) => self.gigabyte,
                    _ => false,
                }
    }

    /// The reserved bits of an entry as the manual lists them (SDM Vol. 3A tables 4-4 to 4-20), but for bit 5 of a
    /// page-directory-pointer-table entry, which QEMU's TCG sets.
    fn reserved(&self, shift: u32, entry: &Entry) -> Vec<u32> {
        let page = self.maps(shift, entry) && shift > 12;
        let mut bits = Vec::new();
        match self.kind {
            Kind::Bits32 if page => {
                bits.push(21);
                bits.extend((13..21).filter(|bit| bit - 13 + 32 >= self.bits.into()));
            }
            Kind::Bits32 => {}
            Kind::Pae if shift == 30 => {
                bits.extend([1, 2, 6, 7, 8]);
                bits.extend(u32::from(self.bits)..64);
            }
            _ => {
                bits.extend(u32::from(self.bits)..52);
                if self.kind == Kind::Pae {
                    bits.extend(52..63);
                }
                if !self.nxe {
                    bits.push(63);
                }
                if page {
                    bits.extend(13..shift);
                } else if shift > 21 {
                    bits.push(7);
                }
            }
        }
        bits
    }

    fn encode(&self, shift: u32, entry: &Entry, table: Option<u64>) -> u64 {
        let bit = |set: bool, position: u32| u64::from(set) << position;
        let mut word = bit(entry.present, 0);
        if !self.kind.bare_pointer(shift) {
            word |= bit(entry.writable, 1) | bit(entry.user, 2) | bit(entry.accessed, 5) | bit(entry.dirty, 6);
            word |= bit(entry.large && shift > 12, 7);
            if self.kind != Kind::Bits32 {
                word |= bit(entry.no_execute && (self.nxe || entry.odd.is_some()), 63);
            }
        }
        if self.kind.long() {
            word |= entry.key << 59;
        }
        word |= match table {
            Some(table) => table,
            None if self.kind == Kind::Bits32 && shift == 22 => {
                let page = self.page(shift, entry);
                page & 0xFFC0_0000 | (page >> 32 & 0xFF) << 13
            }
            None => self.page(shift, entry),
        };
        let reserved = self.reserved(shift, entry);
        if let Some(odd) = entry.odd
            && !reserved.is_empty()
        {
            word |= 1 << reserved[odd % reserved.len()];
        }
        word
    }

    /// The address of the page that an entry maps.
    fn page(&self, shift: u32, entry: &Entry) -> u64 {
        let width = match (self.kind, shift) {
            (Kind::Bits32, 12) => 32,
            (Kind::Bits32, _) => u32::from(self.bits).min(40),
            _ => self.bits.into(),
        };
        entry.target & ((1 << width) - 1) & !((1 << shift) - 1)
    }

    fn cpu(&self) -> FakeCpu {
        let mut cpu = FakeCpu::new(EntryState::long_mode(0, TABLES));
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        cpu.state.cr0 = 1 | 1 << 31 | bit(self.wp, 1 << 16);
        cpu.state.cr4 = bit(self.smep, 1 << 20)
            | bit(self.smap, 1 << 21)
            | bit(self.pke, 1 << 22)
            | bit(self.pse, 1 << 4)
            | bit(self.kind != Kind::Bits32, 1 << 5)
            | bit(self.kind == Kind::Long5, 1 << 12);
        cpu.state.efer = bit(self.nxe, 1 << 11) | bit(self.kind.long(), 1 << 8 | 1 << 10);
        cpu.state.rflags = 2 | bit(self.ac, 1 << 18);
        cpu.cpl = if self.user { 3 } else { 0 };
        cpu.pkru = Some(self.pkru);
        cpu
    }
}

/// What the guest wrote, by level and upper address bits.
type Map = BTreeMap<(u32, u64), Entry>;

/// Writes the map as tables; they are given out in the order of the map, so that equal maps make equal tables.
fn build(setting: &Setting, map: &Map) -> GuestMemory {
    let mut memory = GuestMemory::for_tests(MEMORY);
    let shifts = setting.kind.shifts();
    let mut tables = BTreeMap::from([((shifts[0], 0), TABLES)]);
    for &(shift, upper) in map.keys().rev() {
        let above = shifts.iter().position(|&each| each == shift).and_then(|at| at.checked_sub(1)).map(|at| shifts[at]);
        if let Some(above) = above {
            let next = TABLES + 0x1000 * tables.len() as u64;
            tables.entry((shift, upper >> (above - shift))).or_insert(next);
        }
    }
    for (&(shift, upper), entry) in map {
        let at = shifts.iter().position(|&each| each == shift).expect("a level of this kind");
        let (index_bits, width) = if setting.kind == Kind::Bits32 { (10, Width::Dword) } else { (9, Width::Qword) };
        let table = if at == 0 { TABLES } else { tables[&(shift, upper >> (shifts[at - 1] - shift))] };
        let below = if setting.maps(shift, entry) {
            None
        } else {
            Some(tables.get(&(shifts[at + 1], upper)).copied().unwrap_or(0x7000))
        };
        let index = upper & ((1 << index_bits) - 1);
        let gpa = Gpa::new(table + index * width.bytes() as u64);
        memory.write_number(gpa, width, setting.encode(shift, entry, below)).expect("inside");
    }
    memory
}

/// What the manual says becomes of an access; marks the entries that it uses.
fn judged(setting: &Setting, map: &mut Map, address: u64, access: Access) -> Result<u64, u32> {
    let user_access = setting.user && !access.implicit;
    let mut code = u32::from(access.write) << 1 | u32::from(user_access) << 2;
    let fetches_are_told = setting.smep || setting.nxe && setting.kind != Kind::Bits32;
    code |= u32::from(access.fetch && fetches_are_told) << 4;
    let mut path = Vec::new();
    for &shift in setting.kind.shifts() {
        let entry = map.get(&(shift, address >> shift)).filter(|entry| entry.present).copied().ok_or(code)?;
        let illegal_large =
            setting.reserved(shift, &entry).contains(&7) && entry.large && !setting.kind.bare_pointer(shift);
        let odd = entry.odd.is_some() && !setting.reserved(shift, &entry).is_empty();
        if odd || illegal_large {
            return Err(code | 1 | 8);
        }
        if !setting.kind.bare_pointer(shift) {
            path.push((shift, entry));
        }
        if setting.maps(shift, &entry) {
            break;
        }
    }
    let (shift, leaf) = *path.last().expect("a walk ends at a page");
    let user_page = path.iter().all(|(_, entry)| entry.user);
    let writable = path.iter().all(|(_, entry)| entry.writable);
    let executable = !(setting.nxe && setting.kind != Kind::Bits32 && path.iter().any(|(_, entry)| entry.no_execute));
    let smap_allows = !user_page || !setting.smap || setting.ac && !access.implicit;
    let allowed = match (user_access, access.fetch, access.write) {
        (true, true, _) => user_page && executable,
        (true, false, true) => user_page && writable,
        (true, false, false) => user_page,
        (false, true, _) => executable && !(user_page && setting.smep),
        (false, false, true) => smap_allows && (writable || !setting.wp),
        (false, false, false) => smap_allows,
    };
    let rights = setting.pkru >> (2 * leaf.key) & 3;
    let keyed = setting.pke && setting.kind.long() && user_page && !access.fetch;
    let key_allows = !keyed
        || match (rights, access.write) {
            (0, _) => true,
            (2, false) => true,
            (2, true) => !user_access && !setting.wp,
            _ => false,
        };
    if !allowed || !key_allows {
        return Err(code | 1 | u32::from(!key_allows) << 5);
    }
    for (level, _) in &path {
        let entry = map.get_mut(&(*level, address >> level)).expect("just walked");
        entry.accessed = true;
        entry.dirty |= access.write && *level == shift;
    }
    Ok(setting.page(shift, &leaf) | address & ((1 << shift) - 1))
}

fn likely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.85)
}

prop_compose! {
    fn entry()(
        flags in (prop::bool::weighted(0.95), likely(), likely(), any::<bool>(), prop::bool::weighted(0.15), any::<bool>(), any::<bool>()),
        key in 0u64..3, odd in prop::option::weighted(0.03, 0usize..64), target: u64,
    ) -> Entry {
        let (present, writable, user, large, no_execute, accessed, dirty) = flags;
        Entry { present, writable, user, large, no_execute, accessed, dirty, key, odd, target }
    }
}

prop_compose! {
    fn setting()(
        kind in prop::sample::select(&[Kind::Bits32, Kind::Pae, Kind::Long4, Kind::Long5][..]),
        control in prop::array::uniform9(any::<bool>()),
        pkru in any::<u32>(), bits in prop::sample::select(&[36u8, 39, 40, 46, 52][..]),
    ) -> Setting {
        let [wp, nxe, smep, smap, ac, pse, pke, gigabyte, user] = control;
        Setting { kind, wp, nxe, smep, smap, ac, pse, pke, gigabyte, user, pkru, bits }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_walk_ends_as_the_manual_says(
        setting in setting(),
        addresses in prop::collection::vec((0u64..3, 0u64..3, 0u64..3, 0u64..3, 0u64..3, 0u64..4096), 1..4),
        entries in prop::collection::vec(entry(), 15),
        access in prop::sample::select(&[Access::READ, Access::WRITE, Access::FETCH, Access::SYSTEM][..]),
    ) {
        let shifts = setting.kind.shifts();
        let addresses: Vec<u64> = addresses.iter().map(|&(a, b, c, d, e, offset)| {
            shifts.iter().zip([a, b, c, d, e]).map(|(shift, index)| index << shift).sum::<u64>() | offset
        }).collect();
        let mut entries = entries.into_iter();
        let mut map = Map::new();
        for &address in &addresses {
            for &shift in shifts {
                let entry = *map.entry((shift, address >> shift)).or_insert_with(|| entries.next().expect("15 suffice"));
                if setting.maps(shift, &entry) {
                    break;
                }
            }
        }
        let mut memory = build(&setting, &map);
        let cpu = setting.cpu();
        let paging = Paging::of(&cpu, PagingFeatures { physical_bits: setting.bits, gigabyte_pages: setting.gigabyte });
        for address in addresses {
            let expected = judged(&setting, &mut map, address, access);
            let address = Gva::new(address);
            let found = paging.translate(&mut memory, address, access);
            match expected {
                Ok(gpa) => {
                    prop_assert_eq!(found, Ok(Gpa::new(gpa)));
                    prop_assert_eq!(locate(&cpu, &memory, address), Some(Gpa::new(gpa)));
                }
                Err(error_code) => {
                    prop_assert_eq!(found, Err(WalkError::Fault(PageFault { address, error_code })));
                }
            }
            let (mut tables, mut model) = (std::vec![0; MEMORY], std::vec![0; MEMORY]);
            memory.read(Gpa::new(0), &mut tables).expect("inside");
            build(&setting, &map).read(Gpa::new(0), &mut model).expect("inside");
            prop_assert!(tables == model, "accessed and dirty bits");
        }
    }
}

#[test]
fn addresses_that_are_not_canonical_are_told_apart() {
    let mut cpu = FakeCpu::new(EntryState::long_mode(0, TABLES));
    let features = PagingFeatures { physical_bits: 40, gigabyte_pages: true };
    let mut memory = GuestMemory::for_tests(MEMORY);
    for (la57, address, canonical) in [
        (false, 0x7FFF_FFFF_FFFF, true),
        (false, 0x8000_0000_0000, false),
        (false, 0xFFFF_7FFF_FFFF_FFFF, false),
        (false, 0xFFFF_8000_0000_0000, true),
        (true, 0x8000_0000_0000, true),
        (true, 0xFF_FFFF_FFFF_FFFF, true),
        (true, 0x100_0000_0000_0000, false),
    ] {
        cpu.state.cr4 = 1 << 5 | u64::from(la57) << 12;
        let found = Paging::of(&cpu, features).translate(&mut memory, Gva::new(address), Access::READ);
        assert_eq!(found != Err(WalkError::NotCanonical), canonical, "{address:#x}");
    }
}

#[test]
fn without_the_key_rights_nothing_is_guessed() {
    let mut cpu = FakeCpu::new(EntryState::long_mode(0, TABLES));
    let features = PagingFeatures { physical_bits: 40, gigabyte_pages: true };
    let mut memory = GuestMemory::for_tests(MEMORY);
    for (at, entry) in [(0x1000, 0x2007u64), (0x2000, 0x87), (0x2008, 0x83)] {
        memory.write_number(Gpa::new(at), Width::Qword, entry).expect("inside");
    }
    let mut translate =
        |cpu: &FakeCpu, address| Paging::of(cpu, features).translate(&mut memory, Gva::new(address), Access::READ);
    cpu.state.cr4 |= 1 << 22;
    assert_eq!(translate(&cpu, 0), Err(WalkError::UnknownKeys), "a user page, PKRU unknown");
    assert_eq!(translate(&cpu, 1 << 30), Ok(Gpa::new(0)), "PKRU is not for supervisor pages");
    cpu.state.cr4 = 1 << 5 | 1 << 24;
    assert_eq!(translate(&cpu, 0), Ok(Gpa::new(0)), "PKS is not for user pages");
    assert_eq!(translate(&cpu, 1 << 30), Err(WalkError::UnknownKeys), "PKS is not known");
}

#[test]
fn tables_outside_memory_have_reserved_bits() {
    let cpu = FakeCpu::new(EntryState::long_mode(0, 0x9_0000_0000));
    let features = PagingFeatures { physical_bits: 40, gigabyte_pages: true };
    let found = Paging::of(&cpu, features).translate(&mut GuestMemory::for_tests(MEMORY), Gva::new(8), Access::READ);
    assert_eq!(found, Err(WalkError::Fault(PageFault { address: Gva::new(8), error_code: 9 })));
}
