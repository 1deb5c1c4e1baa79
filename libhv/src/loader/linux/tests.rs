//! Tests of the Linux loader on a bzImage made up here, and on the zero page as a kernel would read it.

use super::super::{Kind, Module, detect, load};
use super::*;
use crate::address::Gpa;
use crate::exit::Width;
use crate::memory::window::Window;
use alloc::vec::Vec;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// A bzImage: two setup sectors after the first, 0x1000 bytes of kernel, protocol 2.15.
fn image() -> Vec<u8> {
    let mut image = alloc::vec![0u8; 3 * 512];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[2]);
    put(0x1F4, &0x100u32.to_le_bytes());
    put(0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(0x202, b"HdrS\x0F\x02");
    put(0x211, &[1]);
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21, 1, 0]);
    put(0x238, &31u32.to_le_bytes());
    put(0x258, &(4 * MIB).to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    image.extend((0..0x1000).map(|byte| (byte % 251) as u8));
    image
}

fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

fn number(memory: &GuestMemory, address: u64, width: Width) -> u64 {
    memory.read_number(Gpa::new(address), width).expect("in memory")
}

fn bytes(memory: &GuestMemory, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = alloc::vec![0; length];
    memory.read(Gpa::new(address), &mut bytes).expect("in memory");
    bytes
}

fn e820(memory: &GuestMemory, zero_page: u64) -> Vec<(u64, u64, u64)> {
    let entries = number(memory, zero_page + 0x1E8, Width::Byte);
    let entry = |index| {
        let at = zero_page + 0x2D0 + index * 20;
        (number(memory, at, Width::Qword), number(memory, at + 8, Width::Qword), number(memory, at + 16, Width::Dword))
    };
    (0..entries).map(entry).collect()
}

#[test]
fn a_kernel_finds_itself_its_initrd_and_its_command_line_where_the_zero_page_says() {
    let mut memory = GuestMemory::for_tests(16 << 20);
    let modules =
        [Module { bytes: b"first", command_line: b"" }, Module { bytes: &[3; 0x1234], command_line: b"ignored" }];
    let options = Options {
        command_line: b"console=ttyS0",
        modules: &modules,
        rsdp: Some(Gpa::new(0xE_0000)),
        ..Options::default()
    };
    assert_eq!(detect(&image()), Some(Kind::Linux));
    let state = load(&image(), &mut memory, &options).expect("a kernel");
    let zero_page = state.gprs[Gpr::Rsi as usize];
    let dword = |offset| number(&memory, zero_page + offset, Width::Dword);

    assert_eq!(state.rip, 4 * MIB + 0x200);
    assert_eq!(bytes(&memory, 4 * MIB, 0x1000), image()[0x600..]);
    assert_eq!(bytes(&memory, dword(0x228), 14), b"console=ttyS0\0");
    let (initrd, length) = (dword(0x218), dword(0x21C));
    assert_eq!((initrd, length), (16 * MIB - 0x2000, 8 + 0x1234));
    assert_eq!(bytes(&memory, initrd, length as usize), [&b"first\0\0\0"[..], &[3; 0x1234]].concat());
    assert_eq!(number(&memory, zero_page + 0x70, Width::Qword), 0xE_0000);
    assert_eq!(number(&memory, zero_page + 0x210, Width::Byte), 0xFF);
    assert_eq!(dword(0x202), u64::from(u32::from_le_bytes(*b"HdrS")));
    assert_eq!(bytes(&memory, zero_page + 0x22C, 0x38), image()[0x22C..0x264]);
    assert_eq!(bytes(&memory, zero_page + 0x26C, 0x24), [0; 0x24]);
    assert_eq!(e820(&memory, zero_page), [(0, 0x9_FC00, 1), (0x9_FC00, 0x6_0400, 2), (MIB, 15 * MIB, 1)]);
    assert!(state.rflags & crate::registers::RFLAGS_IF == 0);
}

#[test]
fn memory_above_a_hole_and_reserved_ranges_are_in_the_map() {
    let mut memory = GuestMemory::for_tests(16 << 20);
    memory.add(Gpa::new(1 << 32), Window::leaked(0x20_0000)).expect("apart from the first");
    let reserved = [0xFEC0_0000..0xFEC0_1000, 15 * MIB..16 * MIB];
    let options =
        Options { reserved: &reserved, modules: &[Module { bytes: &[1], command_line: b"" }], ..Options::default() };
    let state = load(&image(), &mut memory, &options).expect("a kernel");
    let zero_page = state.gprs[Gpr::Rsi as usize];
    assert_eq!(number(&memory, zero_page + 0x218, Width::Dword), 15 * MIB - 0x1000);
    let map = e820(&memory, zero_page);
    assert_eq!(map[2..4], [(MIB, 14 * MIB, 1), (15 * MIB, MIB, 2)]);
    assert_eq!(map[4..], [(0xFEC0_0000, 0x1000, 2), (1 << 32, 0x20_0000, 1)]);
}

