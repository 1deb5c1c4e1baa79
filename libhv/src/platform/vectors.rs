//! The interrupt descriptor table and the stubs behind it.
#![expect(unsafe_code, reason = "interrupt entry is assembly")]

use super::{host_pmi, interrupts, processor, watchdog};
use hermit_sync::OnceCell;
use x86_64::VirtAddr;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::{Entry, HandlerFunc};

/// Vectors that have a stub: 0 to 63.
const VECTORS: usize = 64;
/// Bytes from one stub to the next.
const STUB: u64 = 16;

type Table = [Entry<HandlerFunc>; VECTORS];

static EARLY: OnceCell<Table> = OnceCell::new();
static FINAL: OnceCell<Table> = OnceCell::new();

unsafe extern "C" {
    /// The first stub; the others follow, [`STUB`] bytes apart.
    safe static libhv_vectors: u8;
}

/// What a stub leaves on the stack: registers a Rust function may change, the vector, the error code (0 where the
/// vector has none), and what the processor pushed.
#[repr(C)]
#[derive(Debug)]
struct Entered {
    registers: [u64; 9],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

// 1. The processor has aligned the stack to 16 and pushed SS, RSP, RFLAGS, CS, RIP, and for some vectors an error code.
// 2. A stub pushes 0 where there is no error code, and the vector.
// 3. The registers that the callee may change are saved: with them the stack is aligned to 16 again for the call. There
//    are no vector registers to save: the host never touches them.
core::arch::global_asm!(
    r#"
    .section .text.libhv_vectors, "ax"
    .balign {stub}
    .globl libhv_vectors
libhv_vectors:
    .set libhv_vector, 0
    .rept {vectors}
    .balign {stub}
    .if !((libhv_vector == 8) || ((libhv_vector >= 10) && (libhv_vector <= 14)) || (libhv_vector == 17) || (libhv_vector == 21) || (libhv_vector == 29) || (libhv_vector == 30))
    push 0
    .endif
    push libhv_vector
    jmp libhv_entered
    .set libhv_vector, libhv_vector + 1
    .endr

    .balign 16
libhv_entered:
    push r11
    push r10
    push r9
    push r8
    push rdi
    push rsi
    push rdx
    push rcx
    push rax
    cld
    mov rdi, rsp
    call {entered}
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    pop r8
    pop r9
    pop r10
    pop r11
    add rsp, 16
    iretq
    "#,
    stub = const STUB,
    vectors = const VECTORS,
    entered = sym entered,
);

/// What the stubs call.
extern "C" fn entered(frame: &mut Entered) {
    match frame.vector as u8 {
        2 => {
            interrupts::serve(2);
            let guests = interrupts::take_guest_nmi() || {
                watchdog::nmi(frame.rip, frame.rflags);
                host_pmi::nmi(frame.rip)
            };
            // What it has asked for is served before HLT, which would wait for something else then.
            if guests && frame.rip == processor::halts_at() {
                frame.rip += 1;
            }
        }
        vector @ 0..=31 => {
            let cr2 = x86_64::registers::control::Cr2::read_raw();
            panic!(
                "exception {vector} in the host: error code {:#x}, RIP {:#x}, RSP {:#x}, RFLAGS {:#x}, CR2 {cr2:#x}",
                frame.error_code, frame.rip, frame.rsp, frame.rflags
            );
        }
        vector => interrupts::serve(vector),
    }
}

/// The stacks of the interrupt-stack table, counted from 0.
pub(super) const DOUBLE_FAULT_STACK: u16 = 0;
pub(super) const NMI_STACK: u16 = 1;
pub(super) const MACHINE_CHECK_STACK: u16 = 2;

/// Loads the table. With `stacks`, #DF, NMI and #MC have stacks of their own, in the task-state segment that is loaded.
pub(crate) fn load(stacks: bool) {
    let cell = if stacks { &FINAL } else { &EARLY };
    let table = cell.get_or_init(|| {
        let mut table = [const { Entry::missing() }; VECTORS];
        let mut stub = &raw const libhv_vectors as u64;
        for (vector, entry) in table.iter_mut().enumerate() {
            // SAFETY: the stub expects exactly what the processor pushes for its vector.
            let options = unsafe { entry.set_handler_addr(VirtAddr::new(stub)) };
            let stack = match vector {
                2 => Some(NMI_STACK),
                8 => Some(DOUBLE_FAULT_STACK),
                18 => Some(MACHINE_CHECK_STACK),
                _ => None,
            };
            if let Some(stack) = stack.filter(|_| stacks) {
                // SAFETY: the caller says that the task-state segment has the stack; no other vector uses it.
                unsafe { options.set_stack_index(stack) };
            }
            stub += STUB;
        }
        table
    });
    let pointer = DescriptorTablePointer { limit: (size_of::<Table>() - 1) as u16, base: VirtAddr::from_ptr(table) };
    // SAFETY: the table is complete and stays where it is: it is in a static that is written once.
    unsafe { x86_64::instructions::tables::lidt(&pointer) };
}
