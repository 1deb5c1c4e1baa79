//! NMIs of the host's own performance counters, served where they arrive.

use super::interrupts;
use crate::hw::{GlobalSwitch, PmiRoute, PmuHardware, bare, counters};
use crate::pmu::host::{Place, Post, Verdict};
use crate::pmu::{CounterIndex, Maker, PmuRegister};

/// The processor's registers as the handler reaches them: with no guest of its own.
struct Registers(Maker);

impl PmuHardware for Registers {
    fn global_switch(&self) -> GlobalSwitch {
        GlobalSwitch::Missing
    }
    fn read_pmu(&self, register: PmuRegister) -> u64 {
        counters::read(register, self.0)
    }
    fn write_pmu(&mut self, register: PmuRegister, value: u64) {
        counters::write(register, self.0, value);
    }
    fn read_counter(&self, counter: CounterIndex) -> u64 {
        counters::read_counter(counter)
    }
    fn switch_global_control(&mut self, _on: bool, _host: u64) {}
    fn guest_global_control(&self) -> u64 {
        0
    }
    fn set_guest_global_control(&mut self, _value: u64) {}
    fn pass_rdpmc(&mut self, _pass: bool) {}
    fn pass_pmu(&mut self, _register: PmuRegister, _read: bool, _write: bool) {}
}

/// Returns how often an event that the host counts has happened in it until now, on this processor; `None` where the host
/// counts nothing. Events have numbers in the order in which they were asked for.
pub fn host_count(event: usize) -> Option<u64> {
    let post = Post::published()?;
    Some(post.value_now(event, &Registers(post.maker())))
}

/// An NMI has interrupted the host at `rip`. Returns whether the guest is to be interrupted for it.
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the handler of NMIs calls it"))]
pub(super) fn nmi(rip: u64) -> bool {
    let Some(post) = Post::published() else { return false };
    let verdict = post.nmi(Some(Place::Host(rip)), bare::read_tsc(), &mut Registers(post.maker()));
    // The entry has masked itself in delivering it.
    if matches!(verdict, Verdict::Served | Verdict::Late) {
        interrupts::route_counters(PmiRoute::Host);
    }
    let guests = post.has_guest_pmi();
    if guests {
        interrupts::wake();
    }
    guests
}
