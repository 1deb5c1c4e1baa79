//! Event delivery: through a table of handlers, with a frame on the guest's stack (SDM Vol. 3A 6.12, 6.14, 6.15).

use super::check::has_error_code;
use super::processor::{Processor, Record, Shadow};
use crate::address::{Gpa, Gva};
use crate::exit::{Event, Exit, NestedPageFault, Width};

const DOUBLE_FAULT: Event = Event::Exception { vector: 8, error_code: Some(0) };
const RSP: usize = 4;
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
const CODE_SELECTOR: u64 = 8;

/// Why a delivery came to no end.
enum Failed {
    /// The frame met nested paging.
    Exit(Exit),
    /// There is no handler.
    NoHandler,
}

/// The class of an exception that meets another (SDM Vol. 3A table 6-4).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(event: Event) -> Class {
    match event {
        Event::Exception { vector: 8, .. } => Class::DoubleFault,
        Event::Exception { vector: 14 | 20, .. } => Class::PageFault,
        Event::Exception { vector: 0 | 10 | 11 | 12 | 13 | 21, .. } => Class::Contributory,
        _ => Class::Benign,
    }
}

impl Processor {
    /// Delivers an event, and whatever its delivery raises. Returns the exit that interrupts it, if one does; the
    /// guest then stands where it stood.
    pub(super) fn deliver(&mut self, event: Event) -> Option<Exit> {
        let mut event = event;
        loop {
            match self.try_deliver(event) {
                Ok(()) => return None,
                Err(Failed::Exit(exit)) => {
                    self.interrupted = Some(event);
                    return Some(exit);
                }
                Err(Failed::NoHandler) => {}
            }
            // The selector's place in the IDT is the error code; bit 0 tells an event from outside the program.
            let external = u32::from(!matches!(event, Event::Software { .. }));
            self.doing.retires = false;
            event = match (event, class(event)) {
                (_, Class::DoubleFault) => return Some(Exit::Shutdown),
                // #GP is contributory.
                (_, Class::Contributory | Class::PageFault) => DOUBLE_FAULT,
                (event, Class::Benign) => {
                    let code = u32::from(vector_of(event)) << 3 | 2 | external;
                    Event::Exception { vector: 13, error_code: Some(code) }
                }
            };
        }
    }

    fn try_deliver(&mut self, event: Event) -> Result<(), Failed> {
        let vector = vector_of(event);
        let handler = *self.handlers.get(&vector).ok_or(Failed::NoHandler)?;
        let (resume, error_code) = match event {
            Event::Software { length, .. } => (self.rip.wrapping_add(length.into()) & 0xFFFF_FFFF, None),
            Event::Exception { error_code, .. } => (self.rip, error_code.filter(|_| has_error_code(vector))),
            _ => (self.rip, None),
        };
        let frame = [Some(self.rflags), Some(CODE_SELECTOR), Some(resume), error_code.map(u64::from)];
        let top = self.gprs[RSP] & 0xFFFF_FFFF;
        if self.unmap_stack_once_in > 0 && self.random.once_in(self.unmap_stack_once_in) {
            self.nested.set(Gpa::new(top.wrapping_sub(4)), None);
            self.nested.flush();
        }
        let pushes = || (1u64..).zip(frame.into_iter().flatten());
        // A delivery changes nothing before its whole frame can be written.
        for (index, _) in pushes() {
            self.stack_access(top.wrapping_sub(4 * index) & 0xFFFF_FFFF).map_err(Failed::Exit)?;
        }
        for (index, value) in pushes() {
            let at = top.wrapping_sub(4 * index) & 0xFFFF_FFFF;
            self.write_memory(at, Width::Dword, value);
        }
        self.gprs[RSP] = top.wrapping_sub(4 * pushes().count() as u64) & 0xFFFF_FFFF;
        self.rip = handler.into();
        self.rflags &= !(RFLAGS_IF | RFLAGS_TF | 1 << 14 | 1 << 16);
        self.shadow = Shadow::None;
        self.step = false;
        self.nmi_blocked |= event == Event::Nmi;
        self.records.push(Record::Delivered(event, self.now()));
        Ok(())
    }

    /// Returns the exit that a write of 32 bits to the stack causes, if it does. A word across two pages meets both.
    fn stack_access(&self, address: u64) -> Result<(), Exit> {
        for end in [address, address.wrapping_add(3) & 0xFFFF_FFFF] {
            self.translate(end, true)?;
        }
        Ok(())
    }

    /// Returns the exit that an access to a byte causes, if it does.
    pub(super) fn translate(&self, address: u64, write: bool) -> Result<(), Exit> {
        self.nested.check(address, |access| if write { access.write } else { access.read }).map_err(|refused| {
            let gva = (self.vendor == super::Vendor::Intel).then(|| Gva::new(address));
            Exit::NestedPageFault(NestedPageFault {
                gpa: Gpa::new(address),
                gva,
                write,
                fetch: false,
                present: refused.present,
                page_walk: false,
            })
        })
    }

    /// Writes memory that has been translated; nothing lies past its end.
    pub(super) fn write_memory(&mut self, address: u64, width: Width, value: u64) {
        self.touch(address, width);
        self.memory.write_number(Gpa::new(address), width, value & width.mask()).expect("translated: it is memory");
    }

    /// Reads memory that has been translated.
    pub(super) fn read_memory(&self, address: u64, width: Width) -> u64 {
        self.touch(address, width);
        self.memory.read_number(Gpa::new(address), width).expect("translated: it is memory")
    }
}

fn vector_of(event: Event) -> u8 {
    match event {
        Event::Interrupt(vector) | Event::Exception { vector, .. } | Event::Software { vector, .. } => vector,
        Event::Nmi => 2,
    }
}
