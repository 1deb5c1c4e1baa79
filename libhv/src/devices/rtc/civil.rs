//! Dates of the Gregorian calendar from days since 1970-01-01, and back.

/// Days before each month of a year that is not a leap year.
const DAYS_BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
/// Days from 0000-01-01 to 1970-01-01.
const EPOCH: i64 = 719_528;

const fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 0000-01-01 to the first day of a year that is not before year 0, which is a leap year.
const fn days_before_year(year: i64) -> i64 {
    match year {
        0 => 0,
        _ => 365 * year + (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400 + 1,
    }
}

/// Returns days since 1970-01-01. The month is 1 to 12, other numbers are taken as the nearest; days past the month's
/// end count on.
pub(crate) fn days(year: u16, month: u8, day: u8) -> i64 {
    let month = month.clamp(1, 12);
    let leap_day = i64::from(month > 2 && leap(year.into()));
    days_before_year(year.into()) + DAYS_BEFORE[usize::from(month - 1)] + leap_day + i64::from(day) - 1 - EPOCH
}

/// Returns year, month and day; years are 0 to 9999, and days outside of them are the first or the last.
pub(super) fn date(days: i64) -> (u16, u8, u8) {
    let days = days.saturating_add(EPOCH).clamp(0, days_before_year(10_000) - 1);
    let mut year = days * 400 / 146_097;
    while days_before_year(year) > days {
        year -= 1;
    }
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let rest = days - days_before_year(year);
    let first = |month: usize| DAYS_BEFORE[month] + i64::from(month >= 2 && leap(year));
    let month = (0..12).rev().find(|&month| first(month) <= rest).unwrap_or(0);
    (year as u16, month as u8 + 1, (rest - first(month)) as u8 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_day_by_day_gives_the_same_dates() {
        let mut counted = (1890u16, 1u8, 1u8);
        for day in days(1890, 1, 1)..days(2110, 1, 1) {
            assert_eq!(date(day), counted);
            assert_eq!(days(counted.0, counted.1, counted.2), day);
            let (year, month, number) = counted;
            let length = match month {
                2 if year % 400 == 0 || year % 4 == 0 && year % 100 != 0 => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            counted = match (month, number == length) {
                (12, true) => (year + 1, 1, 1),
                (_, true) => (year, month + 1, 1),
                _ => (year, month, number + 1),
            };
        }
    }

    #[test]
    fn known_days_are_where_they_belong() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(-135_081), (1600, 2, 29));
        assert_eq!(date(-135_080), (1600, 3, 1));
        assert_eq!(date(20_000), (2024, 10, 4));
        assert_eq!(date(i64::MAX), (9999, 12, 31));
        assert_eq!(date(i64::MIN), (0, 1, 1));
    }
}
