//! A first process for Linux on a processor with AMX: a process without permission gets SIGILL from a tile, and the tiles of two
//! processes with permission survive each other's turns. Says `libhv: tiles survive`, or `libhv: fail tiles` and why, and powers off.
#![no_std]
#![no_main]

core::arch::global_asm!(include_str!("tiles.s"));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
