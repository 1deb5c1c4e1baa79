use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

const HZ: u64 = 2_000_000_000;
const START: Tsc = Tsc(777);

fn rtc(wall_clock: u64) -> Rtc {
    Rtc::new(Frequency::from_hz(HZ), START, wall_clock, 256 << 20, 1 << 32)
}

fn get(rtc: &mut Rtc, register: u8, now: Tsc) -> u8 {
    rtc.write(INDEX, register, now);
    rtc.read(DATA, now)
}

fn set(rtc: &mut Rtc, register: u8, value: u8, now: Tsc) {
    rtc.write(INDEX, register, now);
    rtc.write(DATA, value, now);
}

fn from_bcd(raw: u8) -> u8 {
    (raw >> 4) * 10 + (raw & 15)
}

/// The time as Linux reads it.
fn linux_time(rtc: &mut Rtc, now: Tsc) -> Vec<u8> {
    [YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS].map(|register| from_bcd(get(rtc, register, now))).to_vec()
}

#[test]
fn linux_reads_the_time_it_is() {
    // 2024-02-29 23:59:58
    let mut rtc = rtc(1_709_251_198);
    assert_eq!(get(&mut rtc, D, START), 0x80);
    assert_eq!(linux_time(&mut rtc, START), [24, 2, 29, 23, 59, 58]);
    assert_eq!((get(&mut rtc, CENTURY, START), get(&mut rtc, WEEKDAY, START)), (0x20, 5), "a Thursday");
    assert_eq!(linux_time(&mut rtc, START + 2 * HZ), [24, 3, 1, 0, 0, 0]);
}

#[test]
fn an_update_is_in_progress_before_the_second_ends_only() {
    let mut rtc = rtc(0);
    let almost = START + HZ - HZ / 1_000_000 * 200;
    assert_eq!(get(&mut rtc, A, START), 0x26);
    assert_eq!(get(&mut rtc, A, almost), 0xA6);
    assert_eq!(get(&mut rtc, A, START + HZ), 0x26);
    set(&mut rtc, B, 0x82, START + HZ);
    assert_eq!(get(&mut rtc, A, almost + HZ), 0x26, "not while it is halted");
}

#[test]
fn linux_sets_the_time() {
    let mut rtc = rtc(0);
    let control = get(&mut rtc, B, START);
    set(&mut rtc, B, control | 0x80, START);
    for (register, value) in
        [(YEAR, 0x31), (MONTH, 0x12), (DAY, 0x31), (HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x30), (CENTURY, 0x20)]
    {
        set(&mut rtc, register, value, START);
    }
    assert_eq!(linux_time(&mut rtc, START + 9 * HZ), [31, 12, 31, 23, 59, 30], "halted");
    set(&mut rtc, B, control, START + 9 * HZ);
    assert_eq!(linux_time(&mut rtc, START + 39 * HZ), [32, 1, 1, 0, 0, 0]);
}

#[test]
fn the_same_time_shows_in_every_format() {
    // 1970-01-01 13:45:00
    let mut rtc = rtc(13 * 3600 + 45 * 60);
    let mut hours = Vec::new();
    for format in [0x00, 0x02, 0x04, 0x06] {
        set(&mut rtc, B, format, START);
        hours.push((get(&mut rtc, HOURS, START), get(&mut rtc, MINUTES, START)));
    }
    assert_eq!(hours, [(0x81, 0x45), (0x13, 0x45), (0x81, 45), (13, 45)]);
}

#[test]
fn interrupts_wait_until_register_c_is_read() {
    let mut rtc = rtc(0);
    get(&mut rtc, C, START);
    set(&mut rtc, B, 0x12, START);
    let deadline = rtc.deadline().expect("update interrupts are on");
    assert_eq!(deadline, START + HZ);
    rtc.advance(deadline - 1);
    assert!(!rtc.line());
    rtc.advance(deadline);
    assert!(rtc.line());
    assert_eq!(rtc.deadline(), None);
    assert_eq!(get(&mut rtc, C, deadline) & 0x90, 0x90);
    assert!(!rtc.line());
    assert_eq!(get(&mut rtc, C, deadline), 0);
}

