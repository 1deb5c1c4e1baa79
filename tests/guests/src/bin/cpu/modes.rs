//! A tour from 64-bit mode through compatibility mode, protected mode without paging, with 32-bit and with PAE paging, and
//! real mode, and back; each stop leaves a word in memory.

use core::arch::{asm, global_asm};
use core::ptr::{copy_nonoverlapping, with_exposed_provenance_mut, write_bytes};
use guests::boot::{boot_gdt, physical};
use guests::report::{Outcome, Tests, same};
use guests::{cpu, interrupts};

/// Where the stops leave their words, and where the real-mode code runs.
const LOG: u64 = 0x7000;
const REAL: u64 = 0x8000;
/// Tables of the tour: a 32-bit page directory, a PDPT, four PAE page directories.
const TABLES: u64 = 0x100_0000;
/// Where 4000_0000H leads in both kinds of paging, and what it holds.
const REMAPPED: u64 = 0x140_0000;
const SECRET: u32 = 0x5ec2_e700;

global_asm!(
    r#"
    .pushsection .boot.text, "ax"
    .code64
    .globl mode_tour
mode_tour:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [tour_stack], rsp
    mov rax, cr3
    mov [tour_root], rax
    mov rax, 0xffffffff80000000
    sub rsp, rax
    push 0x18
    push offset tour_compatibility
    retfq

    .code32
tour_compatibility:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    // 40H is INC EAX here and a prefix in 64-bit mode.
    mov eax, 0x11110000
    .byte 0x40
    mov ds:[0x7000], eax
    xor eax, eax
    xor ecx, ecx
    cpuid
    mov edx, 0x61
    in al, dx
    mov dword ptr ds:[0x7004], 0x11110002

    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    rdmsr
    mov ds:[0x7008], eax
    in al, 0x61
    mov dword ptr ds:[0x700c], 0x22220001

    mov eax, cr4
    mov [tour_cr4], eax
    and eax, 0xffffffdf
    or eax, 0x10
    mov cr4, eax
    mov eax, 0x1000000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp 2f
2:  mov eax, ds:[0x40000000]
    mov ds:[0x7010], eax
    mov eax, ds:[0xfec00000]
    mov dword ptr ds:[0xfec00000], 0x21
    mov eax, ds:[0xfec00000]
    mov ds:[0x7014], eax
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax

    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, 0x1001000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp 2f
2:  mov eax, ds:[0x40000000]
    mov ds:[0x7018], eax
    mov dword ptr ds:[0xfec00000], 0x22
    mov eax, ds:[0xfec00000]
    mov ds:[0x701c], eax
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    .byte 0xea
    .long 0x8000
    .word 0x20

tour_back:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, [tour_cr4]
    mov cr4, eax
    mov eax, [tour_root]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long tour_home
    .word 0x08

    .code64
tour_home:
    mov rsp, [tour_stack]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .balign 8
tour_stack: .quad 0
tour_root: .quad 0
tour_cr4: .quad 0

    // Copied to 8000H; the handler of INT 60H comes to 81E0H, the operand of LIDT to 81F0H.
    .code16
    .globl tour_real, tour_real_end
tour_real:
    mov ax, 0x28
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word 2f - tour_real + 0x8000, 0
2:  xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    lidt ds:[0x81f0]
    mov word ptr ds:[0x60 * 4], 0x81e0
    mov word ptr ds:[0x60 * 4 + 2], 0
    mov dword ptr ds:[0x7020], 0x33330001
    int 0x60
    mov eax, 0
    mov ecx, 0
    cpuid
    mov al, 0x5a
    mov dx, 0x3ff
    out dx, al
    in al, dx
    mov ds:[0x7028], al
    mov ax, 0x2000
    mov es, ax
    mov dword ptr es:[0x10], 0x33330003
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long tour_back
    .word 0x18
    .org tour_real + 0x1e0
    mov dword ptr ds:[0x7024], 0x33330002
    iret
    .org tour_real + 0x1f0
    .word 0x3ff
    .long 0
tour_real_end:
    .code64
    .popsection
"#
);

unsafe extern "C" {
    fn mode_tour();
    static tour_real: u8;
    static tour_real_end: u8;
}

fn word(at: u64) -> *mut u32 {
    with_exposed_provenance_mut(at as usize)
}

unsafe fn tables() {
    for index in 0..1024u32 {
        let target = if index == 0x100 { REMAPPED as u32 } else { index << 22 };
        word(TABLES).add(index as usize).write_volatile(target | 0x83);
    }
    for index in 0..4 {
        let entry = TABLES + 0x2000 + index * 0x1000;
        word(TABLES + 0x1000 + index * 8).write_volatile(entry as u32 | 1);
        word(TABLES + 0x1004 + index * 8).write_volatile(0);
    }
    for index in 0..2048u32 {
        let target = if index == 0x200 { REMAPPED as u32 } else { index << 21 };
        word(TABLES + 0x2000).add(index as usize * 2).write_volatile(target | 0x83);
        word(TABLES + 0x2004).add(index as usize * 2).write_volatile(0);
    }
    word(REMAPPED).write_volatile(SECRET);
}

pub(crate) unsafe fn run(tests: &mut Tests) {
    tables();
    write_bytes(word(LOG), 0, 64);
    let length = (&raw const tour_real_end).addr() - (&raw const tour_real).addr();
    copy_nonoverlapping(&raw const tour_real, word(REAL).cast(), length);
    word(0x2_0010).write_volatile(0);
    cpu::cli();
    let gdt = physical(&raw const boot_gdt);
    let pointer = [79u64 << 48, gdt];
    asm!("lgdt [{}]", in(reg) (&raw const pointer).cast::<u8>().add(6));
    asm!("call {}", in(reg) mode_tour as *const (), clobber_abi("C"));
    interrupts::reload();
    tests.run("mode-compatibility", || expect(&[(0, 0x1111_0001), (1, 0x1111_0002)]));
    tests.run("mode-protected", || expect(&[(3, 0x2222_0001)]));
    tests.run("mode-efer-lma-clear-without-paging", || same("LMA and LME", log(2) & 0x500, 0u64));
    tests.run("mode-32-bit-paging", || expect(&[(4, SECRET), (5, 0x21)]));
    tests.run("mode-pae-paging", || expect(&[(6, SECRET), (7, 0x22)]));
    tests.run("mode-real", || expect(&[(8, 0x3333_0001), (9, 0x3333_0002), (10, 0x5a)]));
    tests.run("mode-real-segments", || same("20010H", word(0x2_0010).read_volatile(), 0x3333_0003u64));
    tests.run("mode-64-bit-again", || same("LMA and LME", cpu::rdmsr(0xc000_0080) & 0x500, 0x500u64));
}

unsafe fn log(index: usize) -> u32 {
    word(LOG).add(index).read_volatile()
}

unsafe fn expect(stops: &[(usize, u32)]) -> Outcome {
    for (index, wanted) in stops {
        same("a stop's word", log(*index), *wanted)?;
    }
    Ok(())
}
