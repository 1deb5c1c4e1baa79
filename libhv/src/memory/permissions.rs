//! MSR and port permissions: bitmaps in which a set bit makes the guest leave. All bits are set at first.

use super::frame::Frames;
use bit_field::{BitArray, BitField};
use core::ops::RangeInclusive;
use x86_64::PhysAddr;

/// Port permissions: one bit a port, in 8 KiB (VMX: I/O bitmaps A and B, SDM Vol. 3C 25.6.4) or in 12 KiB, of which
/// the last 4 KiB catch accesses that run past port FFFFH (SVM: IOPM, APM Vol. 2 15.10.1).
#[derive(Debug)]
pub struct PortPermissions(Frames);

impl PortPermissions {
    /// Closes every port. `frames` are at least two.
    pub fn closed(mut frames: Frames) -> Self {
        frames.words_mut().fill(u64::MAX);
        Self(frames)
    }
    /// Lets the guest reach `ports` without leaving.
    pub fn pass(&mut self, ports: RangeInclusive<u16>) {
        for port in ports {
            self.0.words_mut().set_bit(port.into(), false);
        }
    }
    /// Returns whether the guest leaves when it reaches `port`.
    pub fn intercepts(&self, port: u16) -> bool {
        self.0.words().get_bit(port.into())
    }
    /// Returns the physical address of the first bitmap.
    pub fn physical(&self) -> PhysAddr {
        self.0.physical()
    }
}

/// Where a vendor's MSR permissions keep the bits of an MSR: the positions of the read and the write bit, or `None`
/// when the bitmaps do not cover it, so that it is always intercepted.
pub type MsrLayout = fn(msr: u32) -> Option<(usize, usize)>;

/// VMX MSR bitmaps, 4 KiB: read-low, read-high, write-low, write-high (SDM Vol. 3C 25.6.9).
pub fn vmx_layout(msr: u32) -> Option<(usize, usize)> {
    let bit = match msr {
        0..=0x1FFF => msr as usize,
        0xC000_0000..=0xC000_1FFF => 0x2000 + msr.get_bits(0..13) as usize,
        _ => return None,
    };
    Some((bit, bit + 0x4000))
}

/// SVM MSR permission map, 8 KiB: two bits an MSR, read below write (APM Vol. 2 15.11).
pub fn svm_layout(msr: u32) -> Option<(usize, usize)> {
    let base = match msr {
        0..=0x1FFF => 0,
        0xC000_0000..=0xC000_1FFF => 0x4000,
        0xC001_0000..=0xC001_1FFF => 0x8000,
        _ => return None,
    };
    let bit = base + 2 * msr.get_bits(0..13) as usize;
    Some((bit, bit + 1))
}

/// MSR permissions.
#[derive(Debug)]
pub struct MsrPermissions {
    frames: Frames,
    layout: MsrLayout,
}

impl MsrPermissions {
    /// Closes every MSR. `frames` is one for VMX and two for SVM.
    pub fn closed(mut frames: Frames, layout: MsrLayout) -> Self {
        frames.words_mut().fill(u64::MAX);
        Self { frames, layout }
    }
    /// Lets the guest read, write or both without leaving. An MSR the bitmaps do not cover stays intercepted.
    pub fn pass(&mut self, msr: u32, read: bool, write: bool) {
        let Some((read_bit, write_bit)) = (self.layout)(msr) else { return };
        let words = self.frames.words_mut();
        words.set_bit(read_bit, !read);
        words.set_bit(write_bit, !write);
    }
    /// Returns whether the guest leaves when it reads and when it writes `msr`.
    pub fn intercepts(&self, msr: u32) -> (bool, bool) {
        let words = self.frames.words();
        (self.layout)(msr).map_or((true, true), |(read, write)| (words.get_bit(read), words.get_bit(write)))
    }
    /// Returns the physical address.
    pub fn physical(&self) -> PhysAddr {
        self.frames.physical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::frame::{FrameSource, HeapFrames};
    use proptest::prelude::*;

    fn permissions(frames: usize, layout: MsrLayout) -> MsrPermissions {
        MsrPermissions::closed(HeapFrames.allocate(frames).expect("heap"), layout)
    }

    fn msr() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), 0u32..0x2100, 0xC000_0000u32..0xC000_2100, 0xC001_0000u32..0xC001_2100]
    }

    proptest! {
        #[test]
        fn opening_one_msr_opens_no_other(opened in msr(), other in msr(), read: bool, write: bool) {
            for mut map in [permissions(1, vmx_layout), permissions(2, svm_layout)] {
                map.pass(opened, read, write);
                if other != opened { prop_assert_eq!(map.intercepts(other), (true, true)); }
            }
        }

        #[test]
        fn opening_ports_opens_these_alone(first: u16, length in 0u16..40, probe: u16) {
            let mut map = PortPermissions::closed(HeapFrames.allocate(3).expect("heap"));
            let last = first.saturating_add(length);
            map.pass(first..=last);
            prop_assert_eq!(map.intercepts(probe), !(first..=last).contains(&probe));
        }
    }

    /// Byte and bit of an MSR's permissions as the manuals' figures give them.
    #[test]
    fn bits_lie_where_the_manuals_put_them() {
        let bytes = |permissions: &MsrPermissions| -> alloc::vec::Vec<u8> {
            permissions.frames.words().iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let mut vmx = permissions(1, vmx_layout);
        vmx.pass(0x174, true, false);
        vmx.pass(0xC000_0102, false, true);
        let map = bytes(&vmx);
        assert_eq!((map[0x174 / 8], map[0x800 + 0x174 / 8]), (!(1 << 4), 0xFF));
        assert_eq!((map[0x400 + 0x102 / 8], map[0xC00 + 0x102 / 8]), (0xFF, !(1 << 2)));
        let mut svm = permissions(2, svm_layout);
        svm.pass(0xC000_0080, true, false);
        svm.pass(0xC001_0015, false, true);
        let map = bytes(&svm);
        assert_eq!(map[0x800 + 0x80 / 4], !1);
        assert_eq!(map[0x1000 + 0x15 / 4], !(1 << 3));
    }
}
