//! Times what a guest does that leaves it, in executed instructions, with RDTSC before and after each.
//!
//! Every row is the median of many samples and holds the RDTSC pair itself, whose own cost is row `null`. Device ports:
//! `out-device` and `in-device` use the UART's scratch register (3FFH), which a device model answers and which does
//! nothing; `mmio-*` use the I/O APIC's IOREGSEL. `hlt-timer` is how late a TSC-deadline timer wakes HLT.
#![no_std]
#![no_main]

use core::arch::global_asm;
use guests::{boot, cpu, end, faults, interrupts, ioapic, lapic, main, say};

const VECTOR: u8 = 0x51;
const SAMPLES: usize = 501;
static mut RESULTS: [u64; SAMPLES] = [0; SAMPLES];

/// Fills RSI's array with R9... RDX = count samples; RDI is the operation's argument.
type Loop = unsafe extern "C" fn(argument: u64, results: *mut u64, count: u64);

// The loop around every operation: R8 holds the time before it, R9 the samples to go, RSI where the next one goes.
// Time is taken as the peer's program takes it, so that the pair costs the same: RDTSC, SHL, OR, MOV.
macro_rules! timed {
    ($($symbol:ident: $prepare:literal, $operation:literal, $finish:literal;)*) => {
        $(global_asm!(
            concat!(".globl ", stringify!($symbol)),
            concat!(stringify!($symbol), ":"),
            "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
            "mov r9, rdx",
            $prepare,
            "2:",
            "rdtsc", "shl rdx, 32", "or rax, rdx", "mov r8, rax",
            $operation,
            $finish,
            "mov [rsi], r10",
            "add rsi, 8", "dec r9", "jnz 2b",
            "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
            "ret",
        );)*
        unsafe extern "C" { $(fn $symbol(argument: u64, results: *mut u64, count: u64);)* }
    };
}

macro_rules! pairs {
    ($($symbol:ident: $prepare:literal, $operation:literal;)*) => {
        timed! { $($symbol: $prepare, $operation, "rdtsc; shl rdx, 32; or rax, rdx; mov r10, rax; sub r10, r8";)* }
    };
}

pairs! {
    time_null: "", "";
    time_cpuid: "", "mov rax, rdi; xor ecx, ecx; cpuid";
    time_rdmsr: "", "mov rcx, rdi; rdmsr";
    time_wrmsr: "mov rcx, rdi; rdmsr; mov r11, rax; mov r12, rdx", "mov rcx, rdi; mov rax, r11; mov rdx, r12; wrmsr";
    time_vmcall: "", "mov rax, rdi; xor ebx, ebx; xor ecx, ecx; vmcall";
    time_vmmcall: "", "mov rax, rdi; xor ebx, ebx; xor ecx, ecx; vmmcall";
    time_xsetbv: "", "xor ecx, ecx; mov eax, 1; xor edx, edx; xsetbv";
    time_wbinvd: "", "wbinvd";
    time_out: "", "mov rdx, rdi; out dx, al";
    time_in: "", "mov rdx, rdi; in al, dx";
    time_store: "", "mov dword ptr [rdi], 1";
    time_load: "", "mov eax, dword ptr [rdi]";
}

// Here the handler takes the time: R13 holds it, 0 until it came. RDI is the MSR's operand, or the ticks ahead.
timed! {
    time_self_ipi: "sti",
        "mov ecx, 0x83f; mov eax, 0x51; xor edx, edx; xor r13, r13; wrmsr; 3: test r13, r13; jz 3b",
        "mov r10, r13; sub r10, r8";
    time_deadline: "",
        "add r8, rdi; mov ecx, 0x6e0; mov rax, r8; mov rdx, r8; shr rdx, 32; wrmsr; sti; hlt; cli",
        "mov r10, r13; sub r10, r8";
}

global_asm!(
    ".globl take_time",
    "take_time:",
    "push rax; push rdx; push rcx",
    "rdtsc; shl rdx, 32; or rax, rdx; mov r13, rax",
    "mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr",
    "pop rcx; pop rdx; pop rax",
    "iretq",
);

unsafe extern "C" {
    fn take_time();
}

unsafe fn row(name: &str, operation: Loop, argument: u64) {
    let results = &mut *(&raw mut RESULTS);
    match faults::catch(|| operation(argument, (&raw mut RESULTS).cast(), SAMPLES as u64)) {
        Some(fault) => say!("bench: no row {name}: exception {} at {:#x}", fault.vector, fault.rip),
        None => {
            results.sort_unstable();
            say!("BENCH {name} {} instructions", results[SAMPLES / 2]);
        }
    }
    cpu::cli();
}

unsafe fn run() -> ! {
    interrupts::set_gate(VECTOR, take_time as *const () as u64, 0, 0);
    row("null", time_null, 0);
    row("cpuid", time_cpuid, 0);
    row("rdmsr-pat", time_rdmsr, 0x277);
    row("wrmsr-pat", time_wrmsr, 0x277);
    row("rdmsr-apic-base", time_rdmsr, 0x1b);
    row("hypercall", if cpu::is_intel() { time_vmcall } else { time_vmmcall }, 99);
    if cpu::cpuid(1, 0)[2] & 1 << 26 != 0 {
        cpu::write_cr4(cpu::read_cr4() | 1 << 18);
        row("xsetbv", time_xsetbv, 0);
    }
    row("wbinvd", time_wbinvd, 0);
    row("out-61", time_out, 0x61);
    row("in-61", time_in, 0x61);
    row("out-device", time_out, 0x3ff);
    row("in-device", time_in, 0x3ff);
    row("mmio-store", time_store, ioapic::SELECT);
    row("mmio-load", time_load, ioapic::SELECT);
    lapic::enter_xapic();
    row("apic-store", time_store, lapic::PAGE + u64::from(lapic::register::LVT_PMC));
    row("apic-load", time_load, lapic::PAGE + u64::from(lapic::register::LVT_PMC));
    row("apic-eoi", time_store, lapic::PAGE + u64::from(lapic::register::EOI));
    if lapic::has_x2apic() {
        lapic::enter_x2apic();
        row("wrmsr-x2apic-tpr", time_wrmsr, 0x808);
        row("self-ipi", time_self_ipi, 0);
        if lapic::has_deadline() {
            lapic::write(lapic::register::LVT_TIMER, lapic::DEADLINE | u32::from(VECTOR));
            row("hlt-timer", time_deadline, 100_000);
        }
    }
    say!("bench: {SAMPLES} samples a row{}", if boot::has_word("bare") { ", no hypervisor" } else { "" });
    end::debug_exit(0)
}

main!(run);
