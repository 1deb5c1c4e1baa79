//! The order in which the platform comes up: from the entry code's call to the appliance's `main`.
#![expect(unsafe_code, reason = "takes over the machine: its memory, its page tables, its stack")]

use super::info::BootInfo;
use super::physical::Physical;
use crate::error::{Error, Requirement, Result};
use crate::exit::StopReason;
use crate::platform::layout::{IMAGE, REGION_BYTES, Region};
use crate::platform::memory::{self, HostMemory};
use crate::platform::ranges::Range;
use crate::platform::{Machine, Module, acpi, apic, clock, interrupts, processor, runtime, segments, serial, vectors};
use crate::time::Tsc;
use hermit_sync::OnceCell;
use x86_64::structures::paging::PageTableFlags;

unsafe extern "Rust" {
    /// What `libhv::entry!` defines.
    safe fn libhv_main(machine: Machine) -> Result<StopReason>;
}

/// Declares symbols of the linker script, and functions that return their addresses.
macro_rules! symbols {
    ($($function:ident = $symbol:ident),* $(,)?) => {
        unsafe extern "C" { $(safe static $symbol: u8;)* }
        $(fn $function() -> u64 { &raw const $symbol as u64 })*
    };
}

symbols! {
    load_start = libhv_load_start,
    text_start = libhv_text_start,
    text_end = libhv_text_end,
    rodata_end = libhv_rodata_end,
    data_end = libhv_data_end,
    image_end = libhv_image_end,
}

/// The first 64 KiB: the BIOS's own data, and what firmware is known to write to. Nobody gets them.
const FIRST_PAGES: Range = Range { start: 0, end: 0x1_0000 };

/// What the boot loader told, and the time-stamp counter at entry.
static BOOT: OnceCell<(BootInfo, Tsc)> = OnceCell::new();

const _: () = assert!(
    size_of::<Option<(BootInfo, Tsc)>>() > size_of::<(BootInfo, Tsc)>(),
    "without a niche, what holds nothing yet is all zeros, and takes no room in the image's file"
);

/// Physical memory below 4 GiB, where the boot code's tables map it at its own addresses; without the image.
struct Identity;

impl Physical for Identity {
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        let range = Range::new(address, length as u64);
        let image = Range { start: load_start(), end: image_end() };
        if address == 0 || range.end > 4 << 30 || range.overlaps(image) {
            return None;
        }
        // SAFETY: mapped (see the type) and not memory of any Rust object: those are all in the image so far.
        Some(unsafe { core::slice::from_raw_parts(address as *const u8, length) })
    }
}

/// Continues in Rust, on the boot stack, with the boot code's mappings: reads what the loader told, and makes the
/// host's own page tables and stacks.
pub(super) extern "C" fn start(magic: u32, information: u32, entry_tsc: u64) -> ! {
    serial::start();
    vectors::load(false);
    match prepare(magic, information, entry_tsc) {
        Ok(root) => {
            let stack = segments::stack_top(0, 0);
            // SAFETY: the new tables map the image where it runs and the new stack, both writable where they need to
            // be; nothing of the old stack is used again.
            unsafe {
                core::arch::asm!(
                    "mov cr3, {root}",
                    "mov rsp, {stack}",
                    "xor ebp, ebp",
                    "call {next}",
                    "ud2",
                    root = in(reg) root,
                    stack = in(reg) stack,
                    next = sym arrived,
                    options(noreturn),
                )
            }
        }
        Err(error) => runtime::end(Err(error)),
    }
}

