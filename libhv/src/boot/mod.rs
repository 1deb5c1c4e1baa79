//! From the boot loader to `main`: the entry code, what the loader told, and the order in which the platform comes up.

#[cfg(target_os = "none")]
mod entry;
pub mod info;
mod multiboot;
pub mod physical;
mod pvh;
#[cfg(target_os = "none")]
#[doc(hidden)]
pub mod start;

/// Names the function that is the appliance: `fn(libhv::platform::Machine) -> libhv::Result<libhv::exit::StopReason>`.
///
/// It runs on the bootstrap processor, in 64-bit mode at privilege level 0, interrupts off. When it returns, the last
/// line of the log is `libhv: end <status> <sentence>` and the processor halts for ever.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn libhv_main(machine: $crate::platform::Machine) -> $crate::Result<$crate::exit::StopReason> {
            let main: fn($crate::platform::Machine) -> $crate::Result<$crate::exit::StopReason> = $main;
            main(machine)
        }
    };
}
