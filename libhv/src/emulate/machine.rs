//! The guest's registers and memory as one instruction sees them: operands in, operands out.

use super::Bus;
use super::cause::Cause;
use super::decode::{Decoded, MemoryOperand, NO_REGISTER, Operand};
use super::segment::{Reference, address_in_64_bit_mode, linear_address};
use super::translate::{Access, Paging, PagingFeatures, WalkError};
use crate::address::{Gpa, Gva, PAGE_SIZE};
use crate::exit::{Event, PageFault, Width};
use crate::memory::GuestMemory;
use crate::registers::{EFER_LMA, Gpr, GuestState, SegmentRegister, VectorState};

/// Why an instruction did not come to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// It raises this.
    Fault(Event),
    /// It raises #PF.
    PageFault(PageFault),
    /// It shall be executed again.
    Repeat,
    /// It cannot be emulated.
    Unemulated,
}

impl From<Event> for Stop {
    fn from(event: Event) -> Self {
        Self::Fault(event)
    }
}

impl From<WalkError> for Stop {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Fault(fault) => Self::PageFault(fault),
            WalkError::NotCanonical => Self::Fault(Event::GENERAL_PROTECTION),
            WalkError::Contended => Self::Repeat,
            WalkError::UnknownKeys => Self::Unemulated,
        }
    }
}

/// Bytes of the guest's, translated: in one page, or the end of one and the beginning of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    first: Gpa,
    second: Gpa,
    /// Bytes at `first`.
    here: usize,
    /// Bytes in all, 32 at most.
    bytes: usize,
}

/// A processor behind a table of its functions, so that all backends share the code of instructions that are rare.
pub(super) trait AnyProcessor: GuestState + VectorState {}

impl<C: GuestState + VectorState> AnyProcessor for C {}

/// One guest processor for the time of one instruction.
pub(super) struct Machine<'a, C: ?Sized, B> {
    pub(super) cpu: &'a mut C,
    pub(super) memory: &'a mut GuestMemory,
    pub(super) bus: &'a mut B,
    pub(super) cause: &'a Cause,
    pub(super) features: PagingFeatures,
    /// Taken from the registers when it is first needed.
    pub(super) paging: Option<Paging>,
    /// The width of the code: 16, 32 or 64.
    pub(super) bits: u32,
}

/// Extends the lowest `width` of `value` by its sign to 64 bits.
#[inline]
pub(super) fn sign_extend(value: u64, width: Width) -> u64 {
    let unused = 64 - 8 * width.bytes() as u32;
    ((value << unused) as i64 >> unused) as u64
}

