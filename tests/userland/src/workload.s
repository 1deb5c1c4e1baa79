# The whole program. Numbers at the right count the instructions of the lines since the number before, called functions left out.

    .equ EXIT, 60
    .equ WRITE, 1
    .equ DIGITS, 20

    # A turn of the hot loop: instructions, and the branches among them, and the conditional ones among those.
    .equ TURN, 10
    .equ TURN_BRANCHES, 3
    .equ TURN_CONDITIONAL, 2
    # Each digit of an argument, in `decimal`; each of its branches is conditional.
    .equ DIGIT, 10
    .equ DIGIT_BRANCHES, 2
    # Each round of `exits`, beside its turns.
    .equ ROUND, 8
    .equ ROUND_BRANCHES, 3
    .equ ROUND_CONDITIONAL, 1
    # `decimal` without its digits, and `digits`.
    .equ DECIMAL, 5
    .equ DECIMAL_BRANCHES, 2
    .equ DECIMAL_CONDITIONAL, 1
    .equ NUMBER, 3 + 6 * DIGITS
    .equ NUMBER_BRANCHES, 1 + DIGITS
    .equ NUMBER_CONDITIONAL, DIGITS
    # `finish`.
    .equ FINISH, 16 + 3 * NUMBER
    .equ FINISH_BRANCHES, 3 + 3 * NUMBER_BRANCHES
    .equ FINISH_CONDITIONAL, 3 * NUMBER_CONDITIONAL
    # All the rest on the way of `loop`, and on the way of `exits`.
    .equ LOOP_REST, 8 + DECIMAL + 7 + 3 + 8 + FINISH
    .equ LOOP_REST_BRANCHES, 2 + DECIMAL_BRANCHES + 3 + 2 + 1 + FINISH_BRANCHES
    .equ LOOP_REST_CONDITIONAL, 1 + DECIMAL_CONDITIONAL + 3 + FINISH_CONDITIONAL
    .equ EXITS_REST, 8 + DECIMAL + 3 + 4 + DECIMAL + 8 + 15 + FINISH
    .equ EXITS_REST_BRANCHES, 2 + DECIMAL_BRANCHES + 1 + 2 + DECIMAL_BRANCHES + 1 + 1 + FINISH_BRANCHES
    .equ EXITS_REST_CONDITIONAL, 1 + DECIMAL_CONDITIONAL + 1 + 1 + DECIMAL_CONDITIONAL + 1 + FINISH_CONDITIONAL

    .section .data
report:
    .ascii "workload instructions "
instructions:
    .ascii "00000000000000000000 branches "
branches:
    .ascii "00000000000000000000 conditional "
conditional:
    .ascii "00000000000000000000 syscalls 2\n"
    .equ REPORT_LENGTH, . - report
ticks_report:
    .ascii "workload ticks "
ticks:
    .ascii "00000000000000000000\n"
    .equ TICKS_REPORT_LENGTH, . - ticks_report
complaint:
    .ascii "workload loop N | exits N K | mixed N, with N and K above zero\n"
    .equ COMPLAINT_LENGTH, . - complaint

    .section .bss
    .balign 4096
    .equ AREA, 256 * 1024
area:
    .skip AREA

    .section .text
    .globl _start, hot_loop, hot_loop_end, mixed_loop, mixed_loop_end

    # R12 turns, R13 rounds, R14 digits of all arguments, EBP the mode's first letter, RBX the arguments' number
_start:
    mov rbx, [rsp]
    xor r14d, r14d
    cmp rbx, 3
    jb usage
    mov rsi, [rsp + 16]
    movzx ebp, byte ptr [rsi]
    mov rsi, [rsp + 24]
    call decimal                        # 8
    mov r12, rax
    cmp ebp, 'e'
    je exits
    cmp ebp, 'm'
    je mixed
    cmp ebp, 'l'
    jne usage                           # 7

    mov rcx, r12
    call hot                            # 2, and RET
    imul rax, r12, TURN
    imul rcx, r14, DIGIT
    lea rax, [rax + rcx + LOOP_REST]
    imul rbx, r12, TURN_BRANCHES
    lea rbx, [rbx + r14 * DIGIT_BRANCHES + LOOP_REST_BRANCHES]
    imul rbp, r12, TURN_CONDITIONAL
    lea rbp, [rbp + r14 * DIGIT_BRANCHES + LOOP_REST_CONDITIONAL]
    jmp finish                          # 8

