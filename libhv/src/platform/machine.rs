//! `Machine`: what the platform hands to the appliance.

use super::acpi::Acpi;
use super::memory::{self, HostFrames};
use super::paging::Permissions;
use super::pci::{self, ConfigurationPorts};
use super::processor::Processor;
use super::serial::Com1;
use super::watchdog::{self, Watching};
use crate::error::Result;
#[cfg(doc)]
use crate::error::{Error, Requirement};
use crate::hw::Host;
use crate::hw::counters;
use crate::memory::GuestMemory;
use crate::pmu::PmuCapability;
use crate::pmu::registers::{Maker, PmuRegister};
use crate::time::Tsc;
use crate::vcpu::cpuid::HostCpuid;
use crate::watchdog::Watchdog;
use alloc::vec::Vec;
use x86_64::VirtAddr;

/// A file that the boot loader put beside the image.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Its bytes.
    pub bytes: &'static [u8],
    /// What the boot loader's configuration says behind its name.
    pub command_line: &'static str,
}

/// The machine the appliance runs on, as the platform found it and set it up.
#[derive(Debug)]
pub struct Machine {
    pub(crate) entry_tsc: Tsc,
    pub(crate) command_line: &'static str,
    pub(crate) modules: Vec<Module>,
    pub(crate) acpi: Acpi,
    pub(crate) console: Com1,
    pub(crate) processor: Processor,
}

impl Machine {
    /// Returns the time-stamp counter as it was at the image's first instructions.
    pub fn entry_tsc(&self) -> Tsc {
        self.entry_tsc
    }

    /// Returns the image's command line. Loaders of Multiboot 1 that put the file's name before it (QEMU, iPXE, GRUB
    /// Legacy, SYSLINUX, by the name they give themselves) have their first word left out.
    pub fn command_line(&self) -> &'static str {
        self.command_line
    }

    /// Returns the boot modules in the boot loader's order.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Returns the bytes of memory that guests can still have; a few MiB stay back for what describes them.
    pub fn memory_available(&self) -> u64 {
        memory::available()
    }

    /// Makes the memory of a guest from pieces of host memory as large, and as well aligned for large pages, as there
    /// are: `bytes` bytes, rounded up to pages, from guest-physical 0 to 3 GiB at most, and the rest from 4 GiB on. It
    /// holds what was there before.
    ///
    /// # Errors
    /// [`Error::GuestTooLarge`](crate::Error::GuestTooLarge) when there is not as much.
    pub fn guest_memory(&mut self, bytes: u64) -> Result<GuestMemory> {
        memory::guest(bytes)
    }

    /// Returns the source of frames for control structures and tables.
    pub fn frames(&self) -> HostFrames {
        HostFrames(())
    }

    /// Returns the bytes of memory the hypervisor has for itself: image, heap, stacks, page tables and frames.
    pub fn kept(&self) -> u64 {
        memory::kept()
    }

    /// Returns the serial line that is the guest's console, COM1.
    pub fn console(&self) -> Com1 {
        self.console
    }

    /// Returns the processor this runs on: clock, timer and interrupts.
    pub fn processor(&mut self) -> &mut Processor {
        &mut self.processor
    }

    /// Has `watchdog` watch over the host from now until what this returns is dropped. The host makes progress with each
    /// exit of its guest; where it does something else, let it call [`pet`](crate::watchdog::pet). The guest leaves for
    /// each tick, 18 times a second: the appliance is asked about [`Exit::Nmi`](crate::exit::Exit::Nmi).
    ///
    /// # Errors
    /// [`Error::NmisInUse`](crate::Error::NmisInUse) when somebody else has the NMIs; [`Error::Unsupported`] with
    /// [`Requirement::IoApic`] or [`Requirement::TimerNmi`] when the machine has no timer that ticks so.
    pub fn watch(&mut self, watchdog: Watchdog) -> Result<Watching> {
        watchdog::start(self.acpi.madt.as_ref(), self.processor.frequency(), watchdog)
    }

    /// Gives the processor away, for a run loop that owns it.
    pub fn into_processor(self) -> Processor {
        self.processor
    }

    /// Returns what the processor's PMU has; `None` where there is none that the pillar knows.
    pub fn pmu_capability(&self) -> Option<PmuCapability> {
        PmuCapability::of(&HostCpuid, || counters::read(PmuRegister::Capabilities, Maker::Intel))
    }

    /// Returns what the machine's real-time clock says: seconds since 1970-01-01, UTC; 0 where it makes no sense.
    pub fn wall_clock(&self) -> u64 {
        super::rtc::seconds()
    }

    /// Returns what the firmware's tables say.
    pub fn acpi(&self) -> &Acpi {
        &self.acpi
    }

    /// Returns the PCI functions there are.
    pub fn pci(&self) -> Vec<pci::Function> {
        pci::functions(ConfigurationPorts)
    }

    /// Returns how an address of the host is mapped, if it is.
    pub fn permissions(&self, address: VirtAddr) -> Option<Permissions> {
        memory::permissions(address)
    }
}
