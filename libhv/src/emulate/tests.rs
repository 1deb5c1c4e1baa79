//! Whole instructions on a guest of 128 KiB with devices behind it: what reaches memory, what reaches the bus, and
//! what a fault leaves behind.

use super::fake::{FakeBus, FakeCpu, Seen};
use super::*;
use crate::exit::NestedPageFault;
use crate::registers::{EntryState, Gpr, Segment, SegmentAttributes, SegmentRegister};
use std::vec::Vec;

mod properties;

const CODE: u64 = 0x6000;
const DATA: u64 = 0x8000;
/// The first address that is no memory: a device.
const DEVICE: u64 = 0x20000;
/// Not present.
const ABSENT: u64 = 0x30000;
/// Present and read-only.
const READ_ONLY: u64 = 0x31000;
const FEATURES: PagingFeatures = PagingFeatures { physical_bits: 40, gigabyte_pages: true };

struct World {
    cpu: FakeCpu,
    memory: GuestMemory,
    bus: FakeBus,
    emulator: Emulator,
}

impl World {
    /// 64-bit mode at privilege level 0 with pages of 4 KiB; user pages are 8000H to 9FFFH and, to read, the code.
    fn new(code: &[u8]) -> Self {
        let mut memory = GuestMemory::for_tests(DEVICE as usize);
        let mut entry = |at: u64, entry: u64| memory.write_number(Gpa::new(at), Width::Qword, entry).expect("inside");
        entry(0x1000, 0x2007);
        entry(0x2000, 0x3007);
        entry(0x3000, 0x4007);
        for page in 0..512 {
            let rights = match page << 12 {
                ABSENT => 0,
                READ_ONLY => 1,
                CODE => 5,
                0x8000 | 0x9000 => 7,
                _ => 3,
            };
            entry(0x4000 + 8 * page, page << 12 | rights);
        }
        memory.write(Gpa::new(CODE), code).expect("inside");
        let cpu = FakeCpu::new(EntryState::long_mode(CODE, 0x1000));
        Self { cpu, memory, bus: FakeBus::default(), emulator: Emulator::new(FEATURES) }
    }

    fn with(mut self, registers: &[(Gpr, u64)]) -> Self {
        for &(register, value) in registers {
            self.cpu.set_gpr(register, value);
        }
        self
    }

    fn answering(mut self, answers: &[u64]) -> Self {
        self.bus = FakeBus::answering(answers);
        self
    }

    fn step(&mut self) -> Outcome {
        self.emulator.execute(&mut self.cpu, &mut self.memory, &mut self.bus, &Cause::UNKNOWN)
    }

    fn number(&self, at: u64, width: Width) -> u64 {
        self.memory.read_number(Gpa::new(at), width).expect("inside")
    }

    fn everything(&self) -> Vec<u8> {
        let mut bytes = std::vec![0; DEVICE as usize];
        self.memory.read(Gpa::new(0), &mut bytes).expect("inside");
        bytes
    }
}

fn done(length: u64) -> Outcome {
    Outcome::Done { next_rip: CODE + length, branch: false }
}

fn page_fault(address: u64, error_code: u32) -> Outcome {
    Outcome::PageFault(PageFault { address: crate::address::Gva::new(address), error_code })
}

