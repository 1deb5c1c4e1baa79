//! AVX loads and stores as their SSE twins: the decoder reads those, and needs no tables for all of AVX.

use bit_field::BitField;

/// The longest instruction (SDM Vol. 2A 2.3.11).
const LONGEST: usize = 15;

/// What an instruction with a VEX prefix is without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Twin {
    bytes: [u8; LONGEST],
    length: usize,
    /// Bytes that the original has more than the twin; less than none when it has fewer.
    pub(super) longer: i8,
    /// VEX.L: the registers have 256 bits.
    pub(super) wide: bool,
    /// VEX.vvvv: the number of one more source, 0 where there is none.
    pub(super) source: u8,
}

impl Twin {
    /// Returns the twin of the instruction at the start of `bytes`, in code of `bits` bits; `None` where it has no VEX
    /// prefix. Bits of the prefix that the processor has judged before the exit are not judged again.
    pub(super) fn of(bytes: &[u8], bits: u32) -> Option<Self> {
        let vex = bytes.iter().position(|byte| !matches!(byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x64 | 0x65 | 0x67))?;
        let (before, instruction) = bytes.split_at_checked(vex)?;
        // The bits R, X and B are inverted, and R and X are ones outside of 64-bit mode (SDM Vol. 2A 2.3.5).
        let (last, map, mut rex, rest) = match *instruction {
            [0xC5, first, ref rest @ ..] if bits == 64 || first >= 0xC0 => (first, 1, !first >> 5 & 4, rest),
            [0xC4, first, last, ref rest @ ..] if bits == 64 || first >= 0xC0 => {
                (last, first.get_bits(0..5), !first >> 5 | last.get_bits(7..8) << 3, rest)
            }
            _ => return None,
        };
        if bits != 64 {
            rex = 0;
        }
        let prefix: &[u8] = match last.get_bits(0..2) {
            0 => &[],
            1 => &[0x66],
            2 => &[0xF3],
            _ => &[0xF2],
        };
        let escape: &[u8] = match map {
            1 => &[0x0F],
            2 => &[0x0F, 0x38],
            _ => return None,
        };
        let rex = [0x40 | rex];
        let rex = if rex == [0x40] { &[][..] } else { &rex[..] };
        let mut twin = Self {
            bytes: [0; LONGEST],
            length: 0,
            longer: (instruction.len() - rest.len()) as i8 - (prefix.len() + rex.len() + escape.len()) as i8,
            wide: last.get_bit(2),
            source: !last.get_bits(3..7) & 15,
        };
        for (to, from) in twin.bytes.iter_mut().zip([before, prefix, rex, escape, rest].into_iter().flatten()) {
            *to = *from;
            twin.length += 1;
        }
        Some(twin)
    }

    /// Returns the twin's bytes, and what follows it, up to 15.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::decode::decode;

    fn twin(bytes: &[u8], bits: u32) -> Option<(std::vec::Vec<u8>, i8, bool, u8)> {
        Twin::of(bytes, bits).map(|twin| (twin.bytes().to_vec(), twin.longer, twin.wide, twin.source))
    }

    #[test]
    fn a_twin_says_what_the_prefix_says_in_prefixes_of_old() {
        let vmovups = twin(&[0xC5, 0xFC, 0x10, 0x1F], 64);
        assert_eq!(vmovups, Some((std::vec![0x0F, 0x10, 0x1F], 1, true, 0)), "vmovups ymm3, [rdi]");
        let vmovntdqa = twin(&[0x64, 0xC4, 0x42, 0x79, 0x2A, 0x07], 64);
        let expected = std::vec![0x64, 0x66, 0x45, 0x0F, 0x38, 0x2A, 0x07];
        assert_eq!(vmovntdqa, Some((expected, -1, false, 0)), "vmovntdqa xmm8, fs:[r15]");
        let vmovq = twin(&[0xC4, 0xE1, 0xF9, 0x6E, 0x07], 64);
        assert_eq!(vmovq, Some((std::vec![0x66, 0x48, 0x0F, 0x6E, 0x07], 0, false, 0)), "vmovq xmm0, [rdi]");
        let vmovlps = twin(&[0xC5, 0x70, 0x12, 0x07], 64);
        assert_eq!(vmovlps, Some((std::vec![0x44, 0x0F, 0x12, 0x07], 0, false, 1)), "vmovlps xmm8, xmm1, [rdi]");
    }

    #[test]
    fn addresses_relative_to_rip_count_from_the_end_of_the_original() {
        for (bytes, length) in [
            (&[0xC5, 0xF8, 0x10, 0x05, 5, 0, 0, 0][..], 8),
            (&[0xC4, 0xC1, 0x79, 0x6F, 0x05, 5, 0, 0, 0], 9),
            (&[0xC4, 0xE2, 0x79, 0x2A, 0x05, 5, 0, 0, 0], 9),
        ] {
            let decoded = decode(bytes, 64, 0x1000).expect("a load");
            assert_eq!((decoded.length, decoded.memory.displacement), (length, 0x1000 + u64::from(length) + 5));
        }
    }

    #[test]
    fn outside_of_64_bit_mode_an_operand_in_memory_makes_it_another_instruction() {
        assert_eq!(twin(&[0xC5, 0x07], 32), None, "lds eax, [edi]");
        assert_eq!(twin(&[0xC4, 0x07, 0, 0], 16), None, "les ax, [bx]");
        let vmovups = twin(&[0xC5, 0xF8, 0x10, 0x07], 32);
        assert_eq!(vmovups, Some((std::vec![0x0F, 0x10, 0x07], 1, false, 0)), "vmovups xmm0, [edi]");
    }

    #[test]
    fn what_has_no_vex_prefix_or_a_legacy_one_before_it_has_no_twin() {
        for bytes in
            [&[0x0F, 0x10, 0x1F][..], &[0x66, 0xC5, 0xFC, 0x10, 0x1F], &[0x48, 0xC5, 0xFC], &[0xC5], &[0xC4, 0xE1], &[]]
        {
            assert_eq!(twin(bytes, 64), None, "{bytes:02x?}");
        }
    }
}
