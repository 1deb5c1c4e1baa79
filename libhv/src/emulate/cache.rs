//! Decoded instructions by the address of their code. An entry is used only while the bytes it was made from are still
//! what the guest has there, so that none can be stale.

use super::cause::Cause;
use super::decode::{Decoded, decode};
use super::length::{code_address, fetch};
use super::machine::Stop;
use super::translate::locate;
use crate::address::{Gpa, Gva, PAGE_SIZE};
use crate::exit::Unemulated;
use crate::memory::GuestMemory;
use crate::registers::GuestState;
use alloc::boxed::Box;

/// Entries: few instructions of a kernel reach devices.
const SLOTS: usize = 64;

/// 16 bytes of code as two little-endian words.
type Words = [u64; 2];

#[derive(Clone, Copy, Debug)]
struct Slot {
    rip: u64,
    bits: u32,
    /// The instruction's bytes; 0 beyond its length.
    bytes: Words,
    decoded: Decoded,
}

/// A direct-mapped cache.
#[derive(Debug)]
pub(super) struct Cache {
    slots: Box<[Option<Slot>; SLOTS]>,
}

/// Returns the slot for code at `rip`: its lowest bits, and some above for kernels that align their functions.
#[inline]
fn slot_of(rip: u64) -> usize {
    (rip ^ rip >> 6 ^ rip >> 12) as usize % SLOTS
}

/// Clears the bytes from `length` (0 to 16) on.
#[inline]
fn cut(words: Words, length: u8) -> Words {
    let keep = |bytes: u32| if bytes >= 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 };
    let length = u32::from(length);
    [words[0] & keep(length), words[1] & keep(length.saturating_sub(8))]
}

/// Reads `length` bytes (1 to 15) of code that lie in one page, and more, by up to three aligned loads.
#[inline]
fn words_at(memory: &GuestMemory, gpa: Gpa, length: u8) -> Option<Words> {
    let offset = gpa.as_u64() % 8;
    let shift = 8 * offset;
    let end = offset + u64::from(length);
    let low = memory.word(gpa)? >> shift;
    if end <= 8 {
        return Some([low, 0]);
    }
    let middle = memory.word(gpa.wrapping_add(8))?;
    let high = if end > 16 { memory.word(gpa.wrapping_add(16))? } else { 0 };
    // Twice by half the distance: a shift by 64 for an offset of 0 is none.
    let up = |word: u64| word << (63 - shift) << 1;
    Some([low | up(middle), middle >> shift | up(high)])
}

fn words_of(bytes: &[u8]) -> Words {
    let mut whole = [0; 16];
    for (to, from) in whole.iter_mut().zip(bytes) {
        *to = *from;
    }
    let (words, _) = whole.as_chunks::<8>();
    [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])]
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { slots: Box::new([None; SLOTS]) }
    }

    /// Returns the instruction at RIP.
    ///
    /// # Errors
    /// [`Stop::Unemulated`] where it is no instruction that is emulated, and [`Stop::Repeat`] where RIP is mapped no
    /// more: the guest changes its tables, and the processor raises the page fault once it has noticed.
    #[inline]
    pub(super) fn instruction(
        &mut self,
        cpu: &impl GuestState,
        memory: &GuestMemory,
        bits: u32,
        cause: &Cause,
    ) -> Result<&Decoded, Stop> {
        let rip = cpu.rip();
        let position = slot_of(rip);
        let valid = self.slots[position].as_ref().is_some_and(|slot| {
            slot.rip == rip
                && slot.bits == bits
                && current(cpu, memory, bits, cause, slot.decoded.length)
                    .is_some_and(|words| cut(words, slot.decoded.length) == slot.bytes)
        });
        if !valid {
            self.slots[position] = Some(slot_for(cpu, memory, bits, cause)?);
        }
        self.slots[position].as_ref().map(|slot| &slot.decoded).ok_or(Stop::Unemulated)
    }
}

/// Decodes the instruction at RIP.
#[cold]
#[inline(never)]
fn slot_for(cpu: &dyn GuestState, memory: &GuestMemory, bits: u32, cause: &Cause) -> Result<Slot, Stop> {
    let rip = cpu.rip();
    let slot = |bytes, decoded: Decoded| Slot { rip, bits, bytes: cut(words_of(bytes), decoded.length), decoded };
    // What the processor reports may end before the instruction does.
    let fetched = cause.fetched();
    if let Some(decoded) = decode(fetched, bits, rip) {
        return Ok(slot(fetched, decoded));
    }
    let address = code_address(cpu, bits);
    let gpa = locate(cpu, memory, address).ok_or(Stop::Repeat)?;
    let (bytes, count) = fetch(cpu, memory, address, gpa);
    let bytes = bytes.get(..count).unwrap_or(&[]);
    let decoded = decode(bytes, bits, rip).ok_or(Stop::Unemulated)?;
    Ok(slot(bytes, decoded))
}

/// Returns the code at RIP as it is now, `length` bytes at least.
#[inline]
fn current(
    cpu: &(impl GuestState + ?Sized),
    memory: &GuestMemory,
    bits: u32,
    cause: &Cause,
    length: u8,
) -> Option<Words> {
    let fetched = cause.fetched();
    if fetched.len() >= length.into() {
        return Some(words_of(fetched));
    }
    let address = code_address(cpu, bits);
    if address.page_offset() + u64::from(length) <= PAGE_SIZE {
        return words_at(memory, locate(cpu, memory, address)?, length);
    }
    let (bytes, count) = read_code(cpu, memory, address);
    (count >= length.into()).then(|| words_of(&bytes))
}

fn read_code(cpu: &(impl GuestState + ?Sized), memory: &GuestMemory, address: Gva) -> ([u8; 15], usize) {
    match locate(cpu, memory, address) {
        Some(gpa) => fetch(cpu, memory, address, gpa),
        None => ([0; 15], 0),
    }
}

/// Returns the record of an instruction that is not emulated.
#[cold]
pub(super) fn record(cpu: &dyn GuestState, memory: &GuestMemory, bits: u32, cause: &Cause) -> Unemulated {
    let (mut bytes, mut count) = read_code(cpu, memory, code_address(cpu, bits));
    let fetched = cause.fetched();
    if count < fetched.len() {
        count = fetched.len().min(bytes.len());
        for (to, from) in bytes.iter_mut().zip(fetched) {
            *to = *from;
        }
    }
    Unemulated { rip: cpu.rip(), bytes, length: count as u8, code_bits: bits as u8 }
}
