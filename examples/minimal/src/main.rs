//! The smallest appliance: a guest of three instructions in real mode, which ends itself with 21.
#![no_std]
#![no_main]

use libhv::prelude::*;

libhv::entry!(main);

/// `mov dx, 0xF4; mov al, 21; out dx, al`: the debug-exit port of the library's devices.
const CODE: [u8; 6] = [0xBA, 0xF4, 0x00, 0xB0, 21, 0xEE];

/// Tells of every exit.
struct Watch;

impl Appliance for Watch {
    fn on_exit(&mut self, exit: &Exit, guest: &mut impl GuestState) -> Resolution {
        libhv::log!("{exit:?} at {:#x}", guest.rip());
        Resolution::NotMine
    }
}

fn main(machine: Machine) -> Result<StopReason> {
    let guest = Guest::with_memory(MIB).image(&CODE).kind(Kind::FlatReal { segment: 0, offset: 0x7C00 });
    Hypervisor::new().appliance(Watch).launch(machine, guest)
}
