//! The way into the guest and back: general registers only, everything else is the VMCS's or stays in the processor.
#![expect(unsafe_code, reason = "enters the guest")]

use crate::registers::Gpr;
use core::arch::{asm, naked_asm};
use core::mem::offset_of;

/// The guest's general registers between exit and entry, and the stack pointer that exits come back with.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Registers {
    /// In the order of their numbers. RSP's place is not used: RSP is in the VMCS.
    pub(super) general: [u64; 16],
    /// What the VMCS has in HOST_RSP; 0 before the first entry.
    host_rsp: u64,
}

const fn general(register: Gpr) -> usize {
    offset_of!(Registers, general) + 8 * register as usize
}

/// The body of both ways in; `$enter` is VMLAUNCH or VMRESUME.
///
/// 1. The host saves what inline assembly cannot declare as changed, RBP and RBX, and the pointer to the registers.
/// 2. HOST_RSP is written if the stack is not where it was at the last entry.
/// 3. The guest's registers are loaded, RDI last: it held the pointer.
/// 4. VM entry. On success the host goes on in [`leave`]. On failure it goes on here, with the reason in CF and ZF,
///    which nothing on the way back changes.
macro_rules! way_in {
    ($(#[$doc:meta])* $name:ident, $enter:literal) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "push rbp",
                "push rbx",
                "push rdi",
                "cmp rsp, [rdi + {host_rsp}]",
                "jne 3f",
                "2:",
                "mov rax, [rdi + {rax}]",
                "mov rcx, [rdi + {rcx}]",
                "mov rdx, [rdi + {rdx}]",
                "mov rbx, [rdi + {rbx}]",
                "mov rbp, [rdi + {rbp}]",
                "mov rsi, [rdi + {rsi}]",
                "mov r8, [rdi + {r8}]",
                "mov r9, [rdi + {r9}]",
                "mov r10, [rdi + {r10}]",
                "mov r11, [rdi + {r11}]",
                "mov r12, [rdi + {r12}]",
                "mov r13, [rdi + {r13}]",
                "mov r14, [rdi + {r14}]",
                "mov r15, [rdi + {r15}]",
                "mov rdi, [rdi + {rdi}]",
                $enter,
                "pop rdi",
                "pop rbx",
                "pop rbp",
                "ret",
                "3:",
                "mov [rdi + {host_rsp}], rsp",
                "mov eax, {host_rsp_field}",
                "vmwrite rax, rsp",
                "jmp 2b",
                host_rsp = const offset_of!(Registers, host_rsp),
                host_rsp_field = const super::field::HOST_RSP.encoding(),
                rax = const general(Gpr::Rax),
                rcx = const general(Gpr::Rcx),
                rdx = const general(Gpr::Rdx),
                rbx = const general(Gpr::Rbx),
                rbp = const general(Gpr::Rbp),
                rsi = const general(Gpr::Rsi),
                rdi = const general(Gpr::Rdi),
                r8 = const general(Gpr::R8),
                r9 = const general(Gpr::R9),
                r10 = const general(Gpr::R10),
                r11 = const general(Gpr::R11),
                r12 = const general(Gpr::R12),
                r13 = const general(Gpr::R13),
                r14 = const general(Gpr::R14),
                r15 = const general(Gpr::R15),
            )
        }
    };
}

way_in! {
    /// Enters with VMRESUME.
    resume_guest, "vmresume"
}
way_in! {
    /// Enters with VMLAUNCH.
    launch_guest, "vmlaunch"
}

/// Where every VM exit arrives: HOST_RIP.
///
/// The stack is as the way in left it: registers' pointer, RBX, RBP, return address. The exit has cleared CF and ZF,
/// and nothing here changes them.
#[unsafe(naked)]
unsafe extern "C" fn leave() {
    naked_asm!(
        "xchg rdi, [rsp]",
        "mov [rdi + {rax}], rax",
        "mov [rdi + {rcx}], rcx",
        "mov [rdi + {rdx}], rdx",
        "mov [rdi + {rbx}], rbx",
        "mov [rdi + {rbp}], rbp",
        "mov [rdi + {rsi}], rsi",
        "mov [rdi + {r8}], r8",
        "mov [rdi + {r9}], r9",
        "mov [rdi + {r10}], r10",
        "mov [rdi + {r11}], r11",
        "mov [rdi + {r12}], r12",
        "mov [rdi + {r13}], r13",
        "mov [rdi + {r14}], r14",
        "mov [rdi + {r15}], r15",
        "pop qword ptr [rdi + {rdi}]",
        "pop rbx",
        "pop rbp",
        "ret",
        rax = const general(Gpr::Rax),
        rcx = const general(Gpr::Rcx),
        rdx = const general(Gpr::Rdx),
        rbx = const general(Gpr::Rbx),
        rbp = const general(Gpr::Rbp),
        rsi = const general(Gpr::Rsi),
        rdi = const general(Gpr::Rdi),
        r8 = const general(Gpr::R8),
        r9 = const general(Gpr::R9),
        r10 = const general(Gpr::R10),
        r11 = const general(Gpr::R11),
        r12 = const general(Gpr::R12),
        r13 = const general(Gpr::R13),
        r14 = const general(Gpr::R14),
        r15 = const general(Gpr::R15),
    )
}

/// Returns the address at which VM exits must arrive.
pub(super) fn exit_point() -> u64 {
    leave as *const () as u64
}

/// An instruction that failed: VMfailValid, with the reason in the VMCS, or VMfailInvalid, with none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failed;

macro_rules! enter {
    ($(#[$doc:meta])* $name:ident, $way_in:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// VMX root operation with a current VMCS whose host state is this processor's, with [`exit_point`] in
        /// HOST_RIP, and whose controls keep the guest in memory of its own. `registers` are this VMCS's.
        #[inline(always)]
        pub(super) unsafe fn $name(registers: &mut Registers) -> Result<(), Failed> {
            // SAFETY: the caller vouches for it. RDI comes back as it went; RBP and RBX are saved by the callee;
            // every other general register is declared. Vector and x87 registers are the guest's, always.
            unsafe {
                asm!(
                    "call {way_in}",
                    "ja {left}",
                    way_in = sym $way_in,
                    left = label { return Ok(()) },
                    in("rdi") registers,
                    out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _,
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                    out("r12") _, out("r13") _, out("r14") _, out("r15") _,
                );
            }
            Err(Failed)
        }
    };
}

enter! {
    /// Enters a guest that has run before, and returns after the exit.
    resume, resume_guest
}
enter! {
    /// Enters a guest for the first time, and returns after the exit.
    launch, launch_guest
}