#[test]
fn devices_see_the_width_and_the_address_of_each_access() {
    // mov [rdi+8], eax
    let mut store = World::new(&[0x89, 0x47, 0x08]).with(&[(Gpr::Rdi, DEVICE), (Gpr::Rax, 0x1_1234_5678)]);
    assert_eq!(store.step(), done(3));
    assert_eq!(store.bus.seen, [Seen::Write(DEVICE + 8, Width::Dword, 0x1234_5678)]);
    // mov al, [rdi]
    let mut load = World::new(&[0x8A, 0x07]).with(&[(Gpr::Rdi, DEVICE), (Gpr::Rax, u64::MAX)]).answering(&[0xABCD]);
    assert_eq!(load.step(), done(2));
    assert_eq!(load.bus.seen, [Seen::Read(DEVICE, Width::Byte)]);
    assert_eq!(load.cpu.gpr(Gpr::Rax), 0xFFFF_FFFF_FFFF_FFCD);
    // or dword [rdi], 0x10
    let mut modify = World::new(&[0x83, 0x0F, 0x10]).with(&[(Gpr::Rdi, DEVICE)]).answering(&[0x8000_0001]);
    assert_eq!(modify.step(), done(3));
    assert_eq!(modify.bus.seen, [Seen::Read(DEVICE, Width::Dword), Seen::Write(DEVICE, Width::Dword, 0x8000_0011)]);
    // vmovups ymm3, [rdi]
    let mut wide = World::new(&[0xC5, 0xFC, 0x10, 0x1F]).with(&[(Gpr::Rdi, DEVICE)]).answering(&[1, 2, 3, 4]);
    assert_eq!(wide.step(), done(4));
    assert_eq!(wide.cpu.vectors[3], [1, 2, 3, 4]);
}

#[test]
fn an_access_across_pages_takes_each_part_from_its_place() {
    // mov [rdi], rax: 3 bytes of memory, 5 of a device
    let value = 0x8877_6655_4433_2211;
    let mut store = World::new(&[0x48, 0x89, 0x07]).with(&[(Gpr::Rdi, DEVICE - 3), (Gpr::Rax, value)]);
    assert_eq!(store.step(), done(3));
    assert_eq!(store.number(DEVICE - 3, Width::Word), 0x2211);
    assert_eq!(store.number(DEVICE - 1, Width::Byte), 0x33);
    let parts = [Seen::Write(DEVICE, Width::Dword, 0x7766_5544), Seen::Write(DEVICE + 4, Width::Byte, 0x88)];
    assert_eq!(store.bus.seen, parts);
    // mov rax, [rdi]
    let mut load = World::new(&[0x48, 0x8B, 0x07]).with(&[(Gpr::Rdi, DEVICE - 6)]).answering(&[0xBBAA]);
    load.memory.write(Gpa::new(DEVICE - 6), &[1, 2, 3, 4, 5, 6]).expect("inside");
    assert_eq!(load.step(), done(3));
    assert_eq!(load.cpu.gpr(Gpr::Rax), 0xBBAA_0605_0403_0201);
}

#[test]
fn a_fault_on_the_second_page_comes_before_any_effect() {
    let before = World::new(&[0x48, 0x89, 0x07]).with(&[(Gpr::Rdi, ABSENT - 3), (Gpr::Rax, u64::MAX)]);
    let (registers, memory) = (before.cpu.clone(), before.everything());
    let mut world = before;
    assert_eq!(world.step(), page_fault(ABSENT, 2));
    assert_eq!(world.bus.seen, []);
    assert_eq!(world.cpu, registers);
    let after = world.everything();
    assert!(after[..0x4000] == memory[..0x4000] || after[0x5000..] == memory[0x5000..]);
    // add [rdi], eax on a page that can only be read: nothing is read from it either
    let mut world = World::new(&[0x01, 0x07]).with(&[(Gpr::Rdi, READ_ONLY), (Gpr::Rax, 1)]);
    assert_eq!(world.step(), page_fault(READ_ONLY, 3));
    assert_eq!(world.bus.seen, []);
}

#[test]
fn aligned_vector_accesses_must_be_aligned() {
    for (code, bytes) in [(&[0x0F, 0x29, 0x07][..], 16), (&[0xC5, 0xFC, 0x29, 0x07][..], 32)] {
        let mut world = World::new(code).with(&[(Gpr::Rdi, DATA + bytes)]);
        assert_eq!(world.step(), done(code.len() as u64));
        let mut world = World::new(code).with(&[(Gpr::Rdi, DATA + bytes / 2)]);
        assert_eq!(world.step(), Outcome::Fault(Event::GENERAL_PROTECTION));
    }
}

