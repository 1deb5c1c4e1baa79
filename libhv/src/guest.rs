//! What a guest is made of: memory, image, command line, devices.

use crate::address::Gpa;
use crate::devices::Device;
use crate::error::{Error, ImageError, Result};
use crate::loader::{self, Kind, Module};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;

/// Memory of a guest whose size nobody gave, in bytes.
const DEFAULT_MEMORY: u64 = 256 * MIB;

/// A guest to be: what `Hypervisor::launch` makes one of.
pub struct Guest<'a> {
    pub(crate) memory_bytes: u64,
    pub(crate) image: &'a [u8],
    pub(crate) kind: Option<Kind>,
    pub(crate) modules: Vec<Module<'a>>,
    pub(crate) command_line: &'a str,
    pub(crate) devices: Vec<Box<dyn Device>>,
}

impl<'a> Guest<'a> {
    /// Begins a guest with `bytes` bytes of memory, rounded up to 4 KiB.
    pub fn with_memory(bytes: u64) -> Self {
        let (modules, devices) = (Vec::new(), Vec::new());
        Self { memory_bytes: bytes, image: &[], kind: None, modules, command_line: "", devices }
    }

    /// Begins the guest that the boot loader brought: module 0 is its image, the others are its modules (Linux: the
    /// initial RAM disk), and the image's own command line says the rest, see [`ImageOptions`].
    ///
    /// # Errors
    /// [`Error::MissingModule`] when the boot loader brought none.
    #[cfg(feature = "appliance")]
    pub fn from_modules(machine: &crate::platform::Machine) -> Result<Self> {
        let options = ImageOptions::parse(machine.command_line());
        let (image, rest) =
            machine.modules().split_first().ok_or(Error::MissingModule { index: 0, role: "the guest's image" })?;
        let mut guest = Self::with_memory(options.memory_bytes.unwrap_or(DEFAULT_MEMORY))
            .image(image.bytes)
            .command_line(options.guest_command_line);
        guest.kind = options.kind;
        for module in rest {
            guest = guest.module(module.bytes, module.command_line.as_bytes());
        }
        Ok(guest)
    }

    /// Gives it the image it starts with: a Linux bzImage, a Multiboot 1 kernel or a PVH ELF file. The image says
    /// itself which it is; flat code needs [`kind`](Self::kind).
    pub fn image(mut self, image: &'a [u8]) -> Self {
        self.image = image;
        self
    }

    /// Says what kind of image it starts with.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Refuses an image of another kind.
    ///
    /// # Errors
    /// [`Error::Image`] with [`ImageError::NotThisKind`].
    pub fn expect_linux(self) -> Result<Self> {
        match self.kind.or_else(|| loader::detect(self.image)) {
            Some(Kind::Linux) => Ok(self),
            _ => Err(Error::Image(ImageError::NotThisKind("a bzImage"))),
        }
    }

    /// Gives it a file beside its image: Linux takes it as initial RAM disk, others as a module with its text.
    pub fn module(mut self, bytes: &'a [u8], command_line: &'a [u8]) -> Self {
        self.modules.push(Module { bytes, command_line });
        self
    }

    /// Gives it a command line.
    pub fn command_line(mut self, text: &'a str) -> Self {
        self.command_line = text;
        self
    }

    /// Gives it a device of the appliance's own.
    pub fn device(mut self, device: impl Device + 'static) -> Self {
        self.devices.push(Box::new(device));
        self
    }
}

impl fmt::Debug for Guest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("memory_bytes", &self.memory_bytes)
            .field("image", &self.image.len())
            .field("kind", &self.kind)
            .field("modules", &self.modules.len())
            .field("command_line", &self.command_line)
            .field("devices", &self.devices.len())
            .finish()
    }
}

/// Options that an image's own command line carries: `memory=256M -- console=ttyS0`.
///
/// Before `--`: `memory=SIZE` and, for flat code, `flat=real` (loaded and entered at 0000:7C00) or `flat=long` (at
/// 1 MiB, in 64-bit mode).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageOptions<'a> {
    /// Bytes of memory for the guest, where the words before `--` say so; the last of them counts.
    pub memory_bytes: Option<u64>,
    /// The kind of image, where it is flat code.
    pub kind: Option<Kind>,
    /// All after `--`.
    pub guest_command_line: &'a str,
}

impl<'a> ImageOptions<'a> {
    /// Reads a command line. Words it does not know are left to the appliance.
    pub fn parse(text: &'a str) -> Self {
        let (own, guest) = match text.split_once("--") {
            Some((own, guest)) if own.is_empty() || own.ends_with(' ') => (own, guest.trim_start()),
            _ => (text, ""),
        };
        let memory_bytes = own.split_whitespace().filter_map(|word| size(word.strip_prefix("memory=")?)).next_back();
        let kind = own.split_whitespace().find_map(|word| match word {
            "flat=real" => Some(Kind::FlatReal { segment: 0, offset: 0x7C00 }),
            "flat=long" => Some(Kind::FlatLong { address: Gpa::new(MIB) }),
            _ => None,
        });
        Self { memory_bytes, kind, guest_command_line: guest }
    }
}

/// Reads a size: a decimal number, then K, M or G (powers of 1024), or nothing for bytes.
pub fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_and_nothing_else() {
        let cases = [
            ("256M", Some(256 * MIB)),
            ("2G", Some(2 << 30)),
            ("4096", Some(4096)),
            ("1k", Some(1024)),
            ("", None),
            ("M", None),
            ("12T", None),
            ("-1M", None),
            ("1 M", None),
            ("18446744073709551615K", None),
        ];
        for (text, expected) in cases {
            assert_eq!(size(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_guest_gets_all_after_two_dashes() {
        let options = ImageOptions::parse("memory=64M quiet -- console=ttyS0 init=/x -- y");
        assert_eq!(options.memory_bytes, Some(64 * MIB));
        assert_eq!(options.guest_command_line, "console=ttyS0 init=/x -- y");
        let none = ImageOptions::parse("a--b memory=1M");
        assert_eq!((none.guest_command_line, none.memory_bytes), ("", Some(MIB)));
        assert_eq!(ImageOptions::parse("-- x").guest_command_line, "x");
        assert_eq!(ImageOptions::parse("memory=1M memory=2M memory=x").memory_bytes, Some(2 * MIB));
        let flat = ImageOptions::parse("flat=long -- flat=real").kind;
        assert_eq!(flat, Some(Kind::FlatLong { address: Gpa::new(0x10_0000) }));
    }
}
