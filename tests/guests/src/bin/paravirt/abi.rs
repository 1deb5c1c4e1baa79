//! The interface as a guest reads it in its specification: written apart from the host's own definition.

use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut};
use guests::boot::physical;
use guests::cpu;
use guests::report::{Outcome, same};

pub(crate) const OPEN: u32 = 1;
pub(crate) const CLOSE: u32 = 2;
pub(crate) const ENABLE: u32 = 3;
pub(crate) const DISABLE: u32 = 4;
pub(crate) const READ: u32 = 5;
pub(crate) const PAGE: u32 = 6;
pub(crate) const PAGE_OFF: u32 = 7;
pub(crate) const RESET: u32 = 8;

pub(crate) const ID_OUT_OF_RANGE: u32 = 1;
pub(crate) const UNKNOWN_ID: u32 = 2;
pub(crate) const ID_IN_USE: u32 = 3;
pub(crate) const BAD_ADDRESS: u32 = 4;
pub(crate) const UNALIGNED: u32 = 5;
pub(crate) const WRONG_VERSION: u32 = 6;
pub(crate) const WRONG_LENGTH: u32 = 7;
pub(crate) const RESERVED_BITS: u32 = 8;
pub(crate) const UNSUPPORTED_TYPE: u32 = 9;
pub(crate) const UNSUPPORTED_EVENT: u32 = 10;
pub(crate) const TOO_MANY_EVENTS: u32 = 11;
pub(crate) const NO_PERIOD: u32 = 12;
pub(crate) const OVERLAP: u32 = 13;

/// `config` of software events.
pub(crate) const ALL_EXITS: u64 = 0;
pub(crate) const STOLEN_TICKS: u64 = 1;
pub(crate) const NESTED_FAULTS: u64 = 2;
pub(crate) const EMULATED: u64 = 5;
pub(crate) const CPUID_EXITS: u64 = 0x100;
pub(crate) const HYPERCALL_EXITS: u64 = 0x10F;

/// Words of the page of counters.
pub(crate) mod word {
    pub(crate) const SEQUENCE: usize = 0x10 / 8;
    pub(crate) const OVERFLOWED: usize = 0x18 / 8;
    pub(crate) const STOLEN_TICKS: usize = 0x20 / 8;
    pub(crate) const INJECTED_PMIS: usize = 0x28 / 8;
    pub(crate) const INJECTED_INTERRUPTS: usize = 0x30 / 8;
    pub(crate) const EMULATED: usize = 0x38 / 8;
    pub(crate) const EXITS: usize = 0x100 / 8;
    pub(crate) const CPUID: usize = EXITS;
    pub(crate) const NESTED_FAULTS: usize = EXITS + 6;
    pub(crate) const HYPERCALLS: usize = EXITS + 15;
}

/// The open block.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Open {
    pub(crate) version: u32,
    pub(crate) length: u32,
    pub(crate) flags: u64,
    pub(crate) event_type: u32,
    pub(crate) reserved0: u32,
    pub(crate) config: u64,
    pub(crate) period: u64,
    pub(crate) result: u64,
    pub(crate) id: u32,
    pub(crate) reserved1: u32,
    pub(crate) reserved2: u64,
}

/// What stands in a result block.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) enabled: bool,
    pub(crate) count: u64,
    pub(crate) overflows: u64,
}

