//! Random instructions at CPL 3 and CPL 0 in an address space of their own, and page tables of random entries.

use core::arch::asm;
use core::ptr::with_exposed_provenance_mut;
use guests::boot::{USER_CODE64, USER_DATA};
use guests::cpu;
use guests::faults::{Fault, catch};
use guests::random::Random;

/// Physical memory from here on is the sandbox's: its root, three tables, sixteen pages, and from WILD on sixteen tables.
const FREE: u64 = 0x180_0000;
const PAGES: u64 = FREE + 0x10_0000;
const WILD: u64 = FREE + 0x20_0000;
/// Pages 0 to 7 hold code, 8 to 15 data, all of them CPL 3's too.
const WINDOW: u64 = 0x4000_0000;

const NO_EXECUTE: u64 = 1 << 63;

/// UD2, sixteen times.
const UD2: [u8; 32] = [
    0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f,
    0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b,
];

/// Bytes of the image's part of the address space that the sandbox maps.
const MAPPED: usize = 0x400_0000;

fn table(at: u64) -> *mut u64 {
    with_exposed_provenance_mut(at as usize)
}

/// The sandbox maps the window and the beginning of the last 2 GiB, where this image is: memory, and no more, because
/// what random instructions find beyond it may end the guest, rightly.
pub(crate) unsafe fn prepare() {
    for index in 0..0x20_0000 / 8 {
        table(FREE).add(index).write_volatile(0);
    }
    cpu::wrmsr(0xc000_0080, cpu::rdmsr(0xc000_0080) | 1 << 11);
    let own = table(cpu::read_cr3() & 0xf_ffff_f000);
    table(FREE).write_volatile(FREE + 0x1007);
    let pointers = table(own.add(511).read_volatile() & 0xf_ffff_f000);
    let pages = table(pointers.add(510).read_volatile() & 0xf_ffff_f000);
    for index in 0..MAPPED / 0x20_0000 {
        table(FREE + 0x5000).add(index).write_volatile(pages.add(index).read_volatile());
    }
    table(FREE + 0x4000).add(510).write_volatile(FREE + 0x5003);
    table(FREE).add(511).write_volatile(FREE + 0x4003);
    table(FREE + 0x1000).add(1).write_volatile(FREE + 0x2007);
    table(FREE + 0x2000).write_volatile(FREE + 0x3007);
    for page in 0..16 {
        // Data is not executable: at CPL 0 it would be code that nobody has looked at.
        let no_execute = if page < 8 { 0 } else { NO_EXECUTE };
        table(FREE + 0x3000).add(page).write_volatile(PAGES + page as u64 * 4096 + 7 | no_execute);
    }
}

/// Fills the code pages anew: bytes of any kind, with those of instructions that leave the guest more often.
pub(crate) unsafe fn refill(random: &mut Random) {
    let code = with_exposed_provenance_mut::<u8>(PAGES as usize);
    let mut at = 0;
    while at < 2048 {
        let common: &[u8] = random.one_of::<&[u8]>(&[
            &[0x0f, 0xa2],
            &[0x0f, 0x31],
            &[0x0f, 0x01, 0xd9],
            &[0x0f, 0x01, 0xc1],
            &[0x0f, 0x32],
            &[0xf3, 0x90],
            &[0xe4, 0x61],
            &[0xec],
            &[0x0f, 0x09],
            &[0x66],
            &[0xf0],
            &[0x48],
            &[0x0f],
            &[0xc4],
            &[],
            &[],
        ]);
        for byte in common {
            code.add(at).write_volatile(*byte);
            at += 1;
        }
        for _ in 0..random.below(6) {
            code.add(at).write_volatile(random.next() as u8);
            at += 1;
        }
    }
    // QEMU 10 takes MOV to segment registers that do not exist for LDTR, TR, GDTR and IDTR, at CPL 3 too.
    for at in 0..at {
        if code.add(at).read_volatile() == 0x8e {
            code.add(at).write_volatile(0x90);
        }
    }
    for index in 0..512 {
        table(PAGES + 0x8000).add(index).write_volatile(random.value());
    }
}

unsafe fn leave(own: u64) {
    cpu::write_cr3(own);
}

