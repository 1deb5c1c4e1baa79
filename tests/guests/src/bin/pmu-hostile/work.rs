//! Stretches of work whose events are known to the last one.

use crate::oracle::*;
use crate::{VECTORED, same};
use core::arch::global_asm;
use core::sync::atomic::Ordering::Relaxed;
use guests::boot::number;
use guests::cpu::{self, wrmsr};
use guests::lapic::{self, SILENT, register::LVT_PMC};
use guests::pmu::*;
use guests::random::Random;

// An instruction counts under the controls it begins with: the first WRMSR does not, the last one does, and with it the
// three before.
global_asm!(
    r#"
    .pushsection .text.hostile_work, "ax"
    .macro begin_work
    push rbx
    mov r8, rsi
    mov rax, rdi
    mov rdx, rdi
    shr rdx, 32
    mov ecx, {GLOBAL_CTRL}
    wrmsr
    .endm
    .macro end_work
    xor eax, eax
    xor edx, edx
    mov ecx, {GLOBAL_CTRL}
    wrmsr
    pop rbx
    ret
    .endm
    .globl hostile_loop, hostile_exits
hostile_loop:
    begin_work
2:  dec r8
    jnz 2b
    end_work
hostile_exits:
    begin_work
2:  xor eax, eax
    cpuid
    dec r8
    jnz 2b
    end_work
    .popsection
"#,
    GLOBAL_CTRL = const GLOBAL_CTRL,
);

unsafe extern "C" {
    /// Two instructions `turns` times, one of them a conditional branch, and four.
    fn hostile_loop(global_ctrl: u64, turns: u64);
    /// Four instructions `turns` times, one a conditional branch and one CPUID, and four.
    fn hostile_exits(global_ctrl: u64, turns: u64);
}

/// Stops all counters, and thaws them.
pub(crate) unsafe fn quiet(oracle: &mut Oracle) {
    lapic::write(LVT_PMC, SILENT);
    oracle.change(|oracle| {
        wrmsr(GLOBAL_CTRL, 0);
        oracle.global = 0;
        wrmsr(DEBUGCTL, 0);
        oracle.debugctl = 0;
    });
    let frozen = oracle.set_bits & CTR_FRZ;
    wrmsr(STATUS_RESET, frozen);
    oracle.status_written(STATUS_RESET, frozen);
}

/// Returns what of a stretch a counter counts; `None` where it is more than this guest knows.
fn expected(oracle: &Oracle, index: usize, instructions: u64, turns: u64) -> Option<u64> {
    if !oracle.enabled(index) || oracle.denied(index) {
        return Some(0);
    }
    match oracle.counter(index).bit {
        32 => Some(instructions),
        n @ 0..32 => {
            let selector = oracle.selectors[n as usize];
            // Edge detection, inversion, and thresholds.
            let plain = selector & (EDGE | INV | cmask(0xff)) == 0;
            match selector & 0xffff {
                _ if !plain => None,
                INSTRUCTIONS => Some(instructions),
                BRANCHES | CONDITIONAL => Some(turns),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Works with random counters enabled: what is denied does not count, and what is not counts all of it.
pub(crate) unsafe fn stretch(oracle: &mut Oracle, random: &mut Random) {
    quiet(oracle);
    let global = if random.below(2) == 0 { oracle.bits() } else { random.next() & oracle.bits() };
    let (work, each, turns): (unsafe extern "C" fn(u64, u64), u64, u64) = if random.below(3) == 0 {
        (hostile_exits, 4, 1 + random.below(8))
    } else {
        (hostile_loop, 2, 1 + random.below(200))
    };
    let instructions = each * turns + 4;
    work(global, turns);
    oracle.global = global;
    for index in 0..oracle.count {
        let counted = oracle.advanced(index);
        if let Some(wanted) = expected(oracle, index, instructions, turns) {
            same("events of a stretch", oracle.counter(index).msr, counted, wanted);
        }
    }
    // They ran while it lasted, and stand still now.
    oracle.ran(global);
    oracle.stretches += 1;
}

/// Has a counter run over in the middle of instructions that leave this guest: where the event is not denied that
/// interrupts once, however late, and not at all where it is.
pub(crate) unsafe fn run_over(oracle: &mut Oracle, random: &mut Random) {
    const INTERRUPTING: u64 = INSTRUCTIONS | OS | EN | INT;
    quiet(oracle);
    cpu::breathe();
    let n = random.below(oracle.there.general.into()) as u32;
    let turns = 1 + random.below(6);
    let before = LAST - random.below(4 * turns);
    oracle.change(|oracle| {
        wrmsr(PERFEVTSEL + n, INTERRUPTING);
        oracle.selectors[n as usize] = INTERRUPTING;
        wrmsr(A_PMC + n, before);
        oracle.written(n as usize, before);
    });
    lapic::write(LVT_PMC, 0x51);
    let came = VECTORED.load(Relaxed);
    hostile_exits(1 << n, turns);
    oracle.ran(1 << n);
    hostile_loop(0, 1 + number("skid").unwrap_or(0));
    cpu::breathe();
    let wanted = u64::from(!oracle.denied(n as usize));
    same("interrupts of a counter that runs over", n, (VECTORED.load(Relaxed) - came).into(), wanted);
    same("events up to its end", n, oracle.advanced(n as usize), wanted * (4 * turns + 4));
    lapic::write(LVT_PMC, SILENT);
}
