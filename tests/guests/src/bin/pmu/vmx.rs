//! The least hypervisor: a guest that shares everything with its host but the control structure, to see the unit cross the
//! boundary (SDM Vol. 3C ch. 25 to 28).

use core::arch::{asm, global_asm};
use core::ptr::with_exposed_provenance_mut;
use guests::boot::{CODE64, DATA, TSS, boot_gdt};
use guests::cpu::{self, cpuid, rdmsr, wrmsr};
use guests::interrupts::{IDT, TASK};
use guests::pmu::{DEBUGCTL, FREEZE, GLOBAL_CTRL, PMC};

/// Physical memory that is nobody's: the VMXON region, the VMCS, the MSR bitmap, three MSR lists and the guest's stack.
const FREE: u64 = 0x1e0_0000;
pub(crate) const BITMAP: u64 = FREE + 0x2000;
pub(crate) const LIST: u64 = FREE + 0x3000;
const STACK: u64 = FREE + 0x6000;

pub(crate) const PRIMARY: u64 = 0x4002;
pub(crate) const EXIT_CONTROLS: u64 = 0x400c;
pub(crate) const EXIT_STORE_COUNT: u64 = 0x400e;
pub(crate) const EXIT_LOAD_COUNT: u64 = 0x4010;
pub(crate) const ENTRY_CONTROLS: u64 = 0x4012;
pub(crate) const ENTRY_LOAD_COUNT: u64 = 0x4014;
pub(crate) const ERROR: u64 = 0x4400;
pub(crate) const REASON: u64 = 0x4402;
pub(crate) const LENGTH: u64 = 0x440c;
pub(crate) const GUEST_DEBUGCTL: u64 = 0x2802;
pub(crate) const GUEST_GLOBAL_CTRL: u64 = 0x2808;
pub(crate) const HOST_GLOBAL_CTRL: u64 = 0x2c04;
pub(crate) const GUEST_RIP: u64 = 0x681e;

/// VM-exit control: save IA32_PERF_GLOBAL_CTRL.
pub(crate) const SAVE_GLOBAL_CTRL: u64 = 1 << 30;
/// VM-exit control: load IA32_PERF_GLOBAL_CTRL.
pub(crate) const HOST_LOADS: u64 = 1 << 12;
/// VM-entry control: load IA32_PERF_GLOBAL_CTRL.
pub(crate) const GUEST_LOADS: u64 = 1 << 13;

// Loads GLOBAL_CTRL with RSI and enters; after the exit GLOBAL_CTRL is 0. Three instructions of the host count before the
// guest begins, VMRESUME the last of them; four count after the exit.
global_asm!(
    r#"
    .pushsection .text.vmx_enter, "ax"
    .globl vmx_enter, vmx_exit_here
vmx_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    mov eax, 0x6c14
    vmwrite rax, rsp
    lea r8, [rip + vmx_exit_here]
    mov eax, 0x6c16
    vmwrite rax, r8
    mov eax, esi
    mov rdx, rsi
    shr rdx, 32
    mov ecx, {GLOBAL_CTRL}
    wrmsr
    test edi, edi
    jnz 2f
    vmlaunch
    jmp 3f
2:  vmresume
3:  mov eax, 1
    jmp 4f
vmx_exit_here:
    xor eax, eax
    xor edx, edx
    mov ecx, {GLOBAL_CTRL}
    wrmsr
4:  popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    .popsection

    .pushsection .text.vmx_guest, "ax"
    .globl vmx_guest_loop, vmx_guest_touches, vmx_guest_writes
vmx_guest_loop:
2:  mov ecx, 10
3:  dec ecx
    jnz 3b
    vmcall
    jmp 2b

vmx_guest_touches:
    mov ecx, {PMC}
    rdmsr
    xor ecx, ecx
    rdpmc
    vmcall

vmx_guest_writes:
    mov ecx, {GLOBAL_CTRL}
    mov eax, 9
    xor edx, edx
    wrmsr
    mov ecx, {DEBUGCTL}
    mov eax, {FREEZE}
    wrmsr
    vmcall
    .popsection
"#,
    PMC = const PMC,
    GLOBAL_CTRL = const GLOBAL_CTRL,
    DEBUGCTL = const DEBUGCTL,
    FREEZE = const FREEZE,
);

unsafe extern "C" {
    /// Returns 0 after an exit, 1 when the entry failed.
    fn vmx_enter(resume: u64, global_ctrl: u64) -> u32;
    fn vmx_exit_here();
    /// Two instructions ten times and a MOV before, an exit by VMCALL, and a JMP back, for ever.
    pub(crate) fn vmx_guest_loop();
    /// RDMSR of IA32_PMC0, RDPMC 0, VMCALL.
    pub(crate) fn vmx_guest_touches();
    /// Writes 9 to GLOBAL_CTRL and FREEZE_PERFMON_ON_PMI to DEBUGCTL, VMCALL.
    pub(crate) fn vmx_guest_writes();
}

/// Instructions of the host that count after GLOBAL_CTRL is written, up to and with VMLAUNCH or VMRESUME.
pub(crate) const BEFORE: u64 = 3;
/// Instructions of the host that count after an exit.
pub(crate) const AFTER: u64 = 4;

pub(crate) fn has_vmx() -> bool {
    cpuid(1, 0)[2] & 1 << 5 != 0
}

