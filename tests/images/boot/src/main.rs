//! A test image: what the platform promises an appliance, checked on the machine itself.
//!
//! Its command line may ask for an end of its own: `end=panic`, `end=fault` (a write to the image's code),
//! `end=overflow` (a stack that runs into its guard page), `end=error`, `end=typed` (after a byte on COM1).
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "provokes the faults it checks for")]

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use libhv::address::Gpa;
use libhv::exit::{StopReason, Width};
use libhv::hw::{Console, Host};
use libhv::memory::FrameSource;
use libhv::platform::layout::Region;
use libhv::platform::{Machine, interrupts};
use libhv::time::Tsc;
use libhv::{Error, log};
use x86_64::VirtAddr;

libhv::entry!(main);

/// Ends the test with what was expected.
macro_rules! expect {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            log!("fail boot: {}", format_args!($($why)+));
            return Ok(StopReason::Appliance(1));
        }
    };
}

fn main(mut machine: Machine) -> libhv::Result<StopReason> {
    let started = machine.processor().now().since(machine.entry_tsc());
    let hz = machine.processor().frequency().hz();
    log!("{started} ticks from entry to main, at {hz} Hz");
    log!("command line: {:?}", machine.command_line());
    for module in machine.modules() {
        let sum = module.bytes.iter().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
        log!("module: {} bytes, sum {sum:#x}, {:?}", module.bytes.len(), module.command_line);
        let page = machine.permissions(VirtAddr::from_ptr(module.bytes.as_ptr()));
        expect!(module.bytes.is_empty() || page.is_some_and(|page| !page.write && !page.execute), "module {page:?}");
    }
    log!("{} MiB for guests, {} KiB kept", machine.memory_available() >> 20, machine.kept() >> 10);
    log!("{:?}", machine.acpi());
    for function in machine.pci() {
        let (vendor, device) = (function.vendor, function.device);
        log!(
            "PCI {}: {vendor:04x}:{device:04x} class {:02x}{:02x}",
            function.address,
            function.class,
            function.subclass
        );
    }

    // W^X, guard pages, and nothing at low addresses.
    let local = 0u8;
    static WRITTEN: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(1);
    let heap = Box::new(7u8);
    let frames = machine.frames().allocate(3);
    expect!(frames.is_some(), "no frames");
    let frames = frames.into_iter().next().ok_or(Error::OutOfMemory("the test"))?;
    expect!(frames.words().iter().all(|word| *word == 0), "frames are not zeroed");
    let places = [
        ("code", main as *const u8 as u64, (false, true)),
        ("constants", "text".as_ptr() as u64, (false, false)),
        ("statics", &raw const WRITTEN as u64, (true, false)),
        ("stack", &raw const local as u64, (true, false)),
        ("heap", &raw const *heap as u64, (true, false)),
        ("frames", frames.as_ptr().as_ptr() as u64, (true, false)),
    ];
    for (name, address, (write, execute)) in places {
        let page = machine.permissions(VirtAddr::new(address));
        expect!(page.is_some_and(|page| page.write == write && page.execute == execute), "{name}: {page:?}");
    }
    let stack = &raw const local as u64;
    let in_region = |region: Region, address: u64| address >> 43 == region.base() >> 43;
    expect!(in_region(Region::Stacks, stack) && in_region(Region::Heap, &raw const *heap as u64), "regions");
    let top = (stack & !0xFFF) + 0x1000;
    let lowest =
        (0..64).map(|page| stack - page * 4096).take_while(|at| machine.permissions(VirtAddr::new(*at)).is_some());
    let depth = top - (lowest.last().unwrap_or(stack) & !0xFFF);
    log!("{} KiB of stack below main", depth >> 10);
    expect!(depth < 200 << 10, "no guard page");
    for low in [0u64, 0x1000, 0x10_0000, 0x4000_0000, 0xFEE0_0000] {
        expect!(machine.permissions(VirtAddr::new(low)).is_none(), "{low:#x} is mapped");
    }

    // The heap grows beyond its first pieces and keeps what is in it.
    let kept = machine.kept();
    let blocks: Vec<Vec<u64>> = (0..24).map(|n| (0..16384).map(|word| word * n).collect()).collect();
    expect!(
        blocks.iter().zip(0..).all(|(block, n)| block.iter().zip(0..).all(|(word, at): (_, u64)| *word == at * n)),
        "heap"
    );
    expect!(machine.kept() > kept, "the heap did not grow");

    // A guest's memory, written and read through its window at both ends.
    let available = machine.memory_available();
    let before = machine.processor().now();
    let mut guest = machine.guest_memory(64 << 20)?;
    let took = machine.processor().now().since(before);
    log!("64 MiB of guest memory in {took} ticks: {:?}", guest.regions());
    for address in [0, (64 << 20) - 8] {
        let written = guest.write_number(Gpa::new(address), Width::Qword, !address);
        expect!(
            written.is_ok() && guest.read_number(Gpa::new(address), Width::Qword) == Ok(!address),
            "window {address:#x}"
        );
    }
    expect!(machine.memory_available() <= available - (64 << 20), "memory given twice");
    let refused = machine.guest_memory(1 << 45).err();
    expect!(matches!(refused, Some(Error::GuestTooLarge { .. })), "{refused:?}");

    // The timer: it comes, not early, and hardly late; disarmed it stays away.
    let processor = machine.processor();
    let before = interrupts::counts().timer;
    for part in [1000, 500] {
        let deadline = processor.now() + hz / part;
        processor.arm(Some(deadline));
        while interrupts::counts().timer == before || processor.now() < deadline {
            processor.wait();
            expect!(processor.now() < deadline + hz / 10, "the timer is late");
        }
        log!("timer of 1/{part} s: {} ticks late", processor.now().since(deadline));
    }
    processor.arm(Some(Tsc(1)));
    let from = processor.now();
    while processor.now().since(from) < hz / 1000 {}
    let count = interrupts::counts().timer;
    processor.serve_interrupts(None);
    expect!(interrupts::counts().timer == count + 1, "a deadline in the past did not come");
    processor.arm(Some(from + hz));
    processor.arm(None);
    expect!(interrupts::counts().other == 0, "{:?}", interrupts::counts());

    let mut console = machine.console();
    for byte in *b"console\r\n" {
        console.write(byte);
    }
    match machine.command_line().split(' ').find_map(|word| word.strip_prefix("end=")) {
        Some("panic") => panic!("asked for"),
        Some("error") => return Err(Error::MissingModule { index: 0, role: "kernel" }),
        Some("overflow") => log!("{}", overflow(1)),
        Some("fault") => {
            // SAFETY: none: the write faults, which is the test.
            unsafe { (main as *mut u8).write_volatile(0) };
        }
        Some("typed") => {
            log!("waiting for a byte");
            loop {
                machine.processor().wait();
                if let Some(byte) = console.read() {
                    log!("typed {byte:#x}, {:?}", interrupts::counts());
                    break;
                }
            }
        }
        _ => {}
    }
    log!("pass boot");
    Ok(StopReason::PowerOff)
}

#[expect(unconditional_recursion, reason = "the stack must end in its guard page")]
fn overflow(depth: u64) -> u64 {
    let room = core::hint::black_box([depth; 64]);
    overflow(room[0] + 1) + room[63]
}
