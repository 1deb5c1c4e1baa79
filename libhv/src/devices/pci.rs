//! PCI bus 0 by configuration mechanism #1: a host bridge, an ISA bridge, and room for functions of the appliance.

use crate::exit::Width;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

/// CONFIG_ADDRESS: written and read as 32 bits.
pub const ADDRESS: u16 = 0xCF8;
/// CONFIG_DATA, four ports.
pub const DATA: u16 = 0xCFC;
/// Device numbers of a bus.
pub const DEVICES: u8 = 32;

/// The end of the window for memory BARs: the IOAPIC follows.
const WINDOW_END: u32 = 0xFEBF_FFFF;
/// The lowest start of that window.
const WINDOW_START: u64 = 0xC000_0000;
/// The window for I/O BARs.
const PORTS: RangeInclusive<u32> = 0xC000..=0xFEFF;

const COMMAND: usize = 1;
const BAR0: usize = 4;
/// Base address registers of a function.
pub const BARS: usize = 6;
const INTERRUPT: usize = 15;
const COMMAND_PORTS: u32 = 1 << 0;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
const COMMAND_NO_INTX: u32 = 1 << 10;
const ENABLE: u32 = 1 << 31;

/// Returns the guest-physical addresses for memory BARs: what memory leaves free between 3 GiB and the IOAPIC.
pub fn memory_window(memory_below_4g: u64) -> Option<RangeInclusive<u32>> {
    let start = memory_below_4g.max(WINDOW_START).checked_next_multiple_of(0x10_0000)?;
    let start = u32::try_from(start).ok()?;
    (start < WINDOW_END).then_some(start..=WINDOW_END)
}

/// Returns the interrupt line of a device's INTA: 10 or 11, level-triggered.
pub const fn interrupt_line(device: u8) -> u8 {
    10 + device % 2
}

/// What a base address register claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bar {
    /// Memory below 4 GiB: bytes, taken as the next power of two, 16 at least.
    Memory(u32),
    /// Ports: how many, taken as the next power of two, 4 at least and 256 at most.
    Ports(u32),
}

/// The configuration space of a function, type 0: its registers, and which of their bits can be written.
#[derive(Clone, Debug)]
pub struct Function {
    registers: [u32; 64],
    writable: [u32; 64],
}

impl Function {
    /// Makes a function with its identity; `class` is the class code with subclass and programming interface (bits
    /// 23:16, 15:8, 7:0).
    pub fn new(vendor: u16, device: u16, class: u32) -> Self {
        let mut function = Self { registers: [0; 64], writable: [0; 64] };
        function.registers[0] = u32::from(device) << 16 | u32::from(vendor);
        function.registers[2] = class << 8;
        function.writable[COMMAND] = COMMAND_PORTS | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX;
        // The cache line size, and the interrupt line.
        function.writable[3] = 0xFF;
        function.writable[INTERRUPT] = 0xFF;
        function
    }

    /// Gives it the identity of its subsystem.
    #[must_use]
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.registers[11] = u32::from(device) << 16 | u32::from(vendor);
        self
    }

    /// Gives it base address register `number`, 0 to 5; higher numbers do not exist and are ignored.
    #[must_use]
    pub fn bar(mut self, number: usize, bar: Bar) -> Self {
        if number < BARS {
            let (register, writable) = match bar {
                Bar::Memory(bytes) => (0, !(bytes.clamp(16, 1 << 31).next_power_of_two() - 1)),
                Bar::Ports(ports) => (1, !(ports.clamp(4, 256).next_power_of_two() - 1)),
            };
            self.registers[BAR0 + number] = register;
            self.writable[BAR0 + number] = writable;
        }
        self
    }

    /// Gives it an interrupt, INTA.
    #[must_use]
    pub fn interrupt(mut self) -> Self {
        self.registers[INTERRUPT] |= 1 << 8;
        self
    }

    /// Sets a register of 32 bits, with those of its bits that the guest can write; `number` counts from 0 to 63, and
    /// higher ones are ignored. Identity, command and base address registers have methods of their own.
    #[must_use]
    pub fn register(mut self, number: usize, value: u32, writable: u32) -> Self {
        if let (Some(register), Some(mask)) = (self.registers.get_mut(number), self.writable.get_mut(number)) {
            (*register, *mask) = (value, writable);
        }
        self
    }

    /// Returns where base address register `number` is, when the guest has turned its kind on.
    pub fn claim(&self, number: usize) -> Option<Claim> {
        let (register, mask) = (*self.registers.get(BAR0 + number)?, *self.writable.get(BAR0 + number)?);
        if number >= BARS || mask == 0 {
            return None;
        }
        let (first, last) = (register & mask, register & mask | !mask);
        let command = self.registers[COMMAND];
        match register & 1 {
            0 => (command & COMMAND_MEMORY != 0).then(|| Claim::Memory(first.into()..=last.into())),
            _ if command & COMMAND_PORTS == 0 => None,
            _ => Some(Claim::Ports(u16::try_from(first).ok()?..=u16::try_from(last).ok()?)),
        }
    }

    fn read(&self, register: usize) -> u32 {
        self.registers.get(register).copied().unwrap_or(u32::MAX)
    }

    /// Writes those bits of a register that are in `mask` and can be written.
    fn write(&mut self, register: usize, value: u32, mask: u32) {
        let (Some(cell), Some(writable)) = (self.registers.get_mut(register), self.writable.get(register)) else {
            return;
        };
        let mask = mask & writable;
        *cell = *cell & !mask | value & mask;
    }
}

