//! VMCS fields by their encodings, typed by their width and by what writing one can do (SDM Vol. 3D App. B).

use core::fmt;
use core::marker::PhantomData;

/// A field that describes the guest, or what it gets: no value harms the host, the worst is a refused VM entry.
#[derive(Clone, Copy)]
pub(super) enum Guest {}

/// A field on which the host's safety hangs: controls, host state, physical addresses.
#[derive(Clone, Copy)]
pub(super) enum Host {}

/// A field that VM exits write and software only reads.
#[derive(Clone, Copy)]
pub(super) enum ExitInformation {}

/// The type of a field's value: `u16`, `u32`, and `u64` for 64-bit and natural-width fields.
pub(super) trait Value: Copy {
    fn from_word(word: u64) -> Self;
    fn word(self) -> u64;
}

macro_rules! value {
    ($($type:ty)*) => { $(
        impl Value for $type {
            #[inline]
            fn from_word(word: u64) -> Self {
                word as Self
            }
            #[inline]
            fn word(self) -> u64 {
                self.into()
            }
        }
    )* };
}
value!(u16 u32 u64);

/// A field of the VMCS that holds a `V` and may be written as `A` says.
pub(super) struct Field<V, A> {
    encoding: u32,
    value: PhantomData<(V, A)>,
}

impl<V, A> Clone for Field<V, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<V, A> Copy for Field<V, A> {}

impl<V, A> fmt::Debug for Field<V, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VMCS field {:#06x}", self.encoding)
    }
}

impl<V, A> Field<V, A> {
    const fn new(encoding: u32) -> Self {
        Self { encoding, value: PhantomData }
    }
    /// Returns the encoding as VMREAD and VMWRITE take it.
    #[inline]
    pub(super) const fn encoding(self) -> u32 {
        self.encoding
    }
    /// Returns the field `index` places further on in a row of fields of one kind.
    #[inline]
    const fn nth(self, index: u32) -> Self {
        Self::new(self.encoding + 2 * index)
    }
}

macro_rules! fields {
    ($($name:ident: $value:ty, $access:ident = $encoding:literal;)*) => {
        $( pub(super) const $name: Field<$value, $access> = Field::new($encoding); )*
        /// Every field above, for the test that compares the types with what the encodings say.
        #[cfg(test)]
        const ALL: &[(u32, usize, &str)] = &[$(($encoding, size_of::<$value>(), stringify!($access))),*];
    };
}

