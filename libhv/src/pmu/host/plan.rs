//! How host and guest share the counters: decided once, before the first entry. Pure.

use super::events::{Assigned, HostCountersError};
use crate::hw::GlobalSwitch;
use crate::pmu::capability::PmuCapability;
use crate::pmu::policy::PmuShare;
use crate::pmu::registers::{CounterIndex, Maker};

/// What entries and exits have to do so that host and guest both count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Nothing: the guest has no PMU, and the processor stops the host's counters, by IA32_PERF_GLOBAL_CTRL or HostOnly;
    /// or they are to count the guest.
    Processor,
    /// The host's counters are stopped and go on, by one write each: the processor does not do it.
    Stop,
    /// Host and guest have counters of their own, and the host's do not interrupt: nothing, as in
    /// [`Processor`](Self::Processor).
    ///
    /// Registers with a bit for each counter, and RDPMC, must leave the guest then: IA32_PERF_GLOBAL_CTRL and the status
    /// registers for the other's bits. A guest that is shown fewer counters than there are has these intercepted in any
    /// case (A12). IA32_FIXED_CTR_CTRL has one owner: a host with fixed-function counters shares only with a guest that
    /// has none.
    Partition,
    /// As above, with the host's counters interrupting: they are stopped, the interrupt is routed, and back. What has run
    /// over of the guest's is taken out of the status.
    PartitionRouted,
    /// All that differs is exchanged, in the order of requirement A16.
    Switch,
}

impl Plan {
    pub(super) fn of(
        pmu: &PmuCapability,
        events: &[Assigned],
        counts_guest: bool,
        guest: Option<&PmuShare>,
        switch: GlobalSwitch,
    ) -> Result<Self, HostCountersError> {
        let Some(share) = guest else {
            return Ok(if counts_guest || switch != GlobalSwitch::Missing { Self::Processor } else { Self::Stop });
        };
        if counts_guest {
            return Err(HostCountersError::CountsGuest);
        }
        // Where both bits stand in one register all the time, it would have to be put together at each write.
        let shared = switch == GlobalSwitch::Selectors && pmu.has_global_control();
        let apart = !shared
            && events.iter().all(|event| match event.counter {
                CounterIndex::General(n) => n >= share.counters,
                CounterIndex::Fixed(_) => share.fixed == 0,
            });
        let interrupts = events.iter().any(|event| event.period.is_some());
        let restorable = match pmu.maker {
            Maker::Intel => pmu.has_status_set() && pmu.full_width_writes(),
            Maker::Amd => true,
        };
        match (apart, interrupts) {
            (true, false) => Ok(Self::Partition),
            (true, true) => Ok(Self::PartitionRouted),
            (false, _) if restorable => Ok(Self::Switch),
            (false, _) => Err(HostCountersError::NotRestorable),
        }
    }

    /// Returns whether the guest's registers are out of the processor between exit and entry.
    #[inline]
    pub fn parks_guest(self) -> bool {
        self == Self::Switch
    }

    /// Returns whether the guest's status is kept out of the processor, as far as it tells of counters.
    #[inline]
    pub fn keeps_status(self) -> bool {
        matches!(self, Self::PartitionRouted | Self::Switch)
    }
}