#[test]
fn the_alarm_interrupts_when_its_second_begins() {
    let mut rtc = rtc(7 * 3600);
    for (register, value) in [(HOURS_ALARM, 0x07), (MINUTES_ALARM, 0x02), (SECONDS_ALARM, 0x05)] {
        set(&mut rtc, register as u8, value, START);
    }
    set(&mut rtc, B, 0x22, START);
    let alarm = rtc.deadline().expect("the alarm is on");
    assert_eq!(alarm, START + 125 * HZ);
    rtc.advance(alarm - 1);
    assert!(!rtc.line());
    rtc.advance(alarm);
    assert!(rtc.line());
    assert_eq!(get(&mut rtc, C, alarm) & 0xA0, 0xA0);
    assert_eq!(rtc.deadline(), Some(alarm + 86_400 * HZ));
}

#[test]
fn periodic_interrupts_come_at_the_rate_chosen() {
    let mut rtc = rtc(0);
    set(&mut rtc, A, 0x2A, START);
    set(&mut rtc, B, 0x42, START);
    let mut count = 0;
    while let Some(deadline) = rtc.deadline().filter(|deadline| deadline.0 <= HZ) {
        rtc.advance(deadline - 1);
        assert!(!rtc.line());
        rtc.advance(deadline);
        assert_eq!(get(&mut rtc, C, deadline) & 0xC0, 0xC0);
        count += 1;
    }
    assert_eq!(count, 64);
}

#[test]
fn firmware_told_the_memory_size() {
    let mut rtc = rtc(0);
    let mut word = |low| u16::from_le_bytes([get(&mut rtc, low, START), get(&mut rtc, low + 1, START)]);
    assert_eq!((word(0x15), word(0x17), word(0x34)), (640, 0xFFFF, 240 * 16));
    assert_eq!((word(0x5B), word(0x5D)), (0, 1), "4 GiB in units of 64 KiB");
}

proptest! {
    #[test]
    fn the_time_of_day_and_the_calendar_agree(wall_clock in 0u64..4_102_444_800, binary: bool, later in 0u64..100_000) {
        let mut rtc = rtc(wall_clock);
        set(&mut rtc, B, if binary { 0x06 } else { 0x02 }, START);
        let now = START + later * HZ;
        let [second, minute, hour] = [SECONDS, MINUTES, HOURS].map(|register| {
            let raw = get(&mut rtc, register, now);
            u64::from(if binary { raw } else { from_bcd(raw) })
        });
        prop_assert_eq!(hour * 3600 + minute * 60 + second, (wall_clock + later) % 86_400);
    }

    #[test]
    fn the_alarm_is_the_first_second_that_matches(
        start in 0i64..200_000,
        hour in prop_oneof![Just(0xFF), 0u8..24],
        minute in prop_oneof![Just(0xC0), 0u8..60],
        second in prop_oneof![Just(0xD1), 0u8..60],
    ) {
        let mut rtc = rtc(0);
        set(&mut rtc, B, 0x06, START);
        for (register, value) in [(5, hour), (3, minute), (1, second)] { set(&mut rtc, register, value, START); }
        let expected = (start + 1..).find(|at| {
            let fits = |alarm: u8, value: i64| alarm >= 0xC0 || i64::from(alarm) == value;
            fits(hour, at / 3600 % 24) && fits(minute, at / 60 % 60) && fits(second, at % 60)
        });
        prop_assert_eq!(rtc.next_alarm(start), expected);
    }

    #[test]
    fn any_access_is_harmless(accesses in proptest::collection::vec((any::<u8>(), any::<Option<u8>>(), 0u64..1 << 60), 0..40)) {
        let mut rtc = rtc(0);
        for (register, value, now) in accesses {
            let register = if register & 0x40 != 0 { register & 0x0F } else { register };
            match value {
                Some(value) => set(&mut rtc, register, value, Tsc(now)),
                None => { get(&mut rtc, register, Tsc(now)); }
            }
            rtc.advance(Tsc(now));
            rtc.deadline();
        }
    }
}