fields! {
    // Control fields, App. B.1.1, B.2.1, B.3.1, B.4.1.
    VPID: u16, Host = 0x0000;
    IO_BITMAP_A: u64, Host = 0x2000;
    IO_BITMAP_B: u64, Host = 0x2002;
    MSR_BITMAPS: u64, Host = 0x2004;
    EXIT_MSR_STORE_ADDRESS: u64, Host = 0x2006;
    EXIT_MSR_LOAD_ADDRESS: u64, Host = 0x2008;
    ENTRY_MSR_LOAD_ADDRESS: u64, Host = 0x200A;
    TSC_OFFSET: u64, Guest = 0x2010;
    VIRTUAL_APIC_ADDRESS: u64, Host = 0x2012;
    APIC_ACCESS_ADDRESS: u64, Host = 0x2014;
    EPT_POINTER: u64, Host = 0x201A;
    XSS_EXITING_BITMAP: u64, Host = 0x202C;
    PIN_CONTROLS: u32, Host = 0x4000;
    PRIMARY_CONTROLS: u32, Host = 0x4002;
    EXCEPTION_BITMAP: u32, Host = 0x4004;
    PAGE_FAULT_MASK: u32, Host = 0x4006;
    PAGE_FAULT_MATCH: u32, Host = 0x4008;
    CR3_TARGET_COUNT: u32, Host = 0x400A;
    EXIT_CONTROLS: u32, Host = 0x400C;
    EXIT_MSR_STORE_COUNT: u32, Host = 0x400E;
    EXIT_MSR_LOAD_COUNT: u32, Host = 0x4010;
    ENTRY_CONTROLS: u32, Host = 0x4012;
    ENTRY_MSR_LOAD_COUNT: u32, Host = 0x4014;
    ENTRY_INTERRUPTION: u32, Guest = 0x4016;
    ENTRY_ERROR_CODE: u32, Guest = 0x4018;
    ENTRY_INSTRUCTION_LENGTH: u32, Guest = 0x401A;
    TPR_THRESHOLD: u32, Guest = 0x401C;
    SECONDARY_CONTROLS: u32, Host = 0x401E;
    CR0_MASK: u64, Host = 0x6000;
    CR4_MASK: u64, Host = 0x6002;
    CR0_SHADOW: u64, Guest = 0x6004;
    CR4_SHADOW: u64, Guest = 0x6006;

    // Exit information, App. B.2.2, B.3.2, B.4.2.
    GUEST_PHYSICAL_ADDRESS: u64, ExitInformation = 0x2400;
    INSTRUCTION_ERROR: u32, ExitInformation = 0x4400;
    EXIT_REASON: u32, ExitInformation = 0x4402;
    EXIT_INTERRUPTION: u32, ExitInformation = 0x4404;
    EXIT_ERROR_CODE: u32, ExitInformation = 0x4406;
    IDT_VECTORING: u32, ExitInformation = 0x4408;
    IDT_VECTORING_ERROR_CODE: u32, ExitInformation = 0x440A;
    EXIT_INSTRUCTION_LENGTH: u32, ExitInformation = 0x440C;
    EXIT_QUALIFICATION: u64, ExitInformation = 0x6400;
    GUEST_LINEAR_ADDRESS: u64, ExitInformation = 0x640A;

    // Guest state, App. B.1.2, B.2.3, B.3.3, B.4.3. Segments stand in the order of `SegmentRegister::ALL`.
    GUEST_ES_SELECTOR: u16, Guest = 0x0800;
    VMCS_LINK_POINTER: u64, Host = 0x2800;
    GUEST_DEBUGCTL: u64, Guest = 0x2802;
    GUEST_PAT: u64, Guest = 0x2804;
    GUEST_EFER: u64, Guest = 0x2806;
    GUEST_PERF_GLOBAL_CTRL: u64, Guest = 0x2808;
    GUEST_PDPTE0: u64, Guest = 0x280A;
    GUEST_LBR_CTL: u64, Guest = 0x2816;
    GUEST_ES_LIMIT: u32, Guest = 0x4800;
    GUEST_GDTR_LIMIT: u32, Guest = 0x4810;
    GUEST_IDTR_LIMIT: u32, Guest = 0x4812;
    GUEST_ES_ACCESS_RIGHTS: u32, Guest = 0x4814;
    GUEST_INTERRUPTIBILITY: u32, Guest = 0x4824;
    GUEST_ACTIVITY: u32, Guest = 0x4826;
    GUEST_SYSENTER_CS: u32, Guest = 0x482A;
    PREEMPTION_TIMER: u32, Guest = 0x482E;
    GUEST_CR0: u64, Guest = 0x6800;
    GUEST_CR3: u64, Guest = 0x6802;
    GUEST_CR4: u64, Guest = 0x6804;
    GUEST_ES_BASE: u64, Guest = 0x6806;
    GUEST_GDTR_BASE: u64, Guest = 0x6816;
    GUEST_IDTR_BASE: u64, Guest = 0x6818;
    GUEST_DR7: u64, Guest = 0x681A;
    GUEST_RSP: u64, Guest = 0x681C;
    GUEST_RIP: u64, Guest = 0x681E;
    GUEST_RFLAGS: u64, Guest = 0x6820;
    GUEST_PENDING_DEBUG: u64, Guest = 0x6822;
    GUEST_SYSENTER_ESP: u64, Guest = 0x6824;
    GUEST_SYSENTER_EIP: u64, Guest = 0x6826;

    // Host state, App. B.1.3, B.2.4, B.3.4, B.4.4. The six selectors stand in the order ES, CS, SS, DS, FS, GS, TR.
    HOST_ES_SELECTOR: u16, Host = 0x0C00;
    HOST_CS_SELECTOR: u16, Host = 0x0C02;
    HOST_SS_SELECTOR: u16, Host = 0x0C04;
    HOST_DS_SELECTOR: u16, Host = 0x0C06;
    HOST_FS_SELECTOR: u16, Host = 0x0C08;
    HOST_GS_SELECTOR: u16, Host = 0x0C0A;
    HOST_TR_SELECTOR: u16, Host = 0x0C0C;
    HOST_PAT: u64, Host = 0x2C00;
    HOST_EFER: u64, Host = 0x2C02;
    HOST_PERF_GLOBAL_CTRL: u64, Host = 0x2C04;
    HOST_SYSENTER_CS: u32, Host = 0x4C00;
    HOST_CR0: u64, Host = 0x6C00;
    HOST_CR3: u64, Host = 0x6C02;
    HOST_CR4: u64, Host = 0x6C04;
    HOST_FS_BASE: u64, Host = 0x6C06;
    HOST_GS_BASE: u64, Host = 0x6C08;
    HOST_TR_BASE: u64, Host = 0x6C0A;
    HOST_GDTR_BASE: u64, Host = 0x6C0C;
    HOST_IDTR_BASE: u64, Host = 0x6C0E;
    HOST_SYSENTER_ESP: u64, Host = 0x6C10;
    HOST_SYSENTER_EIP: u64, Host = 0x6C12;
    HOST_RSP: u64, Host = 0x6C14;
    HOST_RIP: u64, Host = 0x6C16;
}

