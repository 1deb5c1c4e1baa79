//! The image's headers for boot loaders, and the way from their 32-bit protected mode to Rust in 64-bit mode.
#![expect(unsafe_code, reason = "the entry point is assembly")]

use super::info::PVH;

// What a loader finds, and what it enters. All three enter in 32-bit protected mode with flat segments, paging off,
// interrupts off, EBX = the physical address of their information:
//
// 1. EAX = the loader's magic number, or PVH's, which its protocol leaves out. ESI, EDI keep EAX and EBX; the
//    time-stamp counter is read at once, for `Machine::entry_tsc`.
// 2. The boot stack, in `.boot.bss`. Every symbol of `.boot*` is a physical address.
// 3. CPUID 8000_0001H:EDX[29] says whether there is a 64-bit mode; without it, one sentence on COM1 and the end.
// 4. Tables: the first 4 GiB at their own addresses in 2 MiB pages, and the first 1 GiB again at -2 GiB, where the image
//    is linked. The tables' memory was zeroed by the loader as part of the image.
// 5. CR4.PAE, CR3, EFER.LME and .NXE where there is NX, CR0.PG and .WP: IA-32e mode, compatibility submode.
// 6. A far return to a 64-bit code segment, and a call of `start` at its high address with
//    (magic, information, time-stamp counter).
core::arch::global_asm!(
    r#"
    .section .boot.header, "a"
    .balign 8
libhv_multiboot1_header:
    .long 0x1BADB002
    .long 0x00010003                          // modules on pages, memory map, address fields
    .long -(0x1BADB002 + 0x00010003)
    .long libhv_multiboot1_header
    .long libhv_load_start
    .long libhv_load_end
    .long libhv_image_end
    .long libhv_multiboot_entry
    .balign 8
libhv_multiboot2_header:
    .long 0xE85250D6
    .long 0                                   // i386, 32-bit protected mode
    .long libhv_multiboot2_end - libhv_multiboot2_header
    .long -(0xE85250D6 + (libhv_multiboot2_end - libhv_multiboot2_header))
    .short 1, 1                               // information request, optional:
    .long 20
    .long 1, 3, 6                             // command line, modules, memory map
    .balign 8
    .short 6, 0                               // modules on pages
    .long 8
    .short 0, 0                               // end
    .long 8
libhv_multiboot2_end:

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                            // "Xen", 8 bytes, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad libhv_pvh_entry

    .section .boot.text, "ax"
    .code32
    .globl libhv_pvh_entry
libhv_pvh_entry:
    mov eax, {pvh}
    .globl libhv_multiboot_entry
libhv_multiboot_entry:
    cli                                       // 1
    cld
    mov esi, eax
    mov edi, ebx
    rdtsc
    mov esp, offset libhv_boot_stack_top      // 2
    push edx
    push eax

    mov eax, 0x80000000                       // 3
    cpuid
    cmp eax, 0x80000001
    jb .Llibhv_no_long_mode
    mov eax, 0x80000001
    cpuid
    bt edx, 29
    jnc .Llibhv_no_long_mode
    mov ebp, edx

    mov ebx, offset libhv_boot_tables         // 4
    lea eax, [ebx + 0x1003]
    mov [ebx], eax                            // PML4[0]: PDPT at the second page
    lea eax, [ebx + 0x2003]
    mov [ebx + 511 * 8], eax                  // PML4[511]: PDPT at the third
    lea eax, [ebx + 0x3003]
    mov [ebx + 0x2000 + 510 * 8], eax         // -2 GiB
    xor ecx, ecx
2:  mov [ebx + 0x1000 + ecx * 8], eax         // 0 to 3 GiB
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jne 2b
    mov eax, 0x83                             // present, writable, 2 MiB
    xor ecx, ecx
3:  mov [ebx + 0x3000 + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 3b

    mov eax, cr4                              // 5
    or eax, 0x20
    mov cr4, eax
    mov cr3, ebx
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    bt ebp, 20
    jnc 4f
    or eax, 0x800
4:  wrmsr
    mov eax, cr0
    or eax, 0x80010000
    and eax, ~0x60000000                      // caches on
    mov cr0, eax

    lgdt [.Llibhv_gdtr]                                 // 6
    push 8
    mov eax, offset .Llibhv_64
    push eax
    retf

    // No 64-bit mode: the sentence goes to COM1 as it stands.
.Llibhv_no_long_mode:
    mov esi, offset .Llibhv_sentence
8:  mov dx, 0x3FD
    in al, dx
    test al, 0x20
    jz 8b
    lodsb
    test al, al
    jz 1f
    mov dx, 0x3F8
    out dx, al
    jmp 8b
1:  hlt
    jmp 1b
.Llibhv_sentence:
    .asciz "libhv: end 26 this hypervisor needs a processor with 64-bit mode; CPUID reports none\r\n"

    .balign 8
.Llibhv_gdt:
    .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
.Llibhv_gdtr:
    .short 23
    .long .Llibhv_gdt

    .code64
.Llibhv_64:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    pop rdx                                   // EAX and EDX were pushed as a 64-bit number
    mov rax, offset libhv_image_offset
    add rsp, rax
    mov ecx, edi
    mov edi, esi
    mov esi, ecx
    xor ebp, ebp
    movabs rax, offset {start}
    call rax
    ud2
    "#,
    pvh = const PVH,
    start = sym super::start::start,
);
