//! Page faults with the right address and error code, accessed and dirty bits, page sizes and INVLPG, in tables of our own.

use core::arch::asm;
use core::ptr::with_exposed_provenance_mut;
use guests::boot::has_word;
use guests::cpu::{self, cpuid, rdmsr, wrmsr};
use guests::faults::{GP, PF, catch, raises};
use guests::report::{Outcome, Tests, check, same};

/// Physical memory from here on is nobody's.
pub(crate) const FREE: u64 = 0x180_0000;
/// A 2 MiB virtual window of 4 KiB pages, under PML4 entry 1.
pub(crate) const WINDOW: u64 = 0x80_0000_0000;
const WRITABLE: u64 = 2;
pub(crate) const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;

fn word(table: u64, index: usize) -> *mut u64 {
    with_exposed_provenance_mut::<u64>(table as usize).wrapping_add(index)
}

unsafe fn root() -> u64 {
    cpu::read_cr3() & 0xf_ffff_f000
}

/// Makes the window: page tables at FREE, the pages themselves from FREE + 1 MiB on, none of them mapped.
pub(crate) unsafe fn prepare() {
    for index in 0..3 * 512 {
        word(FREE, index).write_volatile(0);
    }
    word(FREE, 0).write_volatile(FREE + 0x1000 | 7);
    word(FREE + 0x1000, 0).write_volatile(FREE + 0x2000 | 7);
    word(root(), 1).write_volatile(FREE | 7);
    if cpuid(0x8000_0001, 0)[3] & 1 << 20 != 0 {
        wrmsr(0xc000_0080, rdmsr(0xc000_0080) | 1 << 11);
    }
    flush();
}

/// Writes the entry of one page of the window without telling the TLB.
unsafe fn set(page: usize, flags: u64) {
    word(FREE + 0x2000, page).write_volatile(frame(page) | flags);
}

unsafe fn entry(page: usize) -> u64 {
    word(FREE + 0x2000, page).read_volatile()
}

/// Returns the physical address behind a page of the window.
pub(crate) fn frame(page: usize) -> u64 {
    FREE + 0x10_0000 + page as u64 * 4096
}

/// Maps one page of the window.
pub(crate) unsafe fn map(page: usize, flags: u64) {
    set(page, flags);
    flush();
}

unsafe fn flush() {
    cpu::write_cr3(cpu::read_cr3());
}

fn address(page: usize) -> u64 {
    WINDOW + page as u64 * 4096
}

pub(crate) unsafe fn run(tests: &mut Tests) {
    prepare();
    tests.run("page-fault-not-present", not_present);
    tests.run("page-fault-read-only", read_only);
    tests.run("page-fault-reserved-bit", reserved);
    tests.run("page-fault-no-execute", no_execute);
    tests.run("page-fault-across-pages", across);
    tests.run("accessed-and-dirty", accessed_dirty);
    tests.run("invlpg", invlpg);
    tests.run("page-of-1-gib", gigabyte);
    tests.run("smep-and-smap", supervisor_only);
    // QEMU ignores the bits.
    if !has_word("qemu") {
        tests.run("cr3-reserved-bits", cr3);
    }
}

unsafe fn load(at: u64) {
    asm!("mov al, [{}]", in(reg) at, out("al") _);
}

unsafe fn store(at: u64) {
    asm!("mov byte ptr [{}], 1", in(reg) at);
}

unsafe fn faults(what: &'static str, error_code: u64, at: u64, body: impl FnMut()) -> Outcome {
    match catch(body) {
        Some(fault) => {
            same(what, fault.vector, PF)?;
            same(what, fault.error_code, error_code)?;
            same(what, fault.cr2, at)
        }
        None => check(false, what),
    }
}

unsafe fn not_present() -> Outcome {
    map(0, 0);
    let at = address(0) + 0x123;
    faults("load", 0, at, || load(at))?;
    faults("store", 2, at, || store(at))?;
    let code: u64 = if rdmsr(0xc000_0080) & 1 << 11 != 0 { 0x10 } else { 0 };
    faults("fetch", code, at, || asm!("call {}", in(reg) at, clobber_abi("C")))
}

