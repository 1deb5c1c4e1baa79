//! The chipset: all devices of a guest, the lines between them, and the one place that finds a device by port, address
//! or MSR.
//!
//! Interrupt line n is line n of the PICs and pin n of the IOAPIC, but line 0 (the PIT) is pin 2. The PICs' own request
//! is LINT0 of processor 0 and pin 0 of the IOAPIC.

mod interrupts;
mod ports;

use super::bus::{Bus, Conflict, Device};
use super::i8042::KeyboardController;
use super::ioapic::{self, IoApic};
use super::lapic::{ApicPage, LocalApic, Startup};
use super::pci::{self, Pci};
use super::pic::Pic;
use super::pit::Pit;
use super::pm::PowerManagement;
use super::rtc::Rtc;
use super::uart::Uart;
use crate::address::Gpa;
use crate::exit::{Event, Msr, StopReason, Width};
use crate::hw::Console;
use crate::time::{Frequency, Tsc};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

/// The guest-physical address of the IOAPIC.
pub const IOAPIC: u64 = 0xFEC0_0000;
/// The APIC ID of the IOAPIC.
pub const IOAPIC_ID: u8 = 0;
/// The guest-physical addresses of local APICs and message-signalled interrupts.
pub const LOCAL_APICS: RangeInclusive<u64> = 0xFEE0_0000..=0xFEEF_FFFF;

/// The most virtual processors a chipset has local APICs for.
pub const MAX_PROCESSORS: u32 = 1024;

/// A deadline that never comes.
const NEVER: Tsc = Tsc(u64::MAX);

/// What a chipset needs to know of its guest and its host.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// Virtual processors, with APIC IDs 0, 1, 2, ...; 0 is taken as 1, and more than [`MAX_PROCESSORS`] as that.
    pub processors: usize,
    /// How fast the time-stamp counter runs from which all moments come.
    pub frequency: Frequency,
    /// Bytes of guest memory from address 0 on.
    pub memory_below_4g: u64,
    /// Bytes of guest memory from 4 GiB on.
    pub memory_above_4g: u64,
    /// The moment at which the guest starts.
    pub start: Tsc,
    /// What the clock on the wall says then: seconds since 1970-01-01, UTC.
    pub wall_clock: u64,
    /// How often the console is asked for input when nothing else moves the devices on, in hertz; 0 is never. What a
    /// host loses when its console does not interrupt it.
    pub input_polls_per_second: u32,
    /// The width of the guest's physical addresses (CPUID 80000008H).
    pub physical_address_bits: u8,
}

impl Configuration {
    /// Takes a guest of one processor that starts now, at the beginning of 1970, without memory.
    pub const fn new(frequency: Frequency) -> Self {
        Self {
            processors: 1,
            frequency,
            memory_below_4g: 0,
            memory_above_4g: 0,
            start: Tsc(0),
            wall_clock: 0,
            input_polls_per_second: 50,
            physical_address_bits: 52,
        }
    }

    /// Returns how many virtual processors there are: 1 to [`MAX_PROCESSORS`].
    pub fn processors(&self) -> u32 {
        u32::try_from(self.processors).map_or(MAX_PROCESSORS, |processors| processors.clamp(1, MAX_PROCESSORS))
    }
}

/// A guest's devices, with a local APIC for each of its virtual processors.
///
/// In every method `cpu` is the number of a virtual processor, from 0; one that does not exist reaches no local APIC.
/// `now` never goes back.
pub struct Chipset {
    apics: Vec<LocalApic>,
    uart: Uart<Box<dyn Console + Send>>,
    pic: Pic,
    ioapic: IoApic,
    pit: Pit,
    pm: PowerManagement,
    keyboard: KeyboardController,
    bus: Bus,
    pci: Pci,
    rtc: Rtc,
    memory: Vec<RangeInclusive<u64>>,
    /// The PICs' request as LINT0 has it.
    lint0: bool,
    /// Interrupt lines that are high, a bit each.
    lines: u32,
    stop: Option<StopReason>,
    attention: bool,
    /// The earliest deadline of all, and of all but the local APICs; [`NEVER`] when there is none.
    deadline: Tsc,
    device_deadline: Tsc,
    input_poll: Tsc,
    input_poll_ticks: u64,
}

