//! What the processor's VMX can do: the capability MSRs (SDM Vol. 3D App. A), judged. Pure; `instructions` reads them.

use super::flags::{EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls};
use crate::error::Requirement;
use crate::memory::nested::Level;
use bit_field::BitField;

/// IA32_FEATURE_CONTROL (3AH).
pub const FEATURE_CONTROL: u32 = 0x3A;
/// IA32_VMX_BASIC (480H).
pub const BASIC: u32 = 0x480;
/// IA32_VMX_PROCBASED_CTLS2 (48BH).
pub const SECONDARY: u32 = 0x48B;

/// IA32_FEATURE_CONTROL bit 0: locked until reset.
pub const FEATURE_CONTROL_LOCK: u64 = 1 << 0;
/// IA32_FEATURE_CONTROL bit 2: VMXON outside SMX operation.
pub const FEATURE_CONTROL_VMXON: u64 = 1 << 2;

/// A control word's capability MSR: the bits that must be 1 in its low half, those that may be 1 in its high half.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowed {
    /// The index of the MSR.
    pub msr: u32,
    /// Its value.
    pub word: u64,
}

impl Allowed {
    /// Returns the bits that must be 1.
    pub fn must_be_one(self) -> u32 {
        self.word.get_bits(0..32) as u32
    }
    /// Returns the bits that may be 1.
    pub fn may_be_one(self) -> u32 {
        self.word.get_bits(32..64) as u32
    }
    /// Returns whether all of `bits` may be 1.
    pub fn has(self, bits: u32) -> bool {
        bits & !self.may_be_one() == 0
    }
    /// Returns the control word with all `required` bits, those `optional` bits that the processor has, and the bits
    /// it insists on.
    ///
    /// # Errors
    /// [`Requirement::VmxControl`] with the required bits that the processor lacks: none is ever dropped.
    pub fn adjust(self, required: u32, optional: u32) -> Result<u32, Requirement> {
        let missing = required & !self.may_be_one();
        if missing != 0 {
            return Err(Requirement::VmxControl { capability: self.msr, missing });
        }
        Ok(required | optional & self.may_be_one() | self.must_be_one())
    }
}

/// The capability MSRs as they were read; 0 for those that the processor does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawCapabilities {
    /// IA32_FEATURE_CONTROL (3AH)
    pub feature_control: u64,
    /// IA32_VMX_BASIC (480H)
    pub basic: u64,
    /// IA32_VMX_MISC (485H)
    pub misc: u64,
    /// IA32_VMX_CR0_FIXED0 (486H)
    pub cr0_fixed0: u64,
    /// IA32_VMX_CR0_FIXED1 (487H)
    pub cr0_fixed1: u64,
    /// IA32_VMX_CR4_FIXED0 (488H)
    pub cr4_fixed0: u64,
    /// IA32_VMX_CR4_FIXED1 (489H)
    pub cr4_fixed1: u64,
    /// IA32_VMX_EPT_VPID_CAP (48CH)
    pub ept_vpid: u64,
    /// IA32_VMX_(TRUE_)PINBASED_CTLS (481H or 48DH)
    pub pin: Allowed,
    /// IA32_VMX_(TRUE_)PROCBASED_CTLS (482H or 48EH)
    pub primary: Allowed,
    /// IA32_VMX_PROCBASED_CTLS2 (48BH)
    pub secondary: Allowed,
    /// IA32_VMX_(TRUE_)EXIT_CTLS (483H or 48FH)
    pub exit: Allowed,
    /// IA32_VMX_(TRUE_)ENTRY_CTLS (484H or 490H)
    pub entry: Allowed,
}

/// A processor whose VMX has what this backend needs, and what else it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    raw: RawCapabilities,
    controls: Controls,
}

/// The control words a virtual processor starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    /// Pin-based
    pub pin: PinControls,
    /// Primary processor-based
    pub primary: PrimaryControls,
    /// Secondary processor-based
    pub secondary: SecondaryControls,
    /// VM exit
    pub exit: ExitControls,
    /// VM entry
    pub entry: EntryControls,
}

/// How IA32_PERF_GLOBAL_CTRL can be switched with the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GlobalControlMeans {
    /// Entries load it from the VMCS; exits save it there, and load the host's.
    Fields,
    /// Exits cannot save it to the VMCS (before Sapphire Rapids): they store it to memory, from where entries load it.
    /// Exits load the host's from the VMCS.
    List,
    /// Exits or entries cannot load it.
    Missing,
}

