//! The world switch: general registers only, because the host never touches vector, x87 or tile state.
#![expect(unsafe_code, reason = "enters the guest")]

use core::mem::offset_of;

/// The guest's general registers, but for RAX and RSP, which VMRUN itself switches.
#[expect(missing_docs, reason = "the names are the manual's")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GuestRegisters {
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

/// Runs the guest until it leaves.
///
/// # Safety
/// EFER.SVME is set and the processor has its host save area. `guest` is the physical address of a VMCB whose nested
/// tables map only memory that is the guest's, whose intercepts keep the guest from the host's registers (MSRs, ports),
/// and which nothing borrows during the call. `host` is the physical address of a frame that VMSAVE has filled on this
/// processor, since when nothing it holds has changed. RFLAGS.IF is 0 and GIF is 1.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn run(registers: &mut GuestRegisters, guest: u64, host: u64) {
    core::arch::naked_asm!(
        // 1. The host keeps what the System V ABI lets a function's caller rely on, and its two pointers.
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rdi",
        // 2. RAX stays the VMCB's address up to VMRUN, which loads the guest's.
        "mov rax, rsi",
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
        // 3. With GIF = 0 nothing interrupts the switch; the host's IF = 1 lets an interrupt end the guest's run
        //    (V_INTR_MASKING, APM Vol. 2 15.21.1).
        "clgi",
        "sti",
        "vmload rax",
        "vmrun rax",
        // 4. The guest has left: RAX, RSP, RFLAGS, RIP and the control registers are the host's again.
        "vmsave rax",
        "mov rax, [rsp + 8]",
        "vmload rax",
        "cli",
        "stgi",
        "mov rax, [rsp]",
        "mov [rax + {rcx}], rcx",
        "mov [rax + {rdx}], rdx",
        "mov [rax + {rbx}], rbx",
        "mov [rax + {rbp}], rbp",
        "mov [rax + {rsi}], rsi",
        "mov [rax + {rdi}], rdi",
        "mov [rax + {r8}], r8",
        "mov [rax + {r9}], r9",
        "mov [rax + {r10}], r10",
        "mov [rax + {r11}], r11",
        "mov [rax + {r12}], r12",
        "mov [rax + {r13}], r13",
        "mov [rax + {r14}], r14",
        "mov [rax + {r15}], r15",
        // 5. Back to the caller.
        "add rsp, 16",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        rcx = const offset_of!(GuestRegisters, rcx),
        rdx = const offset_of!(GuestRegisters, rdx),
        rbx = const offset_of!(GuestRegisters, rbx),
        rbp = const offset_of!(GuestRegisters, rbp),
        rsi = const offset_of!(GuestRegisters, rsi),
        rdi = const offset_of!(GuestRegisters, rdi),
        r8 = const offset_of!(GuestRegisters, r8),
        r9 = const offset_of!(GuestRegisters, r9),
        r10 = const offset_of!(GuestRegisters, r10),
        r11 = const offset_of!(GuestRegisters, r11),
        r12 = const offset_of!(GuestRegisters, r12),
        r13 = const offset_of!(GuestRegisters, r13),
        r14 = const offset_of!(GuestRegisters, r14),
        r15 = const offset_of!(GuestRegisters, r15),
    )
}
