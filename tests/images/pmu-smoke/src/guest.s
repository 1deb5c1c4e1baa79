    .section .rodata.pmu_smoke_guest, "a"
    .globl pmu_smoke_guest, pmu_smoke_guest_end
    .balign 16
    .equ results, 0x3000
    .equ start_counting, 1

    .macro write_msr index, low, high=0
    mov ecx, \index
    mov eax, \low
    mov edx, \high
    wrmsr
    .endm

    // Counts what \body retires {rounds} times, each between XOR and DEC, JNZ, and leaves the count at \result. The WRMSR that
    // starts counts or not, and so does the one that stops, as the processor has it.
    .macro count result, body:vararg
    write_msr 0x186, 0x4300C0
    write_msr 0xC1, 0
    mov esi, {rounds}
    write_msr 0x38F, start_counting
2:
    xor eax, eax
    \body
    dec esi
    jnz 2b
    write_msr 0x38F, 0
    xor ecx, ecx
    rdpmc
    mov dword ptr [results + \result], eax
    mov dword ptr [results + \result + 4], edx
    vmcall
    .endm

pmu_smoke_guest:
    .code16
    xor ax, ax
    mov ds, ax
    count 0, nop
    count 8, cpuid
    // What the host has put there.
    mov ecx, 0x38F
    rdmsr
    mov dword ptr [results + 16], eax
    mov dword ptr [results + 20], edx
    vmcall
    // Three overflows, of which the host makes something else each time.
    mov edi, 3
3:
    write_msr 0x186, 0x5300C0
    write_msr 0xC1, -50
    mov esi, {rounds}
    write_msr 0x38F, start_counting
2:
    dec esi
    jnz 2b
    write_msr 0x38F, 0
    mov ecx, 0x38E
    rdmsr
    mov dword ptr [results + 24], eax
    write_msr 0x390, 1
    vmcall
    dec edi
    jnz 3b
    // What the host has closed.
    xor ecx, ecx
    rdpmc
    mov ecx, 0xC1
    rdmsr
    wrmsr
    mov ecx, 0x1D9
    rdmsr
    wrmsr
    hlt
pmu_smoke_guest_end:
    .code64
    .text
