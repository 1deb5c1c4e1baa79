    .section .rodata.vmx_smoke_guest, "a"
    .globl vmx_smoke_guest, vmx_smoke_guest_end
    .balign 16
    // Guest-physical addresses; the code lies at 0x1000, and what is found by its address at the `.org`s below.
    .equ results, 0x3000
    .equ real_interrupt, 0x1300
    .equ gdt_pointer, 0x1310
    .equ idt_pointer, 0x1320
vmx_smoke_guest:
    .code16
    // Real mode: CPUID, a port, an interrupt through the vector table.
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0xF00
    mov word ptr [0x80], real_interrupt
    mov word ptr [0x82], ax
    mov eax, 0x40000000
    xor ecx, ecx
    cpuid
    mov dword ptr [results], ebx
    mov al, 0x5A
    out 0x80, al
    sti
    hlt
    cli
    // Protected and long mode: CR4 and EFER leave the guest, CR0 does not.
    lgdt [gdt_pointer]
    mov eax, 0x20
    mov cr4, eax
    mov eax, 0x4000
    mov cr3, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000001
    mov cr0, eax
    .byte 0xEA
    .word .Llong - vmx_smoke_guest + 0x1000
    .word 0x08
    .code64
.Llong:
    mov eax, 0x10
    mov ds, eax
    mov ss, eax
    mov esp, 0x2F00
    lidt [idt_pointer]
    // Round trips of CPUID, the shortest kept.
    mov esi, {rounds}
    mov ebp, -1
2:
    rdtsc
    mov edi, eax
    mov eax, 0x40000000
    xor ecx, ecx
    cpuid
    rdtsc
    sub eax, edi
    cmp eax, ebp
    cmovb ebp, eax
    dec esi
    jnz 2b
    mov qword ptr [results + 16], rbp
    // A device: a store that nested paging refuses.
    mov dword ptr [0x100000], 0x11223344
    // A single step over an instruction that leaves the guest: CPUID, NOP, PUSHF, AND, POPF each end in #DB.
    pushfq
    or dword ptr [rsp], 0x100
    popfq
    cpuid
    nop
    pushfq
    and dword ptr [rsp], 0xFFFFFEFF
    popfq
    // A software interrupt whose stack is missing.
    mov esp, 0x8FF0
    int 0x30
    mov esp, 0x2F00
    // An NMI, which the host injects now, and that nothing interrupts until its IRET.
    mov eax, 1
    vmcall
    // An invalid opcode.
    ud2
    // A general-protection fault with an error code, from the host.
    mov eax, 3
    vmcall
    // An endless loop, which the timer ends. The host moves on by two bytes.
.Lforever:
    jmp .Lforever
    mov rax, cr0
    mov qword ptr [results + 56], rax
    mov rax, cr4
    mov qword ptr [results + 64], rax
    hlt

.Ldebug:
    inc dword ptr [results + 24]
    mov rax, dr6
    or qword ptr [results + 32], rax
    iretq
.Lnmi:
    inc dword ptr [results + 40]
    mov eax, 2
    vmcall
    iretq
.Lundefined:
    inc dword ptr [results + 44]
    add qword ptr [rsp], 2
    iretq
.Lfault:
    pop rax
    mov qword ptr [results + 72], rax
    iretq
.Lsoftware:
    inc dword ptr [results + 48]
    iretq

    .org 0x300
    .code16
    inc dword ptr [results + 8]
    iret
    .org 0x310
    .word 3 * 8 - 1
    .long .Lgdt - vmx_smoke_guest + 0x1000
    .org 0x320
    .word 0x31 * 16 - 1
    .quad .Lidt - vmx_smoke_guest + 0x1000
    .balign 16
.Lgdt:
    .quad 0, 0x00209B0000000000, 0x00CF93000000FFFF
    .macro gate handler
    .word \handler - vmx_smoke_guest + 0x1000
    .word 0x08
    .word 0x8E00
    .word 0
    .quad 0
    .endm
    .balign 16
.Lidt:
    .quad 0, 0
    gate .Ldebug
    gate .Lnmi
    .quad 0, 0, 0, 0, 0, 0
    gate .Lundefined
    .fill 6 * 16, 1, 0
    gate .Lfault
    .fill (0x30 - 14) * 16, 1, 0
    gate .Lsoftware
vmx_smoke_guest_end:
    .code64
    .text
