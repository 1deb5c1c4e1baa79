//! The guest's local APIC as the processor serves it: two pages, and the controls that go with them (SDM Vol. 3C chapter
//! "APIC virtualization and virtual interrupts").
//!
//! The page at FEE00000H, which the guest's accesses reach in the nested tables, is the APIC-access page: it holds zeros, and
//! the processor goes to the virtual-APIC page in its place. Interrupts are not virtualized: they are injected as always.
#![expect(unsafe_code, reason = "gives the guest a page of its own, and the processor the place of another")]

use super::capability::Capabilities;
use super::{EptEntry, Vmx};
use crate::address::{Gpa, PAGE_SIZE};
use crate::devices::chipset::LOCAL_APICS;
use crate::devices::lapic::ApicPage;
use crate::error::{Error, Result};
use crate::memory::nested::{Access, MemoryType};
use crate::memory::window::{GuestFrames, Window};
use crate::memory::{FrameSource, Frames, NestedTables};
use crate::vcpu::Backend;
use x86_64::PhysAddr;

/// Where the guest reaches its local APIC.
const PLACE: Gpa = Gpa::new(*LOCAL_APICS.start());

/// The pages of a local APIC that the processor serves.
#[derive(Debug)]
pub(super) struct VirtualApic {
    /// Until it is given away. It is never given back to a [`FrameSource`].
    pub(super) page: Option<ApicPage>,
    place: PhysAddr,
    access: GuestFrames,
    on: bool,
}

/// No frames: what is mapped has its tables already.
struct NoFrames;

// SAFETY: gives nothing.
unsafe impl FrameSource for NoFrames {
    fn allocate(&mut self, _count: usize) -> Option<Frames> {
        None
    }
    fn release(&mut self, _frames: Frames) {}
}

impl VirtualApic {
    /// Takes two frames, and those that the nested tables need on the way to the place; nothing is mapped there yet.
    /// `None` where the processor lacks one of the controls, or the guest has memory at the place.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    pub(super) fn new(
        capabilities: &Capabilities,
        frames: &mut impl FrameSource,
        nested: &mut NestedTables<EptEntry>,
    ) -> Result<Option<Self>> {
        if !capabilities.virtualizes_apic() || nested.translate(PLACE).is_some() {
            return Ok(None);
        }
        let mut frame = || frames.allocate(1).ok_or(Error::OutOfMemory("a page of the local APIC"));
        let (page, access) = (frame()?, frame()?);
        // SAFETY: a frame of zeros, mapped for ever, that nobody refers to any more; never given back.
        let window = unsafe { Window::new(access.as_ptr().cast(), PAGE_SIZE as usize, access.physical()) };
        let Some(access) = window.frames() else { return Ok(None) };
        let this = Self { place: page.physical(), page: Some(ApicPage::new(page)), access, on: false };
        // The tables on the way are made here, once. They are new to the processor: nothing is remembered.
        let _new = this.map(frames, nested)?;
        let _gone = nested.unmap(frames, PLACE, PAGE_SIZE)?;
        Ok(Some(this))
    }

    /// Maps the APIC-access page: data accesses alone, as fetches find nothing at a local APIC.
    fn map(
        &self,
        frames: &mut impl FrameSource,
        nested: &mut NestedTables<EptEntry>,
    ) -> Result<crate::memory::nested::NestedFlush> {
        let access = Access { read: true, write: true, execute: false };
        nested.map(frames, PLACE, self.access, access, MemoryType::WriteBack)
    }
}

impl Vmx {
    /// Has the processor serve the local APIC from its page, or no longer; returns whether it serves it.
    pub(super) fn virtualize_apic(&mut self, on: bool) -> bool {
        let Some(this) = &mut self.virtual_apic else { return false };
        if on == this.on {
            return on;
        }
        let mapped = match on {
            true => this.map(&mut NoFrames, &mut self.nested),
            false => self.nested.unmap(&mut NoFrames, PLACE, PAGE_SIZE),
        };
        if mapped.is_err() && on {
            return false;
        }
        this.on = on;
        let pages = on.then(|| [this.place, this.access.start()]);
        // SAFETY: both pages are of this guest alone, made in `new`; frames are never given back.
        unsafe { self.vmcs.virtualize_apic(pages) }
        // What the processor remembers of the place depends on the controls, too.
        self.flush_nested();
        on
    }
}
