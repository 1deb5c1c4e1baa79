//! What the image needs of a machine: frames, a task-state segment, and memory for the guest.
#![expect(unsafe_code, reason = "hands out memory of the image, and loads TR")]

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use libhv::address::Gpa;
use libhv::memory::window::Window;
use libhv::memory::{FrameSource, Frames, GuestMemory};
use x86_64::PhysAddr;
use x86_64::instructions::tables::load_tss;
use x86_64::registers::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

extern crate alloc;

const PAGE: usize = 4096;
const FRAMES: usize = 64;
/// Where the linker script puts the image, above where it is loaded.
const IMAGE_OFFSET: u64 = 0xFFFF_FFFF_8000_0000;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; FRAMES * PAGE]>);

// SAFETY: `Pool` hands every frame out once.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; FRAMES * PAGE]));

/// Frames of the image's own, each handed out once.
pub(crate) struct Pool(usize);

impl Pool {
    /// Makes the one pool.
    ///
    /// # Safety
    /// Called once.
    pub(crate) unsafe fn new() -> Self {
        Self(0)
    }
}

// SAFETY: zeroed (`.bss`), aligned, mapped for ever, handed out once, at the image's offset from physical memory.
unsafe impl FrameSource for Pool {
    fn allocate(&mut self, count: usize) -> Option<Frames> {
        let first = self.0;
        self.0 = first.checked_add(count).filter(|&end| end <= FRAMES)?;
        let address = NonNull::new(MEMORY.0.get().cast::<u8>().wrapping_add(first * PAGE))?;
        let physical = PhysAddr::new(address.as_ptr() as u64 - IMAGE_OFFSET);
        // SAFETY: see the `impl`.
        Some(unsafe { Frames::new(physical, address.cast(), count) })
    }
    fn release(&mut self, _frames: Frames) {}
}

/// Loads a GDT with a task-state segment.
pub(crate) fn load_task_register() {
    let tss: &'static TaskStateSegment = alloc::boxed::Box::leak(alloc::boxed::Box::new(TaskStateSegment::new()));
    let gdt: &'static mut GlobalDescriptorTable =
        alloc::boxed::Box::leak(alloc::boxed::Box::new(GlobalDescriptorTable::new()));
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    gdt.load();
    // SAFETY: a 64-bit code segment, as the one in use.
    unsafe { CS::set_reg(code) }
    // SAFETY: a writable data segment.
    unsafe { SS::set_reg(data) }
    // SAFETY: as above.
    unsafe { DS::set_reg(data) }
    // SAFETY: as above.
    unsafe { ES::set_reg(data) }
    // SAFETY: a task-state segment that lives for ever.
    unsafe { load_tss(task) }
}

/// Makes guest memory of `frames`, from guest-physical 0.
pub(crate) fn guest_memory(frames: Frames) -> GuestMemory {
    let (host, bytes) = (frames.physical(), frames.count() * PAGE);
    // SAFETY: `frames` is consumed: nobody else refers to the memory, which stays mapped, and the guest's, for ever.
    let window = unsafe { Window::new(frames.as_ptr().cast(), bytes, host) };
    let mut memory = GuestMemory::new();
    memory.add(Gpa::new(0), window).expect("the first region overlaps nothing");
    memory
}
