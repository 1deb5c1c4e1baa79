//! The model: events that count one by one; and the world that calls, exits and counters make around both.

use super::request;
use crate::address::Gpa;
use crate::exit::Width;
use crate::memory::GuestMemory;
use crate::pmu::paravirt::abi::*;
use crate::pmu::paravirt::request::{Counted, Request};
use crate::pmu::paravirt::{Answer, Call, CounterId, CounterSource, HardwareEvent, NotLent, Paravirt};
use crate::trace::{KINDS, Kind, Trace};
use proptest::prelude::*;
use std::collections::BTreeMap;

pub(super) const MEMORY: u64 = 0x6000;
pub(super) const OPEN: u64 = 0x100;
pub(super) const RESULTS: u64 = 0x1000;

/// A counter that is lent.
#[derive(Debug)]
pub(super) struct Lent {
    left: u64,
    running: bool,
    value: u64,
}

/// A source with a few counters, which count nothing but event C0H.
#[derive(Debug, Default)]
pub(super) struct Lab {
    pub(super) lent: BTreeMap<u32, Lent>,
}

impl Lab {
    pub(super) const COUNTERS: u32 = 3;

    /// Returns whether a counter has counted what it was watched for.
    fn advance(&mut self, by: u64) -> bool {
        let mut reached = false;
        for lent in self.lent.values_mut().filter(|lent| lent.running) {
            lent.value += by;
            reached |= (1..=by).contains(&lent.left);
            lent.left = lent.left.saturating_sub(by);
        }
        reached
    }

    fn get(&mut self, counter: CounterId) -> &mut Lent {
        self.lent.get_mut(&counter.0).expect("a counter that is lent")
    }
}

impl CounterSource for Lab {
    fn open(&mut self, event: HardwareEvent) -> Result<CounterId, NotLent> {
        if event.bits() & 0xFF != 0xC0 {
            return Err(NotLent::Unsupported);
        }
        let free = (0..Self::COUNTERS).find(|id| !self.lent.contains_key(id)).ok_or(NotLent::NoneFree)?;
        self.lent.insert(free, Lent { left: 0, running: false, value: 0 });
        Ok(CounterId(free))
    }
    fn start(&mut self, counter: CounterId, ahead: u64) {
        let lent = self.get(counter);
        lent.left = ahead;
        assert!(!core::mem::replace(&mut lent.running, true), "started twice");
    }
    fn stop(&mut self, counter: CounterId) {
        self.get(counter).running = false;
    }
    fn read(&mut self, counter: CounterId) -> u64 {
        self.get(counter).value
    }
    fn watch(&mut self, counter: CounterId, ahead: u64) {
        assert!(self.get(counter).running, "watched while it stands still");
        self.get(counter).left = ahead;
    }
    fn close(&mut self, counter: CounterId) {
        assert!(!self.get(counter).running, "closed while it counts");
        self.lent.remove(&counter.0);
    }
}

/// What is tested, with all it needs.
pub(super) struct World {
    pub(super) paravirt: Paravirt,
    pub(super) memory: GuestMemory,
    pub(super) trace: Trace,
    pub(super) lab: Lab,
    /// Notifications that were raised.
    pub(super) raised: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let (memory, trace) = (GuestMemory::for_tests(MEMORY as usize), Trace::new(0));
        Self { paravirt: Paravirt::new(), memory, trace, lab: Lab::default(), raised: 0 }
    }

    /// An exit, as the run loop sees to it.
    pub(super) fn exit(&mut self, kind: Kind, ticks: u64) {
        self.trace.handled(kind, || 0);
        if self.paravirt.asked() && self.paravirt.handled(kind, ticks, &self.trace, &mut self.memory) {
            self.paravirt.count_pmi();
            self.raised += 1;
        }
        self.paravirt.refresh(&self.trace, &mut self.memory);
    }

    pub(super) fn call(&mut self, operation: Operation, id: u32, address: u64) -> Answer {
        let call = Call { operation, id, address: Gpa::new(address) };
        let answer = self.paravirt.hypercall(call, &mut self.memory, &self.trace, &mut self.lab);
        self.exit(Kind::Hypercall, 1);
        answer
    }

    pub(super) fn open(&mut self, request: &Request) -> Answer {
        self.open_with(request, 1 | 32 << 32, 0)
    }

    /// Opens an event whose result block begins with these two words.
    pub(super) fn open_with(&mut self, request: &Request, head: u64, flags: u64) -> Answer {
        self.memory.write(Gpa::new(OPEN), &request.encode().to_bytes()).expect("memory");
        let head = [(request.result, head), (request.result.wrapping_add(8), flags)];
        // A guest that is at peace with itself leaves its page alone; what is not memory takes nothing.
        if self.paravirt.page().is_none_or(|page| page.as_u64() / 0x1000 != request.result.as_u64() / 0x1000) {
            for (address, word) in head {
                let _ = self.memory.write_number(address, Width::Qword, word);
            }
        }
        self.call(Operation::Open, 0, OPEN)
    }

    pub(super) fn result(&self, address: u64) -> ResultBlock {
        let mut bytes = [0; ResultBlock::LENGTH as usize];
        self.memory.read(Gpa::new(address), &mut bytes).expect("memory");
        ResultBlock::from_bytes(&bytes)
    }

    pub(super) fn page(&self, address: u64) -> PageBlock {
        let mut bytes = [0; PageBlock::LENGTH as usize];
        self.memory.read(Gpa::new(address), &mut bytes).expect("memory");
        PageBlock::from_bytes(&bytes)
    }
}

