//! The whole unit at once, and code whose length is known.

use core::arch::global_asm;
use guests::cpu::{rdmsr, wrmsr};
use guests::pmu::*;

/// The counters that there are, as every machine of these tests has them.
pub(crate) const COUNTERS: Counters = Counters { general: 8, fixed: 0xf };
/// Their bits in the GLOBAL registers.
pub(crate) const ALL: u64 = COUNTERS.bits();

/// Stops everything, and zeroes every selector, counter and status bit.
pub(crate) unsafe fn clear() {
    COUNTERS.clear();
    wrmsr(DEBUGCTL, 0);
    wrmsr(STATUS_RESET, CTR_FRZ);
}

/// Has general-purpose counter `n` count `event` at CPL 0 from `value` on; it starts with GLOBAL_CTRL.
pub(crate) unsafe fn program(n: u32, event: u64, value: u64) {
    wrmsr(PERFEVTSEL + n, 0);
    wrmsr(A_PMC + n, value);
    wrmsr(PERFEVTSEL + n, event | OS | EN);
}

/// What general-purpose counter `n` holds.
pub(crate) unsafe fn general(n: u32) -> u64 {
    rdmsr(PMC + n)
}

/// What fixed counter `n` holds.
pub(crate) unsafe fn fixed(n: u32) -> u64 {
    rdmsr(FIXED_CTR + n)
}

// Each function writes GLOBAL_CTRL at its begin and 0 at its end. The first write does not count, the last one does: an
// instruction counts under the controls it begins with.
global_asm!(
    r#"
    .pushsection .text.pmu_measured, "ax"
    .macro start_counting
    mov rax, rdi
    mov rdx, rdi
    shr rdx, 32
    mov ecx, {GLOBAL_CTRL}
    wrmsr
    .endm
    .macro stop_counting
    xor eax, eax
    xor edx, edx
    mov ecx, {GLOBAL_CTRL}
    wrmsr
    ret
    .endm

    .globl pmu_loop, pmu_fill, pmu_calls, pmu_touch, pmu_sled, pmu_sled_first
    .balign 4096
pmu_loop:
    start_counting
2:  dec rsi
    jnz 2b
    stop_counting

pmu_fill:
    mov r8, rdx
    mov r9, rdi
    mov rdi, r8
    xchg rdi, r9
    start_counting
    mov rdi, r9
    mov rcx, rsi
    mov al, 0x5a
    cld
    rep stosb
    stop_counting

pmu_calls:
    start_counting
2:  call 3f
    lea r8, [rip + 4f]
    jmp r8
4:  dec rsi
    jnz 2b
    stop_counting
3:  ret

pmu_touch:
    mov r8, rdx
    start_counting
2:  mov al, [r8]
    add r8, 64
    dec rsi
    jnz 2b
    stop_counting

pmu_sled:
    start_counting
    sti
pmu_sled_first:
    .rept 100
    nop
    .endr
    cli
    stop_counting
    .popsection
"#,
    GLOBAL_CTRL = const GLOBAL_CTRL,
);

unsafe extern "C" {
    /// Two instructions, one of them a conditional branch, `count` times; four more end it.
    pub(crate) fn pmu_loop(global_ctrl: u64, count: u64);
    /// Fills `count` bytes at `place` with one repeated instruction; four instructions come before it, four after.
    pub(crate) fn pmu_fill(global_ctrl: u64, count: u64, place: *mut u8);
    /// CALL, RET, LEA, an indirect JMP and the two of [`pmu_loop`], `count` times; four more end it.
    pub(crate) fn pmu_calls(global_ctrl: u64, count: u64);
    /// Loads a byte of each of `count` lines of 64 bytes from `place` on: four instructions each, four more end it.
    pub(crate) fn pmu_touch(global_ctrl: u64, count: u64, place: *const u8);
    /// STI, a hundred NOPs of one byte each from `pmu_sled_first` on, CLI, and four more.
    pub(crate) fn pmu_sled(global_ctrl: u64);
    pub(crate) fn pmu_sled_first();
}

/// Instructions that count in `stop_counting`.
pub(crate) const STOP: u64 = 4;
