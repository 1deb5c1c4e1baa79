//! The 8042 keyboard controller without keyboard and mouse: it passes its tests, resets the machine, and says at once
//! that nobody answers.

use crate::exit::StopReason;

/// The data port.
pub const DATA: u16 = 0x60;
/// The port of status and commands.
pub const COMMAND: u16 = 0x64;
/// The interrupt line of the keyboard.
pub const LINE: u8 = 1;

const OUTPUT_FULL: u8 = 1 << 0;
const COMMAND_WRITTEN: u8 = 1 << 3;
const UNLOCKED: u8 = 1 << 4;
const TIME_OUT: u8 = 1 << 6;
/// Bit 2 of the command byte shows in the status, too: the self-test passed.
const SYSTEM: u8 = 1 << 2;
const KEYBOARD_INTERRUPT: u8 = 1 << 0;
/// What comes back for a keyboard that does not answer: "resend", with the time-out bit.
const NO_ANSWER: u8 = 0xFE;

/// What a byte written to the data port is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DataFor {
    Keyboard,
    CommandByte,
    OutputPort,
    Echo,
    Mouse,
}

/// An 8042.
#[derive(Clone, Debug)]
pub struct KeyboardController {
    command_byte: u8,
    output: u8,
    full: bool,
    timed_out: bool,
    command_written: bool,
    data_for: DataFor,
}

impl Default for KeyboardController {
    fn default() -> Self {
        Self::new()
    }
}

impl KeyboardController {
    /// Makes a controller as firmware leaves it: self-test passed, both ports disabled.
    pub const fn new() -> Self {
        Self {
            command_byte: 0x30 | SYSTEM,
            output: 0,
            full: false,
            timed_out: false,
            command_written: false,
            data_for: DataFor::Keyboard,
        }
    }

    /// Returns the level of the keyboard's interrupt line: the "no answer" of an enabled keyboard.
    pub const fn line(&self) -> bool {
        self.full && self.timed_out && self.command_byte & KEYBOARD_INTERRUPT != 0
    }

    /// Reads the data port.
    pub fn read_data(&mut self) -> u8 {
        self.full = false;
        self.timed_out = false;
        self.output
    }

    /// Reads the status.
    pub const fn read_status(&self) -> u8 {
        UNLOCKED
            | self.command_byte & SYSTEM
            | if self.full { OUTPUT_FULL } else { 0 }
            | if self.timed_out { TIME_OUT } else { 0 }
            | if self.command_written { COMMAND_WRITTEN } else { 0 }
    }

    fn answer(&mut self, value: u8) {
        self.output = value;
        self.full = true;
        self.timed_out = false;
    }

    /// Writes the data port; returns how the guest ends if it does.
    pub fn write_data(&mut self, value: u8) -> Option<StopReason> {
        self.command_written = false;
        match core::mem::replace(&mut self.data_for, DataFor::Keyboard) {
            DataFor::CommandByte => self.command_byte = value,
            DataFor::OutputPort if value & 1 == 0 => return Some(StopReason::Reset),
            DataFor::OutputPort => {}
            DataFor::Echo => self.answer(value),
            DataFor::Keyboard | DataFor::Mouse => {
                self.answer(NO_ANSWER);
                self.timed_out = true;
            }
        }
        None
    }

    /// Writes a command; returns how the guest ends if it does.
    pub fn write_command(&mut self, value: u8) -> Option<StopReason> {
        self.command_written = true;
        self.data_for = DataFor::Keyboard;
        match value {
            0x20 => self.answer(self.command_byte),
            0x60 => self.data_for = DataFor::CommandByte,
            0xA7 => self.command_byte |= 1 << 5,
            0xA8 => self.command_byte &= !(1 << 5),
            // The mouse's port fails its test.
            0xA9 => self.answer(0x01),
            0xAA => {
                self.command_byte |= SYSTEM;
                self.answer(0x55);
            }
            0xAB => self.answer(0x00),
            0xAD => self.command_byte |= 1 << 4,
            0xAE => self.command_byte &= !(1 << 4),
            0xC0 => self.answer(0x80),
            // The output port: not in reset, A20 on.
            0xD0 => self.answer(0x03),
            0xD1 => self.data_for = DataFor::OutputPort,
            // Without a mouse an echo comes from the keyboard's side.
            0xD2 | 0xD3 => self.data_for = DataFor::Echo,
            0xD4 => self.data_for = DataFor::Mouse,
            // Pulses the output port's low bits that are 0; bit 0 resets.
            0xF0..=0xFF if value & 1 == 0 => return Some(StopReason::Reset),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(controller: &mut KeyboardController, command: u8) -> u8 {
        assert_eq!(controller.write_command(command), None);
        assert_eq!(controller.read_status() & 3, 1, "there is an answer, and room for a command");
        let answer = controller.read_data();
        assert_eq!(controller.read_status() & 1, 0);
        answer
    }

    #[test]
    fn linux_finds_a_controller_that_works() {
        let mut controller = KeyboardController::new();
        assert_eq!(controller.read_status() & 3, 0, "nothing to flush");
        assert_eq!(ask(&mut controller, 0xAA), 0x55);
        let byte = ask(&mut controller, 0x20);
        controller.write_command(0x60);
        controller.write_data(byte | 0x40);
        assert_eq!(ask(&mut controller, 0x20), byte | 0x40);
        assert_eq!(ask(&mut controller, 0xAB), 0);
    }

    #[test]
    fn linux_finds_no_mouse_and_does_not_wait_for_one() {
        let mut controller = KeyboardController::new();
        controller.write_command(0xD3);
        controller.write_data(0x5A);
        assert_eq!(controller.read_status() & 0x21, 0x01, "an answer that is not the mouse's");
        controller.read_data();
        assert_eq!(ask(&mut controller, 0xA9), 1);
    }

    #[test]
    fn a_keyboard_that_is_not_there_is_a_time_out_at_once() {
        let mut controller = KeyboardController::new();
        controller.write_command(0x60);
        controller.write_data(0x65);
        controller.write_data(0xF2);
        assert!(controller.line());
        assert_eq!(controller.read_status() & 0x41, 0x41);
        assert_eq!(controller.read_data(), NO_ANSWER);
        assert!(!controller.line());
    }

    #[test]
    fn every_way_to_pull_the_reset_line_resets() {
        let mut controller = KeyboardController::new();
        assert_eq!(controller.write_command(0xFE), Some(StopReason::Reset));
        assert_eq!(controller.write_command(0xFF), None);
        controller.write_command(0xD1);
        assert_eq!(controller.write_data(0x03), None);
        controller.write_command(0xD1);
        assert_eq!(controller.write_data(0xFE), Some(StopReason::Reset));
    }
}
