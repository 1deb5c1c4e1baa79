//! The heap of the bare machine.
#![expect(unsafe_code, reason = "gives the allocator its memory")]

use hermit_sync::RawSpinMutex;
use talc::TalcLock;
use talc::source::Claim;

const BYTES: usize = 1 << 20;

#[global_allocator]
static HEAP: TalcLock<RawSpinMutex, Claim> = TalcLock::new({
    static mut ARENA: [u8; BYTES] = [0; BYTES];
    // SAFETY: the arena is in scope here alone, so the allocator is its only user.
    unsafe { Claim::array(&raw mut ARENA) }
});