pub(crate) unsafe fn write(field: u64, value: u64) {
    asm!("vmwrite {}, {}", in(reg) field, in(reg) value, options(nostack));
}

pub(crate) unsafe fn read(field: u64) -> u64 {
    let value;
    asm!("vmread {}, {}", out(reg) value, in(reg) field, options(nostack));
    value
}

pub(crate) fn word(address: u64) -> *mut u64 {
    with_exposed_provenance_mut(address as usize)
}

/// The controls that `capability` makes necessary, and of `wanted` those it allows.
unsafe fn controls(capability: u32, wanted: u64) -> u64 {
    let allowed = rdmsr(capability);
    (allowed & 0xffff_ffff | wanted) & allowed >> 32
}

/// Whether the exit control "save IA32_PERF_GLOBAL_CTRL" may be set.
pub(crate) unsafe fn can_save() -> bool {
    rdmsr(0x48f) >> 32 & SAVE_GLOBAL_CTRL != 0
}

/// Turns VMX on and makes a guest at `rip` current, whose GLOBAL_CTRL is loaded and saved by entry and exit.
pub(crate) unsafe fn create(rip: unsafe extern "C" fn()) {
    cpu::write_cr4(cpu::read_cr4() | 1 << 13);
    if rdmsr(0x3a) & 1 == 0 {
        wrmsr(0x3a, 5);
    }
    for page in 0..6 * 512 {
        word(FREE + page * 8).write_volatile(0);
    }
    let revision = rdmsr(0x480) & 0x7fff_ffff;
    word(FREE).write_volatile(revision);
    word(FREE + 0x1000).write_volatile(revision);
    let (on, vmcs) = (FREE, FREE + 0x1000);
    asm!("vmxon [{}]", "vmclear [{}]", "vmptrld [{}]", in(reg) &raw const on, in(reg) &raw const vmcs, in(reg) &raw const vmcs);
    write(0x4000, controls(0x48d, 0));
    // MSR bitmaps.
    write(PRIMARY, controls(0x48e, 1 << 28));
    write(0x2004, BITMAP);
    // The host's 64-bit mode; the guest's, and its debug controls.
    write(EXIT_CONTROLS, controls(0x48f, 1 << 9 | 1 << 2 | HOST_LOADS | SAVE_GLOBAL_CTRL));
    write(ENTRY_CONTROLS, controls(0x490, 1 << 9 | 1 << 2 | GUEST_LOADS));
    write(0x2800, u64::MAX);
    for (list, address) in [(0x2006, LIST), (0x2008, LIST + 0x1000), (0x200a, LIST + 0x2000)] {
        write(list, address);
    }
    let task = (&raw const TASK).expose_provenance() as u64;
    let gdt = (&raw const boot_gdt).expose_provenance() as u64;
    let idt = (&raw const IDT).expose_provenance() as u64;
    // Selectors of ES, CS, SS, DS, FS, GS (LDTR) and TR, of the guest and of the host.
    for (index, selector) in [DATA, CODE64, DATA, DATA, 0, 0].into_iter().enumerate() {
        let offset = 2 * index as u64;
        write(0x0800 + offset, u64::from(selector));
        write(0x0c00 + offset, u64::from(selector));
        write(0x4800 + offset, 0xffff_ffff);
        write(
            0x4814 + offset,
            if selector == CODE64 {
                0xa09b
            } else if selector == 0 {
                1 << 16
            } else {
                0xc093
            },
        );
        write(0x6806 + offset, 0);
    }
    write(0x0c0c, u64::from(TSS));
    write(0x080e, u64::from(TSS));
    write(0x4820, 1 << 16);
    write(0x480e, 103);
    write(0x4822, 0x8b);
    write(0x6814, task);
    write(0x4810, 79);
    write(0x4812, 0xfff);
    for (guest, host, value) in [
        (0x6800, 0x6c00, cpu::read_cr0()),
        (0x6802, 0x6c02, cpu::read_cr3()),
        (0x6804, 0x6c04, cpu::read_cr4()),
        (0x6816, 0x6c0c, gdt),
        (0x6818, 0x6c0e, idt),
    ] {
        write(guest, value);
        write(host, value);
    }
    write(0x6c06, 0);
    write(0x6c08, 0);
    write(0x6c0a, task);
    write(0x681a, 0x400);
    write(0x681c, STACK);
    write(GUEST_RIP, rip as *const () as u64);
    write(0x6820, 2);
    write(0x6c16, vmx_exit_here as *const () as u64);
}

/// Enters, with GLOBAL_CTRL at `global_ctrl` for the host's last instructions; returns whether there was an exit.
pub(crate) unsafe fn launch(global_ctrl: u64) -> bool {
    vmx_enter(0, global_ctrl) == 0
}

/// The same after the first entry.
pub(crate) unsafe fn resume(global_ctrl: u64) -> bool {
    vmx_enter(1, global_ctrl) == 0
}

/// Moves the guest behind the instruction that exited.
pub(crate) unsafe fn skip() {
    write(GUEST_RIP, read(GUEST_RIP) + read(LENGTH));
}

/// Turns VMX off.
pub(crate) unsafe fn destroy() {
    asm!("vmxoff");
    cpu::write_cr4(cpu::read_cr4() & !(1 << 13));
}
