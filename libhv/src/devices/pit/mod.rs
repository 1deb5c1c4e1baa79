//! The 8254 timer of a PC with port 61H: three channels computed from the time-stamp counter, never ticked.
//!
//! Channel 0 drives interrupt line 0; channel 1 refreshed memory once, and shows as a toggle in port 61H; channel 2 is
//! gated by port 61H, where its output can be read.

mod channel;

use super::clock::Clock;
use crate::time::{Frequency, Tsc};
use channel::Channel;

/// Pulses of the 8254's clock in a second.
pub const HZ: u64 = 1_193_182;
/// The interrupt line of channel 0.
pub const LINE: u8 = 0;
/// Pulses between two memory refreshes as PC firmware sets up channel 1: 15 microseconds.
const REFRESH_PULSES: u64 = 18;

/// The timer and port 61H.
#[derive(Clone, Debug)]
pub struct Pit {
    clock: Clock,
    channels: [Channel; 3],
    /// Bits 3:0 of port 61H: the gate of channel 2, the speaker, two parity enables.
    port61: u8,
}

impl Pit {
    /// Makes the timer of a guest whose time-stamp counter runs at `frequency`; no channel counts.
    pub fn new(frequency: Frequency) -> Self {
        Self {
            clock: Clock::new(HZ, frequency),
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            port61: 0,
        }
    }

    /// Returns whether channel 0's output has risen since this was last asked.
    ///
    /// Edges that came too late to be told one by one are one.
    pub fn take_edge(&mut self, now: Tsc) -> bool {
        self.channels[0].advance(self.clock.pulses(now))
    }

    /// Returns when [`take_edge`](Self::take_edge) is to be asked next.
    pub fn deadline(&self) -> Option<Tsc> {
        self.channels[0].next_event().map(|pulse| self.clock.moment(pulse))
    }

    /// Reads port 40H to 43H or 61H; all ones from any other.
    pub fn read(&mut self, port: u16, now: Tsc) -> u8 {
        let pulse = self.clock.pulses(now);
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].read(pulse),
            0x61 => {
                let refresh = (pulse / REFRESH_PULSES) as u8 & 1;
                let output = u8::from(self.channels[2].output(pulse));
                self.port61 | refresh << 4 | output << 5
            }
            // The control word register is write-only.
            _ => 0xFF,
        }
    }

    /// Writes port 40H to 43H or 61H; writes to any other are lost.
    pub fn write(&mut self, port: u16, value: u8, now: Tsc) {
        let pulse = self.clock.pulses(now);
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].write(value, pulse),
            0x43 if value >> 6 == 3 => {
                for (number, channel) in self.channels.iter_mut().enumerate() {
                    if value & 2 << number != 0 {
                        channel.read_back(value, pulse);
                    }
                }
            }
            0x43 => self.channels[usize::from(value >> 6)].control(value, pulse),
            0x61 => {
                self.port61 = value & 0x0F;
                self.channels[2].set_gate(value & 1 != 0, pulse);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
