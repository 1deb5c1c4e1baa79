//! The local APIC, through MSRs (x2APIC) or memory (xAPIC), and the I/O APIC that brings COM1's interrupt to it.
#![expect(unsafe_code, reason = "reads and writes the registers of interrupt controllers")]

use super::acpi::{Madt, Override};
use super::interrupts::{GUEST_NMI, GUEST_PMI, PIC, SPURIOUS, TIMER};
use super::memory;
use super::ranges::Range;
use crate::error::{Error, Requirement, Result};
use crate::exit::Msr;
use crate::hw::{PmiRoute, bare};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use volatile::VolatilePtr;
use x86_64::instructions::port::Port;

/// IA32_APIC_BASE (SDM Vol. 3A 12.4.4).
const IA32_APIC_BASE: Msr = Msr(0x1B);
/// IA32_APIC_BASE.EN
const ENABLED: u64 = 1 << 11;
/// IA32_APIC_BASE.EXTD
const X2APIC: u64 = 1 << 10;
/// The bit of an LVT entry that masks it.
const MASKED: u32 = 1 << 16;
/// The delivery mode of an LVT entry that makes it an NMI.
const NMI: u32 = 0b100 << 8;

/// A register of the local APIC by its offset from the base address (SDM Vol. 3A 12.4.1); in x2APIC mode its MSR is
/// 800H plus a sixteenth of it.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Register {
    Id = 0x20,
    TaskPriority = 0x80,
    EndOfInterrupt = 0xB0,
    Spurious = 0xF0,
    InterruptCommand = 0x300,
    LvtTimer = 0x320,
    LvtCounters = 0x340,
    LvtLint0 = 0x350,
    LvtLint1 = 0x360,
    LvtError = 0x370,
    InitialCount = 0x380,
    CurrentCount = 0x390,
    Divide = 0x3E0,
    SelfIpi = 0x3F0,
}

/// Where the local APIC's registers are mapped; 0 stands for x2APIC mode, 1 for none yet.
static BASE: AtomicU64 = AtomicU64::new(1);

fn pointer(base: u64, register: u32) -> Option<VolatilePtr<'static, u32>> {
    let pointer = NonNull::new((base + u64::from(register)) as *mut u32)?;
    // SAFETY: `base` is where the registers are mapped for ever, uncached; all of them are 32 bits at multiples of 16.
    Some(unsafe { VolatilePtr::new(pointer) })
}

#[inline]
fn read(register: Register) -> u32 {
    match BASE.load(Ordering::Relaxed) {
        // SAFETY: in x2APIC mode these MSRs exist, and reading them has no side effects.
        0 => unsafe { bare::read_msr(Msr(0x800 + register as u32 / 16)) as u32 },
        1 => 0,
        base => pointer(base, register as u32).map_or(0, |register| register.read()),
    }
}

#[inline]
fn write(register: Register, value: u32) {
    match BASE.load(Ordering::Relaxed) {
        // SAFETY: in x2APIC mode these MSRs exist; the values written below are legal, and every vector has a handler.
        0 => unsafe { bare::write_msr(Msr(0x800 + register as u32 / 16), value.into()) },
        1 => {}
        base => {
            if let Some(register) = pointer(base, register as u32) {
                register.write(value);
            }
        }
    }
}

/// Ends the interrupt that is in service.
#[inline]
pub(crate) fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

