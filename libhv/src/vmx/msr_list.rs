//! A list of MSRs that exits store to and load from, or entries load from, in a frame (SDM Vol. 3C 25.7.2). Pure.

use crate::exit::Msr;
use crate::memory::Frames;
use x86_64::PhysAddr;

/// Words in an entry: the index of an MSR, with bits 63:32 reserved, and its value.
const ENTRY: usize = 2;

/// There is no more room for an MSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ListFull;

/// A list of MSRs with their values, no MSR twice. The processor may change values during entries and exits.
#[derive(Debug)]
pub(super) struct MsrList {
    frames: Frames,
    count: usize,
    limit: usize,
}

impl MsrList {
    /// Makes an empty list of `limit` MSRs at most, or as many as have room in `frames`.
    pub(super) fn new(frames: Frames, limit: usize) -> Self {
        let limit = limit.min(frames.words().len() / ENTRY);
        Self { frames, count: 0, limit }
    }

    /// Sets the value of an MSR, which joins the list unless it is there (T-A19).
    ///
    /// # Errors
    /// [`ListFull`], and the list is as it was.
    pub(super) fn set(&mut self, msr: Msr, value: u64) -> Result<(), ListFull> {
        let place = self.place(msr);
        let index = match place {
            Some(index) => index,
            None if self.count < self.limit => self.count,
            None => return Err(ListFull),
        };
        let [word, data] = self.frames.words_mut().as_chunks_mut::<ENTRY>().0.get_mut(index).ok_or(ListFull)?;
        (*word, *data) = (msr.0.into(), value);
        self.count = self.count.max(index + 1);
        Ok(())
    }

    /// Returns the value of an MSR: as it was set, or as the last exit stored it.
    #[inline]
    pub(super) fn get(&self, msr: Msr) -> Option<u64> {
        self.entries().iter().find(|[index, _]| *index == msr.0.into()).map(|[_, value]| *value)
    }

    /// Returns how many MSRs are on the list.
    pub(super) fn count(&self) -> u32 {
        self.count as u32
    }

    /// Returns where the list is, aligned to 16 bytes.
    pub(super) fn physical(&self) -> PhysAddr {
        self.frames.physical()
    }

    fn place(&self, msr: Msr) -> Option<usize> {
        self.entries().iter().position(|[index, _]| *index == msr.0.into())
    }

    #[inline]
    fn entries(&self) -> &[[u64; ENTRY]] {
        self.frames.words().as_chunks().0.get(..self.count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::FrameSource;
    use crate::memory::frame::HeapFrames;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    fn list(limit: usize) -> MsrList {
        MsrList::new(HeapFrames.allocate(1).expect("heap"), limit)
    }

    proptest! {
        /// T-A19.
        #[test]
        fn a_list_is_a_map_that_never_names_an_msr_twice(writes: Vec<(u8, u64)>, limit in 0usize..40) {
            let (mut list, mut model) = (list(limit), BTreeMap::new());
            for (msr, value) in writes {
                let msr = Msr(0xC000_0000 + u32::from(msr) % 48);
                let room = model.contains_key(&msr) || model.len() < limit;
                prop_assert_eq!(list.set(msr, value), if room { Ok(()) } else { Err(ListFull) });
                if room {
                    model.insert(msr, value);
                }
                prop_assert_eq!(list.count() as usize, model.len());
                prop_assert_eq!(list.get(msr), model.get(&msr).copied());
            }
            let held: BTreeMap<_, _> = list.entries().iter().map(|[msr, value]| (Msr(*msr as u32), *value)).collect();
            prop_assert_eq!(held, model);
        }
    }

    /// T-A19.
    #[test]
    fn a_frame_has_room_for_256_and_refuses_one_more_whatever_the_processor_would_take() {
        let mut list = list(512);
        assert!((0..256).all(|msr| list.set(Msr(msr), u64::MAX).is_ok()));
        assert_eq!(list.set(Msr(256), 0), Err(ListFull));
        assert_eq!((list.count(), list.get(Msr(255)), list.get(Msr(256))), (256, Some(u64::MAX), None));
    }

    #[test]
    fn entries_lie_as_the_manual_puts_them() {
        let mut list = list(512);
        list.set(Msr(0x38F), 0x7_0000_00FF).expect("room");
        list.set(Msr(0xC000_0080), 0x1122_3344_5566_7788).expect("room");
        let bytes: Vec<u8> = list.frames.words().iter().take(4).flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes[..8], [0x8F, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], [0xFF, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[16..24], [0x80, 0, 0, 0xC0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert!(list.physical().is_aligned(16u64));
    }
}
