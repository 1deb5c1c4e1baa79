//! The interrupt descriptor table, what each vector does, and how often it came.

use crate::boot::{CODE64, TSS, boot_gdt, boot_gdt_pointer};
use crate::{cpu, end, faults, say};
use core::arch::{asm, global_asm};
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The registers of the interrupted program, as the entry code lays them on the stack.
#[repr(C)]
#[expect(missing_docs, reason = "the fields are registers by the manual's names")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What serves a vector.
pub type Handler = unsafe fn(&mut Frame);

global_asm!(
    r#"
    .pushsection .text.interrupt_stubs, "ax"
    .balign 16
    .globl interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    push vector
    jmp interrupt_entry
    .set vector, vector + 1
    .endr

interrupt_entry:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    mov rbx, rsp
    and rsp, -16
    call interrupt_dispatch
    mov rsp, rbx
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
    .popsection
"#
);

unsafe extern "C" {
    static interrupt_stubs: [[u8; 16]; 256];
}

/// The table itself; two words per vector.
pub static mut IDT: [[u64; 2]; 256] = [[0; 2]; 256];

/// The task-state segment: RSP0 at index 1, IST1 to IST7 from index 9 on, as doublewords.
pub static mut TASK: [u32; 26] = [0; 26];

#[repr(align(16))]
struct Stack(#[expect(dead_code, reason = "only its address is used")] [u8; 16384]);

static mut STACKS: [Stack; 3] = [const { Stack([0; 16384]) }; 3];

static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
static RIPS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

/// Returns the address of one of three spare stacks' ends: 0 serves RSP0, 1 and 2 serve IST1 and IST2.
pub fn stack_end(index: usize) -> u64 {
    let size = size_of::<Stack>();
    addr_of!(STACKS).expose_provenance() as u64 + ((index + 1) * size) as u64
}

/// Fills and loads IDT and TSS: double faults go to IST2, everything else to the running stack.
pub unsafe fn initialize() {
    for vector in 0..=255u8 {
        let stub = addr_of!(interrupt_stubs[usize::from(vector)]).expose_provenance() as u64;
        set_gate(vector, stub, if vector == 8 { 2 } else { 0 }, 0);
    }
    for (slot, stack) in [(1, 0), (9, 1), (11, 2)] {
        TASK[slot] = stack_end(stack) as u32;
        TASK[slot + 1] = (stack_end(stack) >> 32) as u32;
    }
    TASK[25] = 104 << 16;
    let task = addr_of_mut!(TASK).expose_provenance() as u64;
    boot_gdt[8] = 0x0000_8900_0000_0067 | (task & 0xff_ffff) << 16 | (task >> 24 & 0xff) << 56;
    boot_gdt[9] = task >> 32;
    reload();
}

/// Loads GDTR, IDTR and TR again with the guest's own tables.
pub unsafe fn reload() {
    asm!("lgdt [{}]", in(reg) addr_of!(boot_gdt_pointer), options(nostack));
    boot_gdt[8] &= !(2 << 40);
    asm!("ltr {:x}", in(reg) TSS, options(nostack));
    load_idt(0xfff);
}

/// Loads IDTR with the guest's own table and the given limit.
pub unsafe fn load_idt(limit: u16) {
    let table = addr_of!(IDT).expose_provenance() as u64;
    let pointer = [u64::from(limit) << 48, table];
    let address = addr_of!(pointer).cast::<u8>().add(6);
    asm!("lidt [{}]", in(reg) address, options(nostack));
}

/// Writes one interrupt gate: target, IST index and DPL.
pub unsafe fn set_gate(vector: u8, target: u64, ist: u64, dpl: u64) {
    let low =
        target & 0xffff | u64::from(CODE64) << 16 | ist << 32 | (0x8e | dpl << 5) << 40 | (target >> 16 & 0xffff) << 48;
    IDT[usize::from(vector)] = [low, target >> 32];
}

/// Sets the privilege level from which INT n may use a gate.
pub unsafe fn set_privilege(vector: u8, dpl: u64) {
    let word = &mut IDT[usize::from(vector)][0];
    *word = *word & !(3 << 45) | dpl << 45;
}

/// Sets the stack a vector switches to: 0 for none, 1 or 2.
pub unsafe fn set_stack(vector: u8, ist: u64) {
    let word = &mut IDT[usize::from(vector)][0];
    *word = *word & !(7 << 32) | ist << 32;
}

/// Has `handler` serve a vector, and forgets how often it came.
pub fn on(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector)].store(handler as usize, Relaxed);
    COUNTS[usize::from(vector)].store(0, Relaxed);
}

/// Takes the handler of a vector away.
pub fn off(vector: u8) {
    HANDLERS[usize::from(vector)].store(0, Relaxed);
}

/// Returns how often a vector came since [`on`].
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Relaxed)
}

/// Returns where the program stood when a vector last came.
pub fn last_rip(vector: u8) -> u64 {
    RIPS[usize::from(vector)].load(Relaxed)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn interrupt_dispatch(frame: &mut Frame) {
    let index = (frame.vector & 0xff) as usize;
    COUNTS[index].fetch_add(1, Relaxed);
    RIPS[index].store(frame.rip, Relaxed);
    let handler = HANDLERS[index].load(Relaxed);
    if handler != 0 {
        let handler: Handler = core::mem::transmute::<usize, Handler>(handler);
        handler(frame);
    } else if !(frame.vector < 32 && faults::caught(frame)) {
        say!(
            "libhv: fail unexpected vector {:#x}: error code {:#x}, rip {:#x}, cs {:#x}, rflags {:#x}, rsp {:#x}, cr2 {:#x}",
            frame.vector,
            frame.error_code,
            frame.rip,
            frame.cs,
            frame.rflags,
            frame.rsp,
            cpu::read_cr2()
        );
        end::debug_exit(0x3e);
    }
}
