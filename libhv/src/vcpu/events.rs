//! What becomes of an event whose delivery met another (SDM Vol. 3A 6.15, tables 6-4 and 6-5).

use crate::exit::Event;

/// What the guest gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Combined {
    /// The second event; the first, an interrupt or NMI, comes after it.
    SecondThenFirst,
    /// The second event alone: the first is raised again when its instruction runs again.
    Second,
    /// #DF
    DoubleFault,
    /// A third fault: shutdown.
    Shutdown,
}

/// #DF with its error code, which is always 0.
pub const DOUBLE_FAULT: Event = Event::Exception { vector: 8, error_code: Some(0) };

/// #DE, #TS, #NP, #SS, #GP and #CP
fn is_contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13 | 21)
}

fn is_page_fault(vector: u8) -> bool {
    matches!(vector, 14 | 20)
}

/// Returns what the guest gets when exception `second` arises while `first` was being delivered.
pub fn combine(first: Event, second: Event) -> Combined {
    let Event::Exception { vector: second, .. } = second else { return Combined::Second };
    match first {
        Event::Interrupt(_) | Event::Nmi => Combined::SecondThenFirst,
        Event::Software { .. } => Combined::Second,
        Event::Exception { vector: 8, .. } if is_contributory(second) || is_page_fault(second) => Combined::Shutdown,
        Event::Exception { vector: first, .. } => {
            let double = is_contributory(first) && is_contributory(second)
                || is_page_fault(first) && (is_contributory(second) || is_page_fault(second));
            if double { Combined::DoubleFault } else { Combined::Second }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exception(vector: u8) -> Event {
        Event::Exception { vector, error_code: None }
    }

    /// Table 6-5, row by row: benign (#DB), contributory (#GP), page fault, double fault.
    #[test]
    fn faults_during_delivery_combine_as_the_table_says() {
        use Combined::*;
        let rows = [
            (1, [Second, Second, Second]),
            (13, [Second, DoubleFault, Second]),
            (14, [Second, DoubleFault, DoubleFault]),
            (8, [Second, Shutdown, Shutdown]),
        ];
        for (first, row) in rows {
            for (second, expected) in [1, 11, 14].into_iter().zip(row) {
                assert_eq!(combine(exception(first), exception(second)), expected, "{first} then {second}");
            }
        }
    }

    /// Table 6-4: the vectors of each class; all others are benign.
    #[test]
    fn every_vector_is_of_the_class_the_table_gives_it() {
        let expected = |first: u8, second: u8| match (first, second) {
            (8, 0 | 10 | 11 | 12 | 13 | 14 | 20 | 21) => Combined::Shutdown,
            (0 | 10 | 11 | 12 | 13 | 21, 0 | 10 | 11 | 12 | 13 | 21) => Combined::DoubleFault,
            (14 | 20, 0 | 10 | 11 | 12 | 13 | 14 | 20 | 21) => Combined::DoubleFault,
            _ => Combined::Second,
        };
        for (first, second) in (0..32).flat_map(|first| (0..32).map(move |second| (first, second))) {
            let found = combine(exception(first), exception(second));
            assert_eq!(found, expected(first, second), "{first} then {second}");
        }
    }

    #[test]
    fn an_interrupt_is_not_lost_to_a_fault_on_its_way() {
        assert_eq!(combine(Event::Interrupt(0x20), exception(14)), Combined::SecondThenFirst);
        assert_eq!(combine(Event::Nmi, exception(13)), Combined::SecondThenFirst);
        let breakpoint = Event::Software { vector: 3, length: 1, exception: true };
        assert_eq!(combine(breakpoint, exception(14)), Combined::Second);
    }
}