unsafe fn read_only() -> Outcome {
    map(1, 1);
    let at = address(1) + 8;
    let old = cpu::read_cr0();
    load(at);
    cpu::write_cr0(old | 1 << 16);
    let outcome = faults("store with WP", 3, at, || store(at));
    cpu::write_cr0(old & !(1 << 16));
    let without = catch(|| store(at));
    cpu::write_cr0(old);
    outcome?;
    check(without.is_none(), "store without WP faults")
}

unsafe fn reserved() -> Outcome {
    map(2, 1 | WRITABLE | 1 << 51);
    let at = address(2);
    // QEMU leaves the error code's P clear.
    let outcome = faults("load", if has_word("qemu") { 8 } else { 9 }, at, || load(at));
    map(2, 0);
    outcome
}

unsafe fn no_execute() -> Outcome {
    if rdmsr(0xc000_0080) & 1 << 11 == 0 {
        return Ok(());
    }
    map(3, 1 | WRITABLE | NO_EXECUTE);
    let at = address(3);
    with_exposed_provenance_mut::<u8>(at as usize).write_volatile(0xc3);
    faults("fetch", 0x11, at, || asm!("call {}", in(reg) at, clobber_abi("C")))?;
    map(3, 1 | WRITABLE);
    check(catch(|| asm!("call {}", in(reg) at, clobber_abi("C"))).is_none(), "an executable page faults")
}

unsafe fn across() -> Outcome {
    map(4, 1 | WRITABLE);
    map(5, 0);
    let at = address(5) - 4;
    faults("load of 8 bytes", 0, address(5), || asm!("mov rax, [{}]", in(reg) at, out("rax") _))?;
    faults("store of 8 bytes", 2, address(5), || asm!("mov [{}], rax", in(reg) at))
}

unsafe fn accessed_dirty() -> Outcome {
    map(6, 1 | WRITABLE);
    same("before", entry(6) & 0x60, 0u64)?;
    load(address(6));
    same("after a load", entry(6) & 0x60, 0x20u64)?;
    store(address(6));
    same("after a store", entry(6) & 0x60, 0x60u64)
}

unsafe fn invlpg() -> Outcome {
    map(7, 1 | WRITABLE);
    load(address(7));
    set(7, 0);
    asm!("invlpg [{}]", in(reg) address(7));
    faults("load after INVLPG", 0, address(7), || load(address(7)))
}

unsafe fn gigabyte() -> Outcome {
    if cpuid(0x8000_0001, 0)[3] & 1 << 26 == 0 {
        return Ok(());
    }
    word(FREE, 1).write_volatile(0x83);
    flush();
    let through = with_exposed_provenance_mut::<u64>((WINDOW + (1 << 30) + frame(8)) as usize);
    word(frame(8), 0).write_volatile(0x1357);
    let found = through.read_volatile();
    word(FREE, 1).write_volatile(0);
    flush();
    same("load", found, 0x1357u64)
}

unsafe fn supervisor_only() -> Outcome {
    map(9, 1 | WRITABLE | USER);
    let at = address(9);
    with_exposed_provenance_mut::<u8>(at as usize).write_volatile(0xc3);
    let old = cpu::read_cr4();
    if cpuid(7, 0)[1] & 1 << 7 != 0 {
        cpu::write_cr4(old | 1 << 20);
        let fault = catch(|| asm!("call {}", in(reg) at, clobber_abi("C")));
        cpu::write_cr4(old);
        same("SMEP", fault.map_or(0, |fault| fault.error_code), 0x11u64)?;
    }
    if cpuid(7, 0)[1] & 1 << 20 != 0 {
        cpu::write_cr4(old | 1 << 21);
        let fault = catch(|| load(at));
        asm!("stac");
        let opened = catch(|| load(at));
        asm!("clac");
        cpu::write_cr4(old);
        same("SMAP", fault.map_or(0, |fault| fault.error_code + 0x100), 0x101u64)?;
        check(opened.is_none(), "STAC does not open")?;
    }
    Ok(())
}

unsafe fn cr3() -> Outcome {
    let old = cpu::read_cr3();
    raises("bit 62", GP, 0, || cpu::write_cr3(old | 1 << 62))?;
    same("unchanged", cpu::read_cr3(), old)
}