exits:
    cmp rbx, 4
    jb usage
    mov rsi, [rsp + 32]
    call decimal                        # 4
    mov r13, rax
    mov rax, r12
    xor edx, edx
    div r13
    mov r12, rax
    test r12, r12
    jz usage
    mov r15, r13                        # 8
round:
    mov rcx, r12
    call hot
    xor eax, eax
    xor ecx, ecx
    cpuid
    dec r15
    jnz round                           # 8, with RET
    imul r12, r13
    imul rax, r12, TURN
    imul rcx, r13, ROUND
    add rax, rcx
    imul rcx, r14, DIGIT
    lea rax, [rax + rcx + EXITS_REST]
    imul rbx, r12, TURN_BRANCHES
    imul rcx, r13, ROUND_BRANCHES
    add rbx, rcx
    lea rbx, [rbx + r14 * DIGIT_BRANCHES + EXITS_REST_BRANCHES]
    imul rbp, r12, TURN_CONDITIONAL
    imul rcx, r13, ROUND_CONDITIONAL
    add rbp, rcx
    lea rbp, [rbp + r14 * DIGIT_BRANCHES + EXITS_REST_CONDITIONAL]
    jmp finish                          # 15

    # Writes RAX, RBX and RBP into the report, shows it and ends.
finish:
    lea rdi, [rip + instructions]
    call digits
    mov rax, rbx
    lea rdi, [rip + branches]
    call digits
    mov rax, rbp
    lea rdi, [rip + conditional]
    call digits                         # 8
    lea rsi, [rip + report]
    mov edx, offset REPORT_LENGTH
    mov edi, 1
    mov eax, offset WRITE
    syscall
    xor edi, edi
    mov eax, offset EXIT
    syscall                             # 8

    # RCX turns of the loop, at least one.
hot:
hot_loop:
    add rax, rcx
    rol rax, 7
    xor rdx, rax
    lea rsi, [rdx + rax]
    test rcx, rcx
    jz hot_loop_end
    jmp 2f
2:  imul rdx, rsi
    dec rcx
    jnz hot_loop
hot_loop_end:
    ret

    # The number at RSI in RAX, and the number of its digits added to R14. A number is digits and a zero byte, and not zero.
decimal:
    xor eax, eax
    movzx ecx, byte ptr [rsi]
2:  sub ecx, '0'
    cmp ecx, 9
    ja usage
    imul rax, rax, 10
    add rax, rcx
    inc rsi
    movzx ecx, byte ptr [rsi]
    inc r14
    test ecx, ecx
    jnz 2b
    test rax, rax
    jz usage
    ret

    # RAX as twenty decimal digits at RDI.
digits:
    mov esi, 10
    mov ecx, offset DIGITS
2:  xor edx, edx
    div rsi
    add edx, '0'
    dec ecx
    mov [rdi + rcx], dl
    jnz 2b
    ret

    # R8 a random number, R9 the area, R10 a sum, R12 turns to go, R13 the time before.
mixed:
    mov r8, 0x2545f4914f6cdd1d
    lea r9, [rip + area]
    xor r10d, r10d
    rdtsc
    shl rdx, 32
    lea r13, [rdx + rax]
mixed_loop:
    mov rax, r8
    shl rax, 13
    xor r8, rax
    mov rax, r8
    shr rax, 7
    xor r8, rax
    mov rax, r8
    shl rax, 17
    xor r8, rax
    mov ecx, r8d
    and ecx, offset AREA - 8
    mov rax, [r9 + rcx]
    test r8d, 0x10000
    jz 2f
    add rax, r8
    rol rax, 3
    jmp 3f
2:  sub rax, r8
3:  mov [r9 + rcx], rax
    mov rdx, rax
    and edx, 7
4:  call mix
    dec edx
    jns 4b
    dec r12
    jnz mixed_loop
mixed_loop_end:
    rdtsc
    shl rdx, 32
    add rax, rdx
    sub rax, r13
    lea rdi, [rip + ticks]
    call digits
    lea rsi, [rip + ticks_report]
    mov edx, offset TICKS_REPORT_LENGTH
    mov edi, 1
    mov eax, offset WRITE
    syscall
    xor edi, edi
    mov eax, offset EXIT
    syscall
mix:
    imul r10, r10, 31
    add r10, [r9 + rcx]
    ret

usage:
    lea rsi, [rip + complaint]
    mov edx, offset COMPLAINT_LENGTH
    mov edi, 2
    mov eax, offset WRITE
    syscall
    mov edi, 2
    mov eax, offset EXIT
    syscall
