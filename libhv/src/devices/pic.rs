//! The two 8259A interrupt controllers of a PC, cascaded, with the edge/level registers of a PCI chipset.
//!
//! The edge that an edge-triggered line has seen is kept until it is acknowledged, even when the line falls before:
//! devices here pulse. Level or edge is chosen line by line in ELCR; ICW1.LTIM is ignored, as chipsets with ELCR do.

/// The first port of the first controller.
pub const FIRST: u16 = 0x20;
/// The first port of the second controller.
pub const SECOND: u16 = 0xA0;

/// The line on which the second controller reports to the first.
const CASCADE: u8 = 2;

/// What ICW1 begins: the words still to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expects {
    Icw2,
    Icw3,
    Icw4,
    Nothing,
}

/// One 8259A (Intel 8259A data sheet).
#[derive(Clone, Debug)]
struct Controller {
    lines: u8,
    edges: u8,
    level: u8,
    imr: u8,
    isr: u8,
    base: u8,
    /// The line of the lowest priority.
    lowest: u8,
    expects: Expects,
    icw4_follows: bool,
    single: bool,
    automatic_eoi: bool,
    rotate_on_automatic_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    poll: bool,
    reads_isr: bool,
    /// This is the first controller, to which the other reports.
    first: bool,
}

impl Controller {
    /// As PC firmware leaves it: initialised, everything masked.
    const fn new(first: bool, base: u8) -> Self {
        Self {
            lines: 0,
            edges: 0,
            level: 0,
            imr: 0xFF,
            isr: 0,
            base,
            lowest: 7,
            expects: Expects::Nothing,
            icw4_follows: false,
            single: false,
            automatic_eoi: false,
            rotate_on_automatic_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            poll: false,
            reads_isr: false,
            first,
        }
    }

    fn requests(&self) -> u8 {
        self.edges & !self.level | self.lines & self.level
    }

    /// Returns how far `line` is from the highest priority: 0 to 7.
    const fn rank(&self, line: u8) -> u8 {
        line.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// Returns the line of the highest priority in a set.
    fn highest(&self, set: u8) -> Option<u8> {
        let first = self.lowest.wrapping_add(1) & 7;
        let turned = set.rotate_right(first.into());
        (set != 0).then(|| (turned.trailing_zeros() as u8).wrapping_add(first) & 7)
    }

    /// Returns the line that asks for service and may have it.
    fn pending(&self) -> Option<u8> {
        if self.expects != Expects::Nothing {
            return None;
        }
        let line = self.highest(self.requests() & !self.imr)?;
        let mut served = self.isr;
        if self.special_mask {
            served &= !self.imr;
        }
        if self.special_fully_nested && self.first {
            served &= !(1 << CASCADE);
        }
        self.highest(served).is_none_or(|above| self.rank(line) < self.rank(above)).then_some(line)
    }

    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        if high {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// Puts `line` in service, or ends it at once with automatic EOI.
    fn serve(&mut self, line: u8) {
        let bit = 1 << line;
        self.edges &= !bit;
        if !self.automatic_eoi {
            self.isr |= bit;
        } else if self.rotate_on_automatic_eoi {
            self.lowest = line;
        }
    }

    fn read_command(&mut self) -> u8 {
        if self.reads_isr { self.isr } else { self.requests() }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.begin(value);
        } else if value & 0x08 != 0 {
            self.poll = value & 0x04 != 0;
            if value & 0x02 != 0 {
                self.reads_isr = value & 0x01 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.end_of_interrupt(value);
        }
    }

    /// ICW1
    fn begin(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            level: self.level,
            imr: 0,
            expects: Expects::Icw2,
            icw4_follows: value & 1 != 0,
            single: value & 2 != 0,
            ..Self::new(self.first, self.base)
        };
    }

    /// OCW2
    fn end_of_interrupt(&mut self, value: u8) {
        let line = value & 7;
        let rotate = value & 0x80 != 0;
        match value >> 5 {
            // Non-specific EOI, on which the line in service of the highest priority ends.
            0b001 | 0b101 => {
                let served = if self.special_mask { self.isr & !self.imr } else { self.isr };
                if let Some(line) = self.highest(served) {
                    self.isr &= !(1 << line);
                    if rotate {
                        self.lowest = line;
                    }
                }
            }
            0b011 | 0b111 => {
                self.isr &= !(1 << line);
                if rotate {
                    self.lowest = line;
                }
            }
            0b110 => self.lowest = line,
            0b000 | 0b100 => self.rotate_on_automatic_eoi = rotate,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Nothing => {
                self.imr = value;
                Expects::Nothing
            }
            Expects::Icw2 => {
                self.base = value & 0xF8;
                match (self.single, self.icw4_follows) {
                    (false, _) => Expects::Icw3,
                    (true, true) => Expects::Icw4,
                    (true, false) => Expects::Nothing,
                }
            }
            // How the two are wired is fixed.
            Expects::Icw3 if self.icw4_follows => Expects::Icw4,
            Expects::Icw3 => Expects::Nothing,
            Expects::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.automatic_eoi = value & 0x02 != 0;
                Expects::Nothing
            }
        };
    }