/// An event of the model.
struct Modelled {
    request: Request,
    enabled: bool,
    count: u64,
    overflows: u64,
    /// Overflows that nobody has seen yet.
    unseen: u64,
    overflowed: bool,
    /// The result block, as it was last written: enabled, count, overflows.
    written: (bool, u64, u64),
}

impl Modelled {
    /// Software overflows are found when somebody looks; returns whether the guest is to be told.
    fn find(&mut self) -> bool {
        let found = core::mem::take(&mut self.unseen);
        self.overflows += found;
        self.overflowed |= found > 0;
        found > 0 && self.request.notify
    }
}

/// What has happened in the model, by counter; and the events.
struct Model {
    events: BTreeMap<u32, Modelled>,
    page: Option<u64>,
    exits: [u64; REASONS],
    stolen: u64,
    pmis: u64,
    interrupts: u64,
    emulated: u64,
    /// Whether an overflow is to be notified.
    due: bool,
}

impl Model {
    fn new() -> Self {
        let (events, exits) = (BTreeMap::new(), [0; REASONS]);
        Self { events, page: None, exits, stolen: 0, pmis: 0, interrupts: 0, emulated: 0, due: false }
    }

    /// Counts one for all events that `matches`.
    fn count(&mut self, matches: impl Fn(&Counted) -> bool) {
        for event in self.events.values_mut().filter(|event| event.enabled && matches(&event.request.counted)) {
            event.count += 1;
            if event.request.period != 0 && event.count.is_multiple_of(event.request.period) {
                event.unseen += 1;
            }
        }
    }

    /// Finds the overflows of all events that `matches`.
    fn find_in(&mut self, matches: impl Fn(&Counted) -> bool) {
        for event in self.events.values_mut().filter(|event| matches(&event.request.counted)) {
            self.due |= event.find();
        }
    }

    fn asked(&self) -> bool {
        let stolen = |event: &Modelled| event.request.counted == Counted::Software(Software::StolenTicks);
        let watched = |event: &Modelled| {
            event.enabled && event.request.period != 0 && !matches!(event.request.counted, Counted::Hardware(_))
        };
        self.page.is_some() || self.due || self.events.values().any(|event| stolen(event) || watched(event))
    }

    /// An exit; `but` has been enabled by it.
    fn exit(&mut self, kind: Kind, ticks: u64, but: Option<u32>) {
        let reason = Reason::from(kind);
        let asked = self.asked();
        self.exits[reason.number() as usize] += 1;
        let held = but.and_then(|id| self.events.get_mut(&id)).map(|event| core::mem::take(&mut event.enabled));
        self.count(|counted| match counted {
            Counted::Software(Software::Exits) => true,
            Counted::Software(Software::NestedFaults) => kind == Kind::NestedPageFault,
            Counted::Exits(of) => *of == reason,
            _ => false,
        });
        if let (Some(id), Some(enabled)) = (but, held) {
            self.events.get_mut(&id).expect("held").enabled = enabled;
        }
        if asked && kind != Kind::Halt {
            self.stolen += ticks;
            (0..ticks).for_each(|_| self.count(|counted| *counted == Counted::Software(Software::StolenTicks)));
        }
        self.find_in(|_| true);
    }

    fn notified(&mut self) -> u64 {
        let due = core::mem::take(&mut self.due);
        if due {
            self.pmis += 1;
            self.count(|counted| *counted == Counted::Software(Software::InjectedPmis));
        }
        due.into()
    }

