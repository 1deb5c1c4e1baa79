//! Where the host goes on after an exit: the state of this processor as it is now, read once.
#![expect(unsafe_code, reason = "reads MSRs, TR and the TSS descriptor, and says what VM exits load")]

use super::capability::Capabilities;
use super::debug_control::DebugControl;
use super::msr_list::MsrList;
use super::vmcs::Vmcs;
use super::{entry, field, instructions};
use crate::error::{Error, Result};
use crate::exit::Msr;
use crate::hw::bare;
use crate::memory::FrameSource;
use bit_field::BitField;
use core::arch::asm;
use x86_64::PhysAddr;
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr3, Cr4};
use x86_64::registers::segmentation::{CS, DS, ES, FS, GS, SS, Segment};

const SYSENTER_CS: Msr = Msr(0x174);
const SYSENTER_ESP: Msr = Msr(0x175);
const SYSENTER_EIP: Msr = Msr(0x176);
const DEBUGCTL: Msr = Msr(0x1D9);
const PAT: Msr = Msr(0x277);
const EFER: Msr = Msr(0xC000_0080);
const FS_BASE: Msr = Msr(0xC000_0100);
const GS_BASE: Msr = Msr(0xC000_0101);

/// The parts of a selector that a host selector may have: no privilege level, no LDT (SDM Vol. 3C 27.2.3).
const HOST_SELECTOR: u16 = 0xFFF8;

/// Returns the base that the two words of a 64-bit TSS descriptor hold (SDM Vol. 3A 8.2.3).
fn tss_base(low: u64, high: u64) -> u64 {
    low.get_bits(16..40) | low.get_bits(56..64) << 24 | high.get_bits(0..32) << 32
}

/// Has VM exits come back to [`entry`] with the registers that this processor has now.
///
/// # Safety
/// Code, stacks and tables that these registers name stay where they are for as long as `vmcs` lives; TR is loaded.
pub(super) unsafe fn capture(vmcs: &mut Vmcs) {
    // SAFETY: `vmcs` exists at privilege level 0 alone; every 64-bit processor has these MSRs.
    let msr = |index| unsafe { bare::read_msr(index) };
    let task: u16;
    // SAFETY: reads a register.
    unsafe { asm!("str {0:x}", out(reg) task, options(nomem, nostack, preserves_flags)) }
    let (gdt, idt) = (sgdt(), sidt());
    let descriptor = gdt.base.as_ptr::<u64>().wrapping_add(usize::from(task >> 3));
    // SAFETY: TR is loaded, so its descriptor is in the GDT, aligned to 8 bytes or read as if it were.
    let low = unsafe { descriptor.read_unaligned() };
    // SAFETY: as above; a TSS descriptor has 16 bytes in 64-bit mode.
    let high = unsafe { descriptor.wrapping_add(1).read_unaligned() };
    let (cr3, cr3_flags) = Cr3::read_raw();
    let assignments = [
        field::HOST_ES_SELECTOR.of(ES::get_reg().0 & HOST_SELECTOR),
        field::HOST_CS_SELECTOR.of(CS::get_reg().0 & HOST_SELECTOR),
        field::HOST_SS_SELECTOR.of(SS::get_reg().0 & HOST_SELECTOR),
        field::HOST_DS_SELECTOR.of(DS::get_reg().0 & HOST_SELECTOR),
        field::HOST_FS_SELECTOR.of(FS::get_reg().0 & HOST_SELECTOR),
        field::HOST_GS_SELECTOR.of(GS::get_reg().0 & HOST_SELECTOR),
        field::HOST_TR_SELECTOR.of(task & HOST_SELECTOR),
    ];
    // SAFETY: the processor's own values; the caller vouches that they stay good.
    unsafe { vmcs.assign(&assignments) }
    let assignments = [
        field::HOST_PAT.of(msr(PAT)),
        field::HOST_EFER.of(msr(EFER)),
        field::HOST_SYSENTER_CS.of(msr(SYSENTER_CS) as u32),
        field::HOST_SYSENTER_ESP.of(msr(SYSENTER_ESP)),
        field::HOST_SYSENTER_EIP.of(msr(SYSENTER_EIP)),
        field::HOST_CR0.of(Cr0::read_raw()),
        field::HOST_CR3.of(cr3.start_address().as_u64() | u64::from(cr3_flags)),
        field::HOST_CR4.of(Cr4::read_raw()),
        field::HOST_FS_BASE.of(msr(FS_BASE)),
        field::HOST_GS_BASE.of(msr(GS_BASE)),
        field::HOST_TR_BASE.of(tss_base(low, high)),
        field::HOST_GDTR_BASE.of(gdt.base.as_u64()),
        field::HOST_IDTR_BASE.of(idt.base.as_u64()),
        field::HOST_RIP.of(entry::exit_point()),
    ];
    // SAFETY: as above; HOST_RSP is written by `entry`, before the first entry.
    unsafe { vmcs.assign(&assignments) }
}

/// Has FREEZE_WHILE_SMM of IA32_DEBUGCTL stay as the host has it, in the guest and after exits, which clear the register:
/// a list of MSRs to load brings it back. Where the host has it clear, there is no list.
///
/// # Errors
/// [`Error::OutOfMemory`]
pub(super) fn keep_debug_control(
    vmcs: &mut Vmcs,
    capabilities: &Capabilities,
    frames: &mut impl FrameSource,
) -> Result<Option<MsrList>> {
    let debug_control = DebugControl::of_host(instructions::host_debugctl());
    let Some(value) = debug_control.after_exit() else { return Ok(None) };
    let full = Error::OutOfMemory("the list of MSRs that exits load");
    let mut list = MsrList::new(frames.allocate(1).ok_or(full)?, capabilities.msr_list_limit());
    list.set(DEBUGCTL, value).map_err(|_| full)?;
    // SAFETY: a bit of the host's own register, which was set; frames are never given back, so the list lives for ever.
    unsafe { vmcs.load_on_exit(debug_control, &list) }
    Ok(Some(list))
}

/// Has VM exits load `root` into CR3.
///
/// # Safety
/// The page tables at `root` map everything that the host uses from an exit on, as the present ones do.
pub(super) unsafe fn set_cr3(vmcs: &mut Vmcs, root: PhysAddr) {
    // SAFETY: the caller vouches for the tables.
    unsafe { vmcs.assign(&[field::HOST_CR3.of(root.as_u64())]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use x86_64::structures::gdt::{Descriptor, DescriptorFlags};
    use x86_64::structures::tss::TaskStateSegment;

    proptest! {
        #[test]
        fn the_base_of_a_tss_is_found_in_its_descriptor(base: u64) {
            let flags = DescriptorFlags::PRESENT.bits() | 0x9 << 40 | 0x67;
            let low = flags | (base & 0xFF_FFFF) << 16 | (base >> 24 & 0xFF) << 56;
            prop_assert_eq!(tss_base(low, base >> 32), base);
        }
    }

    #[test]
    fn a_descriptor_of_another_crate_reads_the_same() {
        static TSS: TaskStateSegment = TaskStateSegment::new();
        let Descriptor::SystemSegment(low, high) = Descriptor::tss_segment(&TSS) else {
            panic!("a TSS is a system segment")
        };
        assert_eq!(tss_base(low, high), &raw const TSS as u64);
    }
}
