//! One page of a guest's memory that nested paging lets it only read, at any time and without a frame from outside.

use super::{Access, Level, MemoryType, NO_TABLE, NestedEntry, NestedFlush, NestedTables, Translation};
use crate::address::Gpa;
use crate::error::Result;
use crate::memory::frame::FrameSource;
use x86_64::PhysAddr;

/// The page, and how it was mapped before.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadOnly {
    page: Gpa,
    before: Translation,
}

impl<E: NestedEntry> NestedTables<E> {
    /// Keeps the frames by that [`set_read_only`](Self::set_read_only) needs.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) when there are not enough.
    pub fn prepare_read_only(&mut self, source: &mut impl FrameSource) -> Result<()> {
        self.spare.fill(source, self.largest as usize).then_some(()).ok_or(NO_TABLE)
    }

    /// Has the guest find one page of its memory that it can read and execute, not write, instead of the one before:
    /// that one is mapped as it was. `page` is a multiple of 4096.
    ///
    /// Returns `None` when the page is not mapped or frames are missing; nothing has changed then.
    pub fn set_read_only(&mut self, page: Option<Gpa>) -> Option<NestedFlush> {
        if page == self.read_only.map(|read_only| read_only.page) {
            return Some(NestedFlush { needed: false });
        }
        if let Some(page) = page {
            self.translate(page)?;
        }
        let before = self.read_only.map(|read_only| read_only.page);
        self.undo();
        if page.is_none_or(|page| self.protect_page(page).is_some()) {
            return Some(NestedFlush { needed: true });
        }
        if let Some(before) = before {
            self.protect_page(before);
        }
        None
    }

    fn protect_page(&mut self, page: Gpa) -> Option<()> {
        let before = self.translate(page)?;
        if before.level as usize > self.spare.count() {
            return None;
        }
        self.map_one(page, before.host, Level::Size4K, Access::READ_EXECUTE, before.memory_type)?;
        self.read_only = Some(ReadOnly { page, before });
        Some(())
    }

    /// Maps the page as it was before, by the large page it was part of where nothing else in that has changed.
    fn undo(&mut self) {
        let Some(ReadOnly { page, before }) = self.read_only.take() else { return };
        let Translation { host, access, memory_type, level } = before;
        // The table is there: nothing can fail.
        let _ = self.map_one(page, host, Level::Size4K, access, memory_type);
        let inside = page.as_u64() % level.bytes();
        let start = Gpa::new(page.as_u64() - inside);
        let whole = Translation { host: PhysAddr::new_truncate(host.as_u64() - inside), ..before };
        if level != Level::Size4K && self.is_whole(start, whole) {
            let _ = self.map_one(start, whole.host, level, access, memory_type);
        }
    }

    /// Returns whether a large page that was split still maps what it mapped.
    fn is_whole(&self, start: Gpa, whole: Translation) -> bool {
        let mut offset = 0;
        while offset < whole.level.bytes() {
            let Some(found) = self.translate(start.wrapping_add(offset)) else { return false };
            let host = whole.host.as_u64() + offset;
            if (found.host.as_u64(), found.access, found.memory_type) != (host, whole.access, whole.memory_type) {
                return false;
            }
            offset += found.level.bytes();
        }
        true
    }