    fn call(&mut self, operation: Operation, id: u32, address: u64) -> Answer {
        let overlaps = |result: u64, page: u64| (page..page + 0x1000).any(|byte| (result..result + 32).contains(&byte));
        match operation {
            Operation::Page => {
                if !address.is_multiple_of(0x1000) {
                    return Err(Refusal::Unaligned);
                }
                if address + 0x1000 > MEMORY {
                    return Err(Refusal::BadAddress);
                }
                if self.events.values().any(|event| overlaps(event.request.result.as_u64(), address)) {
                    return Err(Refusal::Overlap);
                }
                self.page = Some(address);
                return Ok(());
            }
            Operation::PageOff => {
                self.page = None;
                return Ok(());
            }
            Operation::Reset => {
                self.events.clear();
                (self.page, self.due) = (None, false);
                return Ok(());
            }
            _ => {}
        }
        if id >= 16 {
            return Err(Refusal::IdOutOfRange);
        }
        if operation == Operation::Close {
            return self.events.remove(&id).map(|_| ()).ok_or(Refusal::UnknownId);
        }
        let event = self.events.get_mut(&id).ok_or(Refusal::UnknownId)?;
        if operation == Operation::Enable {
            event.enabled = true;
            return Ok(());
        }
        self.due |= event.find();
        event.enabled &= operation == Operation::Read;
        event.overflowed = false;
        event.written = (event.enabled, event.count, event.overflows);
        Ok(())
    }