    /// A read after the poll command acknowledges: bit 7 and the line, or 0.
    fn polled(&mut self) -> u8 {
        self.poll = false;
        let Some(line) = self.pending() else { return 0 };
        self.serve(line);
        0x80 | line
    }
}

/// The two controllers: lines 0 to 7 of the first, 8 to 15 of the second.
#[derive(Clone, Debug)]
pub struct Pic {
    controllers: [Controller; 2],
    asserted: bool,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// Makes the pair as PC firmware leaves it: vectors 08H to 0FH and 70H to 77H, every line masked.
    pub const fn new() -> Self {
        Self { controllers: [Controller::new(true, 0x08), Controller::new(false, 0x70)], asserted: false }
    }

    /// Returns whether the first controller asks the processor for an interrupt (its INT output).
    #[inline]
    pub const fn asserted(&self) -> bool {
        self.asserted
    }

    /// Makes `line`, 0 to 15, level-triggered as firmware does for PCI and SCI; those that never are stay as they are.
    pub fn make_level(&mut self, line: u8) {
        let port = if line < 8 { 0x4D0 } else { 0x4D1 };
        let level = self.read(port) | 1 << (line & 7);
        self.write(port, level);
    }

    /// Sets the level of `line`, 0 to 15; line 2 is the cascade, and it and higher numbers are ignored.
    pub fn set_line(&mut self, line: u8, high: bool) {
        match line {
            CASCADE | 16.. => return,
            0..8 => self.controllers[0].set_line(line, high),
            8..16 => self.controllers[1].set_line(line - 8, high),
        }
        self.settle();
    }

    /// Acknowledges as the processor does and returns the vector. Where nothing asks any more, it is that of line 7
    /// (or 15), and nothing goes into service.
    pub fn acknowledge(&mut self) -> u8 {
        let [first, second] = &mut self.controllers;
        let vector = match first.pending() {
            None => first.base | 7,
            Some(CASCADE) => {
                first.serve(CASCADE);
                match second.pending() {
                    None => second.base | 7,
                    Some(line) => {
                        second.serve(line);
                        second.base | line
                    }
                }
            }
            Some(line) => {
                first.serve(line);
                first.base | line
            }
        };
        self.settle();
        vector
    }

    /// Reads port 20H, 21H, A0H, A1H, 4D0H or 4D1H; all ones from any other.
    pub fn read(&mut self, port: u16) -> u8 {
        let Some((controller, register)) = self.controller(port) else { return 0xFF };
        match register {
            Register::EdgeLevel => controller.level,
            Register::Command | Register::Data if controller.poll => {
                let answer = controller.polled();
                self.settle();
                answer
            }
            Register::Command => controller.read_command(),
            Register::Data => controller.imr,
        }
    }

    /// Writes port 20H, 21H, A0H, A1H, 4D0H or 4D1H; writes to any other are lost.
    pub fn write(&mut self, port: u16, value: u8) {
        let Some((controller, register)) = self.controller(port) else { return };
        match register {
            // Lines 0, 1, 2, 8 and 13 are always edge-triggered.
            Register::EdgeLevel => controller.level = value & if controller.first { 0xF8 } else { 0xDE },
            Register::Command => controller.write_command(value),
            Register::Data => controller.write_data(value),
        }
        self.settle();
    }

    fn controller(&mut self, port: u16) -> Option<(&mut Controller, Register)> {
        let [first, second] = &mut self.controllers;
        Some(match port {
            0x20 => (first, Register::Command),
            0x21 => (first, Register::Data),
            0x4D0 => (first, Register::EdgeLevel),
            0xA0 => (second, Register::Command),
            0xA1 => (second, Register::Data),
            0x4D1 => (second, Register::EdgeLevel),
            _ => return None,
        })
    }

    /// Carries the second controller's output to the first, and the first's to the processor.
    ///
    /// The second's output falls while it is acknowledged, so that its next request is an edge again.
    fn settle(&mut self) {
        let [first, second] = &mut self.controllers;
        let reports = second.pending().is_some();
        if reports {
            // Not `set_line`: whatever asks now is a request of its own.
            first.lines |= 1 << CASCADE;
            first.edges |= 1 << CASCADE;
        } else {
            first.lines &= !(1 << CASCADE);
            first.edges &= !(1 << CASCADE);
        }
        self.asserted = first.pending().is_some();
    }
}

enum Register {
    Command,
    Data,
    EdgeLevel,
}

#[cfg(test)]
#[path = "pic_tests.rs"]
mod tests;