impl fmt::Debug for Chipset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chipset")
            .field("apics", &self.apics)
            .field("pic", &self.pic)
            .field("ioapic", &self.ioapic)
            .field("pit", &self.pit)
            .field("pm", &self.pm)
            .field("rtc", &self.rtc)
            .field("pci", &self.pci)
            .field("keyboard", &self.keyboard)
            .field("bus", &self.bus)
            .field("lines", &self.lines)
            .field("stop", &self.stop)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl Chipset {
    /// Makes the devices as PC firmware leaves them: PICs masked, IOAPIC masked, the local APIC of processor 0 in
    /// virtual-wire mode, no timer running.
    pub fn new(configuration: Configuration, console: Box<dyn Console + Send>) -> Self {
        let Configuration { frequency, start, .. } = configuration;
        let (below_4g, above_4g) = (configuration.memory_below_4g, configuration.memory_above_4g);
        let mut apics: Vec<_> = (0..configuration.processors())
            .map(|id| LocalApic::new(id, frequency).physical_address_bits(configuration.physical_address_bits))
            .collect();
        if let Some(first) = apics.first_mut() {
            first.set_virtual_wire();
        }
        let input_poll_ticks = match configuration.input_polls_per_second {
            0 => u64::MAX,
            hz => frequency.ticks_from(1, hz.into()),
        };
        let regions = [(0u64, below_4g), (1 << 32, above_4g)].into_iter();
        let memory =
            regions.filter(|(_, bytes)| *bytes > 0).map(|(first, bytes)| first..=first.saturating_add(bytes - 1));
        let mut chipset = Self {
            apics,
            uart: Uart::new(console),
            pic: Pic::new(),
            ioapic: IoApic::new(IOAPIC_ID),
            pit: Pit::new(frequency),
            pm: PowerManagement::new(frequency),
            keyboard: KeyboardController::new(),
            bus: Bus::default(),
            pci: Pci::new(below_4g),
            rtc: Rtc::new(frequency, start, configuration.wall_clock, below_4g, above_4g),
            memory: memory.collect(),
            lint0: false,
            lines: 0,
            stop: None,
            attention: true,
            deadline: NEVER,
            device_deadline: NEVER,
            input_poll: start + input_poll_ticks,
            input_poll_ticks,
        };
        chipset.pm.advance(start);
        chipset.pic.make_level(super::pm::LINE);
        chipset.schedule_devices();
        chipset
    }

    /// Adds a device of the appliance's own.
    ///
    /// # Errors
    /// When it claims what is taken, by memory, the chipset or another device; then nothing has changed.
    pub fn add(&mut self, device: Box<dyn Device>) -> Result<(), Conflict> {
        if let Some(line) = device.interrupt_line()
            && (line >= ioapic::PINS || interrupts::OWN_LINES >> line & 1 != 0)
        {
            return Err(Conflict::Line(line));
        }
        let mut taken = self.memory.clone();
        taken.extend([IOAPIC..=IOAPIC + 0xFFF, LOCAL_APICS]);
        self.bus.add(device, ports::OWN_PORTS, &taken)?;
        self.follow_bus();
        Ok(())
    }

    /// Adds a device of the appliance's own as a function of PCI bus 0; returns its device number. Of what
    /// [`Device`] has, ports, memory and interrupt line are not asked: base address registers and INTA take their place.
    ///
    /// # Errors
    /// When the bus is full; then nothing has changed.
    pub fn add_function(&mut self, device: Box<dyn Device>, function: pci::Function) -> Result<u8, Conflict> {
        let number = self.pci.add(function).ok_or(Conflict::PciFull)?;
        self.pic.make_level(pci::interrupt_line(number));
        self.bus.add_function(device, number);
        self.follow_bus();
        Ok(number)
    }

    /// Reads `width` (32 bits at most) of memory-mapped devices at `address`; all ones where there is none.
    pub fn memory_read(&mut self, cpu: usize, address: Gpa, width: Width, now: Tsc) -> u64 {
        self.memory_read_beside(None, cpu, address, width, now)
    }

    /// As [`memory_read`](Self::memory_read), where the processor serves the local APIC from `page`, if from any.
    #[inline(always)]
    pub(crate) fn memory_read_beside(
        &mut self,
        page: Option<&ApicPage>,
        cpu: usize,
        address: Gpa,
        width: Width,
        now: Tsc,
    ) -> u64 {
        // Registers have 32 bits; a part of one is read as such.
        let part = |register: u32| u64::from(register) >> (8 * (address.as_u64() & 3)) & width.mask();
        let register = (address.page_offset() & !3) as u16;
        if let Some(apic) = self.apic_at(cpu, address) {
            if let Some(page) = page {
                apic.take(page);
            }
            return part(apic.read(register, now));
        }
        if address.as_u64() & !0xFFF == IOAPIC {
            return part(self.ioapic.read(register));
        }
        let value = if let Some(device) = self.bus.at_address(address) {
            device.memory_read(address, width, now)
        } else if let Some((device, bar, offset)) = self.bus.at_bar(&self.pci, |claim| claim.address(address.as_u64()))
        {
            device.bar_read(bar, offset, width, now)
        } else {
            return width.mask();
        };
        self.follow_bus();
        value & width.mask()
    }

    /// Writes `width` to memory-mapped devices at `address`; the write is lost where there is none. Interrupt
    /// controllers take 32-bit writes, and the low half of wider ones.
    pub fn memory_write(&mut self, cpu: usize, address: Gpa, width: Width, value: u64, now: Tsc) {
        self.memory_write_beside(None, cpu, address, width, value, now);
    }

    /// As [`memory_write`](Self::memory_write), where the processor serves the local APIC from `page`, if from any: then
    /// the run loop has to see to a write of its registers.
    #[inline(always)]
    pub(crate) fn memory_write_beside(
        &mut self,
        page: Option<&ApicPage>,
        cpu: usize,
        address: Gpa,
        width: Width,
        value: u64,
        now: Tsc,
    ) {
        let register = address.page_offset() as u16;
        let whole = width.bytes() >= 4;
        if let Some(apic) = self.apic_at(cpu, address) {
            if whole {
                if let Some(page) = page {
                    apic.take(page);
                }
                let effect = apic.write(register, value as u32, now);
                self.after_apic(cpu, effect);
                self.attention |= page.is_some();
            }
        } else if address.as_u64() & !0xFFF == IOAPIC {
            // IOREGSEL is written as a byte, too.
            self.ioapic.write(register, (value & width.mask()) as u32);
            self.send_ioapic_messages();
        } else if let Some(device) = self.bus.at_address(address) {
            device.memory_write(address, width, value & width.mask(), now);
            self.follow_bus();
        } else if let Some((device, bar, offset)) = self.bus.at_bar(&self.pci, |claim| claim.address(address.as_u64()))
        {
            device.bar_write(bar, offset, width, value & width.mask(), now);
            self.follow_bus();
        }
    }

    /// Does what the guest has asked for by a write to the page of its local APIC, see [`LocalApic::written`].
    #[inline]
    pub fn apic_written(&mut self, cpu: usize, page: &ApicPage, offset: u16, now: Tsc) {
        if let Some(apic) = self.apics.get_mut(cpu) {
            let effect = apic.written(page, offset, now);
            self.after_apic(cpu, effect);
        }
    }

    /// Returns whether a device has `address`.
    pub fn is_mmio(&self, cpu: usize, address: Gpa) -> bool {
        let page = Gpa::new(address.as_u64() & !0xFFF);
        page.as_u64() == IOAPIC
            || self.apics.get(cpu).is_some_and(|apic| apic.page() == Some(page))
            || self.bus.claims(address)
            || self.bus.in_bar(&self.pci, address)
    }

    /// Returns the local APIC whose registers `cpu` finds at an address.
    #[inline]
    fn apic_at(&mut self, cpu: usize, address: Gpa) -> Option<&mut LocalApic> {
        let page = Gpa::new(address.as_u64() & !0xFFF);
        self.apics.get_mut(cpu).filter(|apic| apic.page() == Some(page))
    }

    /// Reads an MSR of the local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE, 800H to 8FFH. `None` for any other.
    ///
    /// # Errors
    /// The #GP that the guest gets.
    #[inline]
    pub fn read_msr(&mut self, cpu: usize, msr: Msr, now: Tsc) -> Option<Result<u64, Event>> {
        let apic = self.apics.get_mut(cpu).filter(|_| LocalApic::owns(msr))?;
        Some(apic.read_msr(msr, now).map_err(|_| Event::GENERAL_PROTECTION))
    }

    /// Writes an MSR of the local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE, 800H to 8FFH. `None` for any other.
    ///
    /// # Errors
    /// The #GP that the guest gets; then nothing has changed.
    #[inline]
    pub fn write_msr(&mut self, cpu: usize, msr: Msr, value: u64, now: Tsc) -> Option<Result<(), Event>> {
        let apic = self.apics.get_mut(cpu).filter(|_| LocalApic::owns(msr))?;
        Some(match apic.write_msr(msr, value, now) {
            Ok(effect) => {
                self.after_apic(cpu, effect);
                Ok(())
            }
            Err(_) => Err(Event::GENERAL_PROTECTION),
        })
    }

    /// Returns CR8.
    #[inline]
    pub fn cr8(&self, cpu: usize) -> u8 {
        self.apics.get(cpu).map_or(0, LocalApic::cr8)
    }

    /// Sets CR8, of which bits 3:0 count.
    #[inline]
    pub fn set_cr8(&mut self, cpu: usize, value: u8) {
        if let Some(apic) = self.apics.get_mut(cpu) {
            apic.set_cr8(value);
            self.attention |= apic.pending().is_some();
        }
    }

    /// Brings all devices to `now` and takes the console's input.
    pub fn advance(&mut self, now: Tsc) {
        self.uart.poll();
        self.follow_uart();
        if now >= self.device_deadline {
            if now >= self.input_poll {
                self.input_poll = now + self.input_poll_ticks;
            }
            self.advance_devices(now);
        }
        for apic in &mut self.apics {
            apic.advance(now);
        }
        self.attention = true;
        self.schedule();
    }

    fn advance_devices(&mut self, now: Tsc) {
        if self.pit.take_edge(now) {
            self.pulse(super::pit::LINE);
        }
        self.pm.advance(now);
        self.set_line(super::pm::LINE, self.pm.line());
        self.rtc.advance(now);
        self.set_line(super::rtc::LINE, self.rtc.line());
        self.bus.devices().for_each(|device| device.advance(now));
        self.follow_bus();
    }

    /// Returns when [`advance`](Self::advance) is to be called at the latest.
    #[inline]
    pub fn next_deadline(&self) -> Option<Tsc> {
        (self.deadline != NEVER).then_some(self.deadline)
    }

    /// Finds the earliest deadline after a device that keeps one was touched.
    fn schedule_devices(&mut self) {
        let own = [self.pit.deadline(), self.pm.deadline(), self.rtc.deadline()];
        let deadlines = own.into_iter().chain([self.bus.deadline(), Some(self.input_poll)]);
        self.device_deadline = deadlines.flatten().min().unwrap_or(NEVER);
        self.schedule();
    }

    /// Finds the earliest deadline after a local APIC was touched.
    #[inline]
    fn schedule(&mut self) {
        let deadline = self.apics.iter().filter_map(LocalApic::deadline).fold(self.device_deadline, Tsc::min);
        self.attention |= deadline != self.deadline;
        self.deadline = deadline;
    }

    /// Returns whether something has happened since this was last asked that the run loop has to see to: an interrupt,
    /// an NMI, a start-up, another deadline, the guest's end.
    #[inline]
    pub fn take_attention(&mut self) -> bool {
        // Without a store where there is none: the most frequent answer.
        self.attention && core::mem::take(&mut self.attention)
    }

    /// Returns how the guest ends, once, when it has ended itself.
    #[inline]
    pub fn stop(&mut self) -> Option<StopReason> {
        self.stop.take()
    }

    fn end(&mut self, reason: StopReason) {
        self.stop = Some(reason);
        self.attention = true;
    }

    /// Presses the guest's power button, as ACPI has it.
    pub fn press_power_button(&mut self) {
        self.pm.press_power_button();
        self.set_line(super::pm::LINE, self.pm.line());
    }

    /// Pulls LINT1 of every processor, an NMI where the guest has it so, unless the guest masked NMIs in port 70H.
    pub fn pulse_nmi(&mut self) {
        if self.rtc.masks_nmi() {
            return;
        }
        for apic in &mut self.apics {
            apic.set_lint1(true);
            apic.set_lint1(false);
        }
        self.attention = true;
    }

    /// Has a message-signalled interrupt or NMI arrive, as `address` and `data` encode it.
    pub fn send_message(&mut self, message: super::bus::Message) {
        if let Some(interrupt) = super::lapic::Interrupt::from_msi(message.address, message.data) {
            self.route(interrupt);
        }
    }

    /// Returns a processor's local APIC.
    #[inline]
    pub fn local_apic(&mut self, cpu: usize) -> Option<&mut LocalApic> {
        self.apics.get_mut(cpu)
    }

    /// Takes what INIT and start-up IPIs ask of a processor.
    #[inline]
    pub fn take_startup(&mut self, cpu: usize) -> Option<Startup> {
        self.apics.get_mut(cpu)?.take_startup()
    }
}

#[cfg(test)]
mod tests;
