use super::*;
use crate::devices::bus::Message;
use crate::devices::pm;
use alloc::sync::Arc;
use proptest::prelude::*;
use std::sync::Mutex;

const HZ: u64 = 1_000_000_000;
const T0: Tsc = Tsc(1000);

#[derive(Clone, Default)]
struct Tape {
    typed: Arc<Mutex<Vec<u8>>>,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Console for Tape {
    fn read(&mut self) -> Option<u8> {
        self.typed.lock().expect("one thread").pop()
    }
    fn write(&mut self, byte: u8) {
        self.said.lock().expect("one thread").push(byte);
    }
}

fn configuration(processors: usize) -> Configuration {
    Configuration {
        processors,
        memory_below_4g: 64 << 20,
        input_polls_per_second: 0,
        start: T0,
        ..Configuration::new(Frequency::from_hz(HZ))
    }
}

fn chipset() -> Chipset {
    Chipset::new(configuration(1), Box::new(()))
}

fn out(chipset: &mut Chipset, port: u16, bytes: &[u8]) {
    for &byte in bytes {
        chipset.port_write(0, port, Width::Byte, byte.into(), T0);
    }
}

/// PICs at vectors 30H and 38H, everything but `unmasked` masked.
fn start_pics(chipset: &mut Chipset, unmasked: u16) {
    for (port, mask, cascade, base) in [(0x20, !unmasked as u8, 4, 0x30), (0xA0, (!unmasked >> 8) as u8, 2, 0x38)] {
        out(chipset, port, &[0x11]);
        out(chipset, port + 1, &[base, cascade, 1, mask]);
    }
}

fn write_ioapic(chipset: &mut Chipset, register: u64, value: u32) {
    chipset.memory_write(0, Gpa::new(IOAPIC), Width::Dword, register, T0);
    chipset.memory_write(0, Gpa::new(IOAPIC + 0x10), Width::Dword, value.into(), T0);
}

fn write_apic(chipset: &mut Chipset, cpu: usize, register: u64, value: u32) {
    chipset.memory_write(cpu, Gpa::new(0xFEE0_0000 + register), Width::Dword, value.into(), T0);
}

#[test]
fn the_timer_reaches_the_processor_through_the_pics() {
    let mut chipset = chipset();
    start_pics(&mut chipset, 1);
    out(&mut chipset, 0x43, &[0x34]);
    out(&mut chipset, 0x40, &[0x9C, 0x2E]);
    chipset.take_attention();
    for _ in 0..3 {
        let deadline = chipset.next_deadline().expect("the timer runs");
        chipset.advance(deadline - 1);
        assert!(!chipset.pending_interrupt(0));
        chipset.advance(deadline);
        assert!(chipset.take_attention());
        assert!(chipset.pending_interrupt(0));
        assert_eq!(chipset.acknowledge(0), Some(0x30));
        assert!(!chipset.pending_interrupt(0));
        out(&mut chipset, 0x20, &[0x20]);
    }
}

#[test]
fn the_timer_is_pin_2_of_the_ioapic() {
    let mut chipset = chipset();
    write_ioapic(&mut chipset, 0x14, 0x51);
    out(&mut chipset, 0x43, &[0x34]);
    out(&mut chipset, 0x40, &[0x9C, 0x2E]);
    chipset.advance(chipset.next_deadline().expect("the timer runs"));
    assert_eq!(chipset.acknowledge(0), Some(0x51));
}

#[test]
fn typing_interrupts_by_both_ways_and_level_lines_wait_for_their_end() {
    let tape = Tape::default();
    let mut chipset = Chipset::new(configuration(1), Box::new(tape.clone()));
    start_pics(&mut chipset, 1 << 4);
    write_ioapic(&mut chipset, 0x18, 0x8044);
    out(&mut chipset, 0x3F9, &[1]);
    tape.typed.lock().expect("one thread").push(b'x');
    chipset.advance(T0 + 1);
    assert_eq!(chipset.acknowledge(0), Some(0x34), "the PICs come first");
    assert_eq!(chipset.acknowledge(0), Some(0x44));
    write_apic(&mut chipset, 0, 0xB0, 0);
    assert_eq!(chipset.acknowledge(0), Some(0x44), "the level is still high");
    assert_eq!(chipset.port_read(0, 0x3F8, Width::Byte, T0), b'x'.into());
    write_apic(&mut chipset, 0, 0xB0, 0);
    assert!(!chipset.pending_interrupt(0));
}

#[test]
fn a_byte_goes_out_without_attention() {
    let tape = Tape::default();
    let mut chipset = Chipset::new(configuration(1), Box::new(tape.clone()));
    out(&mut chipset, 0x3F8, b"h");
    chipset.take_attention();
    out(&mut chipset, 0x3F8, b"i");
    assert!(!chipset.take_attention());
    assert_eq!(*tape.said.lock().expect("one thread"), b"hi");
}

#[test]
fn the_console_is_polled_as_often_as_asked() {
    let tape = Tape::default();
    let configuration = Configuration { input_polls_per_second: 100, ..configuration(1) };
    let mut chipset = Chipset::new(configuration, Box::new(tape));
    let first = T0 + HZ / 100;
    assert_eq!(chipset.next_deadline(), Some(first));
    chipset.advance(first);
    assert_eq!(chipset.next_deadline(), Some(first + HZ / 100));
}

#[test]
fn the_guest_ends_by_power_off_reset_and_debug_exit() {
    let cases: [(u16, Width, u32, StopReason); 6] = [
        (pm::CONTROL_BLOCK, Width::Word, u32::from(pm::S5) << 10 | 1 << 13, StopReason::PowerOff),
        (pm::RESET, Width::Byte, 6, StopReason::Reset),
        (0x92, Width::Byte, 1, StopReason::Reset),
        (0x64, Width::Byte, 0xFE, StopReason::Reset),
        (0xF4, Width::Byte, 0x31, StopReason::DebugExit(0x31)),
        (0xF4, Width::Dword, 0x12345, StopReason::DebugExit(0x12345)),
    ];
    for (port, width, value, reason) in cases {
        let mut chipset = chipset();
        chipset.take_attention();
        chipset.port_write(0, port, width, value, T0);
        assert!(chipset.take_attention());
        assert_eq!(chipset.stop(), Some(reason));
        assert_eq!(chipset.stop(), None);
    }
}

#[test]
fn the_power_button_is_an_sci() {
    let mut chipset = chipset();
    start_pics(&mut chipset, 1 << 9 | 1 << 2);
    out(&mut chipset, 0x4D1, &[2]);
    chipset.port_write(0, pm::EVENT_BLOCK + 2, Width::Word, 1 << 8, T0);
    assert!(!chipset.pending_interrupt(0));
    chipset.press_power_button();
    assert_eq!(chipset.acknowledge(0), Some(0x39));
    out(&mut chipset, 0xA0, &[0x20]);
    out(&mut chipset, 0x20, &[0x20]);
    assert!(chipset.pending_interrupt(0), "level");
    chipset.port_write(0, pm::EVENT_BLOCK, Width::Word, 1 << 8, T0);
    assert!(!chipset.pending_interrupt(0));
}

#[test]
fn an_ipi_reaches_whom_it_is_for() {
    let mut chipset = Chipset::new(configuration(3), Box::new(()));
    for cpu in 0..3 {
        write_apic(&mut chipset, cpu, 0xF0, 0x1FF);
    }
    write_apic(&mut chipset, 0, 0x310, 2 << 24);
    write_apic(&mut chipset, 0, 0x300, 0x4055);
    assert_eq!([0, 1, 2].map(|cpu| chipset.pending_interrupt(cpu)), [false, false, true]);
    assert_eq!(chipset.acknowledge(2), Some(0x55));
    write_apic(&mut chipset, 1, 0x300, 0xC4500);
    write_apic(&mut chipset, 1, 0x300, 0xC4608);
    assert_eq!(chipset.take_startup(2), Some(Startup::Init));
    assert_eq!(chipset.take_startup(2), Some(Startup::Sipi(8)));
    assert_eq!(chipset.take_startup(1), None);
}

#[test]
fn lowest_priority_goes_to_one_processor() {
    let mut chipset = Chipset::new(configuration(2), Box::new(()));
    for cpu in 0..2 {
        write_apic(&mut chipset, cpu, 0xF0, 0x1FF);
    }
    chipset.set_cr8(0, 3);
    chipset.send_message(Message { address: 0xFEEF_F000, data: 0x161 });
    assert_eq!([0, 1].map(|cpu| chipset.acknowledge(cpu)), [None, Some(0x61)]);
}

#[test]
fn the_tsc_deadline_is_the_chipsets_deadline_and_is_told() {
    let mut chipset = chipset();
    write_apic(&mut chipset, 0, 0x320, 0x4_00EF);
    chipset.take_attention();
    assert_eq!(chipset.write_msr(0, Msr(0x6E0), 5000, T0), Some(Ok(())));
    assert!(chipset.take_attention());
    assert_eq!(chipset.next_deadline(), Some(Tsc(5000)));
    chipset.advance(Tsc(5000));
    assert_eq!(chipset.acknowledge(0), Some(0xEF));
    assert_eq!(chipset.next_deadline(), None);
    assert_eq!(chipset.write_msr(0, Msr(0x10), 0, T0), None);
    assert_eq!(chipset.read_msr(0, Msr(0x802), T0), Some(Err(Event::GENERAL_PROTECTION)), "not in x2APIC mode");
}

/// A device with two ports, a page, line 11, and an alarm.
struct Bell {
    rings: Arc<Mutex<u32>>,
    at: Option<Tsc>,
    high: bool,
}

impl Device for Bell {
    fn ports(&self) -> &[RangeInclusive<u16>] {
        &[0x510..=0x513]
    }
    fn memory(&self) -> &[RangeInclusive<u64>] {
        &[0xE000_0000..=0xE000_0FFF]
    }
    fn interrupt_line(&self) -> Option<u8> {
        Some(11)
    }
    fn port_read(&mut self, port: u16, width: Width, _now: Tsc) -> u32 {
        u32::from(port) << 16 | width.bytes() as u32
    }
    fn port_write(&mut self, _port: u16, _width: Width, value: u32, now: Tsc) {
        self.high = false;
        self.at = Some(now + u64::from(value));
    }
    fn memory_write(&mut self, _address: Gpa, width: Width, value: u64, _now: Tsc) {
        *self.rings.lock().expect("one thread") += value as u32 + 100 * width.bytes() as u32;
    }
    fn advance(&mut self, now: Tsc) {
        if self.at.is_some_and(|at| at <= now) {
            self.at = None;
            self.high = true;
        }
    }
    fn deadline(&self) -> Option<Tsc> {
        self.at
    }
    fn interrupting(&self) -> bool {
        self.high
    }
}

#[test]
fn an_added_device_is_reached_and_rings() {
    let (mut chipset, rings) = (chipset(), Arc::new(Mutex::new(0)));
    let bell = || Box::new(Bell { rings: rings.clone(), at: None, high: false });
    chipset.add(bell()).expect("nobody is there");
    assert_eq!(chipset.add(bell()), Err(Conflict::Port(0x510)));
    start_pics(&mut chipset, 1 << 11 | 1 << 2);
    assert!(chipset.is_mmio(0, Gpa::new(0xE000_0FFF)) && !chipset.is_mmio(0, Gpa::new(0xE000_1000)));
    chipset.memory_write(0, Gpa::new(0xE000_0008), Width::Word, 0x7_0007, T0);
    assert_eq!(*rings.lock().expect("one thread"), 207);
    assert_eq!(chipset.port_read(0, 0x510, Width::Dword, T0), 0x0510_0004);
    assert_eq!(chipset.port_read(0, 0x512, Width::Word, T0), 2, "of 0x05120002 the 16 bits asked for");
    chipset.port_write(0, 0x510, Width::Word, 500, T0);
    assert_eq!(chipset.next_deadline(), Some(T0 + 500));
    chipset.advance(T0 + 500);
    assert_eq!(chipset.acknowledge(0), Some(0x3B));
    assert_eq!(chipset.next_deadline(), None);
}

struct Claims(Vec<RangeInclusive<u16>>, Vec<RangeInclusive<u64>>, Option<u8>);

impl Device for Claims {
    fn ports(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }
    fn memory(&self) -> &[RangeInclusive<u64>] {
        &self.1
    }
    fn interrupt_line(&self) -> Option<u8> {
        self.2
    }
}

#[test]
fn what_is_taken_is_refused() {
    let mut chipset = chipset();
    for port in [0x21, 0x43, 0x60, 0x71, 0xF4, 0x3FF, 0x600, 0xCF8] {
        let device = Claims([0x500..=0x500, port..=port].into(), Vec::new(), None);
        assert_eq!(chipset.add(Box::new(device)), Err(Conflict::Port(port)));
    }
    for address in [0, (64 << 20) - 1, IOAPIC, 0xFEE0_0000] {
        let device = Claims(Vec::new(), [address..=address].into(), None);
        assert_eq!(chipset.add(Box::new(device)), Err(Conflict::Memory(address)));
    }
    for line in [0, 2, 4, 9, 24, 255] {
        assert_eq!(chipset.add(Box::new(Claims(Vec::new(), Vec::new(), Some(line)))), Err(Conflict::Line(line)));
    }
    assert_eq!(chipset.add(Box::new(Claims([0x500..=0x500].into(), [64 << 20..=1 << 30].into(), Some(5)))), Ok(()));
}

/// A PCI function that remembers what was written to its registers, and interrupts while that is not 0.
struct Latch(u64);

impl Device for Latch {
    fn bar_read(&mut self, bar: usize, offset: u64, _width: Width, _now: Tsc) -> u64 {
        (bar as u64) << 16 | offset << 8 | self.0
    }
    fn bar_write(&mut self, _bar: usize, _offset: u64, _width: Width, value: u64, _now: Tsc) {
        self.0 = value;
    }
    fn interrupting(&self) -> bool {
        self.0 != 0
    }
}

#[test]
fn a_pci_function_is_found_and_follows_its_base_address_registers() {
    let mut chipset = chipset();
    let function =
        pci::Function::new(1, 2, 0xFF_0000).bar(0, pci::Bar::Memory(4096)).bar(1, pci::Bar::Ports(8)).interrupt();
    assert_eq!(chipset.add_function(Box::new(Latch(0)), function), Ok(2));
    let config = |chipset: &mut Chipset, register: u32, value: u32| {
        chipset.port_write(0, pci::ADDRESS, Width::Dword, 1 << 31 | 2 << 11 | register, T0);
        chipset.port_write(0, pci::DATA, Width::Dword, value, T0);
    };
    config(&mut chipset, 0x10, 0xD000_0000);
    config(&mut chipset, 0x14, 0xC100);
    assert!(chipset.is_mmio(0, Gpa::new(0xD000_0FFF)) && !chipset.is_mmio(0, Gpa::new(0xC000_0000)));
    start_pics(&mut chipset, 1 << 10 | 1 << 2);
    chipset.memory_write(0, Gpa::new(0xD000_0010), Width::Dword, 7, T0);
    assert_eq!(chipset.port_read(0, 0xC103, Width::Dword, T0), 0x1_0307);
    assert_eq!(chipset.acknowledge(0), Some(0x3A));
    out(&mut chipset, 0xA0, &[0x20]);
    out(&mut chipset, 0x20, &[0x20]);
    assert!(chipset.pending_interrupt(0), "INTA is a level");
    chipset.memory_write(0, Gpa::new(0xD000_0010), Width::Dword, 0, T0);
    assert!(!chipset.pending_interrupt(0));
    config(&mut chipset, 0x04, 0);
    assert_eq!(chipset.memory_read(0, Gpa::new(0xD000_0010), Width::Dword, T0), 0xFFFF_FFFF);
}

#[test]
fn an_nmi_arrives_unless_port_70_masks_it() {
    let mut chipset = chipset();
    out(&mut chipset, 0x70, &[0x80]);
    chipset.pulse_nmi();
    assert!(!chipset.nmi_pending(0));
    out(&mut chipset, 0x70, &[0x00]);
    chipset.pulse_nmi();
    assert!(chipset.nmi_pending(0) && chipset.take_nmi(0) && !chipset.take_nmi(0));
}

#[test]
fn the_clock_interrupts_through_line_8() {
    let mut chipset = chipset();
    start_pics(&mut chipset, 1 << 8 | 1 << 2);
    out(&mut chipset, 0x70, &[0x0B]);
    out(&mut chipset, 0x71, &[0x12]);
    let deadline = chipset.next_deadline().expect("update interrupts are on");
    assert_eq!(deadline, T0 + HZ);
    chipset.advance(deadline);
    assert_eq!(chipset.acknowledge(0), Some(0x38));
}

proptest! {
    #[test]
    fn random_accesses_never_panic(accesses in proptest::collection::vec((any::<u16>(), 0usize..4, any::<Option<u32>>(), 0u64..1 << 40, 0usize..30), 1..40)) {
        let mut chipset = Chipset::new(configuration(2), Box::new(()));
        let ports: Vec<u16> = ports::OWN_PORTS.iter().cloned().flatten().collect();
        let mut now = T0;
        for (raw, shift, value, wait, kind) in accesses {
            now = now + (wait >> kind);
            let width = Width::from_bytes(1 << shift).expect("a power of two up to 8");
            let port = if kind < 5 { raw } else { ports[usize::from(raw) % ports.len()] };
            let address = Gpa::new([IOAPIC, 0xFEE0_0000, 0xE000_0000][kind % 3] + u64::from(raw % 0x1000));
            match value {
                Some(value) => {
                    chipset.port_write(kind & 1, port, width, value, now);
                    chipset.memory_write(kind & 1, address, width, value.into(), now);
                    let _ = chipset.write_msr(kind & 1, Msr(0x800 + u32::from(raw % 0x40)), value.into(), now);
                }
                None => {
                    let read = chipset.port_read(kind & 1, port, width, now);
                    prop_assert_eq!(u64::from(read) & !width.mask(), 0);
                    prop_assert_eq!(chipset.memory_read(kind & 1, address, width, now) & !width.mask(), 0);
                }
            }
            if kind & 2 != 0 { chipset.advance(now); }
            while chipset.pending_interrupt(0) && chipset.acknowledge(0).is_some_and(|vector| vector > 0x7F) {}
            chipset.stop();
        }
    }
}
