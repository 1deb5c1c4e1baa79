//! ELF files: their program headers, placed and copied (System V ABI, chapter "Object files").

use super::bytes::{array, dword, qword, slice, word};
use super::map::{FOUR_GIB, Room, clear, store};
use crate::error::ImageError;
use crate::memory::GuestMemory;
use alloc::vec::Vec;

/// A segment is loaded into memory.
const PT_LOAD: u32 = 1;
/// A segment holds notes.
const PT_NOTE: u32 = 4;
/// An executable that runs at the addresses it names.
const ET_EXEC: u16 = 2;
/// Intel 80386.
const EM_386: u16 = 3;
/// AMD x86-64.
const EM_X86_64: u16 = 62;

/// A program header of either class.
#[derive(Clone, Copy, Debug)]
struct ProgramHeader {
    kind: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

/// An executable for this architecture.
pub(super) struct Elf<'a> {
    image: &'a [u8],
    entry: u64,
    headers: Vec<ProgramHeader>,
}

/// Returns whether the image has the magic number of an ELF file.
pub(super) fn matches(image: &[u8]) -> bool {
    image.starts_with(b"\x7FELF")
}

impl<'a> Elf<'a> {
    /// Reads the ELF header and the program headers.
    ///
    /// # Errors
    /// When the file is truncated, or is not a little-endian executable for x86.
    pub(super) fn parse(image: &'a [u8]) -> Result<Self, ImageError> {
        if !matches(image) {
            return Err(ImageError::NotThisKind("an ELF file"));
        }
        let [class, data] = array(image, 4)?;
        if data != 1 {
            return Err(ImageError::BadField("EI_DATA (ELFDATA2LSB is needed)", data.into()));
        }
        let (kind, machine) = (word(image, 16)?, word(image, 18)?);
        if kind != ET_EXEC {
            return Err(ImageError::BadField("e_type (ET_EXEC is needed)", kind.into()));
        }
        if machine != EM_386 && machine != EM_X86_64 {
            return Err(ImageError::BadField("e_machine (EM_386 or EM_X86_64 is needed)", machine.into()));
        }
        let (entry, table, sizes, bytes) = match class {
            1 => (dword(image, 24)?.into(), dword(image, 28)?.into(), 42, 32),
            2 => (qword(image, 24)?, qword(image, 32)?, 54, 56),
            _ => return Err(ImageError::BadField("EI_CLASS", class.into())),
        };
        let (entry_bytes, count) = (u64::from(word(image, sizes)?), u64::from(word(image, sizes + 2)?));
        if entry_bytes < bytes {
            return Err(ImageError::BadField("e_phentsize", entry_bytes));
        }
        let table = slice(image, table, entry_bytes * count)?;
        let parse = if class == 1 { ProgramHeader::parse_32 } else { ProgramHeader::parse_64 };
        let headers = table.chunks_exact(entry_bytes as usize).map(parse).collect::<Result<_, _>>()?;
        Ok(Self { image, entry, headers })
    }

    fn loaded(&self) -> impl Iterator<Item = &ProgramHeader> {
        self.headers.iter().filter(|header| header.kind == PT_LOAD && header.memsz > 0)
    }

    /// Takes the room of every loaded segment at its physical address and returns the address after the highest.
    ///
    /// # Errors
    /// When a segment is not in the file as its header says, lies above 4 GiB, or finds its place not free.
    pub(super) fn place(&self, room: &mut Room) -> Result<u64, ImageError> {
        let mut end = 0;
        for header in self.loaded() {
            if header.filesz > header.memsz {
                return Err(ImageError::BadField("p_filesz (more than p_memsz)", header.filesz));
            }
            slice(self.image, header.offset, header.filesz)?;
            let after = header.paddr.checked_add(header.memsz).filter(|after| *after <= FOUR_GIB);
            let after = after.ok_or(ImageError::BadField("p_paddr", header.paddr))?;
            room.claim("segment", header.paddr, header.memsz)?;
            end = after.max(end);
        }
        if end == 0 { Err(ImageError::NotThisKind("an ELF file with a segment to load")) } else { Ok(end) }
    }

    /// Copies every loaded segment to its place and clears what the file does not hold of it.
    ///
    /// # Errors
    /// As [`place`](Self::place), which has found them all before.
    pub(super) fn copy(&self, memory: &mut GuestMemory) -> Result<(), ImageError> {
        for header in self.loaded() {
            store(memory, "segment", header.paddr, slice(self.image, header.offset, header.filesz)?)?;
            clear(memory, "segment", header.paddr + header.filesz, header.memsz - header.filesz)?;
        }
        Ok(())
    }

    /// Returns the physical address of the entry point: `e_entry` is a virtual one where it lies in a loaded segment.
    ///
    /// # Errors
    /// When it is above 4 GiB.
    pub(super) fn physical_entry(&self) -> Result<u32, ImageError> {
        let offset = |header: &&ProgramHeader| self.entry.wrapping_sub(header.vaddr);
        let home = self.loaded().find(|header| offset(header) < header.memsz);
        let entry = home.map_or(self.entry, |header| header.paddr.wrapping_add(offset(&header)));
        u32::try_from(entry).map_err(|_| ImageError::BadField("e_entry", self.entry))
    }

    /// Returns the content of the first note of `kind` by `owner` (its name with the NUL), if there is one.
    ///
    /// # Errors
    /// [`ImageError::Truncated`] when the file ends before its notes do.
    pub(super) fn note(&self, owner: &[u8], kind: u32) -> Result<Option<&'a [u8]>, ImageError> {
        for header in self.headers.iter().filter(|header| header.kind == PT_NOTE) {
            let notes = slice(self.image, header.offset, header.filesz)?;
            let align = if header.align == 8 { 8 } else { 4 };
            let mut at = 0;
            while at + 12 <= notes.len() as u64 {
                let (name_bytes, bytes) = (u64::from(dword(notes, at)?), u64::from(dword(notes, at + 4)?));
                let content = (at + 12 + name_bytes).next_multiple_of(align);
                let name = slice(notes, at + 12, name_bytes)?;
                let note = slice(notes, content, bytes)?;
                if name == owner && dword(notes, at + 8)? == kind {
                    return Ok(Some(note));
                }
                at = (content + bytes).next_multiple_of(align);
            }
        }
        Ok(None)
    }
}

impl ProgramHeader {
    fn parse_32(bytes: &[u8]) -> Result<Self, ImageError> {
        let field = |offset| dword(bytes, offset).map(u64::from);
        Ok(Self {
            kind: dword(bytes, 0)?,
            offset: field(4)?,
            vaddr: field(8)?,
            paddr: field(12)?,
            filesz: field(16)?,
            memsz: field(20)?,
            align: field(28)?,
        })
    }

    fn parse_64(bytes: &[u8]) -> Result<Self, ImageError> {
        let field = |offset| qword(bytes, offset);
        Ok(Self {
            kind: dword(bytes, 0)?,
            offset: field(8)?,
            vaddr: field(16)?,
            paddr: field(24)?,
            filesz: field(32)?,
            memsz: field(40)?,
            align: field(48)?,
        })
    }
}
