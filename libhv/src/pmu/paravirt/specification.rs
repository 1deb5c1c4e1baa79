//! The specification and the C header, generated from the definition and compared with what is checked in.
//!
//! `LIBHV_WRITE_SPECIFICATION=1 cargo test -p libhv specification` writes both anew.

use super::abi::*;
use super::layout::{Field, Named};
use std::fmt::Write;
use std::string::String;
use std::{format, fs, print};

const HEAD: &str =
    "Paravirtual events: what a guest can have counted that no counter of its own counts, and a page that tells it without an
exit what its hypervisor costs it (requirements B1 to B10).

This text is the ABI. The tables are generated from `abi.rs`, and a test compares.

# 1. Detection
The guest reads CPUID leaf 40000000H: EBX, ECX and EDX hold \"LibhvLibhv  \", EAX the highest leaf. Where that is not below
CPUID_LEAF, the guest reads CPUID_LEAF: EAX is the highest version of this interface, 0 where there is none; EBX is
MAX_EVENTS; ECX has the features; EDX is how many hardware events can be open at a time.

";

const CALLS: &str = "# 2. Calls
A call is VMCALL on Intel's processors and VMMCALL on AMD's, at CPL 0; at any other it raises #UD. EAX holds CALL plus the
operation's number, EBX an event's identifier, ECX the lower and EDX the upper half of a guest-physical address, where the
operation takes them. Only the lower halves of registers count, in 64-bit mode too, so that 32- and 64-bit guests call
alike.

After the call EAX is 0, or the number of the reason why it was refused, and the upper half of RAX is 0. All ones in RAX say
that there is no such call. No other register changes. A refused call has changed nothing.

Identifiers are the guest's choice, 0 to MAX_EVENTS - 1, each for one event of one virtual processor: events, page and calls
belong to the virtual processor that makes the call.

";

const BLOCKS: &str = "# 3. Blocks
Blocks lie in guest-physical memory, aligned to 8 bytes; the page of counters to 4096. All numbers are little-endian. There
is no padding that a compiler would choose: 32- and 64-bit guests lay blocks out alike. Every block begins with its version
and its length, and has a word for flags; a later version of the host knows the earlier versions of blocks.

";

const OPENING: &str = "# 4. Opening an event
The guest fills an open block and the head of a result block (version, length, flags 0) and calls Open. The open block is
read once, and is the guest's again after the call. The event is stopped, at 0, and its result block says so. The result
block is the host's to write until the event is closed.

";

const COUNTING: &str = "# 5. Counting
Enable has the event count what happens after the exit of that call. Disable stops it: what has happened before the exit of
that call is counted, and stands in the result block. Enable after Disable goes on from there. To enable what is enabled, or
to disable what is not, changes nothing; Disable then writes the result block all the same.

Read writes the result block of an event, enabled or not: `count` and `overflows` hold what had happened before the exit of
the call. No other way is there for the host to write it: a guest that has not called finds it as it was.

A hardware event counts what the guest executes, at the privilege levels that its flags name, and nothing of the host's.
What the host executes for the guest counts as if the guest had executed it, once: instructions that leave it, and such as
reach devices. A call is one instruction like any other, but neither of the two that start and stop an event is counted by
it: the instructions between an Enable and a Disable are those between the two, to the last one. Counting is the host's
business only where the guest has no PMU of its own: else Open answers OwnCounters, and the guest counts by itself.

Close forgets the event. The result block stays as it is. To close what is not open is an error that changes nothing.

";

const NOTIFICATION: &str = "# 6. Overflow and notification
With a period an event overflows whenever its count passes a multiple of the period, counted from Open. For a hardware event
that is when the processor tells, which may be some instructions later. `overflows` grows by
one each time; nobody resets it, so that guest and host never race for it. With OPEN_NOTIFY an overflow raises the interrupt
in the local APIC's LVT entry for performance monitoring: a fixed vector or an NMI, as the guest has set it. Several overflows
between two entries raise one. On Intel's processors delivery masks the entry, and the handler unmasks it. The handler reads
the page's `overflowed`, or calls Read for each event that it has open, and compares `overflows` with what it was.

