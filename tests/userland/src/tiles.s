# The whole program. R13 counts turns, R14 is where the configuration is, R15 the child, or 0 in the child.

    .equ WRITE, 1
    .equ IOCTL, 16
    .equ SCHED_YIELD, 24
    .equ FORK, 57
    .equ EXIT, 60
    .equ WAIT4, 61
    .equ ARCH_PRCTL, 158
    .equ REBOOT, 169
    .equ ARCH_REQ_XCOMP_PERM, 0x1023
    .equ TILEDATA, 18
    .equ SIGILL, 4
    .equ TURNS, 100
    .equ TCSBRK, 0x5409
    .equ POWER_OFF, 0x4321fedc

    .section .data
survived: .ascii "libhv: tiles survive\n"
    .equ SURVIVED_LENGTH, . - survived
permitted: .ascii "libhv: fail tiles: no SIGILL without permission\n"
    .equ PERMITTED_LENGTH, . - permitted
refused: .ascii "libhv: fail tiles: permission is refused\n"
    .equ REFUSED_LENGTH, . - refused
lost: .ascii "libhv: fail tiles: lost in a switch between processes\n"
    .equ LOST_LENGTH, . - lost
    # Palette 1, tile 0: 16 rows of 64 bytes, or 7 of them.
    .balign 64
parents: .byte 1
    .fill 15
    .byte 64
    .fill 31
    .byte 16
    .fill 15
childs: .byte 1
    .fill 15
    .byte 64
    .fill 31
    .byte 7
    .fill 15

    .section .bss
    .balign 64
tile: .skip 1024
found: .skip 1024
status: .skip 8

    .section .text
    .globl _start
_start:
    mov eax, offset FORK
    syscall
    test eax, eax
    jz without_permission
    call wait
    and eax, 0x7f
    lea rsi, [rip + permitted]
    mov edx, offset PERMITTED_LENGTH
    cmp eax, offset SIGILL
    jne finish

    mov edi, offset ARCH_REQ_XCOMP_PERM
    mov esi, offset TILEDATA
    mov eax, offset ARCH_PRCTL
    syscall
    lea rsi, [rip + refused]
    mov edx, offset REFUSED_LENGTH
    test rax, rax
    jnz finish

    mov eax, offset FORK
    syscall
    mov r15d, eax
    lea r14, [rip + parents]
    test eax, eax
    jnz 2f
    lea r14, [rip + childs]
2:  mov r13d, offset TURNS
turn:
    # Bytes that differ from row to row, from turn to turn, and between the two processes.
    lea rdi, [rip + tile]
    mov ecx, 1024
    imul eax, r13d, 11
    add eax, r14d
3:  mov [rdi], al
    add eax, 7
    inc rdi
    dec ecx
    jnz 3b
    ldtilecfg [r14]
    lea rdi, [rip + tile]
    mov ecx, 64
    tileloadd tmm0, [rdi + rcx]
    mov eax, offset SCHED_YIELD
    syscall
    lea rdi, [rip + found]
    mov ecx, 64
    tilestored [rdi + rcx], tmm0
    movzx ecx, byte ptr [r14 + 48]
    shl ecx, 6
    lea rsi, [rip + tile]
    repe cmpsb
    jne mismatch
    sttilecfg [rip + found]
    lea rdi, [rip + found]
    mov rsi, r14
    mov ecx, 64
    repe cmpsb
    jne mismatch
    dec r13d
    jnz turn
    test r15d, r15d
    jz leave
    mov eax, r15d
    call wait
    test eax, eax
    jnz mismatch
    lea rsi, [rip + survived]
    mov edx, offset SURVIVED_LENGTH
    jmp finish

without_permission:
    lea r14, [rip + parents]
    ldtilecfg [r14]
    tilezero tmm0
    xor r13d, r13d
leave:
    mov edi, r13d
    mov eax, offset EXIT
    syscall

mismatch:
    test r15d, r15d
    jz leave
    lea rsi, [rip + lost]
    mov edx, offset LOST_LENGTH
finish:
    mov edi, 1
    mov eax, offset WRITE
    syscall
    # The kernel's last words would go between those that are still on their way.
    mov edi, 1
    mov esi, offset TCSBRK
    mov edx, 1
    mov eax, offset IOCTL
    syscall
    mov edi, 0xfee1dead
    mov esi, 672274793
    mov edx, offset POWER_OFF
    mov eax, offset REBOOT
    syscall
    ud2

    # The status with which the process EAX ended.
wait:
    mov edi, eax
    lea rsi, [rip + status]
    xor edx, edx
    xor r10d, r10d
    mov eax, offset WAIT4
    syscall
    mov eax, [rip + status]
    ret
