//! Code at CPL 3: what it may do, what it may not, and that exits from it are answered as the manuals say.

use crate::paging::{USER, WINDOW, frame, map};
use core::arch::asm;
use core::ptr::with_exposed_provenance_mut;
use guests::boot::{USER_CODE64, USER_DATA, bare_on};
use guests::faults::{BP, Fault, GP, PF, UD, catch};
use guests::report::{Outcome, Tests, check, same};
use guests::{cpu, interrupts};

pub(crate) unsafe fn run(tests: &mut Tests) {
    crate::paging::prepare();
    map(16, 3 | USER);
    map(17, 3 | USER);
    interrupts::set_privilege(BP, 3);
    tests.run("user-cpuid", user_cpuid);
    tests.run("user-privileged-is-gp", privileged);
    tests.run("user-page-faults", page_faults);
    tests.run("user-int-n-needs-dpl", gates);
    tests.run("user-tsd", tsd);
    tests.run("user-xsetbv-is-gp", xsetbv);
    interrupts::set_privilege(BP, 0);
}

/// Runs machine code at CPL 3 until it faults.
unsafe fn enter(code: &[u8]) -> Option<Fault> {
    let place = with_exposed_provenance_mut::<u8>(frame(16) as usize);
    for (index, byte) in code.iter().chain(&[0xcc; 8]).enumerate() {
        place.add(index).write_volatile(*byte);
    }
    let at = WINDOW + 16 * 4096;
    catch(|| {
        asm!(
            "push {data}", "push {stack}", "push 0x2", "push {code}", "push {at}", "iretq",
            data = in(reg) u64::from(USER_DATA), stack = in(reg) at + 0x2000,
            code = in(reg) u64::from(USER_CODE64), at = in(reg) at,
        );
    })
}

unsafe fn ends(what: &'static str, code: &[u8], vector: u8, error_code: u64) -> Outcome {
    let Some(fault) = enter(code) else { return check(false, what) };
    same(what, fault.vector, vector)?;
    same(what, fault.error_code, error_code)?;
    same(what, fault.cs, USER_CODE64)
}

unsafe fn user_cpuid() -> Outcome {
    ends("nop", &[0x90], BP, 0)?;
    // xor eax, eax; xor ecx, ecx; cpuid
    ends("cpuid", &[0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2], BP, 0)?;
    ends("ud2", &[0x0f, 0x0b], UD, 0)
}

unsafe fn privileged() -> Outcome {
    let codes: [(&str, &[u8]); 10] = [
        ("hlt", &[0xf4]),
        ("cli", &[0xfa]),
        ("in al, 0x61", &[0xe4, 0x61]),
        ("out 0x61, al", &[0xe6, 0x61]),
        ("rdmsr", &[0xb9, 0x77, 2, 0, 0, 0x0f, 0x32]),
        ("wrmsr", &[0xb9, 0x77, 2, 0, 0, 0x0f, 0x30]),
        ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
        ("mov cr3, rax", &[0x0f, 0x22, 0xd8]),
        ("wbinvd", &[0x0f, 0x09]),
        ("invlpg [rax]", &[0x0f, 0x01, 0x38]),
    ];
    for (name, code) in codes {
        // QEMU runs it.
        if name == "wbinvd" && bare_on("qemu") {
            continue;
        }
        ends(name, code, GP, 0)?;
    }
    Ok(())
}

unsafe fn page_faults() -> Outcome {
    // mov eax, 0x100000; mov al, [rax]: present, but the supervisor's.
    ends("load of the supervisor's", &[0xb8, 0, 0, 0x10, 0, 0x8a, 0], PF, 5)?;
    ends("store to the supervisor's", &[0xb8, 0, 0, 0x10, 0, 0x88, 0], PF, 7)?;
    // mov rax, 0x4000000000; mov al, [rax]
    ends("load of nothing", &[0x48, 0xb8, 0, 0, 0, 0, 0x40, 0, 0, 0, 0x8a, 0], PF, 4)
}

unsafe fn gates() -> Outcome {
    ends("int 0x60", &[0xcd, 0x60], GP, 0x60 << 3 | 2)?;
    interrupts::set_privilege(0x60, 3);
    interrupts::off(0x60);
    unsafe fn nothing(_: &mut interrupts::Frame) {}
    interrupts::on(0x60, nothing);
    let outcome = ends("int 0x60 with DPL 3", &[0xcd, 0x60], BP, 0);
    interrupts::set_privilege(0x60, 0);
    outcome?;
    same("interrupts", interrupts::count(0x60), 1u64)
}

unsafe fn tsd() -> Outcome {
    ends("rdtsc", &[0x0f, 0x31], BP, 0)?;
    let old = cpu::read_cr4();
    cpu::write_cr4(old | 4);
    let outcome = ends("rdtsc with CR4.TSD", &[0x0f, 0x31], GP, 0);
    cpu::write_cr4(old);
    outcome
}

unsafe fn xsetbv() -> Outcome {
    if cpu::cpuid(1, 0)[2] & 1 << 26 == 0 || bare_on("qemu") {
        return Ok(());
    }
    cpu::write_cr4(cpu::read_cr4() | 1 << 18);
    // xor ecx, ecx; xor edx, edx; mov eax, 1; xsetbv
    ends("xsetbv", &[0x31, 0xc9, 0x31, 0xd2, 0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xd1], GP, 0)
}
