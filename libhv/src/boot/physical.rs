//! Physical memory as the parsers of boot information and ACPI tables see it.

/// Physical memory that is only read.
pub trait Physical {
    /// Returns `length` bytes at `address`; `None` where they cannot be read, or are the hypervisor's own.
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]>;

    /// Returns the little-endian number of four bytes at `address`.
    fn u32(&self, address: u64) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes(address, 4)?.first_chunk()?))
    }

    /// Returns the little-endian number of eight bytes at `address`.
    fn u64(&self, address: u64) -> Option<u64> {
        Some(u64::from_le_bytes(*self.bytes(address, 8)?.first_chunk()?))
    }
}

/// Bytes that lie at the address they begin with: for tests, and for a structure that was copied.
impl Physical for (u64, &[u8]) {
    fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(address.checked_sub(self.0)?).ok()?;
        self.1.get(start..start.checked_add(length)?)
    }
}
