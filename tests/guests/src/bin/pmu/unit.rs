//! The unit's registers by the manual's names (SDM Vol. 4), and code whose length is known.

use core::arch::global_asm;
use guests::cpu::{rdmsr, wrmsr};

pub(crate) const PMC: u32 = 0xc1;
pub(crate) const PERFEVTSEL: u32 = 0x186;
pub(crate) const MISC_ENABLE: u32 = 0x1a0;
pub(crate) const DEBUGCTL: u32 = 0x1d9;
pub(crate) const FIXED_CTR: u32 = 0x309;
pub(crate) const CAPABILITIES: u32 = 0x345;
pub(crate) const FIXED_CTR_CTRL: u32 = 0x38d;
pub(crate) const STATUS: u32 = 0x38e;
pub(crate) const GLOBAL_CTRL: u32 = 0x38f;
pub(crate) const STATUS_RESET: u32 = 0x390;
pub(crate) const STATUS_SET: u32 = 0x391;
pub(crate) const INUSE: u32 = 0x392;
pub(crate) const A_PMC: u32 = 0x4c1;

/// Bits of a selector.
pub(crate) const USR: u64 = 1 << 16;
pub(crate) const OS: u64 = 1 << 17;
pub(crate) const EDGE: u64 = 1 << 18;
pub(crate) const INT: u64 = 1 << 20;
pub(crate) const EN: u64 = 1 << 22;
pub(crate) const INV: u64 = 1 << 23;

/// CMASK of a selector.
pub(crate) const fn cmask(events: u64) -> u64 {
    events << 24
}

/// Event select and unit mask of the events that a machine has.
pub(crate) const CYCLES: u64 = 0x3c;
pub(crate) const REFERENCE_CYCLES: u64 = 0x013c;
pub(crate) const INSTRUCTIONS: u64 = 0xc0;
pub(crate) const BRANCHES: u64 = 0xc4;
pub(crate) const CONDITIONAL: u64 = 0x11c4;
pub(crate) const MISPREDICTED: u64 = 0xc5;
pub(crate) const REFERENCES: u64 = 0x4f2e;
pub(crate) const MISSES: u64 = 0x412e;

/// Largest value of a counter.
pub(crate) const LAST: u64 = (1 << 48) - 1;
/// Bit of GLOBAL_STATUS: branch records are frozen.
pub(crate) const LBR_FRZ: u64 = 1 << 58;
/// Bit of GLOBAL_STATUS: all counters are frozen.
pub(crate) const CTR_FRZ: u64 = 1 << 59;
/// General-purpose and fixed counters in the GLOBAL registers.
pub(crate) const ALL: u64 = 0xff | 0xf << 32;

/// Stops everything, and zeroes every selector, counter and status bit.
pub(crate) unsafe fn clear() {
    wrmsr(GLOBAL_CTRL, 0);
    wrmsr(DEBUGCTL, 0);
    wrmsr(FIXED_CTR_CTRL, 0);
    for n in 0..8 {
        wrmsr(PERFEVTSEL + n, 0);
        wrmsr(PMC + n, 0);
    }
    for n in 0..4 {
        wrmsr(FIXED_CTR + n, 0);
    }
    wrmsr(STATUS_RESET, ALL | CTR_FRZ);
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
    mov ecx, 0x38f
    wrmsr
    .endm
    .macro stop_counting
    xor eax, eax
    xor edx, edx
    mov ecx, 0x38f
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
"#
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
