//! Every call that is refused, and that nothing of it stays.

use crate::abi::*;
use guests::report::{Outcome, Tests, check, same};

/// Above the guest's memory, and above all memory.
const NOWHERE: [u64; 3] = [0xB000_0000, 1 << 45, !0xFFF];

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("unknown-calls", unknown);
    tests.run("open-refused", opens);
    tests.run("result-refused", results);
    tests.run("identifiers", identifiers);
    tests.run("addresses", addresses);
    tests.run("overlap", overlap);
}

unsafe fn unknown() -> Outcome {
    for number in [0, 99, 0x4C48_0000, 0x4C48_0009, 0x4C48_0100, 0x4C49_0001] {
        same("a call that is none", raw_call(number, 1, 2, 3), u64::MAX)?;
    }
    Ok(())
}

unsafe fn opens() -> Outcome {
    let good = event(3, CPUID_EXITS, 0);
    let cases = [
        (Open { version: 0, ..good }, WRONG_VERSION),
        (Open { version: 2, ..good }, WRONG_VERSION),
        (Open { length: 60, ..good }, WRONG_LENGTH),
        (Open { length: 128, ..good }, WRONG_LENGTH),
        (Open { flags: 2, ..good }, RESERVED_BITS),
        (Open { flags: 1 << 63, ..good }, RESERVED_BITS),
        (Open { reserved0: 1, ..good }, RESERVED_BITS),
        (Open { reserved1: 1, ..good }, RESERVED_BITS),
        (Open { reserved2: 1, ..good }, RESERVED_BITS),
        (Open { event_type: 0, ..good }, UNSUPPORTED_TYPE),
        (Open { event_type: 5, ..good }, UNSUPPORTED_TYPE),
        (Open { config: 6, ..good }, UNSUPPORTED_EVENT),
        (Open { config: 0x140, ..good }, UNSUPPORTED_EVENT),
        (Open { config: 1 << 40, ..good }, UNSUPPORTED_EVENT),
        (Open { event_type: 2, config: 0x9999, ..good }, UNSUPPORTED_EVENT),
        (Open { event_type: 2, config: 1 << 40, ..good }, RESERVED_BITS),
        (Open { flags: 1, ..good }, NO_PERIOD),
        (Open { result: good.result + 4, ..good }, UNALIGNED),
        (Open { result: NOWHERE[0], ..good }, BAD_ADDRESS),
        (Open { result: NOWHERE[2], ..good }, BAD_ADDRESS),
        (Open { id: 16, ..good }, ID_OUT_OF_RANGE),
        (Open { id: u32::MAX, ..good }, ID_OUT_OF_RANGE),
    ];
    for (block, refusal) in cases {
        same("OPEN", open(&block), refusal)?;
        same("nothing is open after it", call(READ, 3, 0), UNKNOWN_ID)?;
    }
    same("the block they were made of", open(&good), 0u32)?;
    done(CLOSE, 3, 0)
}

unsafe fn results() -> Outcome {
    let good = event(3, CPUID_EXITS, 0);
    for (version, length, flags, refusal) in
        [(2, 32, 0, WRONG_VERSION), (1, 24, 0, WRONG_LENGTH), (1, 32, 1, RESERVED_BITS)]
    {
        write_head(3, version, length, flags);
        same("the head of a result block", open_as_is(&good), refusal)?;
    }
    Ok(())
}

unsafe fn identifiers() -> Outcome {
    same("OPEN", open(&event(15, ALL_EXITS, 0)), 0u32)?;
    same("OPEN of what is open", open(&event(15, CPUID_EXITS, 0)), ID_IN_USE)?;
    for operation in [CLOSE, ENABLE, DISABLE, READ] {
        same("an event that is not open", call(operation, 14, 0), UNKNOWN_ID)?;
        same("16", call(operation, 16, 0), ID_OUT_OF_RANGE)?;
        same("-1", call(operation, u32::MAX, 0), ID_OUT_OF_RANGE)?;
    }
    done(CLOSE, 15, 0)?;
    same("CLOSE of what is closed", call(CLOSE, 15, 0), UNKNOWN_ID)?;
    for id in 0..16 {
        same("as many as CPUID says", open(&event(id, ALL_EXITS, 0)), 0u32)?;
    }
    done(RESET, 0, 0)?;
    same("RESET closes all", call(READ, 7, 0), UNKNOWN_ID)
}

unsafe fn addresses() -> Outcome {
    for address in NOWHERE {
        same("an open block that is not memory", call(OPEN, 0, address), BAD_ADDRESS)?;
        same("a page that is not memory", call(PAGE, 0, address), BAD_ADDRESS)?;
    }
    same("an open block between words", call(OPEN, 0, block_address() + 4), UNALIGNED)?;
    same("a page between pages", call(PAGE, 0, page_address() + 8), UNALIGNED)
}

unsafe fn overlap() -> Outcome {
    same("OPEN", open(&event(0, ALL_EXITS, 0)), 0u32)?;
    same("the page over a result block", call(PAGE, 0, result_address(0) & !0xFFF), OVERLAP)?;
    done(PAGE, 0, page_address())?;
    let inside = Open { result: page_address() + 0x800, ..event(1, ALL_EXITS, 0) };
    same("a result block in the page", open_as_is(&inside), OVERLAP)?;
    done(RESET, 0, 0)?;
    check(result(0).count == 0 && !result(0).enabled, "a result block was written")
}
