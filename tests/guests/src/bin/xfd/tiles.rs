//! Tiles: the instructions, and a configuration and contents that show when a row or a byte of them is lost.

use core::arch::asm;

/// A tile configuration, 64 bytes (SDM Vol. 1 18.2).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Configuration(pub(crate) [u8; 64]);

/// The bytes of a tile of 16 rows of 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [u8; 1024]);

impl Tile {
    /// A tile of zeros.
    pub(crate) const ZERO: Self = Self([0; 1024]);

    /// Returns a tile whose bytes are all different from their neighbours in every direction.
    pub(crate) fn pattern(seed: u8) -> Self {
        let byte = |index: usize| (index as u8).wrapping_mul(7).wrapping_add((index / 64) as u8 * 37) ^ seed | 1;
        Self(core::array::from_fn(byte))
    }
}

/// Palette 1 with tile 0 of 16 rows of 64 bytes, tiles 1 to 4 of 4 rows of 16 bytes, tile 5 of 3 rows of 32 bytes, and no others.
pub(crate) const CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let shapes: [(u8, u8); 6] = [(16, 64), (4, 16), (4, 16), (4, 16), (4, 16), (3, 32)];
    let mut tile = 0;
    while tile < shapes.len() {
        bytes[48 + tile] = shapes[tile].0;
        bytes[16 + 2 * tile] = shapes[tile].1;
        tile += 1;
    }
    Configuration(bytes)
};

/// Executes LDTILECFG.
pub(crate) unsafe fn configure(configuration: &Configuration) {
    asm!("ldtilecfg [{}]", in(reg) configuration, options(nostack));
}

/// Executes STTILECFG.
pub(crate) unsafe fn configured() -> Configuration {
    let mut configuration = Configuration([0xa5; 64]);
    asm!("sttilecfg [{}]", in(reg) &mut configuration, options(nostack));
    configuration
}

/// Executes TILERELEASE.
pub(crate) unsafe fn release() {
    asm!("tilerelease", options(nostack));
}

/// Executes TILEZERO of tile 0.
pub(crate) unsafe fn zero() {
    asm!("tilezero tmm0", options(nostack));
}

/// Executes TILELOADD of tile 0.
pub(crate) unsafe fn load(tile: &Tile) {
    asm!("tileloadd tmm0, [{} + {}]", in(reg) tile, in(reg) 64u64, options(nostack));
}

/// Executes TILESTORED of tile 0.
pub(crate) unsafe fn store(tile: &mut Tile) {
    asm!("tilestored [{} + {}], tmm0", in(reg) tile, in(reg) 64u64, options(nostack));
}

/// Returns what tile 0 holds.
pub(crate) unsafe fn stored() -> Tile {
    let mut tile = Tile([0xa5; 1024]);
    store(&mut tile);
    tile
}

/// Executes TDPBUUD: tile 1 plus tile 2 times tile 3.
pub(crate) unsafe fn multiply() {
    asm!("tdpbuud tmm1, tmm2, tmm3", options(nostack));
}

/// Configures the tiles and loads tile 0.
pub(crate) unsafe fn fill(tile: &Tile) {
    configure(&CONFIGURATION);
    load(tile);
}