/// Enables the local APIC of this processor, in x2APIC mode where there is one. All local interrupts are masked but
/// LINT1, which is the NMI.
///
/// # Errors
/// [`Requirement::LocalApic`] when CPUID reports none.
pub(crate) fn start() -> Result<()> {
    let missing = Error::Unsupported(Requirement::LocalApic);
    let features = raw_cpuid::CpuId::new().get_feature_info().filter(|features| features.has_apic()).ok_or(missing)?;
    // SAFETY: CPUID reports a local APIC, so the MSR exists.
    let mut value = unsafe { bare::read_msr(IA32_APIC_BASE) };
    if features.has_x2apic() && value & X2APIC == 0 {
        value |= ENABLED | X2APIC;
    }
    // SAFETY: as above; the mode goes from disabled or xAPIC to a later one, which is allowed (SDM Vol. 3A 12.12.5).
    unsafe { bare::write_msr(IA32_APIC_BASE, value | ENABLED) };
    let base = if value & X2APIC != 0 {
        0
    } else {
        let physical = Range::new(value & 0x000F_FFFF_FFFF_F000, 4096);
        memory::device(physical).ok_or(missing)?.as_ptr() as u64
    };
    BASE.store(base, Ordering::Relaxed);
    for lvt in [Register::LvtTimer, Register::LvtCounters, Register::LvtLint0, Register::LvtError] {
        write(lvt, MASKED);
    }
    write(Register::LvtLint1, NMI);
    write(Register::TaskPriority, 0);
    write(Register::Spurious, 1 << 8 | u32::from(SPURIOUS));
    Ok(())
}

/// Returns this processor's identifier.
pub(crate) fn id() -> u32 {
    let id = read(Register::Id);
    if BASE.load(Ordering::Relaxed) == 0 { id } else { id >> 24 }
}

/// Sets the timer to interrupt at the value of IA32_TSC_DEADLINE.
pub(crate) fn use_deadline() {
    write(Register::LvtTimer, 0b10 << 17 | u32::from(TIMER));
    // The write above reaches the local APIC before any to the MSR (SDM Vol. 3A 12.5.4.1).
    core::sync::atomic::fence(Ordering::SeqCst);
}

/// Sets the timer to interrupt once when it has counted down, undivided.
pub(crate) fn use_count() {
    write(Register::Divide, 0b1011);
    write(Register::LvtTimer, u32::from(TIMER));
}

/// Lets the timer count down from `count` to 0; 0 stops it.
#[inline]
pub(crate) fn count_down(count: u32) {
    write(Register::InitialCount, count);
}

/// Returns what the timer has still to count.
pub(crate) fn counted() -> u32 {
    read(Register::CurrentCount)
}

/// Returns the LVT entry of the performance counters for a route (SDM Vol. 3A 12.5.1).
const fn counters_entry(route: PmiRoute) -> u32 {
    match route {
        PmiRoute::Masked => MASKED,
        PmiRoute::Guest => GUEST_PMI as u32,
        // The vector of an NMI means nothing to the processor: here it is the mark.
        PmiRoute::GuestNmi => NMI | GUEST_NMI as u32,
        PmiRoute::Host => NMI,
    }
}

/// Returns, of an entry that has been routed to the guest as an NMI, whether it has masked itself in delivering one; `None`
/// of any other.
const fn delivered_guest_nmi(entry: u32) -> Option<bool> {
    const KIND: u32 = 0x7FF;
    if entry & KIND == counters_entry(PmiRoute::GuestNmi) { Some(entry & MASKED != 0) } else { None }
}

/// Returns the same of this processor's entry.
#[inline]
pub(crate) fn guest_nmi() -> Option<bool> {
    delivered_guest_nmi(read(Register::LvtCounters))
}

/// Sends an interrupt to this processor.
pub(crate) fn interrupt_self(vector: u8) {
    const SELF: u32 = 0b01 << 18;
    match BASE.load(Ordering::Relaxed) {
        0 => write(Register::SelfIpi, vector.into()),
        _ => write(Register::InterruptCommand, SELF | u32::from(vector)),
    }
}

/// Sends the performance counters' interrupt where `route` says, and unmasks it after a delivery that has masked it.
#[inline]
pub(crate) fn route_counters(route: PmiRoute) {
    write(Register::LvtCounters, counters_entry(route));
}

