//! Control registers, descriptor table, task-state segment and stacks of one logical processor.
#![expect(unsafe_code, reason = "loads segments and control registers")]

use super::layout::Region;
use super::memory::HostMemory;
use super::vectors::{self, DOUBLE_FAULT_STACK, MACHINE_CHECK_STACK, NMI_STACK};
use crate::error::{Error, Result};
use crate::exit::Msr;
use crate::hw::bare;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

/// Bytes in the stack that everything runs on.
pub(crate) const STACK: u64 = 128 << 10;
/// Bytes in each stack of the interrupt-stack table.
const INTERRUPT_STACK: u64 = 16 << 10;
/// Bytes of address space for each stack: what the stack does not fill, under it, is never mapped.
const STACK_SPACING: u64 = 512 << 10;
/// Stacks of a processor.
const STACKS: u64 = 4;
/// IA32_PAT, and its value at reset (SDM Vol. 3A 13.12.4).
const IA32_PAT: (Msr, u64) = (Msr(0x277), 0x0007_0406_0007_0406);

/// What a processor has of its own, in the region for it.
#[repr(C, align(4096))]
struct PerProcessor {
    task: TaskStateSegment,
    descriptors: GlobalDescriptorTable,
}

/// Returns the address behind stack `index` of processor `number`.
pub(crate) const fn stack_top(number: u64, index: u64) -> u64 {
    Region::Stacks.base() + (number * STACKS + index + 1) * STACK_SPACING
}

/// Maps the stacks and the page of processor `number`.
///
/// # Errors
/// [`Error::OutOfMemory`]
pub(crate) fn provide(memory: &mut HostMemory, number: u64) -> Result<()> {
    let error = Error::OutOfMemory("stacks");
    for index in 0..STACKS {
        let bytes = if index == 0 { STACK } else { INTERRUPT_STACK };
        memory.provide(Region::Stacks, stack_top(number, index) - bytes, bytes).ok_or(error)?;
    }
    let bytes = size_of::<PerProcessor>() as u64;
    memory.provide(Region::PerProcessor, Region::PerProcessor.base() + number * bytes, bytes).ok_or(error)
}

/// Loads segments, task register, interrupt table and control registers of the processor this runs on.
///
/// # Safety
/// It is processor `number`, [`provide`] has mapped its memory, and this is the first call for it.
pub(crate) unsafe fn load(number: u64) {
    let bytes = size_of::<PerProcessor>() as u64;
    let own = (Region::PerProcessor.base() + number * bytes) as *mut PerProcessor;
    let mut task = TaskStateSegment::new();
    for index in [DOUBLE_FAULT_STACK, NMI_STACK, MACHINE_CHECK_STACK] {
        let top = stack_top(number, u64::from(index) + 1);
        task.interrupt_stack_table[usize::from(index)] = VirtAddr::new_truncate(top);
    }
    // SAFETY: mapped writable and nobody else's (this function's contract).
    unsafe { own.write(PerProcessor { task, descriptors: GlobalDescriptorTable::empty() }) };
    // SAFETY: initialised just now; no other reference to it is ever made.
    let own: &'static mut PerProcessor = unsafe { &mut *own };
    let code = own.descriptors.append(Descriptor::kernel_code_segment());
    let data = own.descriptors.append(Descriptor::kernel_data_segment());
    let task = own.descriptors.append(Descriptor::tss_segment(&own.task));
    let descriptors: &'static GlobalDescriptorTable = &own.descriptors;
    descriptors.load();
    // SAFETY: a 64-bit code segment of the table that was just loaded.
    unsafe { CS::set_reg(code) };
    // SAFETY: a writable data segment of it.
    unsafe { SS::set_reg(data) };
    for set in [DS::set_reg, ES::set_reg, FS::set_reg, GS::set_reg] {
        // SAFETY: a null selector is legal in these, and 64-bit code uses none of them.
        unsafe { set(SegmentSelector::NULL) };
    }
    // SAFETY: an available task-state segment of the table.
    unsafe { load_tss(task) };
    vectors::load(true);
    control_registers();
}

/// Sets CR0, CR4 and IA32_PAT. The vector state of a guest stays in the processor: nothing may fault on it, so OSFXSR,
/// OSXMMEXCPT and, where there is XSAVE, OSXSAVE are set, and EM and TS are clear.
fn control_registers() {
    let cpuid = raw_cpuid::CpuId::new();
    let features = cpuid.get_feature_info();
    let extended = cpuid.get_extended_feature_info();
    let mut cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE;
    cr4.set(Cr4Flags::OSXSAVE, features.as_ref().is_some_and(|features| features.has_xsave()));
    cr4.set(Cr4Flags::MACHINE_CHECK_EXCEPTION, features.as_ref().is_some_and(|features| features.has_mce()));
    cr4.set(
        Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION,
        extended.as_ref().is_some_and(|extended| extended.has_smep()),
    );
    cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, extended.as_ref().is_some_and(|extended| extended.has_smap()));
    let cr0 = Cr0Flags::PROTECTED_MODE_ENABLE
        | Cr0Flags::MONITOR_COPROCESSOR
        | Cr0Flags::EXTENSION_TYPE
        | Cr0Flags::NUMERIC_ERROR
        | Cr0Flags::WRITE_PROTECT
        | Cr0Flags::PAGING;
    // SAFETY: paging stays as it is; the host has no user pages, and writes to no read-only ones.
    unsafe { Cr0::write_raw(cr0.bits()) };
    // SAFETY: CPUID reports each bit that not every 64-bit processor has; 4-level paging stays as it is.
    unsafe { Cr4::write_raw(cr4.bits()) };
    if features.is_some_and(|features| features.has_pat()) {
        // SAFETY: CPUID reports the register, and its value at reset is legal; the host's pages use entries 0 and 3,
        // write-back and uncached there as in the boot code's tables.
        unsafe { bare::write_msr(IA32_PAT.0, IA32_PAT.1) };
    }
}
