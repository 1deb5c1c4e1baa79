//! A test image: what the platform promises an appliance, checked on the machine itself.
#![no_std]
#![no_main]

use libhv::exit::StopReason;
use libhv::platform::Machine;

libhv::entry!(main);

fn main(_machine: Machine) -> libhv::Result<StopReason> {
    libhv::log!("pass boot");
    Ok(StopReason::PowerOff)
}
