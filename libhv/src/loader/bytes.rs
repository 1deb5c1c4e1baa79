//! Numbers in an image's bytes, read with their end in view.

use crate::error::ImageError;

/// Returns `N` bytes at `offset`.
///
/// # Errors
/// [`ImageError::Truncated`] when the image ends before them.
#[inline]
pub(super) fn array<const N: usize>(image: &[u8], offset: u64) -> Result<[u8; N], ImageError> {
    let mut bytes = [0; N];
    bytes.copy_from_slice(slice(image, offset, N as u64)?);
    Ok(bytes)
}

/// Returns `length` bytes at `offset`.
///
/// # Errors
/// [`ImageError::Truncated`] when the image ends before them.
pub(super) fn slice(image: &[u8], offset: u64, length: u64) -> Result<&[u8], ImageError> {
    let found = image.len() as u64;
    let needed = offset.saturating_add(length);
    if needed > found {
        return Err(ImageError::Truncated { needed, found });
    }
    Ok(&image[offset as usize..needed as usize])
}

/// Returns the 16-bit number at `offset`.
///
/// # Errors
/// [`ImageError::Truncated`] when the image ends before it.
pub(super) fn word(image: &[u8], offset: u64) -> Result<u16, ImageError> {
    array(image, offset).map(u16::from_le_bytes)
}

/// Returns the 32-bit number at `offset`.
///
/// # Errors
/// [`ImageError::Truncated`] when the image ends before it.
pub(super) fn dword(image: &[u8], offset: u64) -> Result<u32, ImageError> {
    array(image, offset).map(u32::from_le_bytes)
}

/// Returns the 64-bit number at `offset`.
///
/// # Errors
/// [`ImageError::Truncated`] when the image ends before it.
pub(super) fn qword(image: &[u8], offset: u64) -> Result<u64, ImageError> {
    array(image, offset).map(u64::from_le_bytes)
}
