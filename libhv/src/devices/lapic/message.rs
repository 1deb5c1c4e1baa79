//! What travels between interrupt controllers: IPIs, messages of the IOAPIC, and message-signalled interrupts.

use bit_field::BitField;

/// What an interrupt message does to the processor that takes it (SDM Vol. 3A 11.6.1, "Delivery Mode").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// The vector is requested.
    Fixed,
    /// The vector is requested of the one processor with the lowest priority among those addressed.
    LowestPriority,
    /// A system-management interrupt. Guests have no system-management mode: it is dropped.
    Smi,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT
    Init,
    /// Start-up, SIPI: the vector is the page at which the processor starts.
    Startup,
    /// An interrupt whose vector the PICs give.
    ExtInt,
}

impl Delivery {
    /// Returns the mode that bits 2:0 of `bits` encode; `None` for 011b, which is reserved.
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// Whom a message is for. [`LocalApic::matches`](super::LocalApic::matches) tells whether a processor is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// An APIC ID, or in logical mode a message destination address; `u32::MAX` is everybody in both.
    pub id: u32,
    /// Logical rather than physical mode.
    pub logical: bool,
}

impl Destination {
    /// Takes the 8-bit destination of xAPIC, IOAPIC and MSI, where FFH is everybody.
    #[inline]
    pub const fn from_byte(id: u8, logical: bool) -> Self {
        Self { id: if id == 0xFF { u32::MAX } else { id as u32 }, logical }
    }
}

/// To whom an IPI goes (SDM Vol. 3A 11.6.1, "Destination Shorthand"). "Self" never leaves the local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    /// Those that match.
    Matching(Destination),
    /// Everybody, the sender too.
    All,
    /// Everybody but the sender.
    Others,
}

/// An inter-processor interrupt on its way. It is edge-triggered: what the ICR says of triggers has no effect on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipi {
    /// The vector, with start-up the page.
    pub vector: u8,
    /// What it does.
    pub delivery: Delivery,
    /// To whom it goes.
    pub audience: Audience,
}

/// An interrupt message of the IOAPIC or of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// The vector.
    pub vector: u8,
    /// What it does.
    pub delivery: Delivery,
    /// Whom it is for.
    pub destination: Destination,
    /// Level-triggered rather than edge-triggered.
    pub level: bool,
}

impl Interrupt {
    /// Decodes a message-signalled interrupt, the write of `data` to `address` (SDM Vol. 3A 11.11); `None` when the
    /// address is not one of 0xFEE00000-0xFEEFFFFF, the delivery mode is reserved, or the message is a de-assertion.
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        let level = data.get_bit(15);
        (address >> 20 == 0xFEE && (!level || data.get_bit(14))).then_some(())?;
        // The manual ties the mode (bit 2) to the redirection hint (bit 3); processors and systems heed bit 2 alone.
        let logical = address.get_bit(2);
        Some(Self {
            vector: data as u8,
            delivery: Delivery::from_bits(data.get_bits(8..11) as u8)?,
            destination: Destination::from_byte(address.get_bits(12..20) as u8, logical),
            level,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_signalled_interrupt_is_decoded_from_address_and_data() {
        let interrupt = Interrupt {
            vector: 0x41,
            delivery: Delivery::Fixed,
            destination: Destination::from_byte(3, false),
            level: false,
        };
        assert_eq!(Interrupt::from_msi(0xFEE0_3000, 0x41), Some(interrupt));
        let lowest = Interrupt {
            delivery: Delivery::LowestPriority,
            destination: Destination::from_byte(0xFF, true),
            ..interrupt
        };
        assert_eq!(Interrupt::from_msi(0xFEEF_F004, 0x141), Some(lowest));
        assert_eq!(lowest.destination.id, u32::MAX);
        assert_eq!(Interrupt::from_msi(0xFEE0_3000, 0xC041), Some(Interrupt { level: true, ..interrupt }));
    }

    #[test]
    fn a_message_elsewhere_reserved_or_deasserting_is_none() {
        for (address, data) in [(0xFED0_0000, 0x41), (0x1_FEE0_0000, 0x41), (0xFEE0_0000, 0x341), (0xFEE0_0000, 0x8041)]
        {
            assert_eq!(Interrupt::from_msi(address, data), None);
        }
    }
}
