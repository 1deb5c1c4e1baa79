//! Interprocessor interrupts to oneself, priorities, LVT entries and the local APIC's registers.

use guests::boot::bare_on;
use guests::cpu;
use guests::faults::{GP, quiet, raises};
use guests::interrupts::{Frame, count, off, on};
use guests::lapic::register::*;
use guests::lapic::{self, BASE_MSR, MASKED, SILENT, bit, end, is_x2apic, read, send, send_self, write};
use guests::report::{Outcome, Tests, check, same};

const LOW: u8 = 0x41;
const MIDDLE: u8 = 0x61;
const HIGH: u8 = 0xa1;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("id-and-version", identity);
    tests.run("self-ipi", to_self);
    tests.run("ipi-by-every-destination", destinations);
    tests.run("ipi-in-service-until-eoi", in_service);
    tests.run("ipi-waits-for-if", waits_for_if);
    tests.run("tpr-holds-back", task_priority);
    tests.run("cr8-is-tpr", cr8);
    tests.run("higher-priority-nests", nesting);
    tests.run("nmi-to-self", nmi);
    tests.run("nmi-blocks-nmi", nmi_blocks);
    tests.run("lvt-read-back", vectors);
    // QEMU 10 leaves the mask bits alone.
    if !bare_on("qemu") {
        tests.run("software-disable-masks", software_disable);
    }
    tests.run("base-register", base);
}

pub(crate) unsafe fn run_x2apic(tests: &mut Tests) {
    tests.run("self-ipi-register", self_ipi_register);
    tests.run("reserved-registers", reserved);
    tests.run("logical-id", logical_id);
    // Bochs keeps a disabled local APIC disabled.
    if !bare_on("bochs") {
        tests.run("back-to-xapic", back_to_xapic);
    }
}

unsafe fn serve(_: &mut Frame) {
    end();
}

unsafe fn nothing(_: &mut Frame) {}

unsafe fn identity() -> Outcome {
    same("ID", lapic::id(), cpu::cpuid(1, 0)[1] >> 24)?;
    check((0x10..=0x15).contains(&(read(VERSION) & 0xff)), "version")?;
    check(read(VERSION) >> 16 & 0xff >= 4, "fewer than five LVT entries")
}

unsafe fn to_self() -> Outcome {
    on(MIDDLE, serve);
    send_self(MIDDLE);
    check(bit(IRR, MIDDLE), "not in IRR")?;
    cpu::breathe();
    same("interrupts", count(MIDDLE), 1u64)?;
    check(!bit(IRR, MIDDLE) && !bit(ISR, MIDDLE), "still in IRR or ISR")
}

unsafe fn destinations() -> Outcome {
    let logical = if is_x2apic() { read(LDR) } else { 1 };
    let everybody = if is_x2apic() { u32::MAX } else { 0xff };
    let ways = [
        ("physical", lapic::id(), 0x4000),
        ("physical, everybody", everybody, 0x4000),
        ("logical", logical, 0x4800),
        ("lowest priority", logical, 0x4900),
        ("self", 0, 0x4_4000),
        ("all including self", 0, 0x8_4000),
    ];
    for (name, to, low) in ways {
        on(MIDDLE, serve);
        send(to, low | u32::from(MIDDLE));
        cpu::breathe();
        same(name, count(MIDDLE), 1u64)?;
    }
    send(0, 0xc_4000 | u32::from(MIDDLE));
    cpu::breathe();
    same("all but self", count(MIDDLE), 1u64)
}

unsafe fn in_service() -> Outcome {
    on(MIDDLE, nothing);
    send_self(MIDDLE);
    cpu::breathe();
    check(bit(ISR, MIDDLE), "not in ISR")?;
    same("PPR", read(PPR), u32::from(MIDDLE) & 0xf0)?;
    send_self(MIDDLE);
    cpu::breathe();
    same("interrupts before EOI", count(MIDDLE), 1u64)?;
    end();
    cpu::breathe();
    same("interrupts after EOI", count(MIDDLE), 2u64)?;
    end();
    check(!bit(ISR, MIDDLE), "still in ISR")?;
    same("PPR after EOI", read(PPR), 0u64)
}

unsafe fn waits_for_if() -> Outcome {
    on(MIDDLE, serve);
    cpu::cli();
    send_self(MIDDLE);
    send_self(MIDDLE);
    cpu::rdtsc();
    same("interrupts with IF clear", count(MIDDLE), 0u64)?;
    cpu::breathe();
    same("two requests are one", count(MIDDLE), 1u64)
}

unsafe fn task_priority() -> Outcome {
    on(MIDDLE, serve);
    on(HIGH, serve);
    write(TPR, 0x60);
    same("TPR", read(TPR), 0x60u64)?;
    send_self(MIDDLE);
    send_self(HIGH);
    cpu::breathe();
    let held = count(MIDDLE);
    let passed = count(HIGH);
    write(TPR, 0x50);
    cpu::breathe();
    write(TPR, 0);
    same("class 6 under TPR 6", held, 0u64)?;
    same("class A under TPR 6", passed, 1u64)?;
    same("class 6 under TPR 5", count(MIDDLE), 1u64)
}

unsafe fn cr8() -> Outcome {
    on(MIDDLE, serve);
    cpu::write_cr8(0xf);
    let register = read(TPR);
    send_self(MIDDLE);
    cpu::breathe();
    let held = count(MIDDLE);
    cpu::write_cr8(0);
    cpu::breathe();
    let passed = count(MIDDLE);
    write(TPR, 0x70);
    let back = cpu::read_cr8();
    write(TPR, 0);
    same("TPR after MOV CR8", register, 0xf0u64)?;
    same("interrupts under CR8 = 15", held, 0u64)?;
    same("interrupts under CR8 = 0", passed, 1u64)?;
    same("CR8 after TPR", back, 7u64)
}