";

const PAGE: &str = "# 7. The page of counters
The guest names a page of its memory by Page; from the end of that call on, the host has brought it up to date whenever the
guest runs. Reading it does not leave the guest. The guest names the page, and not the host, because so it is ordinary
memory that the guest's own tables map and give to its users, it takes no address that an operating system would have to be
told of, and nobody who does not ask has one.

Nobody but the host writes to it: nested paging maps it read-only, all 4096 bytes, and what is not described here is 0. To
the guest it is ROM. A store to it is ignored and the guest goes on after it; it is an exit for reason 6 and an instruction
executed in software. Guests' devices do not write to it either. A write that is no store of an instruction that the host
executes in software (the frame of an interrupt or exception, the marks that a processor leaves in page tables, stores by
x87, MMX, AVX-512, FXSAVE and XSAVE) is not ignored: the host then gives the page up, as PageOff does, and the write takes
effect in the guest's memory. A guest that uses the page as stack or page table has no page of counters any more, and goes on.

What stood in the guest's memory there comes back when the page moves or is given up, by whichever of these it is. A reader
that could meet that moment looks at `version`, which is not VERSION in a page that was clear before it was named. No result
block may lie in the page.

";

const FLOW: &str = "# 8. Reset and migration
A reset of the guest, and Reset, close all events and give the page up. A saved state holds everything: what was counted goes
on from there on another host, where calls, identifiers and the page mean what they meant. Stolen ticks are those of each
host's own time-stamp counter.

# 9. The flow of use
1. Detect: CPUID_LEAF.
2. For notification: a handler, and its vector or NMI in the LVT entry for performance monitoring.
3. Open each event; Page once, for what the page holds.
4. Enable, let the guest work, Disable or Read, look at the result block; as often as needed.
5. Close each event; PageOff. A kernel that starts another in its place calls Reset.
";

fn named(to: &mut String, title: &str, rows: &[Named]) {
    let hex = rows.iter().any(|row| row.number > 0xFF);
    writeln!(to, "{title}\n\n| number | name | meaning |\n| --- | --- | --- |").expect("a String");
    for Named { name, number, about } in rows {
        let number = if hex { format!("{number:X}H") } else { format!("{number}") };
        writeln!(to, "| {number} | {name} | {} |", about.trim()).expect("a String");
    }
    to.push('\n');
}

fn fields(to: &mut String, about: &str, bytes: u32, rows: &[Field]) {
    let about = about.trim();
    writeln!(to, "{about} {bytes} bytes:\n\n| offset | bytes | field | meaning |\n| --- | --- | --- | --- |")
        .expect("a String");
    for Field { name, offset, bytes, about, .. } in rows {
        writeln!(to, "| {offset:X}H | {bytes} | {name} | {} |", about.trim()).expect("a String");
    }
    to.push('\n');
}

/// Returns the specification: all of `abi.md`.
fn specification() -> String {
    let mut text = String::from(HEAD);
    named(&mut text, "Constants:", CONSTANTS);
    named(&mut text, "Features, in ECX of CPUID_LEAF:", FEATURES);
    text += CALLS;
    named(&mut text, "Operations:", Operation::ROWS);
    named(&mut text, "Refusals:", Refusal::ROWS);
    text += BLOCKS;
    text += OPENING;
    fields(&mut text, OpenBlock::ABOUT, OpenBlock::LENGTH, OpenBlock::FIELDS);
    named(&mut text, "Flags for OPEN:", OPEN_FLAGS);
    named(&mut text, "Types of events:", EventType::ROWS);
    named(&mut text, "Software events:", Software::ROWS);
    named(&mut text, "Hardware events:", HARDWARE_EVENTS);
    named(&mut text, "Flags of hardware events:", HARDWARE_FLAGS);
    named(&mut text, "Reasons for exits:", Reason::ROWS);
    text += COUNTING;
    fields(&mut text, ResultBlock::ABOUT, ResultBlock::LENGTH, ResultBlock::FIELDS);
    named(&mut text, "Flags of a result:", RESULT_FLAGS);
    text += NOTIFICATION;
    text += PAGE;
    fields(&mut text, PageBlock::ABOUT, PageBlock::LENGTH, PageBlock::FIELDS);
    text += FLOW;
    text
}

