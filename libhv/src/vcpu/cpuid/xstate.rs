//! Leaf DH: the extended state components a guest may have, and the sizes of its XSAVE area (SDM Vol. 1 13.2).

use super::feature::{Feature, allowed};
use super::{Leaf, Settings};

/// XCR0.x87 and XCR0.SSE
const LEGACY: u64 = 0b11;
/// XCR0.AVX
pub(super) const AVX: u64 = 1 << 2;
/// XCR0.opmask, XCR0.ZMM_Hi256 and XCR0.Hi16_ZMM
pub(super) const AVX512: u64 = 0b111 << 5;
/// XCR0.PKRU
pub(super) const PKRU: u64 = 1 << 9;
/// XCR0.TILECFG and XCR0.TILEDATA
pub(super) const AMX: u64 = 0b11 << 17;
/// Bytes of the legacy region and the header of an XSAVE area.
const HEADER_END: u32 = 576;
/// Components, with the two legacy ones.
const COMPONENTS: usize = 20;
/// ECX of a component: it is supervisor state.
const SUPERVISOR: u32 = 1 << 0;
/// ECX of a component: it starts at a multiple of 64 bytes in the compacted format.
const ALIGNED: u32 = 1 << 1;
/// ECX of a component: XFD can disable it.
const XFD_FAULTING: u32 = 1 << 2;

/// The extended state of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ExtendedState {
    /// Components of XCR0 that the guest may enable; 0 without XSAVE.
    xcr0: u64,
    /// Components of IA32_XSS that the guest may enable.
    xss: u64,
    /// Subleaf 1: EAX alone.
    instructions: Leaf,
    /// Size, offset and attributes, as subleaves 2 on report them.
    components: [Leaf; COMPONENTS],
}

impl ExtendedState {
    /// Computes what `settings` let the guest have of what the host has.
    pub(super) fn new(raw: &impl Fn(u32, u32) -> Leaf, settings: &Settings) -> Self {
        let mut instructions = allowed(0xD, 1, raw(0xD, 1));
        let [low, _, _, high] = raw(0xD, 0);
        let mut xcr0 = (u64::from(high) << 32 | u64::from(low)) & settings.xcr0 & (LEGACY | AVX | AVX512 | PKRU | AMX);
        if xcr0 & LEGACY != LEGACY || raw(1, 0)[2] & Feature::XSAVE.mask() == 0 {
            xcr0 = 0;
        }
        if xcr0 & AVX == 0 || xcr0 & AVX512 != AVX512 {
            xcr0 &= !AVX512;
        }
        if !settings.xfd || xcr0 & AMX != AMX || instructions[0] & Feature::XFD.mask() == 0 {
            xcr0 &= !AMX;
            instructions[0] &= !Feature::XFD.mask();
        }
        if !settings.xsaves {
            instructions[0] &= !Feature::XSAVES.mask();
        }
        if xcr0 == 0 {
            instructions = [0; 4];
        }
        let [_, _, low, high] = raw(0xD, 1);
        let xsaves = instructions[0] & Feature::XSAVES.mask() != 0;
        let host_xss = if xsaves { u64::from(high) << 32 | u64::from(low) } else { 0 };
        let known = (1u64 << COMPONENTS) - 1;
        let xss = host_xss & settings.xss & known & !(LEGACY | AVX | AVX512 | PKRU | AMX);
        let xfd = instructions[0] & Feature::XFD.mask() != 0;
        let components = core::array::from_fn(|number| {
            if number < 2 || (xcr0 | xss) >> number & 1 == 0 {
                return [0; 4];
            }
            let [size, offset, attributes, _] = raw(0xD, number as u32);
            let mask = SUPERVISOR | ALIGNED | if xfd { XFD_FAULTING } else { 0 };
            [size, offset, attributes & mask, 0]
        });
        Self { xcr0, xss, instructions, components }
    }

    pub(super) fn xcr0(&self) -> u64 {
        self.xcr0
    }

    pub(super) fn xss(&self) -> u64 {
        self.xss
    }

    pub(super) fn xfd(&self) -> bool {
        self.instructions[0] & Feature::XFD.mask() != 0
    }

    /// Returns a subleaf of leaf DH, with the sizes for the guest's XCR0 and IA32_XSS.
    pub(super) fn leaf(&self, subleaf: u32, xcr0: u64, xss: u64) -> Leaf {
        match subleaf {
            _ if self.xcr0 == 0 => [0; 4],
            0 => [self.xcr0 as u32, self.standard(xcr0), self.standard(self.xcr0), (self.xcr0 >> 32) as u32],
            1 => {
                let compacted = self.instructions[0] & (Feature::XSAVEC.mask() | Feature::XSAVES.mask()) != 0;
                let size = if compacted { self.compacted(xcr0 | xss) } else { 0 };
                [self.instructions[0], size, self.xss as u32, (self.xss >> 32) as u32]
            }
            _ => self.components.get(subleaf as usize).copied().unwrap_or([0; 4]),
        }
    }

    /// Returns the bytes of an XSAVE area in the standard format with these components.
    fn standard(&self, components: u64) -> u32 {
        self.enabled(components).map(|[size, offset, ..]| offset.saturating_add(size)).fold(HEADER_END, u32::max)
    }

    /// Returns the bytes of an XSAVE area in the compacted format with these components.
    fn compacted(&self, components: u64) -> u32 {
        self.enabled(components).fold(HEADER_END, |end, [size, _, attributes, _]| {
            let aligned = attributes & ALIGNED != 0;
            let start = if aligned { end.checked_next_multiple_of(64).unwrap_or(end) } else { end };
            start.saturating_add(size)
        })
    }

    fn enabled(&self, components: u64) -> impl Iterator<Item = Leaf> {
        let offered = components & (self.xcr0 | self.xss);
        self.components.iter().enumerate().filter(move |(number, _)| offered >> number & 1 != 0).map(|(_, leaf)| *leaf)
    }

    pub(super) fn stored(&self, subleaf: u32) -> Option<&Leaf> {
        (subleaf == 1).then_some(&self.instructions)
    }

    pub(super) fn stored_mut(&mut self, subleaf: u32) -> Option<&mut Leaf> {
        (subleaf == 1).then_some(&mut self.instructions)
    }
}