#[repr(align(4096))]
struct Aligned(#[expect(dead_code, reason = "only its address is used")] [u64; 512]);

static mut BLOCK: Aligned = Aligned([0; 512]);
static mut RESULTS: Aligned = Aligned([0; 512]);
static mut COUNTERS: Aligned = Aligned([0; 512]);
static mut INTEL: bool = false;

/// Finds out how this processor makes calls.
pub(crate) unsafe fn prepare() {
    INTEL = cpu::is_intel();
}

/// Makes a call with these registers, and returns RAX; fails the machine if another register has changed.
pub(crate) unsafe fn raw_call(rax: u64, rbx: u64, rcx: u64, rdx: u64) -> u64 {
    let (status, changed): (u64, u64);
    asm!(
        "push rbx",
        "mov rbx, r8",
        "mov r10, rcx",
        "mov r11, rdx",
        "test r9d, r9d",
        "jz 2f",
        "vmcall",
        "jmp 3f",
        "2: vmmcall",
        "3:",
        "xor rbx, r8",
        "xor rcx, r10",
        "xor rdx, r11",
        "or rbx, rcx",
        "or rbx, rdx",
        "mov r8, rbx",
        "pop rbx",
        inlateout("rax") rax => status, inlateout("r8") rbx => changed, inlateout("rcx") rcx => _,
        inlateout("rdx") rdx => _, in("r9") u64::from(INTEL), out("r10") _, out("r11") _,
    );
    assert!(changed == 0, "a call has changed a register");
    status
}

/// Makes a call, with whatever in the upper halves.
pub(crate) unsafe fn call(operation: u32, id: u32, address: u64) -> u32 {
    let junk = 0xABCD_EF01_u64 << 32;
    let rax = junk | u64::from(0x4C48_0000 + operation);
    let status = raw_call(rax, junk | u64::from(id), junk | address & 0xFFFF_FFFF, junk | address >> 32);
    assert!(status >> 32 == 0, "the upper half of RAX is not 0");
    status as u32
}

/// Makes a call that must succeed.
pub(crate) unsafe fn done(operation: u32, id: u32, address: u64) -> Outcome {
    same("a call's status", call(operation, id, address), 0u32)
}

/// Returns where event `id` has its result block.
pub(crate) fn result_address(id: u32) -> u64 {
    physical(addr_of!(RESULTS)) + 32 * u64::from(id)
}

/// Returns where the open block stands.
pub(crate) fn block_address() -> u64 {
    physical(addr_of!(BLOCK))
}

/// Returns where the page of counters stands.
pub(crate) fn page_address() -> u64 {
    physical(addr_of!(COUNTERS))
}

/// Returns a word of the page of counters, to write it.
pub(crate) fn page_word(number: usize) -> *mut u64 {
    addr_of_mut!(COUNTERS).cast::<u64>().wrapping_add(number)
}

/// Returns a word of the page that holds the open block, to write it.
pub(crate) fn block_word(number: usize) -> *mut u64 {
    addr_of_mut!(BLOCK).cast::<u64>().wrapping_add(number)
}

/// Returns the open block of a software event.
pub(crate) fn event(id: u32, config: u64, period: u64) -> Open {
    Open {
        version: 1,
        length: 64,
        flags: u64::from(period != 0),
        event_type: 1,
        reserved0: 0,
        config,
        period,
        result: result_address(id),
        id,
        reserved1: 0,
        reserved2: 0,
    }
}

/// Writes the head of event `id`'s result block.
pub(crate) unsafe fn write_head(id: u32, version: u32, length: u32, flags: u64) {
    let block = addr_of_mut!(RESULTS).cast::<u64>().add(4 * id as usize);
    block.write_volatile(u64::from(version) | u64::from(length) << 32);
    block.add(1).write_volatile(flags);
}

/// Opens what a block says, with a result block that is as it should be.
pub(crate) unsafe fn open(block: &Open) -> u32 {
    if block.id < 16 {
        write_head(block.id, 1, 32, 0);
    }
    open_as_is(block)
}

/// Opens what a block says.
pub(crate) unsafe fn open_as_is(block: &Open) -> u32 {
    addr_of_mut!(BLOCK).cast::<Open>().write_volatile(*block);
    call(OPEN, 0, block_address())
}

/// Opens an event that must open, and starts it.
pub(crate) unsafe fn start(block: &Open) -> Outcome {
    same("OPEN", open(block), 0u32)?;
    done(ENABLE, block.id, 0)
}

/// Reads a result block as it stands.
pub(crate) unsafe fn result(id: u32) -> Found {
    let block = addr_of!(RESULTS).cast::<u64>().add(4 * id as usize);
    let [enabled, count, overflows] = [1, 2, 3].map(|number| block.add(number).read_volatile());
    Found { enabled: enabled & 1 != 0, count, overflows }
}

/// Reads words of the page that were true at one moment.
pub(crate) unsafe fn read_page<const N: usize>(words: [usize; N]) -> [u64; N] {
    let at = |number: usize| page_word(number).cast_const().read_volatile();
    loop {
        let before = at(word::SEQUENCE);
        let found = words.map(at);
        if before & 1 == 0 && at(word::SEQUENCE) == before {
            return found;
        }
    }
}

/// Returns the sum of the exits of all reasons, as the page has them.
pub(crate) unsafe fn all_exits() -> u64 {
    read_page(core::array::from_fn::<usize, 64, _>(|reason| word::EXITS + reason)).iter().sum()
}

/// Executes CPUID `times` times.
pub(crate) fn leave(times: u32) {
    for _ in 0..times {
        cpu::cpuid(0, 0);
    }
}