    fn open(&mut self, request: &Request) -> Answer {
        if request.id >= 16 {
            return Err(Refusal::IdOutOfRange);
        }
        if self.events.contains_key(&request.id) {
            return Err(Refusal::IdInUse);
        }
        if self.page.is_some_and(|page| (page..page + 0x1000).contains(&request.result.as_u64())) {
            return Err(Refusal::Overlap);
        }
        if let Counted::Hardware(event) = request.counted {
            if event.bits() & 0xFF != 0xC0 {
                return Err(Refusal::UnsupportedEvent);
            }
            let lent = self.events.values().filter(|event| matches!(event.request.counted, Counted::Hardware(_)));
            if lent.count() as u32 == Lab::COUNTERS {
                return Err(Refusal::TooManyEvents);
            }
        }
        let event = Modelled {
            request: *request,
            enabled: false,
            count: 0,
            overflows: 0,
            unseen: 0,
            overflowed: false,
            written: (false, 0, 0),
        };
        self.events.insert(request.id, event);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Open(Request),
    Call(Operation, u32, u64),
    Exit(u8, u64),
    Interrupt,
    Emulated,
    Hardware(u64),
    Migrate,
}

fn id() -> impl Strategy<Value = u32> {
    prop_oneof![9 => 0u32..4, 1 => 14u32..18]
}

fn counted() -> impl Strategy<Value = Counted> {
    prop_oneof![
        proptest::sample::select(Software::ALL).prop_map(Counted::Software),
        proptest::sample::select(&Reason::ALL[..16]).prop_map(Counted::Exits),
        proptest::sample::select(&[0xC0u64, 0xC0, 0x11])
            .prop_map(|event| { Counted::Hardware(HardwareEvent::new(event).expect("a legal selector")) }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let open = (id(), counted(), prop_oneof![Just(0u64), 1u64..6], any::<bool>(), 0u64..3).prop_map(
        |(id, counted, period, notify, page)| {
            let result = Gpa::new(RESULTS + page * 0x1800 + 0x20 * u64::from(id));
            Step::Open(Request { period, notify: notify && period != 0, result, ..request(id, counted) })
        },
    );
    let operation = proptest::sample::select(&Operation::ALL[1..5]);
    let page = proptest::sample::select(&[0x3000u64, 0x3000, 0x4000, 0x1000, 0x3008, MEMORY, MEMORY + 1]);
    prop_oneof![
        4 => open,
        12 => (operation, id()).prop_map(|(operation, id)| Step::Call(operation, id, 0)),
        2 => page.prop_map(|page| Step::Call(Operation::Page, 0, page)),
        1 => proptest::sample::select(&[Operation::PageOff, Operation::Reset])
            .prop_map(|operation| Step::Call(operation, 0, 0)),
        12 => (0u8..KINDS as u8, 0u64..9).prop_map(|(kind, ticks)| Step::Exit(kind, ticks)),
        2 => Just(Step::Interrupt),
        1 => Just(Step::Emulated),
        4 => (0u64..9).prop_map(Step::Hardware),
        1 => Just(Step::Migrate),
    ]
}

fn kind(number: u8) -> Kind {
    Reason::from_number(number.into()).expect("as many reasons as kinds").into()
}

/// Moves what is tested to another host, whose trace has seen other exits and whose counters are fresh.
fn migrate(world: &mut World) {
    let state = world.paravirt.save(&world.trace, &mut world.lab).to_bytes();
    (world.trace, world.lab) = (Trace::new(1), Lab::default());
    (0..7).for_each(|number| world.trace.handled(kind(number * 2), || 0));
    let restored = Paravirt::restore(&State::from_bytes(&state), &world.memory, &world.trace, &mut world.lab);
    world.paravirt = restored.expect("what was saved");
}

fn take(world: &mut World, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Open(request) => {
            prop_assert_eq!(world.open(&request), model.open(&request));
            // The guest writes the head of a result block once more, if it is one.
            let same = model.events.values_mut().filter(|event| event.request.result == request.result);
            same.for_each(|event| event.written.0 = false);
            model.exit(Kind::Hypercall, 1, None);
        }
        Step::Call(operation, id, address) => {
            let was_enabled = model.events.get(&id).is_some_and(|event| event.enabled);
            prop_assert_eq!(world.call(operation, id, address), model.call(operation, id, address));
            let fresh = operation == Operation::Enable && !was_enabled;
            model.exit(Kind::Hypercall, 1, fresh.then_some(id));
        }
        Step::Exit(number, ticks) => {
            world.exit(kind(number), ticks);
            model.exit(kind(number), ticks, None);
        }
        Step::Interrupt => {
            world.paravirt.count_interrupt();
            model.interrupts += 1;
            model.count(|counted| *counted == Counted::Software(Software::InjectedInterrupts));
        }
        Step::Emulated => {
            world.paravirt.count_emulated();
            model.emulated += 1;
            model.count(|counted| *counted == Counted::Software(Software::EmulatedInstructions));
        }
        Step::Hardware(by) => {
            if world.lab.advance(by) {
                world.paravirt.look(&world.trace, &mut world.lab);
            }
            (0..by).for_each(|_| model.count(|counted| matches!(counted, Counted::Hardware(_))));
            model.find_in(|counted| matches!(counted, Counted::Hardware(_)));
        }
        Step::Migrate => {
            migrate(world);
            model.find_in(|_| true);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    /// B1, B2, B3, B7 and B8: whatever is called in whatever order, answers, result blocks, notifications and the page
    /// are those of a model that counts one by one.
    #[test]
    fn any_sequence_of_calls_does_what_a_simple_model_does(steps in proptest::collection::vec(step(), 1..80)) {
        let (mut world, mut model, mut raised) = (World::new(), Model::new(), 0);
        let under: [(u64, u64); 4] = [(0x3000, 1), (0x3010, 2), (0x3100, 3), (0x3FF8, 4)];
        for (address, value) in under {
            world.memory.write_number(Gpa::new(address), Width::Qword, value).expect("memory");
        }
        for step in steps {
            take(&mut world, &mut model, step)?;
            // What is only a count so far is seen at the next exit.
            if !matches!(step, Step::Interrupt | Step::Emulated | Step::Hardware(_) | Step::Migrate) {
                raised += model.notified();
                prop_assert_eq!(world.raised, raised);
            }
            for (id, event) in &model.events {
                let block = world.result(event.request.result.as_u64());
                prop_assert_eq!((block.flags == RESULT_ENABLED, block.count, block.overflows), event.written, "{}", id);
            }
            if model.page != Some(0x3000) {
                let found = under.map(|(address, _)| (address, world.memory.word(Gpa::new(address)).unwrap_or(0)));
                prop_assert_eq!(found, under, "the guest's memory is as it was");
            }
            let quiet = matches!(step, Step::Exit(..) | Step::Open(_) | Step::Call(..));
            if let Some(address) = model.page.filter(|_| quiet) {
                let page = world.page(address);
                prop_assert_eq!(page.sequence % 2, 0);
                prop_assert_eq!(page.exits, model.exits);
                let own = (page.stolen_ticks, page.injected_interrupts, page.emulated_instructions, page.injected_pmis);
                prop_assert_eq!(own, (model.stolen, model.interrupts, model.emulated, model.pmis));
                let overflowed = model.events.iter().filter(|(_, event)| event.overflowed);
                prop_assert_eq!(page.overflowed, overflowed.fold(0, |bits, (id, _)| bits | 1 << id));
            }
        }
    }
}
