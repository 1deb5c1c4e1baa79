//! Runs code that may fault, and returns the fault.

use crate::boot::{CODE64, DATA};
use crate::interrupts::Frame;
use crate::{cpu, report};
use core::arch::global_asm;

/// An exception that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The vector.
    pub vector: u8,
    /// The error code, 0 where the exception has none.
    pub error_code: u64,
    /// Where the saved RIP pointed.
    pub rip: u64,
    /// CR2 right after delivery.
    pub cr2: u64,
    /// The saved RFLAGS.
    pub rflags: u64,
    /// The saved CS.
    pub cs: u64,
}

/// Vector of #DE.
pub const DE: u8 = 0;
/// Vector of #DB.
pub const DB: u8 = 1;
/// Vector of #BP.
pub const BP: u8 = 3;
/// Vector of #UD.
pub const UD: u8 = 6;
/// Vector of #NM.
pub const NM: u8 = 7;
/// Vector of #NP.
pub const NP: u8 = 11;
/// Vector of #SS.
pub const SS: u8 = 12;
/// Vector of #GP.
pub const GP: u8 = 13;
/// Vector of #PF.
pub const PF: u8 = 14;

// `fault_try` keeps what the ABI says a call keeps, remembers the stack, and calls. A fault lands at `fault_landing` with
// that stack, as if the call had returned.
global_asm!(
    r#"
    .pushsection .text.fault_try, "ax"
    .globl fault_try, fault_landing
fault_try:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    push [fault_stack]
    sub rsp, 8
    mov [fault_stack], rsp
    mov rax, rdi
    mov rdi, rsi
    call rax
    xor eax, eax
    jmp 2f
fault_landing:
    mov eax, 1
2:  add rsp, 8
    pop [fault_stack]
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    .popsection
    .pushsection .bss.fault_stack, "aw", @nobits
    .balign 8
    .globl fault_stack
fault_stack: .skip 8
    .popsection
"#
);

unsafe extern "C" {
    fn fault_try(function: unsafe extern "C" fn(*mut ()), argument: *mut ()) -> u32;
    fn fault_landing();
    static mut fault_stack: u64;
}

static mut LAST: Fault = Fault { vector: 0, error_code: 0, rip: 0, cr2: 0, rflags: 0, cs: 0 };

/// Calls `body`; an exception in it ends the call and is returned. `body` must own nothing that needs dropping.
pub unsafe fn catch(mut body: impl FnMut()) -> Option<Fault> {
    unsafe extern "C" fn call<F: FnMut()>(body: *mut ()) {
        (*body.cast::<F>())();
    }
    fn of<F: FnMut()>(_: &F) -> unsafe extern "C" fn(*mut ()) {
        call::<F>
    }
    let function = of(&body);
    let faulted = fault_try(function, (&raw mut body).cast());
    (faulted != 0).then(|| (&raw const LAST).read_volatile())
}

/// Sends the interrupted program to where [`catch`] waits, if it does; returns whether it does.
pub unsafe fn caught(frame: &mut Frame) -> bool {
    let stack = (&raw const fault_stack).read_volatile();
    if stack == 0 {
        return false;
    }
    let fault = Fault {
        vector: frame.vector as u8,
        error_code: frame.error_code,
        rip: frame.rip,
        cr2: cpu::read_cr2(),
        rflags: frame.rflags,
        cs: frame.cs,
    };
    (&raw mut LAST).write_volatile(fault);
    frame.rip = fault_landing as *const () as u64;
    frame.rsp = stack;
    frame.rflags = 2;
    frame.cs = u64::from(CODE64);
    frame.ss = u64::from(DATA);
    true
}

/// Fails unless `body` raises `vector` with `error_code`.
pub unsafe fn raises(what: &'static str, vector: u8, error_code: u64, body: impl FnMut()) -> report::Outcome {
    match catch(body) {
        Some(fault) => {
            report::same(what, fault.vector, vector)?;
            report::same(what, fault.error_code, error_code)
        }
        None => report::check(false, what),
    }
}

/// Fails if `body` raises anything.
pub unsafe fn quiet(what: &'static str, body: impl FnMut()) -> report::Outcome {
    match catch(body) {
        Some(fault) => report::same(what, fault.vector, 0xffffu64),
        None => Ok(()),
    }
}