/// Runs random bytes at CPL 3 until they fault.
pub(crate) unsafe fn user(random: &mut Random) -> Option<Fault> {
    let own = cpu::read_cr3();
    let at = WINDOW + random.below(2000);
    let (a, b) = (random.value(), WINDOW + 0x8000 + random.below(0x8000));
    let fault = catch(|| {
        asm!(
            "mov cr3, r8",
            "push r9", "push r10", "push 0x2", "push r11", "push rcx", "mov rcx, rdx",
            "mov rbx, rdi", "mov rbp, rdi", "mov r12, rax", "mov r13, rdi", "mov r14, rax", "mov r15, rdi",
            "iretq",
            in("r8") FREE, in("r9") u64::from(USER_DATA), in("r10") WINDOW + 0xf000,
            in("r11") u64::from(USER_CODE64), in("rcx") at,
            in("rax") a, in("rdi") b, in("rsi") b ^ 0x100, in("rdx") a & 0xff,
        );
    });
    leave(own);
    fault
}

/// Returns whether bytes could hold an instruction that ends the guest or takes its tables: OUT, a load of a control, debug,
/// table or model-specific register.
fn fatal(bytes: &[u8]) -> bool {
    let single = bytes.iter().any(|byte| matches!(byte, 0xe6 | 0xe7 | 0xee | 0xef | 0x6e | 0x6f));
    let double = bytes.windows(2).any(|pair| pair[0] == 0x0f && matches!(pair[1], 0 | 1 | 0x22 | 0x23 | 0x30));
    single || double
}

/// Runs random bytes at CPL 0, followed by UD2, until they fault. The map has the image, so a store there is possible, and
/// ends this guest sooner or later.
pub(crate) unsafe fn kernel(random: &mut Random) -> Option<Fault> {
    let own = cpu::read_cr3();
    let code = with_exposed_provenance_mut::<u8>((PAGES + 0x4000) as usize);
    let source = with_exposed_provenance_mut::<u8>((PAGES + random.below(1900)) as usize);
    let length = 1 + random.below(12) as usize;
    let bytes = core::slice::from_raw_parts(source, length);
    if fatal(bytes) {
        return None;
    }
    for (index, byte) in bytes.iter().chain(&UD2).enumerate() {
        code.add(index).write_volatile(*byte);
    }
    let (a, b) = (random.value(), WINDOW + 0x8000 + random.below(0x8000));
    let fault = catch(|| {
        asm!(
            "mov cr3, r8", "mov rsp, r9",
            "mov rbx, rdi", "mov rbp, rdi", "mov r12, rax", "mov r13, rdi", "mov r14, rax", "mov r15, rdi",
            "jmp r10",
            in("r8") FREE, in("r9") WINDOW + 0xf000, in("r10") WINDOW + 0x4000,
            in("rax") a, in("rdi") b, in("rsi") b ^ 0x100, in("rdx") 0x61, in("rcx") a & 0xff,
        );
    });
    leave(own);
    fault
}

/// Puts random entries into random tables under a root of their own, and loads through them. Entries that point at further
/// tables stay within the wild ones, since the processor marks entries as accessed; pages may be anywhere.
pub(crate) unsafe fn tables(random: &mut Random) -> Option<Fault> {
    let own = cpu::read_cr3();
    for _ in 0..8 {
        let entry = match random.below(4) {
            0 => WILD + random.below(16) * 4096 | 7,
            1 => WILD + random.below(16) * 4096 | random.next() & 0x7f,
            2 => random.next() & 0x1f_ffff_f000 | 0x83,
            _ => random.next() & 0x800f_ffff_ffff_ffff | 0x80,
        };
        // In a table of the last level every entry is a page, and a table's entry with bit 7 clear is a table.
        table(WILD + random.below(16) * 4096).add(random.below(8) as usize).write_volatile(entry);
    }
    let last = table(FREE).add(511).read_volatile();
    table(WILD).add(511).write_volatile(last);
    let at = random.below(8) << 39
        | random.below(8) << 30
        | random.below(8) << 21
        | random.below(8) << 12
        | random.below(4096);
    let fault = catch(|| {
        asm!("mov cr3, {}", "mov al, [{}]", in(reg) WILD, in(reg) at, out("al") _);
    });
    leave(own);
    fault
}