/// What a function's base address register claims now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Guest-physical addresses.
    Memory(RangeInclusive<u64>),
    /// Ports.
    Ports(RangeInclusive<u16>),
}

impl Claim {
    /// Returns how far inside the claim an address is, if it is.
    pub fn address(&self, address: u64) -> Option<u64> {
        match self {
            Self::Memory(range) if range.contains(&address) => Some(address - range.start()),
            _ => None,
        }
    }
    /// Returns how far inside the claim a port is, if it is.
    pub fn port(&self, port: u16) -> Option<u64> {
        match self {
            Self::Ports(range) if range.contains(&port) => Some((port - range.start()).into()),
            _ => None,
        }
    }
}

/// Bus 0.
#[derive(Clone, Debug)]
pub struct Pci {
    address: u32,
    /// Device 0 is the host bridge, device 1 the ISA bridge.
    functions: Vec<Function>,
    next_memory: Option<u32>,
    next_port: u32,
}

impl Pci {
    /// Makes the bus of a guest that has this many bytes of memory from address 0 on.
    pub fn new(memory_below_4g: u64) -> Self {
        // An Intel 82441FX and an 82371SB: bridges that every operating system knows and leaves alone.
        let host_bridge = Function::new(0x8086, 0x1237, 0x06_0000);
        let isa_bridge = Function::new(0x8086, 0x7000, 0x06_0100);
        Self {
            address: 0,
            functions: alloc::vec![host_bridge, isa_bridge],
            next_memory: memory_window(memory_below_4g).map(|window| *window.start()),
            next_port: *PORTS.start(),
        }
    }

    /// Adds a function as the next device, with addresses for its base address registers, as firmware gives them.
    /// Returns its device number; `None` when the bus or a window is full, and then nothing has changed.
    pub fn add(&mut self, mut function: Function) -> Option<u8> {
        let device = u8::try_from(self.functions.len()).ok().filter(|&device| device < DEVICES)?;
        let (mut next_memory, mut next_port) = (self.next_memory, self.next_port);
        for number in BAR0..BAR0 + BARS {
            let mask = function.writable[number];
            if mask == 0 {
                continue;
            }
            let place = |next: u32, end: u32| {
                let first = next.checked_add(!mask)? & mask;
                let last = first.checked_add(!mask)?;
                (last <= end).then_some((first, last.saturating_add(1)))
            };
            let first;
            if function.registers[number] & 1 == 0 {
                let (placed, next) = place(next_memory?, WINDOW_END)?;
                (first, next_memory) = (placed, Some(next));
            } else {
                (first, next_port) = place(next_port, *PORTS.end())?;
            }
            function.registers[number] |= first;
        }
        (self.next_memory, self.next_port) = (next_memory, next_port);
        if function.registers[INTERRUPT] >> 8 & 0xFF != 0 {
            function.registers[INTERRUPT] |= u32::from(interrupt_line(device));
        }
        function.registers[COMMAND] |= COMMAND_PORTS | COMMAND_MEMORY;
        self.functions.push(function);
        Some(device)
    }

    /// Returns the function of a device.
    pub fn function(&self, device: u8) -> Option<&Function> {
        self.functions.get(usize::from(device))
    }

    /// Returns the register CONFIG_ADDRESS selects and its function, if there is one.
    fn selected(&mut self) -> Option<(&mut Function, usize)> {
        let address = self.address;
        let (bus, slot) = (address >> 16 & 0xFF, (address >> 8 & 0xFF) as usize);
        if address & ENABLE == 0 || bus != 0 || !slot.is_multiple_of(8) {
            return None;
        }
        Some((self.functions.get_mut(slot / 8)?, (address >> 2 & 0x3F) as usize))
    }

    /// Reads `width` at a port of CONFIG_ADDRESS or CONFIG_DATA; all ones where no function is.
    pub fn read(&mut self, port: u16, width: Width) -> u32 {
        let ones = width.mask() as u32;
        if port < DATA {
            // CONFIG_ADDRESS is a register of 32 bits only.
            return if port == ADDRESS && width == Width::Dword { self.address } else { ones };
        }
        let shift = 8 * u32::from(port & 3);
        let Some((function, register)) = self.selected() else { return ones };
        function.read(register) >> shift & ones
    }

