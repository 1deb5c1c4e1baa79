//! A 16550A, the serial port of a PC, connected to a [`Console`] of the host.
//!
//! A byte written is sent at once: the transmitter is never busy, and the transmitter-empty interrupt follows every
//! byte. A byte received below the trigger level raises the character time-out at once. OUT2 does not gate the
//! interrupt line, as in other virtual machines.

use crate::hw::Console;

/// The first port of COM1.
pub const COM1: u16 = 0x3F8;
/// The interrupt line of COM1.
pub const COM1_LINE: u8 = 4;

const FIFO_BYTES: usize = 16;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTED: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMITTED: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIME_OUT: u8 = 0x0C;
const IIR_FIFO: u8 = 0xC0;

const LCR_DIVISOR: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;

const LSR_DATA: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_TRANSMITTER: u8 = 1 << 5 | 1 << 6;

/// The modem inputs of a cable that is connected: DCD, DSR, CTS.
const MSR_CONNECTED: u8 = 0xB0;

/// A 16550A (National Semiconductor PC16550D data sheet).
#[derive(Debug)]
pub struct Uart<C> {
    console: C,
    fifo: [u8; FIFO_BYTES],
    first: usize,
    held: usize,
    fifo_on: bool,
    trigger: usize,
    divisor: [u8; 2],
    ier: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scratch: u8,
    overrun: bool,
    /// The transmitter-empty interrupt is waiting, whether enabled or not.
    emptied: bool,
    line: bool,
    fell: bool,
}

impl<C: Console> Uart<C> {
    /// Makes a UART as it is after a reset, on this console.
    pub const fn new(console: C) -> Self {
        Self {
            console,
            fifo: [0; FIFO_BYTES],
            first: 0,
            held: 0,
            fifo_on: false,
            trigger: 1,
            divisor: [12, 0],
            ier: 0,
            lcr: 0,
            mcr: 0,
            msr: MSR_CONNECTED,
            scratch: 0,
            overrun: false,
            emptied: true,
            line: false,
            fell: false,
        }
    }

    /// Returns the level of the interrupt line.
    #[inline]
    pub const fn line(&self) -> bool {
        self.line
    }

    /// Returns whether an access may have moved the interrupt line.
    #[inline]
    pub const fn drives(&self) -> bool {
        self.line || self.fell
    }

    /// Returns whether the line has been low since this was last asked, however shortly: then a high line is an edge.
    #[inline]
    pub fn take_fall(&mut self) -> bool {
        core::mem::take(&mut self.fell)
    }

    /// Takes what the host's console has, as far as there is room, and drives the line. In loopback mode the outside
    /// is cut off and nothing is taken.
    pub fn poll(&mut self) {
        if self.mcr & MCR_LOOP != 0 {
            return;
        }
        while self.held < self.capacity() {
            let Some(byte) = self.console.read() else { break };
            self.receive(byte);
        }
        self.drive();
    }

    /// Reads the register at `offset`, of which the low three bits count.
    pub fn read(&mut self, offset: u16) -> u8 {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        let value = match offset & 7 {
            0 if divisor => return self.divisor[0],
            1 if divisor => return self.divisor[1],
            0 => {
                let byte = self.take_byte();
                if self.mcr & MCR_LOOP == 0
                    && let Some(next) = self.console.read()
                {
                    self.receive(next);
                }
                byte
            }
            1 => return self.ier,
            2 => {
                let cause = self.cause();
                if cause == IIR_TRANSMITTED {
                    self.emptied = false;
                }
                cause | if self.fifo_on { IIR_FIFO } else { 0 }
            }
            3 => return self.lcr,
            4 => return self.mcr,
            5 => {
                let status = LSR_TRANSMITTER | if self.held > 0 { LSR_DATA } else { 0 };
                if !core::mem::take(&mut self.overrun) {
                    return status;
                }
                status | LSR_OVERRUN
            }
            6 => {
                let status = self.msr;
                self.msr &= 0xF0;
                status
            }
            _ => return self.scratch,
        };
        self.drive();
        value
    }