/// Returns `CamelCase` as `CAMEL_CASE`.
fn upper(name: &str) -> String {
    let mut text = String::new();
    for (place, letter) in name.char_indices() {
        if letter.is_uppercase() && place > 0 && !name.chars().all(|letter| !letter.is_lowercase()) {
            text.push('_');
        }
        text.extend(letter.to_uppercase());
    }
    text
}

/// Returns the C header: all of `abi.h`.
fn header() -> String {
    let mut text = String::from(
        "/* Paravirtual events of libhv: generated from abi.rs, see abi.md. */\n#ifndef LIBHV_PARAVIRT_H\n#define \
         LIBHV_PARAVIRT_H\n\n#include <stddef.h>\n#include <stdint.h>\n\n",
    );
    let groups: [(&str, &[Named]); 11] = [
        ("", CONSTANTS),
        ("", FEATURES),
        ("OP_", Operation::ROWS),
        ("E_", Refusal::ROWS),
        ("", OPEN_FLAGS),
        ("TYPE_", EventType::ROWS),
        ("EVENT_", Software::ROWS),
        ("EVENT_", HARDWARE_EVENTS),
        ("", HARDWARE_FLAGS),
        ("REASON_", Reason::ROWS),
        ("", RESULT_FLAGS),
    ];
    for (prefix, rows) in groups {
        for Named { name, number, .. } in rows {
            let suffix = if *number > u64::from(u16::MAX) { "u" } else { "" };
            writeln!(text, "#define LIBHV_PV_{prefix}{} {number:#x}{suffix}", upper(name)).expect("a String");
        }
        text.push('\n');
    }
    let blocks = [
        ("open", OpenBlock::LENGTH, OpenBlock::FIELDS),
        ("result", ResultBlock::LENGTH, ResultBlock::FIELDS),
        ("page", PageBlock::LENGTH, PageBlock::FIELDS),
    ];
    for (block, bytes, rows) in blocks {
        writeln!(text, "struct libhv_pv_{block} {{").expect("a String");
        for Field { name, c_type: (c_type, count), .. } in rows {
            let array = if *count > 1 { format!("[{count}]") } else { String::new() };
            writeln!(text, "\t{c_type} {name}{array};").expect("a String");
        }
        writeln!(
            text,
            "}} __attribute__((aligned(8)));\n_Static_assert(sizeof(struct libhv_pv_{block}) == {bytes}, \"\");"
        )
        .expect("a String");
        for Field { name, offset, .. } in rows {
            writeln!(text, "_Static_assert(offsetof(struct libhv_pv_{block}, {name}) == {offset:#x}, \"\");")
                .expect("a String");
        }
        text.push('\n');
    }
    text + "#endif\n"
}

fn is_current(file: &str, checked_in: &str, generated: &str) {
    if std::env::var_os("LIBHV_WRITE_SPECIFICATION").is_some() {
        let path = format!("{}/src/pmu/paravirt/{file}", env!("CARGO_MANIFEST_DIR"));
        fs::write(&path, generated).expect("the source tree can be written");
        print!("wrote {path}");
        return;
    }
    assert!(checked_in == generated, "{file} is not what the definition generates");
}

/// Requirement B10.
#[test]
fn the_specification_is_what_the_definition_generates() {
    is_current("abi.md", include_str!("abi.md"), &specification());
}

/// Requirement B5.
#[test]
fn the_header_is_what_the_definition_generates() {
    is_current("abi.h", include_str!("abi.h"), &header());
}
