//! The guest's local APIC, xAPIC and x2APIC, as a model without side effects (SDM Vol. 3A chapter 11).
//!
//! What a write means for others comes back as an [`Effect`]; what others mean for this processor comes in through
//! [`LocalApic::deliver`]; time is passed in, never asked for. Lines are given as asserted or not: the polarity bits
//! are kept and ignored.

mod ipi;
mod lvt;
mod message;
mod mode;
mod page;
mod registers;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;
mod x2apic;

pub use message::{Audience, Delivery, Destination, Interrupt, Ipi};
pub use page::ApicPage;
pub use timer::APIC_TIMER_HZ;

use crate::time::{Frequency, Tsc};
use timer::Timer;
use vectors::VectorSet;

/// IA32_APIC_BASE
pub const IA32_APIC_BASE: u32 = 0x1B;
/// IA32_TSC_DEADLINE
pub const IA32_TSC_DEADLINE: u32 = 0x6E0;

/// The access is refused: the guest gets #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

/// What a write to the local APIC asks of the rest of the machine.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// An IPI is to be routed, to the sender too where it matches.
    Ipi(Ipi),
    /// The IOAPICs are to be told that the level-triggered interrupt with this vector has been served.
    EndOfInterrupt(u8),
}

/// What INIT and start-up IPIs make of the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Startup {
    /// The processor is reset and waits for a start-up IPI.
    Init,
    /// The processor starts in real mode at CS = this x 100H, IP = 0.
    Sipi(u8),
}

/// A virtual processor's local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    irr: VectorSet,
    isr: VectorSet,
    tmr: VectorSet,
    task_priority: u8,
    base: u64,
    id: u32,
    logical_destination: u32,
    destination_format: u32,
    spurious: u32,
    command: u64,
    lvt: [u32; lvt::COUNT],
    errors: lvt::Errors,
    timer: Timer,
    lint: [bool; 2],
    nmi: bool,
    external: bool,
    init: bool,
    startup: Option<u8>,
    waits_for_startup: bool,
    physical_address_bits: u8,
    masks_performance_monitoring: bool,
    /// Registers that the page shows as they were, a bit each: see `page`.
    changed: u64,
}

impl LocalApic {
    /// Makes the local APIC of the processor with this APIC ID as it is after power-up: enabled, in xAPIC mode.
    /// Number 0 is the bootstrap processor; any other waits for a start-up IPI. `frequency` is that of the
    /// time-stamp counter from which all moments come.
    pub fn new(id: u32, frequency: Frequency) -> Self {
        let mut apic = Self {
            irr: VectorSet::default(),
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            task_priority: 0,
            base: mode::at_reset(id == 0),
            id,
            logical_destination: 0,
            destination_format: 0,
            spurious: 0,
            command: 0,
            lvt: [0; lvt::COUNT],
            errors: lvt::Errors::default(),
            timer: Timer::new(frequency),
            lint: [false; 2],
            nmi: false,
            external: false,
            init: false,
            startup: None,
            waits_for_startup: id != 0,
            physical_address_bits: 52,
            masks_performance_monitoring: true,
            changed: 0,
        };
        apic.reset_registers();
        apic
    }

    /// Sets the width of the guest's physical addresses (CPUID 80000008H), 52 otherwise: IA32_APIC_BASE refuses
    /// bits above it. It is taken as 36 at least and 52 at most.
    #[must_use]
    pub const fn physical_address_bits(mut self, bits: u8) -> Self {
        self.physical_address_bits = if bits < 36 {
            36
        } else if bits > 52 {
            52
        } else {
            bits
        };
        self
    }

    /// Sets whether the performance-monitoring entry is masked when its interrupt is delivered, as on Intel's processors
    /// and at first here; AMD's leave it as it is (T-A2).
    pub const fn mask_performance_monitoring_on_delivery(&mut self, masks: bool) {
        self.masks_performance_monitoring = masks;
    }

    /// Sets the local APIC as firmware leaves it in virtual-wire mode: enabled by software with spurious vector FFH,
    /// LINT0 takes the PICs' interrupts, LINT1 takes NMIs.
    pub fn set_virtual_wire(&mut self) {
        self.spurious = registers::SOFTWARE_ENABLE | 0xFF;
        self.lvt[lvt::Entry::Lint0 as usize] = 7 << 8;
        self.lvt[lvt::Entry::Lint1 as usize] = 4 << 8;
        self.changed = page::ALL;
    }

    /// Returns the APIC ID.
    #[inline]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Puts the registers into the state after power-up, reset or INIT (SDM Vol. 3A 11.4.7.1, 11.4.7.3).
    fn reset_registers(&mut self) {
        (self.irr, self.isr, self.tmr) = Default::default();
        self.task_priority = 0;
        self.logical_destination = 0;
        self.destination_format = u32::MAX;
        self.spurious = 0xFF;
        self.command = 0;
        self.lvt = [lvt::MASKED; lvt::COUNT];
        self.errors = lvt::Errors::default();
        self.timer.reset();
        (self.nmi, self.external) = (false, false);
        self.changed = page::ALL;
    }