impl Controls {
    fn choose(raw: &RawCapabilities) -> Result<Self, Requirement> {
        let pin =
            PinControls::EXTERNAL_INTERRUPT_EXITING.union(PinControls::NMI_EXITING).union(PinControls::VIRTUAL_NMIS);
        let primary = PrimaryControls::TSC_OFFSETTING
            .union(PrimaryControls::HLT_EXITING)
            .union(PrimaryControls::RDPMC_EXITING)
            .union(PrimaryControls::CR8_LOAD_EXITING)
            .union(PrimaryControls::CR8_STORE_EXITING)
            .union(PrimaryControls::IO_BITMAPS)
            .union(PrimaryControls::MSR_BITMAPS)
            .union(PrimaryControls::SECONDARY_CONTROLS);
        // The windows are opened and shut while the guest lives, so they must exist; a processor without MONITOR has
        // no controls for it.
        let windows = PrimaryControls::INTERRUPT_WINDOW_EXITING.union(PrimaryControls::NMI_WINDOW_EXITING);
        let monitor = PrimaryControls::MWAIT_EXITING.union(PrimaryControls::MONITOR_EXITING);
        let secondary = SecondaryControls::EPT.union(SecondaryControls::UNRESTRICTED_GUEST);
        let extras = SecondaryControls::VPID
            .union(SecondaryControls::RDTSCP)
            .union(SecondaryControls::WBINVD_EXITING)
            .union(SecondaryControls::INVPCID)
            .union(SecondaryControls::XSAVES);
        let exit = ExitControls::SAVE_DEBUG_CONTROLS
            .union(ExitControls::HOST_64_BIT)
            .union(ExitControls::ACKNOWLEDGE_INTERRUPT)
            .union(ExitControls::SAVE_PAT)
            .union(ExitControls::LOAD_PAT)
            .union(ExitControls::SAVE_EFER)
            .union(ExitControls::LOAD_EFER);
        let entry = EntryControls::LOAD_DEBUG_CONTROLS.union(EntryControls::LOAD_PAT).union(EntryControls::LOAD_EFER);
        // The timer goes on counting where the last exit stopped it; without, the host's timer does better.
        let timer = ExitControls::SAVE_PREEMPTION_TIMER;
        raw.primary.adjust(windows.0, 0)?;
        raw.entry.adjust(EntryControls::IA32E_MODE_GUEST.0, 0)?;
        Ok(Self {
            pin: PinControls(raw.pin.adjust(pin.0, 0)?),
            primary: PrimaryControls(raw.primary.adjust(primary.0, monitor.0)?),
            secondary: SecondaryControls(raw.secondary.adjust(secondary.0, extras.0)?),
            exit: ExitControls(raw.exit.adjust(exit.0, timer.0)?),
            entry: EntryControls(raw.entry.adjust(entry.0, 0)?),
        })
    }
}

impl Capabilities {
    /// Judges what the capability MSRs say.
    ///
    /// # Errors
    /// The first requirement that is not met, the most telling first.
    pub fn judge(raw: RawCapabilities) -> Result<Self, Requirement> {
        let forbidden = FEATURE_CONTROL_LOCK;
        if raw.feature_control & (FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMXON) == forbidden {
            return Err(Requirement::VmxEnabledByFirmware);
        }
        // Four levels, tables in write-back memory, and a way to invalidate (App. A.10).
        let paging = [6, 14, 20].iter().all(|&bit| raw.ept_vpid.get_bit(bit))
            && (raw.ept_vpid.get_bit(25) || raw.ept_vpid.get_bit(26));
        if !raw.secondary.has(SecondaryControls::EPT.0) || !paging {
            return Err(Requirement::NestedPaging);
        }
        if !raw.secondary.has(SecondaryControls::UNRESTRICTED_GUEST.0) {
            return Err(Requirement::UnrestrictedGuest);
        }
        let mut controls = Controls::choose(&raw)?;
        // A tag is of use only where its translations can be invalidated.
        let tagged = raw.ept_vpid.get_bit(32) && (raw.ept_vpid.get_bit(41) || raw.ept_vpid.get_bit(42));
        if !tagged {
            controls.secondary = controls.secondary.with(SecondaryControls::VPID, false);
        }
        Ok(Self { raw, controls })
    }