#[test]
fn a_kernel_whose_place_is_taken_moves_up_if_it_can() {
    let reserved = core::slice::from_ref(&(5 * MIB - 0x1000..5 * MIB));
    let options = Options { reserved, ..Options::default() };
    let mut memory = GuestMemory::for_tests(16 << 20);
    assert_eq!(load(&image(), &mut memory, &options).expect("a kernel").rip, 6 * MIB + 0x200);
    let refused = load(&with(0x234, &[0]), &mut GuestMemory::for_tests(16 << 20), &options);
    assert!(matches!(refused, Err(Error::Image(ImageError::DoesNotFit { part: "kernel", needed: 0x10_0000, .. }))));
}

#[test]
fn initrd_addr_max_is_the_last_byte_an_initrd_may_have() {
    let modules = [Module { bytes: &[1; 0x2000], command_line: b"" }];
    let options = Options { modules: &modules, ..Options::default() };
    for (last, start) in [(0x7F_FFFFu32, 0x7F_E000), (0x7F_FFFE, 0x7F_D000)] {
        let mut memory = GuestMemory::for_tests(16 << 20);
        let state = load(&with(0x22C, &last.to_le_bytes()), &mut memory, &options).expect("a kernel");
        let zero_page = state.gprs[Gpr::Rsi as usize];
        assert_eq!(number(&memory, zero_page + 0x218, Width::Dword), start);
    }
    for (bytes, fits) in [(11 << 20, true), ((11 << 20) + 1, false)] {
        let large = [Module { bytes: &alloc::vec![1; bytes], command_line: b"" }];
        let result =
            load(&image(), &mut GuestMemory::for_tests(16 << 20), &Options { modules: &large, ..Options::default() });
        let error = ImageError::DoesNotFit { part: "initrd", needed: (11 << 20) + 4, available: 11 << 20 };
        assert!(if fits { result.is_ok() } else { result == Err(error.into()) });
    }
}

#[test]
fn a_command_line_may_have_as_many_bytes_as_the_kernel_says() {
    let mut memory = GuestMemory::for_tests(16 << 20);
    let line = [b'x'; 32];
    let load = |length: usize, memory: &mut GuestMemory| {
        load(&image(), memory, &Options { command_line: &line[..length], ..Options::default() })
    };
    assert_eq!(load(32, &mut memory), Err(Error::CommandLineTooLong { given: 32, allowed: 31 }));
    assert!(load(31, &mut memory).is_ok());
}

#[test]
fn kernels_this_loader_cannot_start_are_refused_by_the_field_that_says_so() {
    let refused: [(usize, &[u8], &str); 7] = [
        (0x206, &[0x0B, 0x02], "protocol"),
        (0x236, &[0xFE], "xloadflags"),
        (0x211, &[0], "loadflags"),
        (0x230, &[0, 0, 0x30, 0], "kernel_alignment"),
        (0x1F4, &[0x20, 0], "syssize"),
        (0x201, &[0x61], "jump"),
        (0x201, &[0x8F], "jump"),
    ];
    for (offset, bytes, name) in refused {
        let result = load(&with(offset, bytes), &mut GuestMemory::for_tests(16 << 20), &Options::default());
        let Err(Error::Image(ImageError::BadField(field, _))) = result else { panic!("{name}: {result:?}") };
        assert!(field.contains(name), "{field}");
    }
    let short = load(&image()[..0x15FF], &mut GuestMemory::for_tests(16 << 20), &Options::default());
    assert_eq!(short, Err(Error::Image(ImageError::Truncated { needed: 0x1600, found: 0x15FF })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_image_ends_in_a_kernel_or_an_error_and_untouched_memory(
        length in 0x1F0usize..0x1800, damage in proptest::collection::vec((0x1F0usize..0x270, any::<u8>()), 0..8),
    ) {
        let mut kernel = image();
        for (at, byte) in damage {
            kernel[at] = byte;
        }
        kernel.truncate(length);
        let mut memory = GuestMemory::for_tests(6 << 20);
        let options = Options { kind: Some(Kind::Linux), command_line: b"x", ..Options::default() };
        match load(&kernel, &mut memory, &options) {
            Ok(state) => prop_assert!(memory.contains(Gpa::new(state.rip), 1)),
            Err(_) => {
                let seen = bytes(&memory, 0, 6 << 20);
                prop_assert!(seen == alloc::vec![0; seen.len()]);
            }
        }
    }
}

/// Run by hand: `LIBHV_BZIMAGE=/boot/vmlinuz cargo test -p libhv -- --ignored bzimage`.
#[test]
#[ignore = "needs a kernel that is not part of the repository"]
fn a_real_bzimage_is_loaded() {
    let path = std::env::var("LIBHV_BZIMAGE").expect("LIBHV_BZIMAGE names a bzImage");
    let image = std::fs::read(path).expect("a file that can be read");
    let mut memory = GuestMemory::for_tests(256 << 20);
    let modules = [Module { bytes: &[1; 12345], command_line: b"" }];
    let options = Options { command_line: b"console=ttyS0", modules: &modules, ..Options::default() };
    let state = load(&image, &mut memory, &options).expect("a kernel");
    let zero_page = state.gprs[Gpr::Rsi as usize];
    std::println!("RIP {:#x} RSI {zero_page:#x} {:x?}", state.rip, e820(&memory, zero_page));
    std::println!("initrd {:#x}", number(&memory, zero_page + 0x218, Width::Dword));
}
