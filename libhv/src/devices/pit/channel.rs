//! One channel of the 8254: its counter is a function of the pulse at which it was loaded.

/// How a channel counts (Intel 8254 data sheet, "Mode Definitions").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    TerminalCount,
    OneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

/// A counting element that was loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    /// The pulse that loaded it, or that would have, had the gate never been low.
    since: u64,
    /// The count loaded, 1 to 65536.
    count: u64,
    /// The output was low when it began: a square wave in its low half, a one-shot that was triggered again.
    low_first: bool,
}

/// One channel. Moments are numbers of pulses of its clock; they never go back.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    mode: Mode,
    /// Bits 5:0 of the control word, as the status byte shows them.
    control: u8,
    gate: bool,
    /// The count register: what was written last.
    count: Option<u64>,
    run: Option<Run>,
    /// The count register has changed and is loaded when the period ends.
    waits: bool,
    /// The pulse at which the gate, or half a count, stopped the counting.
    stopped: Option<u64>,
    low_written: Option<u8>,
    high_is_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// Where to look for rising edges from.
    seen: u64,
    /// The output rose at the hand of a write.
    rose: bool,
}

impl Channel {
    /// Makes a channel in mode 3 that waits for its count, with the output high.
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            mode: Mode::SquareWave,
            control: 0x36,
            gate,
            count: None,
            run: None,
            waits: false,
            stopped: None,
            low_written: None,
            high_is_next: false,
            latched_count: None,
            latched_status: None,
            seen: 0,
            rose: false,
        }
    }

    const fn modulus(&self) -> u64 {
        if self.control & 1 == 0 { 0x1_0000 } else { 10_000 }
    }

    const fn periodic(&self) -> bool {
        matches!(self.mode, Mode::RateGenerator | Mode::SquareWave)
    }

    /// Takes a control word that selects this channel.
    pub(super) fn control(&mut self, value: u8, now: u64) {
        if value & 0x30 == 0 {
            self.latch_count(now);
            return;
        }
        let low = !self.output(now);
        *self = Self {
            mode: match value >> 1 & 7 {
                0 => Mode::TerminalCount,
                1 => Mode::OneShot,
                2 | 6 => Mode::RateGenerator,
                3 | 7 => Mode::SquareWave,
                4 => Mode::SoftwareStrobe,
                _ => Mode::HardwareStrobe,
            },
            control: value & 0x3F,
            seen: self.seen,
            rose: self.rose,
            ..Self::new(self.gate)
        };
        self.rose |= low && self.output(now);
    }

    /// Takes a read-back command that selects this channel.
    pub(super) fn read_back(&mut self, value: u8, now: u64) {
        if value & 0x20 == 0 {
            self.latch_count(now);
        }
        if value & 0x10 == 0 && self.latched_status.is_none() {
            let output = u8::from(self.output(now)) << 7;
            let null = u8::from(self.null_count(now)) << 6;
            self.latched_status = Some(output | null | self.control);
        }
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.counter(now));
        }
    }

    /// Returns whether the count register holds what the counting element has not been loaded with.
    fn null_count(&mut self, now: u64) -> bool {
        self.settle(now);
        self.count.is_none() || self.waits || self.run.is_none_or(|run| now < run.since)
    }

    /// Reads a byte of the status, the latched count or the running count.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = match self.latched_count {
            Some(count) => count,
            None => self.counter(now),
        }
        .to_le_bytes();
        let (byte, last) = match self.control >> 4 {
            1 => (low, true),
            2 => (high, true),
            _ => {
                self.high_is_next = !self.high_is_next;
                if self.high_is_next { (low, false) } else { (high, true) }
            }
        };
        if last {
            self.latched_count = None;
        }
        byte
    }

    /// Takes a byte of the count.
    pub(super) fn write(&mut self, value: u8, now: u64) {
        let raw = match (self.control >> 4, self.low_written.take()) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, value]),
            (_, None) => {
                self.low_written = Some(value);
                // The first byte stops mode 0.
                if self.mode == Mode::TerminalCount {
                    self.settle(now);
                    self.count = None;
                    self.run = None;
                }
                return;
            }
        };
        let count = if self.control & 1 == 0 { raw.into() } else { from_bcd(raw) };
        self.load(if count == 0 { self.modulus() } else { count }, now);
    }

    /// Takes a complete count: the next pulse loads it, unless the mode has it wait.
    fn load(&mut self, count: u64, now: u64) {
        let low = !self.output(now);
        self.count = Some(count);
        match self.mode {
            // Only the gate loads the counting element.
            Mode::OneShot | Mode::HardwareStrobe => self.waits = true,
            Mode::RateGenerator | Mode::SquareWave if self.run.is_some() => self.waits = true,
            _ => self.start(count, now, low),
        }
        self.rose |= low && self.output(now);
    }

    fn start(&mut self, count: u64, now: u64, low: bool) {
        self.waits = false;
        self.run = Some(Run { since: now.saturating_add(1), count, low_first: low && self.mode == Mode::OneShot });
        let triggered = matches!(self.mode, Mode::OneShot | Mode::HardwareStrobe);
        self.stopped = (!self.gate && !triggered).then(|| now.saturating_add(1));
    }

    /// Sets the gate.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        self.settle(now);
        if gate == self.gate {
            return;
        }
        let low = !self.output(now);
        self.gate = gate;
        match self.mode {
            Mode::OneShot | Mode::HardwareStrobe | Mode::RateGenerator | Mode::SquareWave if gate => {
                if let Some(count) = self.count {
                    self.start(count, now, low);
                }
            }
            Mode::OneShot | Mode::HardwareStrobe => {}
            _ if !gate => self.stopped = Some(now),
            _ => {
                let stopped = self.stopped.take().unwrap_or(now);
                if let Some(run) = &mut self.run {
                    run.since = run.since.saturating_add(now.saturating_sub(stopped));
                }
            }
        }
        self.rose |= low && self.output(now);
    }

    /// Pulses since the counting element was loaded, without those the gate took away.
    fn elapsed(&self, run: Run, now: u64) -> u64 {
        self.stopped.unwrap_or(now).saturating_sub(run.since)
    }

    /// Returns where a run stands in its period: pulses since its high half began.
    const fn phase(run: Run, elapsed: u64) -> u64 {
        let ahead = if run.low_first { run.count.div_ceil(2) } else { 0 };
        (elapsed % run.count + ahead) % run.count
    }

    /// Returns the pulse at which a waiting count is loaded: the end of the period, or of half a square wave.
    fn boundary(&self) -> Option<u64> {
        let run = self.run.filter(|_| self.waits && self.periodic() && self.stopped.is_none())?;
        let elapsed = self.seen.saturating_sub(run.since);
        let phase = Self::phase(run, elapsed);
        let half = run.count.div_ceil(2);
        let end = if self.mode == Mode::SquareWave && phase < half { half } else { run.count };
        Some(run.since.saturating_add(elapsed).saturating_add(end - phase))
    }

    /// Has a waiting count loaded if its moment has come. `seen` never passes that moment unnoticed.
    fn settle(&mut self, now: u64) {
        if let Some(boundary) = self.boundary()
            && boundary <= now
            && let (Some(run), Some(count)) = (self.run, self.count)
        {
            self.rose |= self.rise_after(self.seen).is_some_and(|pulse| pulse <= boundary);
            let falls = self.mode == Mode::SquareWave && Self::phase(run, boundary.saturating_sub(run.since)) != 0;
            self.run = Some(Run { since: boundary, count, low_first: falls });
            self.waits = false;
            self.seen = boundary;
        }
        self.rose |= self.rise_after(self.seen).is_some_and(|pulse| pulse <= now);
        self.seen = self.seen.max(now);
    }

    /// Lets time pass; returns whether the output has risen since the last time.
    pub(super) fn advance(&mut self, now: u64) -> bool {
        self.settle(now);
        core::mem::take(&mut self.rose)
    }

    /// Returns the pulse at which `advance` next has something to tell or to do.
    pub(super) fn next_event(&self) -> Option<u64> {
        if self.rose {
            return Some(self.seen);
        }
        let rise = self.rise_after(self.seen);
        match (rise, self.boundary()) {
            (Some(rise), Some(boundary)) => Some(rise.min(boundary)),
            (rise, boundary) => rise.or(boundary),
        }
    }

    /// Returns the first pulse after `after` at which the output rises if nobody interferes.
    fn rise_after(&self, after: u64) -> Option<u64> {
        let run = self.run.filter(|_| self.stopped.is_none())?;
        let elapsed = after.saturating_sub(run.since);
        let rise = match self.mode {
            Mode::TerminalCount | Mode::OneShot => run.count,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => run.count + 1,
            // With a count of 1, which the data sheet forbids, the output never changes.
            Mode::RateGenerator | Mode::SquareWave if run.count == 1 => return None,
            Mode::RateGenerator | Mode::SquareWave => elapsed.saturating_add(run.count - Self::phase(run, elapsed)),
        };
        Some(run.since.saturating_add(rise)).filter(|&pulse| pulse > after)
    }

    /// Returns the level of the output.
    pub(super) fn output(&mut self, now: u64) -> bool {
        self.settle(now);
        let Some(run) = self.run else { return self.mode != Mode::TerminalCount };
        let elapsed = self.elapsed(run, now);
        match self.mode {
            Mode::TerminalCount => elapsed >= run.count,
            Mode::OneShot => elapsed >= run.count || now < run.since && !run.low_first,
            Mode::RateGenerator => !self.gate || run.count == 1 || elapsed % run.count != run.count - 1,
            Mode::SquareWave => !self.gate || Self::phase(run, elapsed) < run.count.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != run.count,
        }
    }

    /// Returns the counting element as it is read: binary, or four decimal digits.
    fn counter(&mut self, now: u64) -> u16 {
        self.settle(now);
        let Some(run) = self.run else { return 0 };
        let elapsed = self.elapsed(run, now);
        let modulus = self.modulus();
        let value = match self.mode {
            Mode::RateGenerator => run.count - elapsed % run.count,
            Mode::SquareWave => {
                let half = run.count.div_ceil(2);
                let phase = Self::phase(run, elapsed);
                (run.count & !1) - 2 * if phase < half { phase } else { phase - half }
            }
            _ => (run.count + modulus - elapsed % modulus) % modulus,
        } % modulus;
        if self.control & 1 == 0 { value as u16 } else { to_bcd(value) }
    }
}

/// Reads four decimal digits; a digit above 9, which is no BCD, counts as what it is.
fn from_bcd(raw: u16) -> u64 {
    let digit = |shift: u16| (raw >> shift & 0xF) as u64;
    digit(0) + 10 * digit(4) + 100 * digit(8) + 1000 * digit(12)
}

fn to_bcd(value: u64) -> u16 {
    let digit = |unit: u64| (value / unit % 10) as u16;
    digit(1) | digit(10) << 4 | digit(100) << 8 | digit(1000) << 12
}