    /// Writes the register at `offset`, of which the low three bits count.
    #[inline]
    pub fn write(&mut self, offset: u16, value: u8) {
        if offset & 7 == 0 && (self.lcr & LCR_DIVISOR) | (self.mcr & MCR_LOOP) | (self.ier & IER_TRANSMITTED) == 0 {
            self.console.write(value);
            self.emptied = true;
        } else {
            self.write_register(offset, value);
        }
    }

    #[inline(always)]
    fn write_register(&mut self, offset: u16, value: u8) {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        match offset & 7 {
            0 if divisor => self.divisor[0] = value,
            1 if divisor => self.divisor[1] = value,
            0 => {
                self.emptied = false;
                self.drive();
                if self.mcr & MCR_LOOP != 0 {
                    self.receive(value);
                } else {
                    self.console.write(value);
                }
                self.emptied = true;
            }
            1 => {
                let enabled = value & 0x0F;
                // Enabling the interrupt while the transmitter is empty raises it.
                self.emptied |= enabled & !self.ier & IER_TRANSMITTED != 0;
                self.ier = enabled;
            }
            2 => self.control_fifo(value),
            3 => self.lcr = value,
            4 => {
                self.mcr = value & 0x1F;
                self.follow_modem();
            }
            7 => {
                self.scratch = value;
                return;
            }
            // The line and modem status registers are read-only.
            _ => {}
        }
        self.drive();
    }

    fn control_fifo(&mut self, value: u8) {
        let on = value & 1 != 0;
        if on != self.fifo_on || value & 2 != 0 {
            self.held = 0;
        }
        self.fifo_on = on;
        self.trigger = if on { [1, 4, 8, 14][usize::from(value >> 6)] } else { 1 };
    }

    /// Sets the modem inputs and their delta bits; in loopback mode they are the modem outputs.
    fn follow_modem(&mut self) {
        let inputs = if self.mcr & MCR_LOOP == 0 {
            MSR_CONNECTED
        } else {
            // RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
            (self.mcr & 0b0010) << 3 | (self.mcr & 0b0001) << 5 | (self.mcr & 0b1100) << 4
        };
        let before = self.msr & 0xF0;
        let changed = (before ^ inputs) >> 4;
        // RI reports its trailing edge alone.
        let rising_ring = inputs >> 4 & 0b0100;
        self.msr = inputs | self.msr & 0x0F | changed & !rising_ring;
    }

    const fn capacity(&self) -> usize {
        if self.fifo_on { FIFO_BYTES } else { 1 }
    }

    fn receive(&mut self, byte: u8) {
        if self.held >= self.capacity() {
            self.overrun = true;
            if !self.fifo_on {
                self.fifo[self.first] = byte;
            }
            return;
        }
        self.fifo[(self.first + self.held) % FIFO_BYTES] = byte;
        self.held += 1;
    }

    fn take_byte(&mut self) -> u8 {
        let byte = self.fifo[self.first];
        if self.held > 0 {
            self.held -= 1;
            self.first = (self.first + 1) % FIFO_BYTES;
        }
        byte
    }

    /// Returns the interrupt of the highest priority that is enabled and waits, as IIR bits 3:0 report it.
    #[inline(always)]
    fn cause(&self) -> u8 {
        if self.ier & IER_LINE_STATUS != 0 && self.overrun {
            IIR_LINE_STATUS
        } else if self.ier & IER_RECEIVED != 0 && self.held >= self.trigger {
            IIR_RECEIVED
        } else if self.ier & IER_RECEIVED != 0 && self.held > 0 {
            IIR_TIME_OUT
        } else if self.ier & IER_TRANSMITTED != 0 && self.emptied {
            IIR_TRANSMITTED
        } else if self.ier & IER_MODEM_STATUS != 0 && self.msr & 0x0F != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn drive(&mut self) {
        let line = self.cause() != IIR_NONE;
        self.fell |= self.line && !line;
        self.line = line;
    }
}

#[cfg(test)]
#[path = "uart_tests.rs"]
mod tests;