    /// Returns the control words a virtual processor starts with.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }
    /// Returns the MSRs behind the judgement.
    pub fn raw(&self) -> &RawCapabilities {
        &self.raw
    }
    /// Returns the VMCS revision identifier, 31 bits (SDM Vol. 3D App. A.1).
    pub fn revision(&self) -> u32 {
        self.raw.basic.get_bits(0..31) as u32
    }
    /// Returns the largest page that EPT maps.
    pub fn largest_page(&self) -> Level {
        match (self.raw.ept_vpid.get_bit(16), self.raw.ept_vpid.get_bit(17)) {
            (true, true) => Level::Size1G,
            (true, false) => Level::Size2M,
            (false, _) => Level::Size4K,
        }
    }
    /// Returns how IA32_PERF_GLOBAL_CTRL can be switched with the world.
    pub fn global_control(&self) -> GlobalControlMeans {
        let loads = self.raw.entry.has(EntryControls::LOAD_PERF_GLOBAL_CTRL.0)
            && self.raw.exit.has(ExitControls::LOAD_PERF_GLOBAL_CTRL.0);
        match (loads, self.raw.exit.has(ExitControls::SAVE_PERF_GLOBAL_CTRL.0)) {
            (true, true) => GlobalControlMeans::Fields,
            (true, false) => GlobalControlMeans::List,
            (false, _) => GlobalControlMeans::Missing,
        }
    }
    /// Returns whether entries load IA32_LBR_CTL, and exits save and clear it.
    pub fn switches_branch_control(&self) -> bool {
        self.raw.entry.has(EntryControls::LOAD_LBR_CTL.0) && self.raw.exit.has(ExitControls::CLEAR_LBR_CTL.0)
    }
    /// Returns whether NMIs can reach the guest without leaving it.
    pub fn passes_nmis(&self) -> bool {
        self.raw.pin.must_be_one() & PinControls::NMI_EXITING.union(PinControls::VIRTUAL_NMIS).0 == 0
    }
    /// Returns whether the processor serves the registers of the guest's local APIC from a page: it has the TPR shadow and
    /// both kinds of APIC virtualization, and does not insist on exits for MOV CR8.
    pub fn virtualizes_apic(&self) -> bool {
        let exits = PrimaryControls::CR8_LOAD_EXITING.union(PrimaryControls::CR8_STORE_EXITING);
        let both = SecondaryControls::VIRTUALIZE_APIC_ACCESSES.union(SecondaryControls::APIC_REGISTER_VIRTUALIZATION);
        self.raw.primary.has(PrimaryControls::TPR_SHADOW.0)
            && self.raw.primary.must_be_one() & exits.0 == 0
            && self.raw.secondary.has(both.0)
    }
    /// Returns how many MSRs a list of them for entries and exits may have (SDM Vol. 3D App. A.6).
    pub fn msr_list_limit(&self) -> usize {
        512 * (1 + self.raw.misc.get_bits(25..28) as usize)
    }
    /// Returns whether EPT keeps accessed and dirty flags.
    pub fn accessed_and_dirty_flags(&self) -> bool {
        self.raw.ept_vpid.get_bit(21)
    }
    /// Returns whether INVEPT can invalidate one EPT context, rather than all.
    pub fn single_context_invept(&self) -> bool {
        self.raw.ept_vpid.get_bit(25)
    }
    /// Returns whether INVVPID can invalidate one VPID, rather than all.
    pub fn single_context_invvpid(&self) -> bool {
        self.raw.ept_vpid.get_bit(41)
    }
    /// Returns how many bits the TSC is shifted right by to give the preemption timer, if there is one (SDM Vol. 3D
    /// App. A.6).
    pub fn preemption_timer_shift(&self) -> Option<u32> {
        let there = self.raw.pin.has(PinControls::PREEMPTION_TIMER.0)
            && self.controls.exit.contains(ExitControls::SAVE_PREEMPTION_TIMER);
        there.then(|| self.raw.misc.get_bits(0..5) as u32)
    }
    /// Returns CR0 with the bits that VMX operation fixes; those of unrestricted guests are PG and PE too.
    pub fn host_cr0(&self, cr0: u64) -> u64 {
        (cr0 | self.raw.cr0_fixed0) & self.raw.cr0_fixed1
    }
    /// Returns CR4 with the bits that VMX operation fixes.
    pub fn host_cr4(&self, cr4: u64) -> u64 {
        (cr4 | self.raw.cr4_fixed0) & self.raw.cr4_fixed1
    }
    /// Returns the bits of CR4 that may be 1 in the guest.
    pub fn cr4_supported(&self) -> u64 {
        self.raw.cr4_fixed1
    }
    /// Returns the bits of CR4 that must be 1 in the guest.
    pub fn cr4_required(&self) -> u64 {
        self.raw.cr4_fixed0
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A processor that has everything this backend asks for, and no more must-be-one bits than the manual's default1
    /// class.
    pub(in crate::vmx) fn complete() -> RawCapabilities {
        let allowed = |msr, must: u32, may: u32| Allowed { msr, word: u64::from(may | must) << 32 | u64::from(must) };
        RawCapabilities {
            feature_control: 5,
            basic: 1 << 55 | 1 << 32 | 0x12,
            misc: 5,
            cr0_fixed0: 0x8000_0021,
            cr0_fixed1: 0xFFFF_FFFF,
            cr4_fixed0: 0x2000,
            cr4_fixed1: 0x3727FF,
            ept_vpid: 0x0F01_0633_4141,
            pin: allowed(0x48D, 0x16, 0x7F),
            primary: allowed(0x48E, 0x0400_6172, 0xFFF9_FFFE),
            secondary: allowed(0x48B, 0, 0x0055_7DFF),
            exit: allowed(0x48F, 0x0003_6DFB, 0x007F_FFFF),
            entry: allowed(0x490, 0x11FB, 0xFFFF),
        }
    }

    proptest! {
        #[test]
        fn a_control_word_is_what_the_processor_takes_or_is_refused(must: u32, may: u32, required: u32, optional: u32) {
            let may = may | must;
            let allowed = Allowed { msr: 0x481, word: u64::from(may) << 32 | u64::from(must) };
            match allowed.adjust(required, optional) {
                Ok(word) => {
                    prop_assert_eq!(word & must, must, "a bit the processor insists on is missing");
                    prop_assert_eq!(word & !may, 0, "a bit the processor lacks is set");
                    prop_assert_eq!(word & required, required, "a required bit was dropped");
                    prop_assert_eq!(word & optional & may, optional & may, "an optional bit was left out");
                    prop_assert_eq!(word & !(must | required | optional), 0, "a bit nobody asked for");
                }
                Err(Requirement::VmxControl { capability: 0x481, missing }) => {
                    prop_assert!(missing != 0 && missing & may == 0 && missing & required == missing);
                }
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn each_required_control_is_missed() {
        let monitor = PrimaryControls::MWAIT_EXITING.union(PrimaryControls::MONITOR_EXITING).0;
        let windows = PrimaryControls::INTERRUPT_WINDOW_EXITING.union(PrimaryControls::NMI_WINDOW_EXITING).0;
        let controls = *Capabilities::judge(complete()).expect("it has everything").controls();
        let needed = [
            controls.pin.0,
            controls.primary.0 & !monitor | windows,
            controls.exit.0 & !ExitControls::SAVE_PREEMPTION_TIMER.0,
            controls.entry.0 | EntryControls::IA32E_MODE_GUEST.0,
        ];
        for (word, needed) in needed.into_iter().enumerate() {
            for bit in 0..32 {
                let mut raw = complete();
                let allowed = match word {
                    0 => &mut raw.pin,
                    1 => &mut raw.primary,
                    2 => &mut raw.exit,
                    _ => &mut raw.entry,
                };
                if needed & 1 << bit == 0 || allowed.must_be_one() & 1 << bit != 0 {
                    continue;
                }
                allowed.word &= !(1 << (32 + bit));
                let missing = Requirement::VmxControl { capability: allowed.msr, missing: 1 << bit };
                assert_eq!(Capabilities::judge(raw), Err(missing));
            }
        }
    }

    #[test]
    fn firmware_that_locked_vmx_off_is_named_and_an_unlocked_register_is_not_refused() {
        let judged = |feature_control| Capabilities::judge(RawCapabilities { feature_control, ..complete() }).err();
        assert_eq!(judged(1), Some(Requirement::VmxEnabledByFirmware));
        assert_eq!(judged(3), Some(Requirement::VmxEnabledByFirmware));
        assert_eq!((judged(0), judged(4), judged(5)), (None, None, None));
    }

    #[test]
    fn nested_paging_and_unrestricted_guests_are_named_when_missing() {
        let mut raw = complete();
        raw.secondary.word &= !(1 << (32 + 7));
        assert_eq!(Capabilities::judge(raw), Err(Requirement::UnrestrictedGuest));
        raw.secondary.word &= !(1 << (32 + 1));
        assert_eq!(Capabilities::judge(raw), Err(Requirement::NestedPaging));
        for bit in [6, 14, 20] {
            let raw = RawCapabilities { ept_vpid: complete().ept_vpid & !(1 << bit), ..complete() };
            assert_eq!(Capabilities::judge(raw), Err(Requirement::NestedPaging), "bit {bit}");
        }
    }

    /// The bits are those of SDM Vol. 3C tables "Definitions of Primary VM-Exit Controls" and "... VM-Entry Controls".
    /// Also A17.
    #[test]
    fn the_global_control_is_switched_by_fields_by_a_list_or_not_at_all() {
        let with = |exit_bits: u64, entry_bits: u64| {
            let mut raw = complete();
            raw.exit.word = raw.exit.word & !(1 << (32 + 12) | 1 << (32 + 30)) | exit_bits << 32;
            raw.entry.word = raw.entry.word & !(1 << (32 + 13)) | entry_bits << 32;
            let capabilities = Capabilities::judge(raw).expect("none of these is required");
            let controls = capabilities.controls();
            assert_eq!((controls.exit.0 & (1 << 12 | 1 << 30), controls.entry.0 & 1 << 13), (0, 0), "off at first");
            capabilities.global_control()
        };
        assert_eq!(with(1 << 12 | 1 << 30, 1 << 13), GlobalControlMeans::Fields);
        assert_eq!(with(1 << 12, 1 << 13), GlobalControlMeans::List);
        for (exit_bits, entry_bits) in [(0, 0), (1 << 30, 1 << 13), (1 << 12 | 1 << 30, 0), (1 << 12, 0), (0, 1 << 13)]
        {
            assert_eq!(with(exit_bits, entry_bits), GlobalControlMeans::Missing);
        }
    }

    /// The bits are those of SDM Vol. 3C tables "Definitions of Primary Processor-Based VM-Execution Controls" and
    /// "... Secondary ...".
    #[test]
    fn the_local_apic_is_virtualized_with_all_three_controls_or_not_at_all() {
        let with = |change: fn(&mut RawCapabilities)| {
            let mut raw = complete();
            change(&mut raw);
            let capabilities = Capabilities::judge(raw).expect("none of these is required");
            let Controls { primary, secondary, .. } = *capabilities.controls();
            assert_eq!((primary.0 & 0x38_0000, secondary.0 & 0x101), (0x18_0000, 0), "off at first, CR8 exits");
            capabilities.virtualizes_apic()
        };
        assert!(with(|_| {}));
        let without: [fn(&mut RawCapabilities); 5] = [
            |raw| raw.primary.word &= !(1 << (32 + 21)),
            |raw| raw.secondary.word &= !(1 << 32),
            |raw| raw.secondary.word &= !(1 << (32 + 8)),
            |raw| raw.primary.word |= 1 << 19,
            |raw| raw.primary.word |= 1 << 20,
        ];
        assert!(!without.into_iter().any(with));
    }

    #[test]
    fn lists_of_msrs_are_as_long_as_the_processor_says() {
        let limit =
            |misc| Capabilities::judge(RawCapabilities { misc, ..complete() }).map(|found| found.msr_list_limit());
        assert_eq!((limit(0x2000_01E5), limit(0x0E00_0000)), (Ok(512), Ok(4096)));
    }

    #[test]
    fn a_tag_is_not_used_where_it_cannot_be_invalidated() {
        let raw = RawCapabilities { ept_vpid: complete().ept_vpid & 0xFFFF_FFFF, ..complete() };
        let capabilities = Capabilities::judge(raw).expect("a tag is optional");
        assert!(!capabilities.controls().secondary.contains(SecondaryControls::VPID));
    }
}