#[test]
fn code_that_changes_is_decoded_anew() {
    let mut world = World::new(&[0xC6, 0x07, 0x11]).with(&[(Gpr::Rdi, DATA)]);
    assert_eq!(world.step(), done(3));
    assert_eq!(world.number(DATA, Width::Byte), 0x11);
    world.memory.write(Gpa::new(CODE + 2), &[0x22]).expect("inside");
    assert_eq!(world.step(), done(3));
    assert_eq!(world.number(DATA, Width::Byte), 0x22, "the immediate is the instruction's last byte");
    // The same bytes in 32-bit code are looked up apart: 48H is a prefix there no more.
    world.memory.write(Gpa::new(CODE), &[0x48, 0x89, 0x07]).expect("inside");
    assert_eq!(world.step(), done(3));
    world.cpu.state = EntryState::protected_mode(CODE as u32);
    assert!(matches!(world.step(), Outcome::Done { next_rip: 0x6001, branch: false }), "DEC EAX");
}

#[test]
fn bytes_that_the_processor_reports_are_used_and_completed() {
    let mut world = World::new(&[0xC6, 0x07, 0x11]).with(&[(Gpr::Rdi, DATA)]);
    for (fetched, stored) in [(&[0xC6, 0x07, 0x33][..], 0x33), (&[0xC6, 0x07][..], 0x11)] {
        let outcome =
            world.emulator.execute(&mut world.cpu, &mut world.memory, &mut world.bus, &Cause::new(fetched, None));
        assert_eq!(outcome, done(3));
        assert_eq!(world.number(DATA, Width::Byte), stored);
    }
}

#[test]
fn the_access_that_exited_needs_no_second_walk_unless_it_is_another() {
    let fault = |gpa, write| NestedPageFault {
        gpa: Gpa::new(gpa),
        gva: None,
        write,
        fetch: false,
        present: false,
        page_walk: false,
    };
    let step = |code: &[u8], fault: NestedPageFault| {
        let mut world = World::new(code).with(&[(Gpr::Rdi, ABSENT + 8)]);
        let cause = Cause::new(&[], Some(&fault));
        let outcome = world.emulator.execute(&mut world.cpu, &mut world.memory, &mut world.bus, &cause);
        (outcome, world.bus.seen)
    };
    let (store, load) = (&[0x89, 0x07][..], &[0x8B, 0x07][..]);
    let device = 0x7_0000_0008;
    assert_eq!(step(store, fault(device, true)), (done(2), std::vec![Seen::Write(device, Width::Dword, 0)]));
    assert_eq!(step(load, fault(device, false)), (done(2), std::vec![Seen::Read(device, Width::Dword)]));
    assert_eq!(step(store, fault(device, false)).0, page_fault(ABSENT + 8, 2), "that exit was for a read");
    assert_eq!(step(store, fault(device + 4, true)).0, page_fault(ABSENT + 8, 2), "another place in the page");
    assert_eq!(step(&[0xFF, 0x37], fault(device, true)).0, page_fault(ABSENT + 8, 0), "PUSH has two places");
    let walk = NestedPageFault { page_walk: true, ..fault(device, true) };
    assert_eq!(step(store, walk).0, page_fault(ABSENT + 8, 2), "the processor's own access to a table");
}

#[test]
fn what_cannot_be_done_is_told_with_its_bytes() {
    let mut world = World::new(&[0xD9, 0x07, 0x90]);
    let Outcome::Unemulated(record) = world.step() else { panic!("FLD is not emulated") };
    assert_eq!((record.rip, record.length, record.code_bits), (CODE, 15, 64));
    assert_eq!(record.bytes[..3], [0xD9, 0x07, 0x90]);
    // A locked access that crosses words cannot be made in one.
    let mut split = World::new(&[0xF0, 0x01, 0x07]).with(&[(Gpr::Rdi, DATA + 6)]);
    assert!(matches!(split.step(), Outcome::Unemulated(_)));
    assert_eq!(split.number(DATA + 6, Width::Dword), 0);
}

#[test]
fn code_that_is_unmapped_under_way_is_tried_again() {
    let mut world = World::new(&[]);
    world.cpu.state.rip = ABSENT;
    assert_eq!(world.step(), Outcome::Repeat);
}

