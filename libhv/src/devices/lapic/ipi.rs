//! Sending interprocessor interrupts, and telling whom they are for (SDM Vol. 3A 11.6).

use super::lvt::SEND_ILLEGAL_VECTOR;
use super::{Audience, Delivery, Destination, Effect, Ipi, LocalApic};
use bit_field::BitField;

impl LocalApic {
    /// Sends what a write of the interrupt-command register asks for. What is meant for this processor alone arrives
    /// at once.
    pub(super) fn send(&mut self, command: u64) -> Effect {
        let vector = command as u8;
        let Some(delivery) = Delivery::from_bits(command.get_bits(8..11) as u8) else {
            return Effect::None;
        };
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority if vector < 16 => {
                self.report(SEND_ILLEGAL_VECTOR);
                return Effect::None;
            }
            // An INIT level de-assert set arbitration IDs, which are no more.
            Delivery::Init if command.get_bit(15) && !command.get_bit(14) => return Effect::None,
            Delivery::ExtInt | Delivery::Smi => return Effect::None,
            _ => {}
        }
        let audience = match command.get_bits(18..20) {
            0 => Audience::Matching(self.destination(command)),
            1 => {
                self.deliver(delivery, vector, false);
                return Effect::None;
            }
            2 => Audience::All,
            _ => Audience::Others,
        };
        if let Audience::Matching(Destination { id, logical: false }) = audience
            && id == self.own_id()
        {
            self.deliver(delivery, vector, false);
            return Effect::None;
        }
        Effect::Ipi(Ipi { vector, delivery, audience })
    }

    /// Sends a fixed interrupt to this processor: SELF IPI, the quickest way.
    #[inline]
    pub(super) fn send_to_self(&mut self, vector: u8) {
        if vector < 16 {
            self.report(SEND_ILLEGAL_VECTOR);
        } else {
            self.deliver(Delivery::Fixed, vector, false);
        }
    }

    fn destination(&self, command: u64) -> Destination {
        let logical = command.get_bit(11);
        if self.x2apic() {
            Destination { id: (command >> 32) as u32, logical }
        } else {
            Destination::from_byte((command >> 56) as u8, logical)
        }
    }

    /// Returns the APIC ID as the present mode has it: 8 bits in xAPIC mode.
    #[inline]
    pub(super) const fn own_id(&self) -> u32 {
        if self.x2apic() { self.id } else { self.id & 0xFF }
    }

    /// Returns the logical APIC ID: of x2APIC mode derived from the APIC ID, of xAPIC mode bits 31:24 of the LDR.
    pub(super) const fn logical_id(&self) -> u32 {
        if self.x2apic() { (self.id & 0xF_FFF0) << 12 | 1 << (self.id & 0xF) } else { self.logical_destination >> 24 }
    }

    /// Returns whether a message for `destination` is for this processor, by the rules of the mode it is in (SDM
    /// Vol. 3A 11.6.2).
    #[inline]
    pub fn matches(&self, destination: Destination) -> bool {
        let Destination { id, logical } = destination;
        if !self.enabled() {
            return false;
        }
        if id == u32::MAX {
            return true;
        }
        if !logical {
            return id == self.own_id();
        }
        let own = self.logical_id();
        if self.x2apic() {
            return id >> 16 == own >> 16 && id & own & 0xFFFF != 0;
        }
        match self.destination_format >> 28 {
            0xF => id <= 0xFF && id & own != 0,
            // The cluster model: the cluster in bits 7:4, its members in bits 3:0.
            0x0 => id <= 0xFF && id >> 4 == own >> 4 && id & own & 0xF != 0,
            _ => false,
        }
    }

    /// Returns whether an IPI is for this processor; `is_sender` tells that it came from this very one.
    pub fn hears(&self, ipi: &Ipi, is_sender: bool) -> bool {
        match ipi.audience {
            Audience::Matching(destination) => self.matches(destination),
            Audience::All => self.enabled(),
            Audience::Others => !is_sender && self.enabled(),
        }
    }
}
