//! Which host memory a guest gets: pieces as large, and as well aligned for large pages, as the host's memory allows.

use super::ranges::{HUGE_PAGE, LARGE_PAGE, Range, Ranges};
use crate::address::PAGE_SIZE;

/// Guest-physical memory ends here and goes on at 4 GiB: between them are the guest's devices.
pub(crate) const LOW_END: u64 = 3 << 30;
/// Where guest-physical memory goes on.
pub(crate) const HIGH_START: u64 = 4 << 30;
/// Pieces at most.
pub(crate) const PIECES: usize = 64;

/// A piece of guest memory: contiguous for guest and host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Piece {
    /// The guest-physical address of its first byte.
    pub(crate) guest: u64,
    /// The host-physical addresses.
    pub(crate) host: Range,
}

/// Takes memory for a guest of `bytes` bytes, a multiple of 4096, out of what `free` has within `within`, and returns
/// how many of `pieces` it filled. `None`, and `free` as it was, when there is not enough.
pub(crate) fn share(free: &mut Ranges, bytes: u64, within: Range, pieces: &mut [Piece; PIECES]) -> Option<usize> {
    let mut left = free.clone();
    let mut count = 0;
    let low = bytes.min(LOW_END);
    for (start, end) in [(0, low), (HIGH_START, HIGH_START.checked_add(bytes - low)?)] {
        let mut guest = start;
        while guest < end {
            let host = best(&left, guest, end - guest, within)?;
            *pieces.get_mut(count)? = Piece { guest, host };
            left.remove(host);
            guest += host.bytes();
            count += 1;
        }
    }
    *free = left;
    Some(count)
}

/// Returns the best memory for the `bytes` bytes at `guest`, or for the first of them.
fn best(free: &Ranges, guest: u64, bytes: u64, within: Range) -> Option<Range> {
    for page in [HUGE_PAGE, LARGE_PAGE] {
        if !guest.is_multiple_of(page) || bytes < page {
            continue;
        }
        if let Some(whole) = free.place(bytes, page, within) {
            return Some(whole);
        }
        if let Some(run) = free.longest(page, within).filter(|run| run.bytes() >= page) {
            return Some(Range::new(run.start, run.bytes().min(bytes) & !(page - 1)));
        }
    }
    // Congruent to the guest's address where that can be, so that the next piece may have large pages again.
    let piece = if guest.is_multiple_of(LARGE_PAGE) { bytes } else { bytes.min(LARGE_PAGE - guest % LARGE_PAGE) };
    let rest = free.place(piece, PAGE_SIZE, within);
    rest.or_else(|| free.longest(PAGE_SIZE, within).map(|run| Range::new(run.start, run.bytes().min(piece))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVERYWHERE: Range = Range { start: 0, end: u64::MAX };

    fn shared(free: &mut Ranges, bytes: u64) -> Option<std::vec::Vec<Piece>> {
        let mut pieces = [Piece::default(); PIECES];
        share(free, bytes, EVERYWHERE, &mut pieces).map(|count| pieces[..count].to_vec())
    }

    proptest! {
        #[test]
        fn a_guest_gets_all_its_memory_once_or_nothing(
            machine in proptest::collection::vec((0u64..8 << 18, 1u64..1 << 18), 1..6), pages in 1u64..5 << 18
        ) {
            let mut free = Ranges::new();
            for (start, count) in machine { free.insert(Range::new(start * PAGE_SIZE, count * PAGE_SIZE)); }
            let (before, bytes) = (free.clone(), pages * PAGE_SIZE);
            match shared(&mut free, bytes) {
                Some(pieces) => {
                    let mut guest = 0;
                    let mut rest = before.clone();
                    for piece in &pieces {
                        if guest == LOW_END { guest = HIGH_START; }
                        prop_assert_eq!(piece.guest, guest);
                        prop_assert!(piece.host.bytes() > 0 && piece.host.start % PAGE_SIZE == 0);
                        let was = rest.bytes();
                        rest.remove(piece.host);
                        prop_assert_eq!(was - rest.bytes(), piece.host.bytes(), "was not free");
                        guest += piece.host.bytes();
                    }
                    prop_assert_eq!(before.bytes() - free.bytes(), bytes);
                    prop_assert_eq!(rest, free);
                }
                None => {
                    prop_assert_eq!(&free, &before);
                    prop_assert!(before.bytes() < bytes, "{} bytes are enough for {}", before.bytes(), bytes);
                }
            }
        }
    }

    #[test]
    fn one_run_with_room_is_one_piece_in_large_pages() {
        let mut free = Ranges::new();
        free.insert(Range { start: 0x15_3000, end: 512 << 20 });
        free.insert(Range { start: 5 << 30, end: 6 << 30 });
        let pieces = shared(&mut free, (256 << 20) + 0x3000).expect("enough");
        assert_eq!(pieces, [Piece { guest: 0, host: Range::new(2 << 20, (256 << 20) + 0x3000) }]);
    }

    #[test]
    fn gibibytes_lie_where_a_page_holds_each() {
        let mut free = Ranges::new();
        free.insert(Range { start: 0x20_0000, end: 3 << 30 });
        free.insert(Range { start: (4 << 30) + 0x1000, end: 16 << 30 });
        let pieces = shared(&mut free, 5 << 30).expect("enough");
        assert!(pieces.iter().all(|piece| piece.host.start % HUGE_PAGE == 0), "{pieces:x?}");
        assert_eq!(pieces.len(), 2);
    }
}
