//! Instructions with random operands, and random bytes as instructions.

use super::*;
use crate::registers::RFLAGS_DF;
use proptest::prelude::*;

/// What a string instruction does to a flat memory, element by element.
struct Model {
    bytes: Vec<u8>,
    rsi: u64,
    rdi: u64,
    rcx: u64,
    rax: u64,
    equal: Option<bool>,
}

impl Model {
    fn get(&self, at: u64, width: usize) -> u64 {
        (0..width).map(|byte| u64::from(self.bytes[at as usize + byte]) << (8 * byte)).sum()
    }
    fn put(&mut self, at: u64, width: usize, value: u64) {
        self.bytes[at as usize..at as usize + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }

    fn run(&mut self, opcode: u8, width: usize, down: bool, repeat: Option<bool>) {
        let step = if down { (width as u64).wrapping_neg() } else { width as u64 };
        let mask = u64::MAX >> (64 - 8 * width);
        while repeat.is_none() || self.rcx > 0 {
            match opcode {
                0xA4 => {
                    let value = self.get(self.rsi, width);
                    self.put(self.rdi, width, value);
                }
                0xA6 => self.equal = Some(self.get(self.rsi, width) == self.get(self.rdi, width)),
                0xAA => self.put(self.rdi, width, self.rax),
                0xAC => {
                    self.rax = match width {
                        4 => self.get(self.rsi, 4),
                        _ => self.rax & !mask | self.get(self.rsi, width),
                    }
                }
                _ => self.equal = Some(self.rax & mask == self.get(self.rdi, width)),
            }
            if matches!(opcode, 0xA4 | 0xA6 | 0xAC) {
                self.rsi = self.rsi.wrapping_add(step);
            }
            if opcode != 0xAC {
                self.rdi = self.rdi.wrapping_add(step);
            }
            let Some(while_equal) = repeat else { return };
            self.rcx -= 1;
            if matches!(opcode, 0xA6 | 0xAE) && self.equal != Some(while_equal) {
                return;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn strings_do_what_a_loop_over_bytes_does(
        opcode in prop::sample::select(&[0xA4u8, 0xA6, 0xAA, 0xAC, 0xAE][..]), size in 0usize..4, down: bool,
        prefix in prop::sample::select(&[None, Some(0xF3u8), Some(0xF2)][..]), rcx in 0u64..40,
        rsi in 0x8200u64..0x8300, rdi in 0x8200u64..0x8300, rax in prop_oneof![Just(0u64), any::<u64>()],
        sparse in prop::collection::vec((0usize..0x500, any::<u8>()), 0..6),
    ) {
        let width = 1 << size;
        let mut code: Vec<u8> = prefix.into_iter().collect();
        code.extend([None, Some(0x66), None, Some(0x48)][size]);
        code.push(opcode + u8::from(size > 0));
        let mut world = World::new(&code)
            .with(&[(Gpr::Rsi, rsi), (Gpr::Rdi, rdi), (Gpr::Rcx, rcx), (Gpr::Rax, rax)]);
        world.cpu.state.rflags |= if down { RFLAGS_DF } else { 0 };
        for &(offset, byte) in &sparse {
            world.memory.write(Gpa::new(DATA + offset as u64), &[byte]).expect("inside");
        }
        let mut model = Model { bytes: world.everything(), rsi, rdi, rcx, rax, equal: None };
        model.run(opcode, width, down, prefix.map(|prefix| prefix == 0xF3));
        prop_assert_eq!(world.step(), done(code.len() as u64));
        let registers = [Gpr::Rsi, Gpr::Rdi, Gpr::Rcx, Gpr::Rax].map(|register| world.cpu.gpr(register));
        prop_assert_eq!(registers, [model.rsi, model.rdi, model.rcx, model.rax]);
        prop_assert!(world.everything()[0x8000..] == model.bytes[0x8000..]);
        if let Some(equal) = model.equal {
            prop_assert_eq!(world.cpu.rflags() & flags::ZF != 0, equal);
        }
    }
}

/// Beginnings that make wild bytes instructions more often.
const STARTS: [&[u8]; 7] = [&[], &[0x0F], &[0xF3], &[0xF0], &[0x48], &[0xC5, 0xFC], &[0x66, 0x0F]];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn wild_code_of_a_user_reaches_nothing_but_the_users_pages(
        code in prop::array::uniform15(any::<u8>()), start in 0..STARTS.len(),
        registers in prop::array::uniform16(prop_oneof![0x7F00u64..0xA100, 0u64..0x40000, any::<u64>()]),
        bits in prop::sample::select(&[16u32, 32, 64][..]), rflags: u64,
    ) {
        let code: Vec<u8> = STARTS[start].iter().chain(&code).copied().take(15).collect();
        let mut world = World::new(&code);
        world.cpu.state.gprs = registers;
        world.cpu.cpl = 3;
        world.cpu.set_segment(SegmentRegister::Tr, Segment::unusable());
        world.cpu.state.rflags = rflags & 0xCD5 | 2;
        let attributes = match bits { 64 => SegmentAttributes::CODE64, 32 => SegmentAttributes::CODE32, _ => SegmentAttributes::CODE16 };
        world.cpu.state.segments[SegmentRegister::Cs as usize].attributes = attributes;
        let before = world.everything();
        if let Outcome::Unemulated(record) = world.step() {
            prop_assert_eq!(&record.bytes[..], &code.iter().chain(&[0; 15]).copied().take(15).collect::<Vec<_>>()[..]);
        }
        let after = world.everything();
        // Accessed and dirty bits are all that the tables may gain.
        let tables = before[0x1000..0x5000].iter().zip(&after[0x1000..0x5000]);
        prop_assert!(tables.into_iter().all(|(before, after)| before & !0x60 == after & !0x60));
        prop_assert!(before[..0x1000] == after[..0x1000] && before[0x5000..0x8000] == after[0x5000..0x8000]);
        prop_assert!(before[0xA000..] == after[0xA000..]);
        prop_assert_eq!(world.bus.seen, []);
    }
}
