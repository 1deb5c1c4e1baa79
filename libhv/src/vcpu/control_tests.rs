//! Tests of the control-register rules: rows taken from the manual's lists of #GP, and a backend that records.

use super::*;
use crate::error::EntryFailure;
use crate::exit::{Exit, GuestOwnedMsr, Msr, RawExit};
use crate::hw::{GlobalSwitch, PmuHardware};
use crate::pmu::{CounterIndex, PmuRegister};
use crate::registers::{DescriptorTable, EntryState, Segment, SegmentAttributes, VectorState};
use crate::vcpu::Offers;
use proptest::prelude::*;

const RULES: ControlRules = ControlRules { cr4: 0x0077_17FF, physical_bits: 39 };
const WP: u64 = 1 << 16;
const PG: u64 = 1 << 31;

/// Protected mode without paging, with 32-bit code.
fn protected() -> Paging {
    Paging { cr0: 0x11, cr3: 0, cr4: 0, efer: 0, long_code: false, tss16: false }
}
/// 64-bit mode.
fn long() -> Paging {
    Paging { cr0: PG | WP | 0x31, cr3: 0x1000, cr4: 0x20, efer: 0x500, long_code: true, tss16: false }
}
/// Compatibility mode.
fn compatibility() -> Paging {
    Paging { long_code: false, ..long() }
}
/// On the way to IA-32e mode: PAE and LME set, paging still off.
fn enabled() -> Paging {
    Paging { cr4: 0x20, efer: 0x100, ..protected() }
}

/// What a write ends in: CR0 and EFER, or #GP.
type Row = (Paging, u64, Option<(u64, u64)>);

#[test]
fn writes_of_cr0_end_as_the_manual_says() {
    let rows: &[Row] = &[
        (protected(), 0x10, Some((0x10, 0))),
        (protected(), 0x01, Some((0x11, 0))),
        (protected(), PG | 0x11, Some((PG | 0x11, 0))),
        (protected(), PG | 0x10, None),
        (protected(), 0x2000_0011, None),
        (protected(), 0x6000_0011, Some((0x6000_0011, 0))),
        (protected(), 0x4000_0011, Some((0x4000_0011, 0))),
        (protected(), 0x1_0000_0011, None),
        (protected(), 0x1FFA_FFD1, Some((0x11, 0))),
        (Paging { efer: 0x100, ..protected() }, PG | 0x11, None),
        (enabled(), PG | 0x11, Some((PG | 0x11, 0x500))),
        (Paging { long_code: true, ..enabled() }, PG | 0x11, None),
        (Paging { tss16: true, ..enabled() }, PG | 0x11, None),
        (Paging { tss16: true, ..protected() }, PG | 0x11, Some((PG | 0x11, 0))),
        (long(), WP | 0x31, None),
        (long(), PG | 0x31, Some((PG | 0x31, 0x500))),
        (compatibility(), WP | 0x31, Some((WP | 0x31, 0x100))),
        (Paging { cr4: 0x2_0020, ..compatibility() }, WP | 0x31, None),
        (Paging { cr4: 0x80_0020, ..long() }, PG | 0x31, None),
        (Paging { cr4: 0x80_0020, ..long() }, PG | WP | 0x31, Some((PG | WP | 0x31, 0x500))),
    ];
    for (state, value, expected) in rows {
        let after = state.with_cr0(*value).map(|after| (after.cr0, after.efer));
        assert_eq!(after, *expected, "{value:#x} in {state:x?}");
    }
}

