//! Random MSRs, control registers, descriptor tables and CPUID leaves.

use core::arch::asm;
use guests::boot::has_word;
use guests::cpu::{self, rdmsr, wrmsr};
use guests::faults::{Fault, catch};
use guests::interrupts;
use guests::random::Random;

const EFER: u32 = 0xc000_0080;

fn index(random: &mut Random) -> u32 {
    let (start, length) = random.one_of(&[
        (0, 0x400),
        (0x400, 0x400),
        (0x800, 0x100),
        (0xc00, 0x400),
        (0x4000_0000, 0x200),
        (0x4b56_4d00, 0x10),
        (0xc000_0080, 8),
        (0xc000_0100, 8),
        (0xc001_0000, 0x200),
        (0xc001_1000, 0x100),
        (0, 1 << 32),
    ]);
    (start + random.below(length)) as u32
}

pub(crate) unsafe fn read_msr(random: &mut Random) -> Option<Fault> {
    let msr = index(random);
    catch(|| {
        rdmsr(msr);
    })
}

/// Writes a random value, one bit different from the old, or the old; but none that ends the machine or moves the local
/// APIC's page onto memory.
pub(crate) unsafe fn write_msr(random: &mut Random) -> Option<Fault> {
    let msr = index(random);
    let mut old = 0;
    let fault = catch(|| old = rdmsr(msr));
    let value = match random.below(3) {
        0 => random.value(),
        1 => old ^ 1 << random.below(64),
        _ => old,
    };
    crate::TOUCHED |= msr == 0x1b || msr >> 8 == 8;
    match msr {
        0x1b => catch(|| wrmsr(msr, value & 0xffff_0000_0000_0fff | 0xfee0_0000)),
        EFER => {
            let fault = catch(|| wrmsr(msr, value & !0x1000 | 0x500));
            catch(|| wrmsr(msr, old)).or(fault)
        }
        // An interrupt command with a delivery mode of SMI, INIT or start-up; LINT0 and LINT1 likewise.
        0x830 | 0x835 | 0x836 => catch(|| wrmsr(msr, value & !0x700)),
        // DEBUGCTL changes what a single step is.
        0x1d9 => {
            let fault = catch(|| wrmsr(msr, value));
            catch(|| wrmsr(msr, 0)).or(fault)
        }
        _ => fault.or(catch(|| wrmsr(msr, value))),
    }
}

/// Writes a control, debug or extended control register, and puts the old value back.
pub(crate) unsafe fn control(random: &mut Random) -> Option<Fault> {
    let value = random.value();
    // QEMU answers reserved bits of CR0 and CR4 with a VM exit for an invalid state, guest or not.
    let (cr0_bits, cr4_bits) = if has_word("qemu") { (0xe005_003f, 0x7df) } else { (u64::MAX, u64::MAX) };
    match random.below(5) {
        0 => {
            // With paging and protection on, and without NW, which asks for CD.
            let old = cpu::read_cr0();
            let fault = catch(|| cpu::write_cr0(value & cr0_bits & !0x2000_0000 | 0x8000_0001));
            cpu::write_cr0(old);
            fault
        }
        1 => {
            // With PAE, and without LA57 and what changes the meaning of CR3.
            let old = cpu::read_cr4();
            let fault = catch(|| cpu::write_cr4(value & cr4_bits & !0x2_1000 | 0x20));
            cpu::write_cr4(old);
            fault
        }
        2 => {
            let old = cpu::read_cr4();
            cpu::write_cr4(old | 1 << 18);
            let which = if random.below(4) == 0 { random.next() as u32 } else { 0 };
            let fault = catch(|| cpu::xsetbv(which, if random.below(2) == 0 { value } else { value & 7 | 1 }));
            catch(|| cpu::xsetbv(0, 1));
            cpu::write_cr4(old);
            fault
        }
        3 => catch(|| cpu::write_cr8(value)).or(catch(|| cpu::write_cr8(0))),
        _ => {
            let fault = catch(|| {
                cpu::write_dr0(random.next());
                cpu::write_dr7(value);
            });
            // DR7.GD may hold back the first.
            catch(|| cpu::write_dr7(0x400));
            catch(|| cpu::write_dr7(0x400));
            fault
        }
    }
}

/// Loads descriptor tables with other limits, random selectors, and interrupts through what is left.
pub(crate) unsafe fn descriptors(random: &mut Random) -> Option<Fault> {
    let selector = random.next() as u16;
    let fault = match random.below(4) {
        0 => {
            // Vectors 0 to 14 stay.
            interrupts::load_idt(15 * 16 - 1 + random.below(0xf00) as u16);
            catch(|| asm!("int 0x80"))
        }
        1 => catch(|| asm!("mov ds, {:e}", "mov es, {:e}", in(reg) u32::from(selector), in(reg) u32::from(selector))),
        2 => catch(|| asm!("ltr {:x}", in(reg) selector | 0x100)),
        _ => catch(|| asm!("lldt {:x}", in(reg) selector | 0x100)),
    };
    interrupts::reload();
    fault
}

/// Asks for random CPUID leaves, and calls the hypervisor with random registers.
pub(crate) unsafe fn leaves(random: &mut Random) -> Option<Fault> {
    let leaf = random.one_of(&[0, 0x4000_0000, 0x8000_0000, 0xc000_0000]) + random.below(0x30) as u32;
    let (a, b) = (random.value(), random.value());
    match random.below(4) {
        0 => catch(|| asm!("vmmcall", inout("rax") a => _, inout("rcx") b => _, inout("rdx") a ^ b => _)),
        1 => catch(|| asm!("vmcall", inout("rax") a => _, inout("rcx") b => _, inout("rdx") a ^ b => _)),
        2 => catch(|| {
            cpu::cpuid(a as u32, b as u32);
        }),
        _ => catch(|| {
            cpu::cpuid(leaf, b as u32 & 0x3f);
        }),
    }
}