/// Returns the physical address of the host's page tables.
fn prepare(magic: u32, information: u32, entry_tsc: u64) -> Result<u64> {
    let cpuid = raw_cpuid::CpuId::new();
    let extended = cpuid.get_extended_processor_and_feature_identifiers();
    let has_execute_disable = extended.as_ref().is_some_and(|features| features.has_execute_disable());
    if !has_execute_disable {
        return Err(Error::Unsupported(Requirement::ExecuteDisable));
    }
    let huge_pages = extended.is_some_and(|features| features.has_1gib_pages());

    let info = BootInfo::parse(magic, information.into(), &Identity)?;
    let (info, _) = BOOT.get_or_init(|| (info, Tsc(entry_tsc)));
    let image = Range { start: load_start(), end: image_end() };
    let mut free = info.usable().clone();
    for (module, _) in info.modules() {
        if module.overlaps(image) || module.end > REGION_BYTES {
            return Err(Error::BootInformation("a module lies in the image, or out of reach"));
        }
        free.remove(module.pages());
    }
    free.remove(FIRST_PAGES);
    free.remove(image);
    // SAFETY: nobody uses what is left, and the boot code's tables map the first 4 GiB.
    let mut host = unsafe { HostMemory::new(free, info.usable().clone(), image.bytes(), huge_pages) }?;
    let present = PageTableFlags::PRESENT;
    let sections = [
        (text_start(), text_end(), present),
        (text_end(), rodata_end(), present | PageTableFlags::NO_EXECUTE),
        (rodata_end(), data_end(), present | PageTableFlags::NO_EXECUTE | PageTableFlags::WRITABLE),
    ];
    for (start, end, flags) in sections {
        host.map_image(start, Range { start: start - IMAGE, end: end - IMAGE }, flags)?;
    }
    segments::provide(&mut host, 0)?;
    let root = host.tables.root().as_u64();
    // SAFETY: from here to the switch of tables nothing is mapped; after it, all frames are in their region.
    unsafe { host.tables.moved(Region::Frames.base()) };
    host.hand_over();
    Ok(root)
}

/// Continues on the new stack, with the host's own mappings: nothing is left at low addresses.
extern "C" fn arrived() -> ! {
    // SAFETY: this is the first processor, `prepare` has mapped its memory, and it comes here once.
    unsafe { segments::load(0) };
    // The boot code's tables and stack are behind the image's data.
    memory::with(|host| host.give_back(Range { start: data_end() - IMAGE, end: image_end() }));
    runtime::end(machine().and_then(libhv_main))
}

/// Brings up the rest: tables of the firmware, interrupts, clock, console, modules.
fn machine() -> Result<Machine> {
    let (info, entry_tsc) = BOOT.get().ok_or(Error::BootInformation("there is none"))?;
    let acpi = info.rsdp().map(|rsdp| acpi::Acpi::read(rsdp, &memory::Firmware)).unwrap_or_default();

    apic::silence_pics();
    apic::start()?;
    let processor = start_clock(&acpi);
    serial::Line::COM1.interrupt_on_receive();
    let routed = acpi.madt.as_ref().is_some_and(|madt| apic::route(madt, 4, interrupts::CONSOLE));
    if !routed {
        crate::log!("no I/O APIC for COM1: it is looked at when the timer comes");
    }

    let mut modules = alloc::vec::Vec::new();
    for (range, command_line) in info.modules() {
        // SAFETY: `prepare` took the module out of the free memory, and nobody writes to it.
        let bytes = unsafe { memory::module(range) }.ok_or(Error::OutOfMemory("page tables of boot modules"))?;
        modules.push(Module { bytes, command_line });
    }
    let console = serial::Com1::new();
    Ok(Machine { entry_tsc: *entry_tsc, command_line: info.command_line(), modules, acpi, console, processor })
}

/// Finds out how fast the clocks run and puts the timer into its best mode.
fn start_clock(acpi: &acpi::Acpi) -> processor::Processor {
    let cpuid = raw_cpuid::CpuId::new();
    let deadline = cpuid.get_feature_info().is_some_and(|features| features.has_tsc_deadline());
    let stated = clock::stated(&cpuid);
    apic::use_count();
    let measured = || {
        let fixed = acpi.fadt.and_then(|fadt| Some((fadt.pm_timer?, fadt.pm_timer_32)));
        clock::measure(
            fixed.map_or(clock::Reference::IntervalTimer, |(port, wide)| clock::Reference::PowerManagement(port, wide)),
        )
    };
    match (stated, deadline) {
        (Some(frequency), true) => {
            apic::use_deadline();
            processor::Processor::new(frequency, processor::Timer::Deadline)
        }
        (stated, deadline) => {
            let (measured, apic_hz) = measured();
            let timer = if deadline {
                apic::use_deadline();
                processor::Timer::Deadline
            } else {
                processor::Timer::Count(clock::Ratio::new(measured, apic_hz))
            };
            processor::Processor::new(stated.unwrap_or(measured), timer)
        }
    }
}