#[test]
fn writes_of_cr4_end_as_the_manual_says() {
    let all = ControlRules { cr4: u64::MAX, ..RULES };
    let rows: &[(Paging, u64, &ControlRules, bool)] = &[
        (protected(), 0x6F0, &RULES, true),
        (protected(), 0x2000, &RULES, false),
        (protected(), 1 << 32, &RULES, false),
        (protected(), 0x1020, &RULES, true),
        (long(), 0x1020, &RULES, false),
        (long(), 0, &RULES, false),
        (compatibility(), 0, &RULES, false),
        (long(), 0xA0, &RULES, true),
        (long(), 0x2_0020, &RULES, true),
        (Paging { cr3: 0x1008, ..long() }, 0x2_0020, &RULES, false),
        (Paging { cr3: 0x1008, cr4: 0x2_0020, ..long() }, 0x2_00A0, &RULES, true),
        (protected(), 0x2_0020, &RULES, false),
        (protected(), 0x80_0000, &all, false),
        (long(), 0x80_0020, &all, true),
    ];
    for (state, value, rules, legal) in rows {
        let after = state.with_cr4(*value, rules);
        assert_eq!(after, legal.then_some(Paging { cr4: *value, ..*state }), "{value:#x} in {state:x?}");
    }
}

#[test]
fn writes_of_cr3_end_as_the_manual_says() {
    let tagged = Paging { cr4: 0x2_0020, ..long() };
    let rows: &[(Paging, u64, Option<u64>)] = &[
        (long(), 0x7F_FFFF_F018, Some(0x7F_FFFF_F018)),
        (long(), 0x80_0000_0000, None),
        (long(), 1 << 63, None),
        (tagged, 1 << 63 | 0x5003, Some(0x5003)),
        (tagged, 1 << 62, None),
        (protected(), 0xFFFF_FFFF, Some(0xFFFF_FFFF)),
    ];
    for (state, value, expected) in rows {
        assert_eq!(state.with_cr3(*value, &RULES).map(|after| after.cr3), *expected, "{value:#x} in {state:x?}");
    }
}

proptest! {
    #[test]
    fn no_write_makes_a_state_that_vm_entry_refuses(cr0: u64, cr4: u64, long_code: bool, start in 0usize..4, high in 0u32..4) {
        let before = Paging { long_code, ..[protected(), long(), compatibility(), enabled()][start] };
        prop_assume!(!(before.efer & 0x400 == 0 && before.cr0 & PG != 0));
        let cr0 = if high > 0 { cr0 & 0xFFFF_FFFF } else { cr0 };
        for after in [before.with_cr0(cr0), before.with_cr4(cr4 & RULES.cr4, &RULES)].into_iter().flatten() {
            let (paged, active) = (after.cr0 & PG != 0, after.efer & 0x400 != 0);
            prop_assert!(!paged || after.cr0 & 1 == 1);
            prop_assert_eq!(active, paged && after.efer & 0x100 != 0);
            prop_assert!(!active || after.cr4 & 0x20 != 0);
            prop_assert!(after.cr4 & 0x2_0000 == 0 || active);
            prop_assert!(after.cr0 & 0x6000_0000 != 0x2000_0000);
            prop_assert_eq!(after.cr0 >> 32, 0);
        }
    }
}

/// A backend that keeps what it is told.
#[derive(Debug)]
struct Recorder {
    state: EntryState,
    cpl: u8,
    flushed: bool,
    pdptes: Option<[u64; 4]>,
}

impl Recorder {
    fn new(paging: Paging) -> Self {
        let mut state = EntryState::protected_mode(0);
        (state.cr0, state.cr3, state.cr4, state.efer) = (paging.cr0, paging.cr3, paging.cr4, paging.efer);
        let code = if paging.long_code { SegmentAttributes::CODE64 } else { SegmentAttributes::CODE32 };
        state.segments[SegmentRegister::Cs as usize].attributes = code;
        Self { state, cpl: 0, flushed: false, pdptes: None }
    }

    fn write(&mut self, number: u8, value: u64, memory: &GuestMemory) -> Resolution {
        self.state.gprs[Gpr::R9 as usize] = value;
        resolve(ControlAccess::Write { number, source: Gpr::R9 }, self, memory, &RULES)
    }
}

