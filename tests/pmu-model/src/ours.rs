//! The simulator's model, with the answers of the protocol.

use crate::Command;
use libhv::sim::pmu::{Answered, Caches, Config, Fault, Pmu, Predictor, intel};

/// The processor that Bochs models.
const CONFIG: Config = Config::Intel(intel::Config {
    version: 5,
    general: 8,
    fixed: 4,
    width: 48,
    full_width_writes: true,
    freeze_in_smm: true,
    transactions: false,
    lbr_depth: 0,
});

/// A model of `libhv::sim`.
#[derive(Debug)]
pub struct Ours {
    pmu: Pmu,
    predictor: Predictor,
    caches: Caches,
}

impl Default for Ours {
    fn default() -> Self {
        Self { pmu: Pmu::new(CONFIG), predictor: Predictor::default(), caches: Caches::default() }
    }
}

impl Ours {
    /// Carries out a command and returns its answer.
    pub fn answer(&mut self, command: &Command) -> String {
        let value = |result: Result<u64, Fault>| result.map_or("gp".to_owned(), |value| format!("{value:x}"));
        match *command {
            Command::Write(msr, value) => if self.pmu.write(msr, value).is_ok() { "ok" } else { "gp" }.to_owned(),
            Command::Read(msr) => value(self.pmu.read(msr)),
            Command::ReadCounter(ecx) => value(self.pmu.read_counter(ecx)),
            Command::Step(cpl, happened) => if self.pmu.step(cpl, false, &happened) { "pmi" } else { "-" }.to_owned(),
            Command::Branch(kind, address, target, taken) => {
                u8::from(self.predictor.branch(kind, address, target, taken)).to_string()
            }
            Command::Access(physical) => match self.caches.access(physical) {
                Answered::First => "hit".to_owned(),
                Answered::Last => "ref".to_owned(),
                Answered::Memory => "miss".to_owned(),
            },
            Command::Skid(instructions) => {
                if let Pmu::Intel(pmu) = &mut self.pmu {
                    pmu.set_skid(instructions);
                }
                "ok".to_owned()
            }
            Command::Reset => {
                *self = Self::default();
                "ok".to_owned()
            }
        }
    }
}