#[test]
fn long_strings_go_on_where_they_were_interrupted() {
    // rep movsd to a device
    let count = u64::from(execute::ELEMENTS_AT_ONCE) + 5;
    let mut world = World::new(&[0xF3, 0xA5]).with(&[(Gpr::Rsi, DATA), (Gpr::Rdi, DEVICE), (Gpr::Rcx, count)]);
    assert_eq!(world.step(), Outcome::Repeat);
    assert_eq!(world.cpu.gpr(Gpr::Rcx), 5);
    assert_eq!(world.step(), done(2));
    assert_eq!(world.cpu.gpr(Gpr::Rcx), 0);
    assert_eq!(world.cpu.gpr(Gpr::Rsi), DATA + 4 * count);
    assert_eq!(world.bus.seen.len() as u64, count);
    assert_eq!(world.bus.seen.last(), Some(&Seen::Write(DEVICE + 4 * (count - 1), Width::Dword, 0)));
    // As many as are done at once need no second time.
    let mut exact = World::new(&[0xF3, 0xAA]).with(&[(Gpr::Rdi, DEVICE), (Gpr::Rcx, count - 5)]);
    assert_eq!(exact.step(), done(2));
}

#[test]
fn a_string_that_faults_keeps_what_it_has_done() {
    // rep stosb into the page that is not there
    let mut world = World::new(&[0xF3, 0xAA]).with(&[(Gpr::Rdi, ABSENT - 2), (Gpr::Rcx, 7)]);
    assert_eq!(world.step(), page_fault(ABSENT, 2));
    assert_eq!((world.cpu.gpr(Gpr::Rcx), world.cpu.gpr(Gpr::Rdi)), (5, ABSENT));
    // rep insb: the port is not read for an element that cannot be stored
    let mut world = World::new(&[0xF3, 0x6C]).with(&[(Gpr::Rdi, ABSENT - 1), (Gpr::Rcx, 2), (Gpr::Rdx, 0x60)]);
    assert_eq!(world.step(), page_fault(ABSENT, 2));
    assert_eq!(world.bus.seen, [Seen::In(0x60, Width::Byte), Seen::Write(ABSENT - 1, Width::Byte, 0)]);
}

#[test]
fn string_addresses_wrap_at_their_width() {
    // 67H a4: movsb with ESI and EDI in 64-bit mode, with a source override to FS
    let mut world = World::new(&[0x64, 0x67, 0xA4]).with(&[(Gpr::Rsi, 0x7_FFFF_FFFF), (Gpr::Rdi, 0x5_0000_8000)]);
    world.cpu.set_segment(
        SegmentRegister::Fs,
        Segment { base: 0xFFFF_FFFF_0000_8011, ..Segment::flat(0, SegmentAttributes::DATA32) },
    );
    world.memory.write(Gpa::new(0x8010), &[0x5A]).expect("inside");
    assert_eq!(world.step(), done(3));
    assert_eq!(world.number(0x8000, Width::Byte), 0x5A);
    assert_eq!((world.cpu.gpr(Gpr::Rsi), world.cpu.gpr(Gpr::Rdi)), (0, 0x8001));
    // 16-bit code: lodsb at SI = FFFFH keeps the upper half
    let mut real = World::new(&[]).with(&[(Gpr::Rsi, 0xABCD_FFFF)]);
    let registers = real.cpu.state.gprs;
    real.cpu.state = EntryState::real_mode(0, 0x6000);
    real.cpu.state.gprs = registers;
    real.memory.write(Gpa::new(0x6000), &[0xAC]).expect("inside");
    assert_eq!(real.step(), Outcome::Done { next_rip: 0x6001, branch: false });
    assert_eq!(real.cpu.gpr(Gpr::Rsi), 0xABCD_0000);
}

#[test]
fn rip_wraps_with_the_code() {
    let mut world = World::new(&[]);
    world.cpu.state = EntryState::real_mode(0, 0xFFFE);
    world.memory.write(Gpa::new(0xFFFE), &[0x88, 0x07]).expect("inside");
    assert_eq!(world.step(), Outcome::Done { next_rip: 0, branch: false });
}