static mut ORDER: u64 = 0;

unsafe fn nesting() -> Outcome {
    unsafe fn note(frame: &mut Frame) {
        ORDER = ORDER << 8 | frame.vector;
        end();
    }
    unsafe fn nest(frame: &mut Frame) {
        send_self(LOW);
        send_self(HIGH);
        cpu::breathe();
        note(frame);
    }
    ORDER = 0;
    on(MIDDLE, nest);
    on(LOW, note);
    on(HIGH, note);
    send_self(MIDDLE);
    cpu::breathe();
    same("order of service", ORDER, 0x00a1_6141u64)
}

unsafe fn nmi() -> Outcome {
    on(2, nothing);
    send(lapic::id(), 0x4400);
    cpu::rdtsc();
    let came = count(2);
    off(2);
    same("NMIs with IF clear", came, 1u64)
}

unsafe fn nmi_blocks() -> Outcome {
    static mut INSIDE: u32 = 0;
    unsafe fn twice(_: &mut Frame) {
        if count(2) == 1 {
            send(lapic::id(), 0x4400);
            cpu::rdtsc();
            INSIDE = count(2);
        }
    }
    on(2, twice);
    send(lapic::id(), 0x4400);
    cpu::rdtsc();
    let came = count(2);
    off(2);
    same("NMIs inside the handler", INSIDE, 1u64)?;
    same("NMIs after IRET", came, 2u64)
}

unsafe fn vectors() -> Outcome {
    let entries = [
        ("LVT timer", LVT_TIMER),
        ("LVT performance counter", LVT_PMC),
        ("LVT LINT0", LVT_LINT0),
        ("LVT error", LVT_ERROR),
    ];
    for (name, entry) in entries {
        for value in [MASKED | 0x72, 0x72, SILENT] {
            write(entry, value);
            same(name, read(entry), value)?;
        }
    }
    write(LVT_PMC, 0x400);
    let delivery = read(LVT_PMC);
    write(LVT_PMC, MASKED);
    same("LVT performance counter as NMI", delivery, 0x400u64)
}

unsafe fn software_disable() -> Outcome {
    write(LVT_PMC, 0x72);
    write(SVR, 0xff);
    let masked = read(LVT_PMC);
    write(SVR, 0x1ff);
    write(LVT_PMC, SILENT);
    same("LVT entry while software-disabled", masked, MASKED | 0x72)
}

unsafe fn base() -> Outcome {
    let value = cpu::rdmsr(BASE_MSR);
    same("address", value & 0xf_ffff_f000 & !0xfff, lapic::PAGE)?;
    same("BSP and enable", value & 0x900, 0x900u64)?;
    quiet("write of the same value", || cpu::wrmsr(BASE_MSR, value))?;
    raises("reserved bit 0", GP, 0, || cpu::wrmsr(BASE_MSR, value | 1))?;
    if is_x2apic() {
        raises("x2APIC to xAPIC", GP, 0, || cpu::wrmsr(BASE_MSR, value & !(1 << 10)))?;
    } else if lapic::has_x2apic() {
        raises("x2APIC without enable", GP, 0, || cpu::wrmsr(BASE_MSR, value & !(1 << 11) | 1 << 10))?;
    }
    same("unchanged", cpu::rdmsr(BASE_MSR), value)
}

unsafe fn self_ipi_register() -> Outcome {
    on(MIDDLE, serve);
    write(SELF_IPI, u32::from(MIDDLE));
    check(bit(IRR, MIDDLE), "not in IRR")?;
    cpu::breathe();
    same("interrupts", count(MIDDLE), 1u64)
}

unsafe fn reserved() -> Outcome {
    let read = |name, msr| {
        raises(name, GP, 0, || {
            cpu::rdmsr(msr);
        })
    };
    let write = |name, msr, value| raises(name, GP, 0, || cpu::wrmsr(msr, value));
    read("read DFR", 0x80e)?;
    read("read SELF IPI", 0x83f)?;
    write("write ID", 0x802, 0)?;
    // ICR is the one register of 64 bits.
    quiet("ICR", || cpu::wrmsr(0x830, 0xc_4000 | u64::from(MIDDLE)))?;
    // QEMU 10 lets these through.
    if bare_on("qemu") {
        return Ok(());
    }
    read("read 831H", 0x831)?;
    read("read EOI", 0x80b)?;
    write("write version", 0x803, 0)?;
    write("write PPR", 0x80a, 0)?;
    write("write ISR", 0x810, 0)?;
    write("EOI with a value", 0x80b, 1)?;
    write("TPR with reserved bits", 0x808, 0x100)?;
    write("upper half of LVT timer", 0x832, 1 << 40)
}

unsafe fn logical_id() -> Outcome {
    let id = lapic::id();
    same("LDR", read(LDR), (id >> 4) << 16 | 1 << (id & 15))
}

unsafe fn back_to_xapic() -> Outcome {
    lapic::write(LVT_PMC, 0x72);
    lapic::enter_xapic();
    check(!is_x2apic(), "still in x2APIC mode")?;
    same("TPR through the page", cpu::load32(lapic::PAGE + u64::from(TPR)), 0u64)?;
    to_self()
}
