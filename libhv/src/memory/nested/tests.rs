//! Nested tables against a plain map of pages.

use super::*;
use crate::memory::frame::HeapFrames;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A format of the tests' own: present 0, write 1, execute 2, leaf 3, uncached 4.
#[derive(Clone, Copy)]
struct Plain(u64);

impl NestedEntry for Plain {
    fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    fn bits(self) -> u64 {
        self.0
    }
    fn leaf(frame: PhysAddr, access: Access, _: Level, memory_type: MemoryType) -> Self {
        let uncached = u64::from(memory_type == MemoryType::Uncached) << 4;
        Self(frame.as_u64() | u64::from(access.write) << 1 | u64::from(access.execute) << 2 | uncached | 9)
    }
    fn table(frame: PhysAddr) -> Self {
        Self(frame.as_u64() | 1)
    }
    fn is_present(self) -> bool {
        self.0 & 1 != 0
    }
    fn is_leaf(self, _: Level) -> bool {
        self.0 & 8 != 0
    }
    fn target(self) -> PhysAddr {
        PhysAddr::new(self.0 & 0xF_FFFF_FFFF_F000)
    }
    fn access(self) -> Access {
        Access { read: true, write: self.0 & 2 != 0, execute: self.0 & 4 != 0 }
    }
    fn memory_type(self) -> MemoryType {
        if self.0 & 16 != 0 { MemoryType::Uncached } else { MemoryType::WriteBack }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Map { page: u64, host: u64, pages: u64, write: bool },
    Unmap { page: u64, pages: u64 },
    Protect { page: u64, pages: u64 },
}

/// Ranges around 2 MiB edges, and some of several 2 MiB.
fn range() -> impl Strategy<Value = (u64, u64)> {
    (0u64..1600, prop_oneof![1u64..6, 500u64..520, 1000u64..1100])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (range(), prop_oneof![0u64..2000, (0u64..4).prop_map(|x| x * 512)], any::<bool>())
            .prop_map(|((page, pages), host, write)| Step::Map { page, host, pages, write }),
        (range(), any::<bool>()).prop_map(|((page, pages), write)| {
            let page = page / 512 * 512;
            Step::Map { page, host: page + 512, pages, write }
        }),
        range().prop_map(|(page, pages)| Step::Unmap { page, pages }),
        range().prop_map(|(page, pages)| Step::Protect { page, pages }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// The model is a map of single pages; it knows nothing of tables and sizes.
    #[test]
    fn the_walker_agrees_with_a_map_of_single_pages(steps in proptest::collection::vec(step(), 1..8)) {
        let mut source = HeapFrames;
        let mut tables = NestedTables::<Plain>::new(&mut source, Level::Size1G).expect("heap");
        let mut model = BTreeMap::<u64, (u64, bool)>::new();
        for step in steps {
            let before = model.clone();
            let flush = match step {
                Step::Map { page, host, pages, write } => {
                    for number in 0..pages { model.insert(page + number, (host + number, write)); }
                    let access = Access { write, ..Access::ALL };
                    tables.map(&mut source, Gpa::new(page * 4096), GuestFrames::for_tests(PhysAddr::new(host * 4096), pages * 4096), access, MemoryType::WriteBack)
                }
                Step::Unmap { page, pages } => {
                    for number in 0..pages { model.remove(&(page + number)); }
                    tables.unmap(&mut source, Gpa::new(page * 4096), pages * 4096)
                }
                Step::Protect { page, pages } => {
                    for number in 0..pages { if let Some(entry) = model.get_mut(&(page + number)) { entry.1 = false; } }
                    tables.protect(&mut source, Gpa::new(page * 4096), pages * 4096, Access::READ_EXECUTE)
                }
            }.expect("aligned, and the heap has memory");
            let changed = before.iter().any(|(page, was)| model.get(page) != Some(was));
            prop_assert!(flush.needed || !changed, "a translation changed and no flush was asked for");
            for page in 0..2800 {
                let found = tables.translate(Gpa::new(page * 4096 + 5));
                let expected = model.get(&page).map(|&(host, write)| (host * 4096 + 5, write));
                prop_assert_eq!(found.map(|t| (t.host.as_u64(), t.access.write)), expected, "page {}", page);
            }
        }
    }
}

#[test]
fn a_gibibyte_takes_three_frames_where_the_pages_fit() {
    let mut source = HeapFrames;
    for (largest, host, frames) in [(Level::Size1G, 0, 2), (Level::Size2M, 0, 3), (Level::Size1G, 0x20_0000, 3)] {
        let mut tables = NestedTables::<Plain>::new(&mut source, largest).expect("heap");
        let flush = tables
            .map(
                &mut source,
                Gpa::new(1 << 30),
                GuestFrames::for_tests(PhysAddr::new(host), 1 << 30),
                Access::ALL,
                MemoryType::WriteBack,
            )
            .expect("aligned");
        assert_eq!((tables.frames(), flush.needed), (frames, false));
    }
}

#[test]
fn crooked_ranges_are_refused() {
    let mut source = HeapFrames;
    let mut tables = NestedTables::<Plain>::new(&mut source, Level::Size1G).expect("heap");
    for (start, bytes) in [(1, 4096), (0, 100), (SPACE, 4096), (u64::MAX - 4095, 8192)] {
        assert_eq!(tables.unmap(&mut source, Gpa::new(start), bytes), Err(Error::BadRegion(start)));
        let protected = tables.protect(&mut source, Gpa::new(start), bytes, Access::READ);
        assert_eq!(protected, Err(Error::BadRegion(start)));
    }
}

#[test]
fn protecting_part_of_a_device_leaves_all_of_it_uncached() {
    let mut source = HeapFrames;
    let mut tables = NestedTables::<Plain>::new(&mut source, Level::Size2M).expect("heap");
    let device = GuestFrames::for_tests(PhysAddr::new(0), Level::Size2M.bytes());
    let mapped = tables.map(&mut source, Gpa::new(0), device, Access::ALL, MemoryType::Uncached);
    assert_eq!(mapped, Ok(NestedFlush { needed: false }));
    let protected = tables.protect(&mut source, Gpa::new(0x1000), 0x1000, Access::READ);
    assert_eq!(protected, Ok(NestedFlush { needed: true }));
    for (page, write) in [(0, true), (0x1000, false), (0x1F_F000, true)] {
        let found = tables.translate(Gpa::new(page)).expect("mapped");
        assert_eq!((found.access.write, found.memory_type), (write, MemoryType::Uncached), "{page:#x}");
    }
}