#[test]
fn addresses_are_made_as_the_encoding_says() {
    for (code, expected) in [
        (&[0x88, 0x44, 0x4B, 0xF0][..], DATA + 2 * 0x100 - 16), // [rbx+rcx*2-16]
        (&[0x88, 0x05, 0x10, 0x20, 0x00, 0x00][..], CODE + 6 + 0x2010), // [rip+2010H]
        (&[0x67, 0x88, 0x43, 0xFF][..], DATA - 1),              // [ebx-1]
        (&[0x88, 0x04, 0x25, 0x34, 0x82, 0x00, 0x00][..], 0x8234), // [8234H]
        (&[0x67, 0x88, 0x04, 0x25, 0x34, 0x82, 0x00, 0x00][..], 0x8234), // the same with 32-bit addresses
        (&[0xA2, 0x00, 0x90, 0, 0, 0, 0, 0, 0][..], 0x9000),    // moffs64
        (&[0x2E, 0x88, 0x03][..], DATA),                        // CS: counts for nothing
        (&[0x65, 0x88, 0x03][..], DATA + 0x40),                 // GS
    ] {
        let mut world = World::new(code).with(&[(Gpr::Rbx, DATA), (Gpr::Rcx, 0x100), (Gpr::Rax, 0x77)]);
        world
            .cpu
            .set_segment(SegmentRegister::Gs, Segment { base: 0x40, ..Segment::flat(0, SegmentAttributes::DATA32) });
        world
            .cpu
            .set_segment(SegmentRegister::Cs, Segment { base: 0x40, ..Segment::flat(8, SegmentAttributes::CODE64) });
        assert_eq!(world.step(), done(code.len() as u64), "{code:02x?}");
        assert_eq!(world.number(expected, Width::Byte), 0x77, "{code:02x?}");
    }
}

#[test]
fn the_stack_moves_only_with_the_instruction() {
    let top = DATA + 0x100;
    // push qword [rdi]
    let mut push = World::new(&[0xFF, 0x37]).with(&[(Gpr::Rsp, top), (Gpr::Rdi, DEVICE)]).answering(&[0x1234]);
    assert_eq!(push.step(), done(2));
    assert_eq!((push.cpu.gpr(Gpr::Rsp), push.number(top - 8, Width::Qword)), (top - 8, 0x1234));
    // pop qword [rsp+8]: RSP counts as it is after
    let mut pop = World::new(&[0x8F, 0x44, 0x24, 0x08]).with(&[(Gpr::Rsp, top)]);
    pop.memory.write_number(Gpa::new(top), Width::Qword, 0x55AA).expect("inside");
    assert_eq!(pop.step(), done(4));
    assert_eq!((pop.cpu.gpr(Gpr::Rsp), pop.number(top + 16, Width::Qword)), (top + 8, 0x55AA));
    // pop qword [rdi] where there is no page: RSP stays
    let mut fault = World::new(&[0x8F, 0x07]).with(&[(Gpr::Rsp, top), (Gpr::Rdi, ABSENT)]);
    assert_eq!(fault.step(), page_fault(ABSENT, 2));
    assert_eq!(fault.cpu.gpr(Gpr::Rsp), top);
    // call [rdi], then ret 8
    let mut call = World::new(&[0xFF, 0x17]).with(&[(Gpr::Rsp, top), (Gpr::Rdi, DATA)]);
    call.memory.write_number(Gpa::new(DATA), Width::Qword, 0x7_0000_1000).expect("inside");
    assert_eq!(call.step(), Outcome::Done { next_rip: 0x7_0000_1000, branch: true });
    assert_eq!((call.cpu.gpr(Gpr::Rsp), call.number(top - 8, Width::Qword)), (top - 8, CODE + 2));
    call.memory.write(Gpa::new(CODE), &[0xC2, 0x08, 0x00]).expect("inside");
    assert_eq!(call.step(), Outcome::Done { next_rip: CODE + 2, branch: true });
    assert_eq!(call.cpu.gpr(Gpr::Rsp), top + 8);
    // call to an address that is not canonical: no push
    let mut wild = World::new(&[0xFF, 0xD0]).with(&[(Gpr::Rsp, top), (Gpr::Rax, 1 << 60)]);
    assert_eq!(wild.step(), Outcome::Fault(Event::GENERAL_PROTECTION));
    assert_eq!((wild.cpu.gpr(Gpr::Rsp), wild.number(top - 8, Width::Qword)), (top, 0));
}

