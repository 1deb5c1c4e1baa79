use super::*;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use proptest::prelude::*;

/// A console with something typed already, which remembers what it was told.
#[derive(Default, Debug)]
struct Tape {
    typed: VecDeque<u8>,
    said: Vec<u8>,
}

impl Console for Tape {
    fn read(&mut self) -> Option<u8> {
        self.typed.pop_front()
    }
    fn write(&mut self, byte: u8) {
        self.said.push(byte);
    }
}

fn uart() -> Uart<Tape> {
    Uart::new(Tape::default())
}

#[test]
fn a_byte_written_is_said_and_the_transmitter_is_ready() {
    let mut uart = uart();
    for byte in *b"ok" {
        assert_eq!(uart.read(5) & 0x60, 0x60);
        uart.write(0, byte);
    }
    assert_eq!(uart.console.said, b"ok");
    assert!(!uart.line());
}

#[test]
fn linux_autoconfig_finds_a_16550a() {
    let mut uart = uart();
    uart.write(1, 0);
    assert_eq!(uart.read(1) & 0x0F, 0);
    uart.write(1, 0x0F);
    assert_eq!(uart.read(1) & 0x0F, 0x0F);
    uart.write(1, 0);
    let saved = uart.read(4);
    uart.write(4, 0x1A);
    assert_eq!(uart.read(6) & 0xF0, 0x90, "loopback: RTS shows as CTS, OUT2 as DCD");
    uart.write(4, saved);
    uart.write(2, 1);
    assert_eq!(uart.read(2) >> 6, 3, "a FIFO that works");
    for mode in [0x80, 0xBF, 0xE0] {
        uart.write(3, mode);
        assert_ne!(uart.read(2), 0, "no enhanced feature register");
        assert_eq!(uart.read(2) & 0x10, 0, "no EXCR1");
    }
    uart.write(2, 0x21);
    assert_eq!(uart.read(2) >> 5, 6, "no FIFO of 64 bytes");
    uart.write(3, 0);
    uart.write(1, 0x40);
    assert_eq!(uart.read(1), 0, "no UART unit enable of an XScale");
}

#[test]
fn linux_startup_sees_the_transmitter_interrupt_each_time_it_is_enabled() {
    let mut uart = uart();
    for _ in 0..2 {
        uart.write(1, IER_TRANSMITTED);
        assert!(uart.line());
        assert_eq!(uart.read(2) & 0x0F, IIR_TRANSMITTED);
        assert!(!uart.line(), "reading IIR takes the interrupt");
        uart.write(1, 0);
    }
}

#[test]
fn each_byte_sent_is_an_edge_even_when_the_interrupt_was_not_taken() {
    let mut uart = uart();
    uart.write(1, IER_TRANSMITTED);
    uart.take_fall();
    uart.write(0, b'a');
    assert!(uart.line() && uart.take_fall());
    assert!(!uart.take_fall());
}

#[test]
fn causes_come_in_the_order_of_their_priority() {
    let mut uart = uart();
    uart.write(4, MCR_LOOP);
    uart.write(0, 1);
    uart.write(0, 2);
    uart.write(1, 0x0F);
    assert_eq!(uart.read(2), IIR_LINE_STATUS);
    assert_eq!(uart.read(5) & 0x03, LSR_OVERRUN | LSR_DATA);
    assert_eq!(uart.read(2), IIR_RECEIVED);
    assert_eq!(uart.read(0), 2, "without a FIFO the later byte overwrites the earlier");
    assert_eq!(uart.read(2), IIR_TRANSMITTED);
    assert_eq!(uart.read(2), IIR_MODEM_STATUS);
    uart.read(6);
    assert_eq!(uart.read(2), IIR_NONE);
    assert!(!uart.line());
}

#[test]
fn below_the_trigger_level_a_byte_is_a_time_out() {
    let mut uart = uart();
    uart.write(2, 0x81);
    uart.write(1, IER_RECEIVED);
    uart.console.typed.extend(0..7);
    uart.poll();
    assert_eq!(uart.read(2), IIR_FIFO | IIR_TIME_OUT);
    uart.console.typed.push_back(7);
    uart.poll();
    assert_eq!(uart.read(2), IIR_FIFO | IIR_RECEIVED);
    for expected in 0..8 {
        assert!(uart.line());
        assert_eq!(uart.read(0), expected);
    }
    assert!(!uart.line());
}

#[test]
fn the_divisor_latch_hides_the_data_registers() {
    let mut uart = uart();
    uart.write(3, 0x83);
    uart.write(0, 0x34);
    uart.write(1, 0x12);
    assert_eq!((uart.read(0), uart.read(1)), (0x34, 0x12));
    uart.write(3, 0x03);
    assert_eq!(uart.read(1), 0);
    assert!(uart.console.said.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Type(u8),
    Poll,
    Read,
    Clear,
    Fifo(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<u8>().prop_map(Step::Type),
        2 => Just(Step::Poll),
        4 => Just(Step::Read),
        1 => Just(Step::Clear),
        1 => any::<bool>().prop_map(Step::Fifo),
    ]
}

proptest! {
    #[test]
    fn bytes_arrive_once_and_in_order(steps in proptest::collection::vec(step(), 1..60)) {
        let mut uart = uart();
        uart.write(1, IER_RECEIVED);
        let (mut typed, mut held, mut room) = (VecDeque::new(), VecDeque::new(), 1);
        for step in steps {
            match step {
                Step::Type(byte) => { uart.console.typed.push_back(byte); typed.push_back(byte); }
                Step::Poll => {
                    uart.poll();
                    while held.len() < room && let Some(byte) = typed.pop_front() { held.push_back(byte); }
                }
                Step::Read => {
                    let byte = uart.read(0);
                    if let Some(expected) = held.pop_front() { prop_assert_eq!(byte, expected); }
                    held.extend(typed.pop_front());
                }
                Step::Clear => { uart.write(2, if room > 1 { 3 } else { 2 }); held.clear(); }
                Step::Fifo(on) => {
                    let next = if on { 16 } else { 1 };
                    if next != room { held.clear(); }
                    room = next;
                    uart.write(2, on.into());
                }
            }
            prop_assert_eq!(uart.read(5) & LSR_DATA != 0, !held.is_empty());
            prop_assert_eq!(uart.line(), !held.is_empty());
        }
    }

    #[test]
    fn any_access_is_harmless_and_no_byte_is_lost_on_the_way_out(accesses in proptest::collection::vec((0u16..8, any::<Option<u8>>()), 0..60)) {
        let mut uart = uart();
        let (mut divisor, mut looped, mut said) = (false, false, Vec::new());
        for (offset, value) in accesses {
            match value {
                Some(value) => {
                    uart.write(offset, value);
                    match offset {
                        0 if !divisor && !looped => said.push(value),
                        3 => divisor = value & 0x80 != 0,
                        4 => looped = value & 0x10 != 0,
                        _ => {}
                    }
                }
                None => { uart.read(offset); }
            }
            uart.poll();
        }
        prop_assert_eq!(&uart.console.said, &said);
    }
}