impl<C: GuestState + VectorState + ?Sized, B: Bus> Machine<'_, C, B> {
    /// Returns the guest's paging.
    pub(super) fn paging(&mut self) -> Paging {
        let (cpu, features) = (&*self.cpu, self.features);
        *self.paging.get_or_insert_with(|| Paging::of(cpu, features))
    }

    /// Returns the low `width` of a general-purpose register.
    #[inline]
    pub(super) fn register(&self, number: u8, width: Width) -> u64 {
        self.cpu.gpr(Gpr::from_number(number)) & width.mask()
    }

    /// Sets a general-purpose register as an instruction does: 32 bits clear the upper half, 8 and 16 keep the rest.
    #[inline]
    pub(super) fn set_register(&mut self, number: u8, width: Width, value: u64) {
        let register = Gpr::from_number(number);
        let value = match width {
            Width::Qword => value,
            Width::Dword => value & 0xFFFF_FFFF,
            Width::Word | Width::Byte => self.cpu.gpr(register) & !width.mask() | value & width.mask(),
        };
        self.cpu.set_gpr(register, value);
    }

    /// Returns the width of an operand.
    #[inline]
    pub(super) fn width(&self, instruction: &Decoded, operand: Operand) -> Result<Width, Stop> {
        match operand {
            Operand::Register { width, .. } => Ok(width),
            Operand::Memory => Width::from_bytes(instruction.memory.bytes.into()).ok_or(Stop::Unemulated),
            _ => Err(Stop::Unemulated),
        }
    }

    /// Reads an operand; of a register or memory as much as it is wide, of an immediate all 64 bits.
    pub(super) fn read(&mut self, instruction: &Decoded, operand: Operand) -> Result<u64, Stop> {
        match operand {
            Operand::Register { number, width, high: false } => Ok(self.register(number, width)),
            Operand::Register { number, high: true, .. } => Ok(self.register(number, Width::Word) >> 8),
            Operand::Immediate => Ok(instruction.immediate),
            Operand::Memory => {
                let span = self.operand(instruction, false)?;
                self.load(span)
            }
            Operand::Segment(register) => Ok(self.cpu.segment(register).selector.into()),
            Operand::None | Operand::Vector { .. } => Err(Stop::Unemulated),
        }
    }

    /// Writes an operand.
    pub(super) fn write(&mut self, instruction: &Decoded, operand: Operand, value: u64) -> Result<(), Stop> {
        match operand {
            Operand::Register { number, width, high: false } => self.set_register(number, width, value),
            Operand::Register { number, high: true, .. } => {
                let low = self.register(number, Width::Byte);
                self.set_register(number, Width::Word, (value & 0xFF) << 8 | low);
            }
            Operand::Memory => {
                let span = self.operand(instruction, true)?;
                self.store(span, value)?;
            }
            _ => return Err(Stop::Unemulated),
        }
        Ok(())
    }

    /// Replaces an operand by what `change` makes of it; in memory with one locked access where the instruction is
    /// locked, or `always_locked` as XCHG is. `change` may be called more than once and the last call counts.
    pub(super) fn modify(
        &mut self,
        instruction: &Decoded,
        operand: Operand,
        always_locked: bool,
        change: impl FnMut(u64) -> u64,
    ) -> Result<(), Stop> {
        if operand != Operand::Memory {
            let mut change = change;
            let old = self.read(instruction, operand)?;
            return self.write(instruction, operand, change(old));
        }
        let span = self.operand(instruction, true)?;
        self.modify_span(span, instruction.lock || always_locked, change)
    }

    /// [`modify`](Self::modify) for memory that has been translated for writing.
    pub(super) fn modify_span(
        &mut self,
        span: Span,
        locked: bool,
        mut change: impl FnMut(u64) -> u64,
    ) -> Result<(), Stop> {
        self.modify_memory(span, locked, &mut change)
    }

    /// [`modify_span`](Self::modify_span), once for all changes.
    #[inline(never)]
    fn modify_memory(&mut self, span: Span, locked: bool, change: &mut dyn FnMut(u64) -> u64) -> Result<(), Stop> {
        let mut old = self.load(span)?;
        if !locked || !self.memory.contains(span.first, 1) {
            return self.store(span, change(old));
        }
        // A locked access that is not aligned would have to lock two words at once: that cannot be done from here.
        let width = Width::from_bytes(span.bytes).ok_or(Stop::Unemulated)?;
        for _ in 0..1024 {
            match self.memory.compare_exchange(span.first, width, old, change(old) & width.mask()) {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(now)) => old = now,
                Err(_) => return Err(Stop::Unemulated),
            }
        }
        Err(Stop::Repeat)
    }

    /// Returns the offset of a memory operand in its segment.
    #[inline]
    pub(super) fn effective_address(&self, operand: &MemoryOperand, width: Width) -> u64 {
        let mut address = operand.displacement;
        if operand.base != NO_REGISTER {
            address = address.wrapping_add(self.cpu.gpr(Gpr::from_number(operand.base)));
        }
        if operand.index != NO_REGISTER {
            address = address.wrapping_add(self.cpu.gpr(Gpr::from_number(operand.index)) << operand.scale);
        }
        address & width.mask()
    }

    /// Translates the instruction's memory operand.
    pub(super) fn operand(&mut self, instruction: &Decoded, write: bool) -> Result<Span, Stop> {
        let MemoryOperand { segment, bytes, .. } = instruction.memory;
        let offset = self.effective_address(&instruction.memory, instruction.address);
        if self.bits == 64 && instruction.one_place {
            let linear = address_in_64_bit_mode(self.cpu, segment, offset);
            if let Some(gpa) = self.cause.place(linear, bytes.into(), write) {
                return Ok(Span { first: gpa, second: gpa, here: bytes.into(), bytes: bytes.into() });
            }
        }
        self.span(segment, offset, bytes.into(), write)
    }

    /// Translates `bytes` bytes (1 to 32) at an offset in a segment; for a write where `write` is set, which a read
    /// before it may use as well.
    pub(super) fn span(
        &mut self,
        segment: SegmentRegister,
        offset: u64,
        bytes: usize,
        write: bool,
    ) -> Result<Span, Stop> {
        let reference = Reference { segment, offset, bytes: bytes as u64, write };
        let paging = self.paging();
        let address = linear_address(self.cpu, &paging, self.bits, reference)?;
        self.pages(address, bytes, write)
    }

    /// Translates the instruction's memory operand; #GP(0) where its linear address is not a multiple of `alignment`
    /// (a power of two).
    #[inline(never)]
    pub(super) fn operand_aligned(&mut self, instruction: &Decoded, alignment: u64, write: bool) -> Result<Span, Stop> {
        let MemoryOperand { segment, bytes, .. } = instruction.memory;
        let offset = self.effective_address(&instruction.memory, instruction.address);
        let reference = Reference { segment, offset, bytes: bytes.into(), write };
        let paging = self.paging();
        let address = linear_address(self.cpu, &paging, self.bits, reference)?;
        if address.as_u64() & (alignment - 1) != 0 {
            return Err(Stop::Fault(Event::GENERAL_PROTECTION));
        }
        self.pages(address, bytes.into(), write)
    }

    /// Returns whether any byte of the span is memory.
    pub(super) fn is_memory(&self, span: Span) -> bool {
        self.memory.contains(span.first, 1) || self.memory.contains(span.second, 1)
    }

    /// Reads up to 32 bytes as words of 64 bits, the lowest first; 0 where there are fewer.
    pub(super) fn load_words(&mut self, span: Span) -> Result<[u64; 4], Stop> {
        let mut bytes = [0; 32];
        self.load_bytes(span, bytes.get_mut(..span.bytes).ok_or(Stop::Unemulated)?)?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(core::array::from_fn(|word| u64::from_le_bytes(words[word])))
    }

    /// Writes as many bytes of the words as the span has, up to 32.
    pub(super) fn store_words(&mut self, span: Span, words: [u64; 4]) -> Result<(), Stop> {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *chunk = word.to_le_bytes();
        }
        self.store_bytes(span, bytes.get(..span.bytes).ok_or(Stop::Unemulated)?)
    }

    /// Translates `bytes` bytes at a linear address.
    fn pages(&mut self, address: Gva, bytes: usize, write: bool) -> Result<Span, Stop> {
        let paging = self.paging();
        let access = if write { Access::WRITE } else { Access::READ };
        let first = paging.translate(self.memory, address, access)?;
        let here = ((PAGE_SIZE - address.page_offset()) as usize).min(bytes);
        let second = if here == bytes {
            first
        } else {
            let mut next = address.wrapping_add(here as u64);
            if self.bits != 64 {
                next = Gva::new(next.as_u64() & 0xFFFF_FFFF);
            }
            paging.translate(self.memory, next, access)?
        };
        Ok(Span { first, second, here, bytes })
    }

    /// Reads 16 bits of a system structure at a linear address, as the processor does by itself.
    pub(super) fn system_word(&mut self, address: u64) -> Result<u64, Stop> {
        let paging = self.paging();
        let mut word = 0;
        for position in 0..2 {
            let mut address = address.wrapping_add(position);
            if self.bits != 64 && self.cpu.efer() & EFER_LMA == 0 {
                address &= 0xFFFF_FFFF;
            }
            let gpa = paging.translate(self.memory, Gva::new(address), Access::SYSTEM)?;
            let byte = self.memory.read_number(gpa, Width::Byte).map_err(|_| Stop::Unemulated)?;
            word |= byte << (8 * position);
        }
        Ok(word)
    }

    /// Reads a number from memory or from the bus.
    pub(super) fn load(&mut self, span: Span) -> Result<u64, Stop> {
        match Width::from_bytes(span.bytes) {
            Some(width) if span.here == span.bytes => Ok(match self.memory.read_number(span.first, width) {
                Ok(value) => value,
                Err(_) => self.bus.read(span.first, width) & width.mask(),
            }),
            _ => {
                let mut bytes = [0; 8];
                self.load_bytes(span, bytes.get_mut(..span.bytes).ok_or(Stop::Unemulated)?)?;
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    /// Writes a number to memory or to the bus.
    pub(super) fn store(&mut self, span: Span, value: u64) -> Result<(), Stop> {
        match Width::from_bytes(span.bytes) {
            Some(width) if span.here == span.bytes => {
                if self.memory.write_number(span.first, width, value).is_err() {
                    self.bus.write(span.first, width, value & width.mask());
                }
                Ok(())
            }
            _ => self.store_bytes(span, value.to_le_bytes().get(..span.bytes).ok_or(Stop::Unemulated)?),
        }
    }

    /// Reads bytes, as many as the span has; devices see accesses of 8 bytes at most.
    pub(super) fn load_bytes(&mut self, span: Span, into: &mut [u8]) -> Result<(), Stop> {
        let (here, there) = into.split_at_mut_checked(span.here).ok_or(Stop::Unemulated)?;
        for (gpa, piece) in [(span.first, here), (span.second, there)] {
            if piece.is_empty() || self.memory.read(gpa, piece).is_ok() {
                continue;
            }
            let mut done = 0;
            while let Some(width) = widest(piece.len() - done) {
                let value = self.bus.read(gpa.wrapping_add(done as u64), width).to_le_bytes();
                piece[done..done + width.bytes()].copy_from_slice(&value[..width.bytes()]);
                done += width.bytes();
            }
        }
        Ok(())
    }

    /// Writes bytes, as many as the span has; devices see accesses of 8 bytes at most.
    pub(super) fn store_bytes(&mut self, span: Span, from: &[u8]) -> Result<(), Stop> {
        let (here, there) = from.split_at_checked(span.here).ok_or(Stop::Unemulated)?;
        for (gpa, piece) in [(span.first, here), (span.second, there)] {
            if piece.is_empty() || self.memory.write(gpa, piece).is_ok() {
                continue;
            }
            let mut done = 0;
            while let Some(width) = widest(piece.len() - done) {
                let mut value = [0; 8];
                value[..width.bytes()].copy_from_slice(&piece[done..done + width.bytes()]);
                self.bus.write(gpa.wrapping_add(done as u64), width, u64::from_le_bytes(value));
                done += width.bytes();
            }
        }
        Ok(())
    }

    /// Replaces the flags of `mask` by those of `flags`.
    #[inline]
    pub(super) fn set_flags(&mut self, mask: u64, flags: u64) {
        let old = self.cpu.rflags();
        self.cpu.set_rflags(old & !mask | flags & mask);
    }
}

/// Returns the widest access that fits in `bytes` bytes, `None` for 0.
fn widest(bytes: usize) -> Option<Width> {
    [Width::Qword, Width::Dword, Width::Word, Width::Byte].into_iter().find(|width| width.bytes() <= bytes)
}