    /// Takes a message that is meant for this processor. A fixed interrupt is lost while software has disabled the
    /// local APIC, and everything is while IA32_APIC_BASE has; a start-up IPI counts only after INIT.
    #[inline]
    pub fn deliver(&mut self, delivery: Delivery, vector: u8, level: bool) {
        if !self.enabled() {
            return;
        }
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                if self.software_enabled() {
                    self.request(vector, level);
                }
            }
            Delivery::Nmi => self.nmi = true,
            Delivery::ExtInt => self.external = true,
            Delivery::Init => self.take_init(),
            Delivery::Startup => {
                if self.waits_for_startup {
                    self.waits_for_startup = false;
                    self.startup = Some(vector);
                }
            }
            Delivery::Smi => {}
        }
    }

    fn take_init(&mut self) {
        self.reset_registers();
        self.init = true;
        self.startup = None;
        self.waits_for_startup = true;
    }

    /// Requests the service of a vector.
    #[inline]
    fn request(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            return self.report(lvt::RECEIVE_ILLEGAL_VECTOR);
        }
        self.irr.insert(vector);
        self.changed |= page::IRR;
        if level {
            self.tmr.insert(vector);
            self.changed |= page::TMR;
        } else if self.tmr.contains(vector) {
            self.tmr.remove(vector);
            self.changed |= page::TMR;
        }
    }

    /// Returns the vector that the processor would take now if its interrupts are enabled: the highest requested,
    /// when its priority class is above the processor's.
    #[inline]
    pub const fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest();
        let (task, served) = (self.task_priority & 0xF0, self.isr.highest() & 0xF0);
        let class = vector & 0xF0;
        if class > task && class > served { Some(vector) } else { None }
    }

    /// Has the processor take the vector of [`pending`](Self::pending): it is in service from here on. The processor
    /// acknowledges what it was offered in the same step, so a spurious interrupt never arises.
    #[inline]
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.remove(vector);
        self.isr.insert_highest(vector);
        self.changed |= page::IRR | page::ISR;
        Some(vector)
    }

    /// Ends the interrupt of highest priority in service.
    #[inline]
    fn end_of_interrupt(&mut self) -> Effect {
        let vector = self.isr.highest();
        if vector == 0 {
            return Effect::None;
        }
        self.isr.remove(vector);
        self.changed |= page::ISR;
        if !self.tmr.contains(vector) {
            return Effect::None;
        }
        self.end_local_level(vector);
        if self.spurious & registers::SUPPRESS_BROADCAST != 0 {
            return Effect::None;
        }
        Effect::EndOfInterrupt(vector)
    }

    /// Returns the processor-priority register: the priority that lowest-priority delivery compares.
    #[inline]
    pub const fn processor_priority(&self) -> u8 {
        let served = self.isr.highest() & 0xF0;
        if self.task_priority & 0xF0 >= served { self.task_priority } else { served }
    }

    /// Returns CR8: the class in the task-priority register, 0 to 15.
    #[inline]
    pub const fn cr8(&self) -> u8 {
        self.task_priority >> 4
    }

    /// Writes CR8; bits 7:4 of `value`, which MOV to CR8 refuses, are ignored.
    #[inline]
    pub const fn set_cr8(&mut self, value: u8) {
        self.task_priority = value << 4;
        self.changed |= page::bit(registers::TPR);
    }

    /// Returns whether the PICs' interrupt request reaches the processor: LINT0 is asserted and lets it through, the
    /// local APIC is disabled in IA32_APIC_BASE, or a message of mode ExtINT came.
    #[inline]
    pub const fn external_pending(&self) -> bool {
        self.external
            || (self.lint[0] && (!self.enabled() || lvt::passes_external(self.lvt[lvt::Entry::Lint0 as usize])))
    }

    /// Tells that the PICs were asked for their vector; their line stays what [`set_lint0`](Self::set_lint0) said.
    #[inline]
    pub const fn acknowledge_external(&mut self) {
        self.external = false;
    }

    /// Returns whether an NMI waits.
    #[inline]
    pub const fn nmi_pending(&self) -> bool {
        self.nmi
    }

    /// Returns whether LINT0 is set to be an NMI.
    pub const fn lint0_is_nmi(&self) -> bool {
        let entry = self.lvt[lvt::Entry::Lint0 as usize];
        entry & lvt::MASKED == 0 && entry >> 8 & 7 == 4
    }

    /// Takes the NMI that waits, if one does.
    #[inline]
    pub const fn take_nmi(&mut self) -> bool {
        core::mem::replace(&mut self.nmi, false)
    }

    /// Takes what INIT and start-up IPIs ask, INIT first; `None` when nothing came.
    #[inline]
    pub fn take_startup(&mut self) -> Option<Startup> {
        if core::mem::take(&mut self.init) {
            return Some(Startup::Init);
        }
        self.startup.take().map(Startup::Sipi)
    }

    /// Returns whether an INIT or start-up IPI waits to be taken.
    #[inline]
    pub const fn startup_pending(&self) -> bool {
        self.init || self.startup.is_some()
    }

    /// Brings the timer to `now`: an interrupt that is due is requested.
    #[inline]
    pub fn advance(&mut self, now: Tsc) {
        if self.timer.expire(now) {
            self.raise(lvt::Entry::Timer);
        }
    }

    /// Returns when [`advance`](Self::advance) is to be called at the latest; `None` when the timer stands or its
    /// interrupt is masked.
    #[inline]
    pub fn deadline(&self) -> Option<Tsc> {
        let unmasked = self.lvt[lvt::Entry::Timer as usize] & lvt::MASKED == 0;
        (unmasked && self.timer.armed()).then(|| self.timer.deadline())
    }
}
