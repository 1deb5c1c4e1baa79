use super::*;
use proptest::prelude::*;

const GHZ: Frequency = Frequency::from_hz(2_100_000_000);

/// A channel as the data sheet tells it, one clock pulse at a time.
#[derive(Default)]
struct Naive {
    mode: u8,
    modulus: u64,
    gate: bool,
    count: Option<u64>,
    load: bool,
    armed: bool,
    loaded: bool,
    element: u64,
    odd: bool,
    output: bool,
    rose: bool,
}

impl Naive {
    fn set_output(&mut self, output: bool) {
        self.rose |= output && !self.output;
        self.output = output;
    }
    fn control(&mut self, mode: u8, bcd: bool) {
        let (output, rose, gate) = (self.output, self.rose, self.gate);
        *self = Self { mode, gate, output, rose, modulus: if bcd { 10_000 } else { 65_536 }, ..Self::default() };
        self.set_output(mode != 0);
    }
    fn write(&mut self, count: u64) {
        self.count = Some(count);
        match self.mode {
            0 | 4 => self.load = true,
            2 | 3 if !self.loaded => self.load = true,
            _ => {}
        }
        if self.mode == 0 {
            self.set_output(false);
        }
    }
    fn set_gate(&mut self, gate: bool) {
        let trigger = gate && !self.gate;
        self.gate = gate;
        match self.mode {
            1 | 2 | 3 | 5 if trigger && self.count.is_some() => self.load = true,
            2 | 3 if !gate => self.set_output(true),
            _ => {}
        }
    }
    fn reload(&mut self) {
        let count = self.count.expect("something was written");
        self.odd = count % 2 == 1;
        self.element = if self.mode == 3 { count & !1 } else { count };
    }
    fn clock(&mut self) {
        if self.load {
            self.load = false;
            self.loaded = true;
            self.armed = true;
            self.reload();
            self.set_output(matches!(self.mode, 2..=5));
            return;
        }
        if !self.loaded || !self.gate && matches!(self.mode, 0 | 2 | 3 | 4) {
            return;
        }
        match self.mode {
            2 if self.element == 1 => {
                self.reload();
                self.set_output(true);
            }
            2 => {
                self.element -= 1;
                self.set_output(self.element != 1);
            }
            3 => {
                let expired = self.element == 0 || self.element == 2 && !(self.odd && self.output);
                if expired {
                    self.reload();
                    self.set_output(!self.output);
                } else {
                    self.element -= 2;
                }
            }
            _ => {
                self.element = if self.element == 0 { self.modulus - 1 } else { self.element - 1 };
                let zero = self.element == 0 && self.armed;
                match self.mode {
                    0 | 1 if zero => self.set_output(true),
                    4 | 5 => self.set_output(!zero),
                    _ => {}
                }
                self.armed &= !zero;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Control(u8, bool),
    Count(u64),
    Gate(bool),
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0u8..6, any::<bool>()).prop_map(|(mode, bcd)| Step::Control(mode, bcd)),
        3 => (2u64..24).prop_map(Step::Count),
        3 => any::<bool>().prop_map(Step::Gate),
        3 => Just(Step::Wait),
    ]
}

fn bcd(value: u64) -> u16 {
    u16::from_str_radix(&alloc::format!("{value}"), 16).expect("four decimal digits")
}

proptest! {
    #[test]
    fn a_channel_computed_agrees_with_one_that_is_ticked(steps in proptest::collection::vec((step(), 1u64..60), 1..25)) {
        let mut channel = Channel::new(false);
        let mut naive = Naive::default();
        let mut decimal = false;
        channel.control(0x30, 0);
        naive.control(0, false);
        let mut now = 0;
        for (step, pulses) in steps {
            match step {
                Step::Control(mode, digits) => {
                    decimal = digits;
                    channel.control(0x30 | mode << 1 | u8::from(digits), now);
                    naive.control(mode, digits);
                }
                Step::Count(count) => {
                    let raw = if decimal { bcd(count) } else { count as u16 };
                    for byte in raw.to_le_bytes() { channel.write(byte, now); }
                    naive.write(count);
                }
                Step::Gate(gate) => { channel.set_gate(gate, now); naive.set_gate(gate); }
                Step::Wait => {}
            }
            let event = channel.next_event();
            let told = naive.rose;
            for _ in 0..pulses {
                now += 1;
                naive.clock();
                if naive.rose && !told {
                    prop_assert!(event.is_some_and(|pulse| pulse <= now), "{:?} at {}: not foreseen", channel, now);
                }
            }
            prop_assert_eq!(channel.output(now), naive.output, "{:?} at {}", channel, now);
            if naive.loaded {
                let element = naive.element % naive.modulus;
                let expected = if decimal { bcd(element) } else { element as u16 };
                channel.control(0, now);
                let read = [channel.read(now + 999), channel.read(now + 999)];
                // The reads above came from the latch, and settled nothing.
                prop_assert_eq!(u16::from_le_bytes(read), expected, "{:?} at {}", channel, now);
            }
            prop_assert_eq!(channel.advance(now), core::mem::take(&mut naive.rose), "{:?} at {}", channel, now);
        }
    }

    #[test]
    fn any_access_at_any_time_is_harmless(accesses in proptest::collection::vec((0u16..5, any::<Option<u8>>(), any::<u64>()), 0..40)) {
        let mut pit = Pit::new(GHZ);
        for (port, value, now) in accesses {
            let (port, now) = (if port == 4 { 0x61 } else { 0x40 + port }, Tsc(now));
            match value {
                Some(value) => pit.write(port, value, now),
                None => { pit.read(port, now); }
            }
            pit.take_edge(now);
            pit.deadline();
        }
    }
}

/// A guest whose every port access takes 1500 ticks.
struct Guest {
    pit: Pit,
    now: Tsc,
}

impl Guest {
    fn new() -> Self {
        Self { pit: Pit::new(GHZ), now: Tsc(123_456_789) }
    }
    fn read(&mut self, port: u16) -> u8 {
        self.now = self.now + 1500;
        self.pit.read(port, self.now)
    }
    fn write(&mut self, port: u16, value: u8) {
        self.now = self.now + 1500;
        self.pit.write(port, value, self.now);
    }
}

#[test]
fn linux_calibrates_the_tsc_through_channel_2_and_port_61() {
    let mut guest = Guest::new();
    let gate = guest.read(0x61) & !2 | 1;
    guest.write(0x61, gate);
    guest.write(0x43, 0xB0);
    let latch = (HZ / 20) as u16;
    guest.write(0x42, latch as u8);
    guest.write(0x42, (latch >> 8) as u8);
    let start = guest.now;
    while guest.read(0x61) & 0x20 == 0 {}
    let hz = guest.now.since(start) * 20;
    assert!(hz.abs_diff(GHZ.hz()) < GHZ.hz() / 10_000, "{hz}");
}

#[test]
fn linux_quick_calibration_is_within_500_parts_per_million() {
    let mut guest = Guest::new();
    guest.write(0x61, 1);
    guest.write(0x43, 0xB0);
    guest.write(0x42, 0xFF);
    guest.write(0x42, 0xFF);
    guest.read(0x42);
    assert_eq!(guest.read(0x42), 0xFF);
    let expect_high_byte = |guest: &mut Guest, high: u8| {
        let (mut count, mut before) = (0u32, guest.now);
        let mut last;
        loop {
            last = before;
            before = guest.now;
            guest.read(0x42);
            if guest.read(0x42) != high {
                break;
            }
            count += 1;
        }
        assert!(count > 5, "only {count} reads of {high:#x}");
        (before, guest.now.since(last))
    };
    let (start, first_error) = expect_high_byte(&mut guest, 0xFF);
    for steps in 1..=233u8 {
        let (end, error) = expect_high_byte(&mut guest, 0xFF - steps);
        let delta = end.since(start);
        if first_error + error < delta >> 11 {
            let hz = delta * HZ / 256 / u64::from(steps);
            assert!(hz.abs_diff(GHZ.hz()) < GHZ.hz() / 2000, "{hz} after {steps}");
            return;
        }
    }
    panic!("never precise enough");
}

#[test]
fn channel_0_in_mode_2_ticks_as_often_as_its_count_says() {
    let mut pit = Pit::new(GHZ);
    pit.write(0x43, 0x34, Tsc(0));
    pit.take_edge(Tsc(0));
    for byte in (4773u32).to_le_bytes().into_iter().take(2) {
        pit.write(0x40, byte, Tsc(0));
    }
    let mut edges = 0;
    while let Some(deadline) = pit.deadline().filter(|deadline| deadline.0 <= GHZ.hz()) {
        assert!(!pit.take_edge(deadline - 1));
        assert!(pit.take_edge(deadline));
        edges += 1;
    }
    assert_eq!(edges, HZ / 4773);
}

#[test]
fn the_read_back_status_tells_output_null_count_and_mode() {
    let mut pit = Pit::new(GHZ);
    let later = Tsc(GHZ.hz());
    pit.write(0x43, 0x36, later);
    pit.write(0x43, 0xE2, later);
    assert_eq!(pit.read(0x40, later), 0xF6);
    pit.write(0x40, 0, later);
    pit.write(0x40, 0, later);
    pit.write(0x43, 0xC2, later + GHZ.hz() / 100);
    assert_eq!(pit.read(0x40, later + GHZ.hz()) & 0x7F, 0x36, "status first");
    let count = [pit.read(0x40, later + GHZ.hz()), pit.read(0x40, later + GHZ.hz())];
    let expected = 65536 - 2 * (HZ / 100 - 1);
    assert!(u64::from(u16::from_le_bytes(count)).abs_diff(expected) <= 2);
}