/// Moves both PICs to vectors of their own and masks all their lines.
pub(crate) fn silence_pics() {
    let words = [0x11, PIC, 4, 1, 0xFF, 0x11, PIC + 8, 2, 1, 0xFF];
    let ports = [0x20, 0x21, 0x21, 0x21, 0x21, 0xA0, 0xA1, 0xA1, 0xA1, 0xA1];
    for (port, word) in ports.into_iter().zip(words) {
        // SAFETY: the ports are the PICs' on every PC; with all lines masked they interrupt nobody.
        unsafe { Port::<u8>::new(port).write(word) };
    }
}

/// An input of an I/O APIC, and how the ISA interrupt at it is wired.
#[derive(Debug)]
pub(crate) struct Input {
    /// Where the I/O APIC's registers are mapped.
    base: u64,
    /// The first of the two registers of the input's entry.
    entry: u32,
    line: Override,
}

impl Input {
    fn write(&self, register: u32, value: u32) {
        for (offset, value) in [(0, register), (0x10, value)] {
            if let Some(register) = pointer(self.base, offset) {
                register.write(value);
            }
        }
    }

    /// Masks it.
    pub(crate) fn mask(&self) {
        self.write(self.entry, MASKED);
    }

    /// Has it sent to this processor: `low` is the lower half of its entry. Returns whether this processor can be named.
    fn send(&self, low: u32) -> bool {
        let Ok(destination) = u8::try_from(id()) else { return false };
        self.mask();
        self.write(self.entry + 1, u32::from(destination) << 24);
        self.write(self.entry, low | u32::from(self.line.active_low) << 13);
        true
    }

    /// Has it sent to this processor as an NMI, which is edge-triggered however it is wired (82093AA I/O APIC, 3.2.4).
    pub(crate) fn send_nmi(&self) -> bool {
        self.send(NMI)
    }
}

/// Returns the input for the ISA interrupt `irq`, where there is one.
pub(crate) fn input(madt: &Madt, irq: u8) -> Option<Input> {
    let isa = Override { source: irq, gsi: irq.into(), active_low: false, level: false };
    let line = madt.overrides.iter().find(|line| line.source == irq).copied().unwrap_or(isa);
    let chips = madt.io_apics.iter().filter(|chip| chip.gsi_base <= line.gsi);
    let chip = chips.max_by_key(|chip| chip.gsi_base)?;
    let base = memory::device(Range::new(chip.address.into(), 0x20))?;
    Some(Input { base: base.as_ptr() as u64, entry: 0x10 + 2 * (line.gsi - chip.gsi_base), line })
}

/// Has the I/O APIC send the ISA interrupt `irq` to this processor as `vector`; returns whether there is one for it.
pub(crate) fn route(madt: &Madt, irq: u8, vector: u8) -> bool {
    input(madt, irq).is_some_and(|input| input.send(u32::from(vector) | u32::from(input.line.level) << 15))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A22, A23: delivery status aside, the entry itself tells whose an NMI was.
    #[test]
    fn an_nmi_of_the_guests_is_known_by_the_mark_that_its_entry_has() {
        let entry = counters_entry(PmiRoute::GuestNmi);
        let of = |entry| [entry, entry | 1 << 12, entry | MASKED, entry | MASKED | 1 << 12].map(delivered_guest_nmi);
        assert_eq!(of(entry), [Some(false), Some(false), Some(true), Some(true)]);
        for route in [PmiRoute::Masked, PmiRoute::Guest, PmiRoute::Host] {
            assert_eq!(of(counters_entry(route)), [None; 4]);
        }
    }

    /// Requirement A22.
    #[test]
    fn the_counters_interrupt_is_masked_or_a_vector_of_the_guests_or_an_nmi() {
        assert_eq!(counters_entry(PmiRoute::Masked) & 1 << 16, 1 << 16);
        let guest = counters_entry(PmiRoute::Guest);
        assert_eq!((guest >> 8, guest as u8), (0, GUEST_PMI), "fixed, unmasked");
        assert_eq!(counters_entry(PmiRoute::Host) & 0x1_0700, 0x400);
        assert_eq!(counters_entry(PmiRoute::GuestNmi) & 0x1_0700, 0x400);
    }
}