    /// Writes `width` at a port of CONFIG_ADDRESS or CONFIG_DATA.
    pub fn write(&mut self, port: u16, width: Width, value: u32) {
        if port < DATA {
            if port == ADDRESS && width == Width::Dword {
                self.address = value & !0x7F00_0003;
            }
            return;
        }
        let shift = 8 * u32::from(port & 3);
        let ones = width.mask() as u32;
        if let Some((function, register)) = self.selected() {
            function.write(register, (value & ones) << shift, ones << shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(pci: &mut Pci, device: u32, register: u32) {
        pci.write(ADDRESS, Width::Dword, ENABLE | device << 11 | register);
    }

    #[test]
    fn linux_finds_mechanism_1_and_a_host_bridge() {
        let mut pci = Pci::new(1 << 28);
        let before = pci.read(ADDRESS, Width::Dword);
        pci.write(ADDRESS, Width::Dword, ENABLE);
        assert_eq!(pci.read(ADDRESS, Width::Dword), ENABLE);
        pci.write(ADDRESS, Width::Dword, before);
        select(&mut pci, 0, 8);
        assert_eq!(pci.read(DATA + 2, Width::Word), 0x0600);
        assert_eq!(pci.read(DATA + 3, Width::Byte), 0x06);
        select(&mut pci, 1, 0);
        assert_eq!(pci.read(DATA, Width::Dword), 0x7000_8086);
        for device in 2..32 {
            select(&mut pci, device, 0);
            assert_eq!(pci.read(DATA, Width::Word), 0xFFFF);
        }
    }

    #[test]
    fn a_bar_tells_its_size_and_moves_where_it_is_put() {
        let mut pci = Pci::new(1 << 28);
        let function =
            Function::new(0x1AF4, 0x1000, 0x02_0000).bar(0, Bar::Ports(20)).bar(1, Bar::Memory(0x1800)).interrupt();
        let device = pci.add(function).expect("there is room");
        let claims = |pci: &Pci| [0, 1, 2].map(|bar| pci.function(device).and_then(|function| function.claim(bar)));
        let memory = |first| Some(Claim::Memory(first..=first + 0x1FFF));
        assert_eq!(claims(&pci), [Some(Claim::Ports(0xC000..=0xC01F)), memory(0xC000_0000), None]);
        select(&mut pci, device.into(), 0x14);
        pci.write(DATA, Width::Dword, u32::MAX);
        assert_eq!(pci.read(DATA, Width::Dword), 0xFFFF_E000);
        pci.write(DATA, Width::Dword, 0xD000_0000);
        assert_eq!(claims(&pci)[1], memory(0xD000_0000));
        select(&mut pci, device.into(), 0x04);
        pci.write(DATA, Width::Word, 0);
        assert_eq!(claims(&pci), [None, None, None]);
        select(&mut pci, device.into(), 0x3C);
        assert_eq!(pci.read(DATA, Width::Word), 0x010A);
    }

    #[test]
    fn functions_are_placed_apart_until_a_window_is_full() {
        let mut pci = Pci::new(0);
        let function = |bytes| Function::new(1, 1, 0).bar(5, Bar::Memory(bytes)).bar(0, Bar::Memory(16));
        let mut seen: Vec<RangeInclusive<u64>> = Vec::new();
        while let Some(device) = pci.add(function(1 << 28)) {
            for bar in [0, 5] {
                let Some(Claim::Memory(range)) = pci.function(device).and_then(|function| function.claim(bar)) else {
                    panic!("no memory at {bar}")
                };
                assert!(seen.iter().all(|other| range.end() < other.start() || other.end() < range.start()));
                assert!(*range.start() >= WINDOW_START && *range.end() <= WINDOW_END.into());
                seen.push(range);
            }
        }
        assert_eq!(seen.len(), 2, "of three quarters of a gigabyte, 16 bytes cost the first and the third");
        assert!(pci.add(function(4096)).is_some(), "what did not fit took nothing");
    }

    proptest! {
        #[test]
        fn bytes_words_and_doublewords_are_the_same_register(register in 0u32..64, value: u32, shift in 0usize..3, at in 0u16..4) {
            let width = Width::from_bytes(1 << shift).expect("1, 2 or 4");
            let at = at & !(width.bytes() as u16 - 1);
            let mut pci = Pci::new(0);
            let device = pci.add(Function::new(1, 2, 3).register(20, 0, u32::MAX)).expect("there is room");
            select(&mut pci, device.into(), register * 4);
            let before = pci.read(DATA, Width::Dword);
            pci.write(DATA + at, width, value);
            let after = pci.read(DATA, Width::Dword);
            prop_assert_eq!(pci.read(DATA + at, width), after >> (8 * at) & width.mask() as u32);
            if register == 20 {
                let mask = (width.mask() as u32) << (8 * at);
                prop_assert_eq!(after, before & !mask | value << (8 * at) & mask);
            }
            if register == 0 { prop_assert_eq!(after, before); }
        }

        #[test]
        fn any_access_is_harmless(accesses in proptest::collection::vec((0u16..8, 0usize..3, any::<Option<u32>>()), 0..40)) {
            let mut pci = Pci::new(0);
            for (port, shift, value) in accesses {
                let width = Width::from_bytes(1 << shift).expect("1, 2 or 4");
                match value {
                    Some(value) => pci.write(ADDRESS + port, width, value),
                    None => { pci.read(ADDRESS + port, width); }
                }
            }
        }
    }
}