#[test]
fn a_quotient_that_does_not_fit_is_a_divide_error() {
    let error = Outcome::Fault(Event::Exception { vector: 0, error_code: None });
    for (code, rax, rdx, divisor) in [
        (&[0xF7, 0x37][..], 5, 0, 0), // div dword [rdi]
        (&[0xF7, 0x37][..], 0, 2, 2),
        (&[0xF7, 0x3F][..], 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFF), // idiv: -2^31 / -1
        (&[0xF6, 0x3F][..], 0x0080, 0, 1),                          // idiv byte: 128 / 1
        (&[0x48, 0xF7, 0x3F][..], 0, 1 << 63, u64::MAX),            // idiv qword: -2^127 / -1
    ] {
        let mut world = World::new(code).with(&[(Gpr::Rax, rax), (Gpr::Rdx, rdx), (Gpr::Rdi, DATA)]);
        world.memory.write_number(Gpa::new(DATA), Width::Qword, divisor).expect("inside");
        assert_eq!(world.step(), error, "{code:02x?}");
        assert_eq!((world.cpu.gpr(Gpr::Rax), world.cpu.gpr(Gpr::Rdx)), (rax, rdx));
    }
}

#[test]
fn pairs_are_exchanged_whole() {
    // cmpxchg16b [rdi]
    let registers = [(Gpr::Rdi, DATA), (Gpr::Rax, 1), (Gpr::Rdx, 2), (Gpr::Rbx, 3), (Gpr::Rcx, 4)];
    let mut world = World::new(&[0x48, 0x0F, 0xC7, 0x0F]).with(&registers);
    assert_eq!(world.step(), done(4));
    assert_eq!((world.cpu.gpr(Gpr::Rax), world.cpu.gpr(Gpr::Rdx)), (0, 0), "memory held zeros");
    world = world.with(&registers);
    world.memory.write(Gpa::new(DATA), &[1, 0, 0, 0, 0, 0, 0, 0, 2]).expect("inside");
    assert_eq!(world.step(), done(4));
    assert_eq!((world.number(DATA, Width::Qword), world.number(DATA + 8, Width::Qword)), (3, 4));
    assert_ne!(world.cpu.rflags() & flags::ZF, 0);
    world.cpu.set_gpr(Gpr::Rdi, DATA + 8);
    assert_eq!(world.step(), Outcome::Fault(Event::GENERAL_PROTECTION), "not a multiple of 16");
}

#[test]
fn ports_obey_the_bitmap_of_the_task() {
    let out = |prepare: &dyn Fn(&mut World)| {
        let mut world = World::new(&[0x6E]).with(&[(Gpr::Rsi, DATA), (Gpr::Rdx, 0x3F9)]);
        world.cpu.cpl = 3;
        let task =
            Segment { selector: 0x28, base: 0x1_0000, limit: 0x67 + 0x81, attributes: SegmentAttributes::TSS_BUSY };
        world.cpu.set_segment(SegmentRegister::Tr, task);
        world.memory.write_number(Gpa::new(0x1_0066), Width::Word, 0x68).expect("inside");
        prepare(&mut world);
        world.step()
    };
    let denied = Outcome::Fault(Event::GENERAL_PROTECTION);
    assert_eq!(out(&|_| {}), done(1), "the bit is clear");
    let forbid = |world: &mut World| world.memory.write(Gpa::new(0x1_0068 + 0x7F), &[2]).expect("inside");
    assert_eq!(out(&forbid), denied, "the bit is set");
    assert_eq!(
        out(&|world| {
            forbid(world);
            world.cpu.state.rflags |= 3 << 12;
        }),
        done(1),
        "IOPL 3"
    );
    assert_eq!(
        out(&|world| world.cpu.state.segments[SegmentRegister::Tr as usize].limit = 0x67 + 0x80),
        denied,
        "too short"
    );
    assert_eq!(out(&|world| world.cpu.state.segments[SegmentRegister::Tr as usize].limit = 0x66), denied, "no bitmap");
}
