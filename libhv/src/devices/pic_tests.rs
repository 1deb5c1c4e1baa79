use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

/// Initialised as Linux does it (vectors 30H and 38H), everything unmasked.
fn linux_pic() -> Pic {
    let mut pic = Pic::new();
    for (port, value) in
        [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, 0x38), (0xA1, 2), (0xA1, 1)]
    {
        pic.write(port, value);
    }
    pic
}

fn pulse(pic: &mut Pic, line: u8) {
    pic.set_line(line, true);
    pic.set_line(line, false);
}

#[test]
fn linux_probe_finds_the_mask_register() {
    let mut pic = Pic::new();
    pic.write(0xA1, 0xFF);
    pic.write(0x21, !4);
    assert_eq!(pic.read(0x21), !4);
    assert_eq!(linux_pic().read(0x21), 0);
}

#[test]
fn an_edge_is_one_interrupt_with_its_vector() {
    let mut pic = linux_pic();
    pic.set_line(4, true);
    assert!(pic.asserted());
    assert_eq!(pic.acknowledge(), 0x34);
    pic.write(0x20, 0x20);
    assert!(!pic.asserted(), "the line is still high, and that is no new edge");
    pulse(&mut pic, 4);
    assert!(!pic.asserted(), "it was high all the time");
    pic.set_line(4, true);
    assert!(pic.asserted());
}

#[test]
fn a_level_asks_until_it_falls() {
    let mut pic = linux_pic();
    pic.write(0x4D1, 0x08);
    pic.set_line(11, true);
    assert_eq!(pic.acknowledge(), 0x3B);
    pic.write(0xA0, 0x20);
    pic.write(0x20, 0x20);
    assert!(pic.asserted());
    pic.set_line(11, false);
    assert!(!pic.asserted());
    assert_eq!(pic.acknowledge(), 0x37, "gone before the acknowledge: spurious");
    pic.write(0x20, 0x0B);
    assert_eq!(pic.read(0x20), 0);
}

#[test]
fn some_lines_are_never_level_triggered() {
    let mut pic = linux_pic();
    pic.write(0x4D0, 0xFF);
    pic.write(0x4D1, 0xFF);
    assert_eq!((pic.read(0x4D0), pic.read(0x4D1)), (0xF8, 0xDE));
}

#[test]
fn the_second_controller_goes_through_the_cascade() {
    let mut pic = linux_pic();
    pulse(&mut pic, 8);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x38, "lines 8 to 15 rank where line 2 does");
    assert!(!pic.asserted());
    pic.write(0xA0, 0x60);
    pic.write(0x20, 0x62);
    assert_eq!(pic.acknowledge(), 0x33);
}

#[test]
fn a_masked_line_stays_quiet_and_is_remembered() {
    let mut pic = linux_pic();
    pic.write(0x21, 0x10);
    pulse(&mut pic, 4);
    assert!(!pic.asserted());
    assert_eq!(pic.read(0x20), 0x10);
    pic.write(0x21, 0);
    assert_eq!(pic.acknowledge(), 0x34);
}

#[test]
fn special_mask_mode_lets_lower_lines_through() {
    let mut pic = linux_pic();
    pulse(&mut pic, 3);
    pic.acknowledge();
    pulse(&mut pic, 5);
    assert!(!pic.asserted());
    pic.write(0x21, 1 << 3);
    pic.write(0x20, 0x68);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn automatic_eoi_leaves_nothing_in_service_and_rotates_when_told() {
    let mut pic = linux_pic();
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 3), (0x20, 0x80)] {
        pic.write(port, value);
    }
    pulse(&mut pic, 0);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x30);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x31);
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn rotation_makes_the_line_just_served_the_last() {
    let mut pic = linux_pic();
    pulse(&mut pic, 4);
    pic.acknowledge();
    pic.write(0x20, 0xA0);
    pulse(&mut pic, 4);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x36);
}

#[test]
fn a_poll_acknowledges() {
    let mut pic = linux_pic();
    pic.write(0x20, 0x0C);
    assert_eq!(pic.read(0x20), 0);
    pulse(&mut pic, 6);
    pic.write(0x20, 0x0C);
    assert_eq!(pic.read(0x20), 0x86);
    pic.write(0x20, 0x0B);
    assert_eq!(pic.read(0x20), 0x40);
}

#[test]
fn a_spurious_interrupt_of_the_second_leaves_the_cascade_in_service() {
    let mut pic = linux_pic();
    pic.write(0x4D1, 0x02);
    pic.set_line(9, true);
    pic.controllers[1].lines = 0;
    assert_eq!(pic.acknowledge(), 0x3F);
    assert_eq!(pic.controllers[0].isr, 1 << CASCADE);
    assert_eq!(pic.controllers[1].isr, 0);
}

/// Priorities as the data sheet draws them: a list of lines, the first the highest; no bit tricks.
struct Naive {
    order: Vec<u8>,
    asking: [bool; 8],
    masked: [bool; 8],
    served: Vec<u8>,
}

impl Naive {
    fn pending(&self) -> Option<u8> {
        for &line in &self.order {
            if self.served.contains(&line) {
                return None;
            }
            if self.asking[usize::from(line)] && !self.masked[usize::from(line)] {
                return Some(line);
            }
        }
        None
    }
    fn make_last(&mut self, line: u8) {
        while self.order[7] != line {
            self.order.rotate_left(1);
        }
    }
    fn end(&mut self) -> Option<u8> {
        let line = self.order.iter().copied().find(|line| self.served.contains(line))?;
        self.served.retain(|&other| other != line);
        Some(line)
    }
}

proptest! {
    #[test]
    fn one_controller_agrees_with_a_list_of_lines(steps in proptest::collection::vec((0u8..7, 0u8..8, any::<u8>()), 1..120)) {
        let mut pic = Pic::new();
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1)] { pic.write(port, value); }
        let mut model = Naive { order: (0..8).collect(), asking: [false; 8], masked: [false; 8], served: Vec::new() };
        for (what, line, mask) in steps {
            match what {
                0 | 1 if line != CASCADE => { pulse(&mut pic, line); model.asking[usize::from(line)] = true; }
                2 => {
                    let expected = model.pending();
                    prop_assert_eq!(pic.acknowledge(), 0x30 + expected.unwrap_or(7));
                    if let Some(line) = expected { model.asking[usize::from(line)] = false; model.served.push(line); }
                }
                3 => { pic.write(0x21, mask); for line in 0..8 { model.masked[line] = mask >> line & 1 != 0; } }
                4 => { pic.write(0x20, 0x20); model.end(); }
                5 => { pic.write(0x20, 0xA0); if let Some(line) = model.end() { model.make_last(line); } }
                _ => { pic.write(0x20, 0xC0 | line); model.make_last(line); }
            }
            prop_assert_eq!(pic.asserted(), model.pending().is_some());
        }
    }

    #[test]
    fn any_access_is_harmless(accesses in proptest::collection::vec((0usize..6, any::<Option<u8>>(), 0u8..20, any::<bool>()), 0..60)) {
        let mut pic = Pic::new();
        for (port, value, line, high) in accesses {
            let port = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1][port];
            match value {
                Some(value) => pic.write(port, value),
                None => { pic.read(port); }
            }
            pic.set_line(line, high);
            if pic.asserted() {
                let base = [pic.controllers[0].base, pic.controllers[1].base];
                let vector = pic.acknowledge();
                prop_assert!(base.contains(&(vector & 0xF8)));
            }
        }
    }
}
