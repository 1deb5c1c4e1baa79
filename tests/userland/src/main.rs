//! A Linux program of exactly known length: it says how many instructions it takes from its first to its last, itself included.
//!
//! ```text
//! workload loop N      N turns of the hot loop
//! workload exits N K   the same in K equal parts, with a CPUID after each; what of N is left over is left out
//! workload mixed N     N turns of arithmetic, memory accesses, calls and branches that nobody can guess; says how many
//!                      ticks of the time stamp counter they took
//! ```
//! `loop` and `exits` say `workload instructions I branches B conditional C syscalls S`: I counts every instruction in user
//! mode, the SYSCALLs among them; B is without SYSCALL, and what of B is conditional is C. Wrong words end it with status 2.
//!
//! All of it is assembly, in `workload.s`, so that no compiler changes the numbers. Its symbols `hot_loop` and `hot_loop_end`
//! frame the loop.
#![no_std]
#![no_main]

core::arch::global_asm!(include_str!("workload.s"));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