/// Returns the selector field of a guest segment register.
#[inline]
pub(super) const fn selector(segment: crate::registers::SegmentRegister) -> Field<u16, Guest> {
    GUEST_ES_SELECTOR.nth(segment as u32)
}
/// Returns the base field of a guest segment register.
#[inline]
pub(super) const fn base(segment: crate::registers::SegmentRegister) -> Field<u64, Guest> {
    GUEST_ES_BASE.nth(segment as u32)
}
/// Returns the limit field of a guest segment register.
#[inline]
pub(super) const fn limit(segment: crate::registers::SegmentRegister) -> Field<u32, Guest> {
    GUEST_ES_LIMIT.nth(segment as u32)
}
/// Returns the access-rights field of a guest segment register.
#[inline]
pub(super) const fn access_rights(segment: crate::registers::SegmentRegister) -> Field<u32, Guest> {
    GUEST_ES_ACCESS_RIGHTS.nth(segment as u32)
}
/// Returns the field of a page-directory-pointer-table entry, 0 to 3.
#[inline]
pub(super) const fn pdpte(index: u32) -> Field<u64, Guest> {
    GUEST_PDPTE0.nth(index & 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of encodings: width in bits 14:13, kind in 11:10, access to the high half in bit 0 (SDM Vol. 3C
    /// table "Structure of VMCS Component Encoding").
    #[test]
    fn encodings_agree_with_the_types_they_are_given() {
        for &(encoding, bytes, access) in ALL {
            let width = [2, 8, 4, 8][(encoding >> 13 & 3) as usize];
            assert_eq!(bytes, width, "{encoding:#x}");
            match encoding >> 10 & 3 {
                0 => assert_ne!(access, "ExitInformation", "{encoding:#x}"),
                1 => assert_eq!(access, "ExitInformation", "{encoding:#x}"),
                2 => assert!(access == "Guest" || encoding == VMCS_LINK_POINTER.encoding(), "{encoding:#x}"),
                _ => assert_eq!(access, "Host", "{encoding:#x}"),
            }
            assert_eq!(encoding & 0xFFFF_9001, 0, "{encoding:#x}");
        }
        let mut encodings: std::vec::Vec<u32> = ALL.iter().map(|field| field.0).collect();
        encodings.sort_unstable();
        encodings.dedup();
        assert_eq!(encodings.len(), ALL.len(), "an encoding stands twice");
    }
}