impl GuestState for Recorder {
    fn gpr(&self, register: Gpr) -> u64 {
        self.state.gprs[register as usize]
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.state.gprs[register as usize] = value;
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.state.rip = value;
    }
    fn rflags(&self) -> u64 {
        self.state.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.state.rflags = value;
    }
    fn control(&self, register: ControlRegister) -> u64 {
        match register {
            ControlRegister::Cr0 => self.state.cr0,
            ControlRegister::Cr2 => 0,
            ControlRegister::Cr3 => self.state.cr3,
            ControlRegister::Cr4 => self.state.cr4,
        }
    }
    fn set_control(&mut self, register: ControlRegister, value: u64) {
        match register {
            ControlRegister::Cr0 => self.state.cr0 = value,
            ControlRegister::Cr2 => {}
            ControlRegister::Cr3 => self.state.cr3 = value,
            ControlRegister::Cr4 => self.state.cr4 = value,
        }
    }
    fn efer(&self) -> u64 {
        self.state.efer
    }
    fn set_efer(&mut self, value: u64) {
        self.state.efer = value;
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.state.segments[register as usize]
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.state.segments[register as usize] = segment;
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
}

impl VectorState for Recorder {
    fn ymm(&self, _number: u8) -> [u64; 4] {
        [0; 4]
    }
    fn set_xmm(&mut self, _number: u8, _value: [u64; 2]) {}
    fn set_ymm(&mut self, _number: u8, _value: [u64; 4]) {}
}

impl PmuHardware for Recorder {
    fn global_switch(&self) -> GlobalSwitch {
        GlobalSwitch::Missing
    }
    fn read_pmu(&self, _register: PmuRegister) -> u64 {
        0
    }
    fn write_pmu(&mut self, _register: PmuRegister, _value: u64) {}
    fn read_counter(&self, _counter: CounterIndex) -> u64 {
        0
    }
    fn switch_global_control(&mut self, _on: bool, _host: u64) {}
    fn guest_global_control(&self) -> u64 {
        0
    }
    fn set_guest_global_control(&mut self, _value: u64) {}
    fn pass_rdpmc(&mut self, _pass: bool) {}
    fn pass_pmu(&mut self, _register: PmuRegister, _read: bool, _write: bool) {}
}

impl Backend for Recorder {
    fn offers(&self) -> Offers {
        Offers { rdtscp: false, invpcid: false, xsaves: false }
    }
    fn xcr0(&self) -> u64 {
        1
    }
    fn set_xcr0(&mut self, _value: u64) {}
    fn load(&mut self, entry: &EntryState) {
        self.state = entry.clone();
    }
    fn enter(&mut self) -> Result<Exit, EntryFailure> {
        Ok(Exit::Halt)
    }
    fn raw_exit(&self) -> RawExit {
        RawExit::default()
    }
    fn advance(&mut self, _memory: &GuestMemory) {}
    fn advance_to(&mut self, next_rip: u64) {
        self.state.rip = next_rip;
    }
    fn take_interrupted(&mut self) -> Option<Event> {
        None
    }
    fn accepts_interrupt(&self) -> bool {
        false
    }
    fn accepts_nmi(&self) -> bool {
        false
    }
    fn inject(&mut self, _event: Event) {}
    fn injected(&self) -> Option<Event> {
        None
    }
    fn watch_interrupt_window(&mut self, _on: bool) {}
    fn watch_nmi_window(&mut self, _on: bool) {}
    fn set_tsc_offset(&mut self, _offset: u64) {}
    fn pass_msr(&mut self, _msr: GuestOwnedMsr, _read: bool, _write: bool) {}
    fn switched_msr(&self, _msr: Msr) -> Option<u64> {
        None
    }
    fn set_switched_msr(&mut self, _msr: Msr, _value: u64) -> bool {
        false
    }
    fn descriptor_tables(&self) -> (DescriptorTable, DescriptorTable) {
        (self.state.gdtr, self.state.idtr)
    }
    fn flush_nested(&mut self) {}
    fn flush_linear(&mut self) {
        self.flushed = true;
    }
    fn set_pdptes(&mut self, entries: [u64; 4]) {
        self.pdptes = Some(entries);
    }
}

const FAULT: Resolution = Resolution::Inject(Event::GENERAL_PROTECTION);

fn tables(entries: [u64; 4]) -> GuestMemory {
    let mut memory = GuestMemory::for_tests(0x2000);
    for (index, entry) in (0..).zip(entries) {
        memory.write_number(Gpa::new(0x1020 + 8 * index), Width::Qword, entry).expect("inside");
    }
    memory
}

#[test]
fn turning_on_pae_paging_loads_the_four_entries() {
    let entries = [0x3001, 0x4019, 0, 0x7F_FFFF_F001];
    let mut guest = Recorder::new(Paging { cr4: 0x20, cr3: 0x1020, ..protected() });
    assert_eq!(guest.write(0, PG | 0x11, &tables(entries)), Resolution::Complete);
    assert_eq!((guest.pdptes, guest.state.cr0, guest.flushed), (Some(entries), PG | 0x11, true));
}

#[test]
fn an_entry_with_reserved_bits_faults_and_changes_nothing() {
    for bad in [0x3003, 0x3021, 0x80_0000_0001, 1 << 63 | 1] {
        let mut guest = Recorder::new(Paging { cr4: 0x20, cr3: 0x1020, ..protected() });
        assert_eq!(guest.write(0, PG | 0x11, &tables([1, 1, bad, 1])), FAULT, "{bad:#x}");
        assert_eq!((guest.pdptes, guest.state.cr0), (None, 0x11));
    }
}

#[test]
fn only_mov_to_cr3_without_the_keep_bit_forgets_translations() {
    let tagged = Paging { cr4: 0x2_0020, ..long() };
    for (value, forgets) in [(0x2000, true), (1 << 63 | 0x2000, false)] {
        let mut guest = Recorder::new(tagged);
        assert_eq!(guest.write(3, value, &GuestMemory::new()), Resolution::Complete);
        assert_eq!((guest.state.cr3, guest.flushed), (0x2000, forgets));
    }
    let mut guest = Recorder::new(long());
    assert_eq!(guest.write(4, 0x420, &GuestMemory::new()), Resolution::Complete);
    assert!(!guest.flushed, "CR4.OSXMMEXCPT is no translation");
    assert_eq!(guest.write(4, 0x4A0, &GuestMemory::new()), Resolution::Complete);
    assert!(guest.flushed, "CR4.PGE is");
}

#[test]
fn outside_64_bit_mode_operands_have_32_bits() {
    let mut guest = Recorder::new(protected());
    assert_eq!(guest.write(0, 0xFFFF_FFFF_0000_0031, &GuestMemory::new()), Resolution::Complete);
    assert_eq!(guest.state.cr0, 0x31);
    let mut guest = Recorder::new(long());
    assert_eq!(guest.write(0, 1 << 32 | PG | 0x31, &GuestMemory::new()), FAULT);
}

#[test]
fn lmsw_sets_pe_and_never_clears_it_and_clts_clears_ts_alone() {
    let mut guest = Recorder::new(Paging { cr0: 0x10, ..protected() });
    let memory = GuestMemory::new();
    assert_eq!(resolve(ControlAccess::Lmsw(0xFFFB), &mut guest, &memory, &RULES), Resolution::Complete);
    assert_eq!(guest.state.cr0, 0x1B);
    assert_eq!(resolve(ControlAccess::Lmsw(0), &mut guest, &memory, &RULES), Resolution::Complete);
    assert_eq!(guest.state.cr0, 0x11);
    guest.state.cr0 = 0x1F;
    assert_eq!(resolve(ControlAccess::Clts, &mut guest, &memory, &RULES), Resolution::Complete);
    assert_eq!(guest.state.cr0, 0x17);
}

#[test]
fn a_user_program_faults_and_cr8_is_somebody_elses() {
    let mut guest = Recorder::new(long());
    assert_eq!(guest.write(8, 0, &GuestMemory::new()), Resolution::NotMine);
    assert_eq!(guest.write(1, 0, &GuestMemory::new()), Resolution::Inject(Event::UNDEFINED));
    guest.cpl = 3;
    assert_eq!(guest.write(4, 0xA0, &GuestMemory::new()), FAULT);
    assert_eq!(guest.state.cr4, 0x20);
}