    fn map_one(
        &mut self,
        page: Gpa,
        host: PhysAddr,
        level: Level,
        access: Access,
        memory_type: MemoryType,
    ) -> Option<()> {
        let mut spare = core::mem::take(&mut self.spare);
        let done = self.set(&mut spare, page.as_u64(), level, E::leaf(host, access, level, memory_type));
        self.spare = spare;
        done.is_ok().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::PAGE_SIZE;
    use crate::memory::frame::{HeapFrames, Spare};
    use crate::memory::window::GuestFrames;
    use crate::svm::npt::NptEntry;
    use crate::vmx::EptEntry;
    use proptest::prelude::*;

    /// Memory that begins and ends with small pages, with large ones between.
    fn tables<E: NestedEntry>(largest: Level) -> NestedTables<E> {
        let mut tables = NestedTables::new(&mut HeapFrames, largest).expect("frames");
        let host = GuestFrames::for_tests(PhysAddr::new(5 << 30), 3 << 30);
        let _new = tables.map(&mut HeapFrames, Gpa::new(0), host, Access::ALL, MemoryType::WriteBack).expect("frames");
        let rest = GuestFrames::for_tests(PhysAddr::new(0x1000), 0x3000);
        let start = Gpa::new(3 << 30);
        let _new = tables.map(&mut HeapFrames, start, rest, Access::ALL, MemoryType::WriteBack).expect("frames");
        tables.prepare_read_only(&mut HeapFrames).expect("frames");
        tables
    }

    fn moves<E: NestedEntry>(largest: Level, pages: &[Option<u64>]) -> core::result::Result<(), TestCaseError> {
        let (mut tables, plain) = (tables::<E>(largest), tables::<E>(largest));
        let (frames, spare) = (tables.frames(), tables.spare.count());
        let mut now = None;
        for page in pages {
            let page = page.map(|number| number * PAGE_SIZE);
            let mapped = page.is_none_or(|page| plain.translate(Gpa::new(page)).is_some());
            let answer = tables.set_read_only(page.map(Gpa::new));
            prop_assert_eq!(answer.is_some(), mapped, "{:x?}", page);
            if mapped {
                prop_assert_eq!(answer.is_some_and(|flush| flush.needed), page != now);
                now = page;
            }
            // The pages around, the large ones' first and last, and all there is of the small ones.
            let around = now.unwrap_or(0) / PAGE_SIZE;
            let looked = [0, 1, 511, 512, 513, (1 << 18) - 1, 1 << 18, 3 << 18, (3 << 18) + 2, (3 << 18) + 3];
            for number in looked.into_iter().chain([around.saturating_sub(1), around, around + 1]) {
                let address = Gpa::new(number * PAGE_SIZE);
                let expected = plain.translate(address).map(|page| (page.host, page.memory_type));
                let found = tables.translate(address);
                prop_assert_eq!(found.map(|page| (page.host, page.memory_type)), expected, "{:x?}", address);
                let access = if now == Some(address.as_u64()) { Access::READ_EXECUTE } else { Access::ALL };
                prop_assert!(found.is_none_or(|page| page.access == access), "{:x?}", address);
            }
        }
        assert!(tables.set_read_only(None).is_some(), "it always can");
        prop_assert_eq!((tables.frames(), tables.spare.count()), (frames, spare), "frames have come back");
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// B8: wherever the page is moved, it alone cannot be written, all maps to what it mapped to, and no frame is
        /// lost.
        #[test]
        fn a_read_only_page_moves_and_leaves_nothing_behind(
            pages in proptest::collection::vec(
                prop_oneof![3 => (0u64..(3 << 18) + 5).prop_map(Some), 1 => (510u64..514).prop_map(Some), 1 => Just(None)],
                1..12
            ),
        ) {
            for largest in [Level::Size2M, Level::Size1G] {
                moves::<EptEntry>(largest, &pages)?;
                moves::<NptEntry>(largest, &pages)?;
            }
        }
    }

    #[test]
    fn without_spare_frames_nothing_changes() {
        let mut tables = tables::<EptEntry>(Level::Size2M);
        let small = Gpa::new((3 << 30) + 0x1000);
        assert!(tables.set_read_only(Some(small)).is_some());
        tables.spare = Spare::default();
        assert_eq!(tables.set_read_only(Some(Gpa::new(0x5000))), None);
        assert_eq!(tables.translate(small).map(|page| page.access), Some(Access::READ_EXECUTE));
        assert_eq!(tables.translate(Gpa::new(0x5000)).map(|page| page.level), Some(Level::Size2M));
        // One where two are needed is left alone, too.
        let mut tables = self::tables::<EptEntry>(Level::Size1G);
        (tables.spare, tables.read_only) = (Spare::default(), None);
        assert!(tables.spare.fill(&mut HeapFrames, 1));
        assert_eq!(tables.set_read_only(Some(Gpa::new(0x5000))), None);
        let level = tables.translate(Gpa::new(0x5000)).map(|page| page.level);
        assert_eq!((level, tables.spare.count()), (Some(Level::Size1G), 1));
    }

    /// What somebody else has done to the large page meanwhile stays.
    #[test]
    fn a_large_page_that_has_changed_is_not_put_together_again() {
        let mut tables = tables::<NptEntry>(Level::Size2M);
        assert!(tables.set_read_only(Some(Gpa::new(0x5000))).is_some());
        let other = Gpa::new(0x9000);
        let _flush = tables.protect(&mut HeapFrames, other, PAGE_SIZE, Access::READ).expect("frames");
        assert!(tables.set_read_only(None).is_some());
        assert_eq!(tables.translate(other).map(|page| page.access), Some(Access::READ));
        assert_eq!(tables.translate(Gpa::new(0x5000)).map(|page| page.access), Some(Access::ALL));
        // A device in the middle of memory.
        let mut tables = self::tables::<NptEntry>(Level::Size2M);
        assert!(tables.set_read_only(Some(Gpa::new(0x5000))).is_some());
        let device = GuestFrames::for_tests(PhysAddr::new((5 << 30) + 0x9000), PAGE_SIZE);
        let _flush = tables.unmap(&mut HeapFrames, other, PAGE_SIZE).expect("frames");
        let _flush = tables.map(&mut HeapFrames, other, device, Access::ALL, MemoryType::Uncached).expect("frames");
        assert!(tables.set_read_only(None).is_some());
        assert_eq!(tables.translate(other).map(|page| page.memory_type), Some(MemoryType::Uncached));
    }
}
