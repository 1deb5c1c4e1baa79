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
#[inline(always)]
pub(super) unsafe fn run(registers: &mut GuestRegisters, guest: u64, host: u64) {
    // SAFETY: the caller vouches for the VMCB and the frame. RBX and RBP, which cannot be declared, and RDI come back as
    // they went; every other general register is declared as changed, and the stack is left as it was found. Vector
    // and x87 registers are the guest's, always.
    unsafe {
        core::arch::asm!(
            // 1. The host keeps what it cannot do without. RAX is the VMCB's address up to VMRUN, which loads the guest's.
            "push rbp",
            "push rbx",
            "push rdi",
            "push rdx",
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
            // 2. With GIF = 0 nothing interrupts the switch; the host's IF = 1 lets an interrupt end the guest's run
            //    (V_INTR_MASKING, APM Vol. 2 15.21.1).
            "clgi",
            "sti",
            "vmload rax",
            "vmrun rax",
            // 3. The guest has left: RAX, RSP, RFLAGS, RIP and the control registers are the host's again.
            "vmsave rax",
            "pop rax",
            "vmload rax",
            "cli",
            "stgi",
            "pop rax",
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
            "mov rdi, rax",
            "pop rbx",
            "pop rbp",
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
            in("rdi") registers,
            inout("rax") guest => _,
            inout("rdx") host => _,
            out("rcx") _, out("rsi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}
