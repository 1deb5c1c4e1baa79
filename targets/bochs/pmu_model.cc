// The performance monitoring unit as a pure model: registers, counting, overflow.

#include "pmu_model.h"

#include <algorithm>

namespace {

const uint64_t ONE = 1;
const uint64_t COUNTER = (ONE << PmuModel::WIDTH) - 1;
const uint64_t COUNTERS = 0xff | (UINT64_C(0xf) << 32);

// SDM Vol. 4 table "IA-32 Architectural MSRs".
enum : uint32_t {
  IA32_PMC0 = 0xc1,
  IA32_PERFEVTSEL0 = 0x186,
  IA32_MISC_ENABLE = 0x1a0,
  IA32_DEBUGCTL = 0x1d9,
  IA32_FIXED_CTR0 = 0x309,
  IA32_PERF_CAPABILITIES = 0x345,
  IA32_FIXED_CTR_CTRL = 0x38d,
  IA32_PERF_GLOBAL_STATUS = 0x38e,
  IA32_PERF_GLOBAL_CTRL = 0x38f,
  IA32_PERF_GLOBAL_STATUS_RESET = 0x390,
  IA32_PERF_GLOBAL_STATUS_SET = 0x391,
  IA32_PERF_GLOBAL_INUSE = 0x392,
  IA32_A_PMC0 = 0x4c1,
};

// IA32_PERFEVTSELn (SDM Vol. 3B "Architectural Performance Monitoring Version 1 Facilities"). Bit 21, AnyThread, is reserved:
// CPUID.0AH:EDX[15] says so. So is bit 19, pin control, "beginning with Sandy Bridge".
const uint64_t USR = ONE << 16;
const uint64_t OS = ONE << 17;
const uint64_t EDGE = ONE << 18;
const uint64_t INT = ONE << 20;
const uint64_t EN = ONE << 22;
const uint64_t INV = ONE << 23;
const uint64_t SELECTOR = 0xffffffff & ~(ONE << 21) & ~(ONE << 19);

uint64_t cmask(uint64_t selector) { return (selector >> 24) & 0xff; }

// IA32_FIXED_CTR_CTRL, four bits for each counter; the third, AnyThread, is reserved.
const uint64_t FIXED_OS = 1;
const uint64_t FIXED_USR = 2;
const uint64_t FIXED_PMI = 8;
const uint64_t FIXED_CONTROL = 0xbbbb;

// IA32_PERF_GLOBAL_STATUS and its two write-only companions (SDM Vol. 3B "Architectural Performance Monitoring Version 4").
const uint64_t LBR_FRZ = ONE << 58;
const uint64_t CTR_FRZ = ONE << 59;
const uint64_t OVF_UNCORE = ONE << 61;
const uint64_t OVF_DS_BUFFER = ONE << 62;
const uint64_t COND_CHGD = ONE << 63;
const uint64_t STATUS_SET = COUNTERS | LBR_FRZ | CTR_FRZ | OVF_UNCORE | OVF_DS_BUFFER;
const uint64_t STATUS_RESET = STATUS_SET | COND_CHGD;

// IA32_DEBUGCTL: BTF, FREEZE_LBRS_ON_PMI, FREEZE_PERFMON_ON_PMI and FREEZE_WHILE_SMM may be set; this processor has no LBRs
// to freeze, no BTS.
const uint64_t FREEZE_LBRS_ON_PMI = ONE << 11;
const uint64_t FREEZE_PERFMON_ON_PMI = ONE << 12;
const uint64_t DEBUG_CONTROL = (ONE << 1) | FREEZE_LBRS_ON_PMI | FREEZE_PERFMON_ON_PMI | (ONE << 14);

// IA32_PERF_CAPABILITIES: FREEZE_WHILE_SMM, FW_WRITE.
const uint64_t CAPABILITIES = (ONE << 12) | (ONE << 13);

// IA32_MISC_ENABLE: performance monitoring available; BTS and PEBS unavailable. Fast strings may be switched, the others are
// read-only and keep their value whatever is written.
const uint64_t FAST_STRINGS = 1;
const uint64_t MISC_FIXED = (ONE << 7) | (ONE << 11) | (ONE << 12);

const unsigned SLOTS_PER_CYCLE = 4;

bool within(uint32_t index, uint32_t first, uint32_t count) { return index >= first && index - first < count; }

uint64_t sign_extended(uint64_t low) {
  uint64_t value = low & 0xffffffff;
  return (value & 0x80000000) ? (value | 0xffffffff00000000) & COUNTER : value;
}

}  // namespace

void PmuModel::reset() {
  std::fill(selector, selector + GENERAL, 0);
  std::fill(general, general + GENERAL, 0);
  std::fill(asserted, asserted + GENERAL, false);
  std::fill(fixed, fixed + FIXED, 0);
  fixed_control = 0;
  // All general-purpose counters are enabled here after reset (SDM Vol. 3B "IA32_PERF_GLOBAL_CTRL").
  global_control = (ONE << GENERAL) - 1;
  status = 0;
  debug_control = 0;
  misc_enable = FAST_STRINGS | MISC_FIXED;
  raise_in = 0;
}

void PmuModel::cpuid_0a(uint32_t *eax, uint32_t *ebx, uint32_t *ecx, uint32_t *edx) {
  // Eight architectural events are listed; the last, topdown slots, is had from fixed counter 3 only.
  *eax = 5 | (GENERAL << 8) | (WIDTH << 16) | (8 << 24);
  *ebx = 1 << 7;
  *ecx = (1 << FIXED) - 1;
  *edx = FIXED | (WIDTH << 5) | (1 << 15);
}

bool PmuModel::has(uint32_t index) {
  return within(index, IA32_PMC0, GENERAL) || within(index, IA32_PERFEVTSEL0, GENERAL) ||
         within(index, IA32_FIXED_CTR0, FIXED) || within(index, IA32_A_PMC0, GENERAL) ||
         within(index, IA32_FIXED_CTR_CTRL, IA32_PERF_GLOBAL_INUSE - IA32_FIXED_CTR_CTRL + 1) ||
         index == IA32_MISC_ENABLE || index == IA32_DEBUGCTL || index == IA32_PERF_CAPABILITIES;
}

bool PmuModel::rdmsr(uint32_t index, uint64_t *value) const {
  if (within(index, IA32_PMC0, GENERAL)) *value = general[index - IA32_PMC0];
  else if (within(index, IA32_A_PMC0, GENERAL)) *value = general[index - IA32_A_PMC0];
  else if (within(index, IA32_PERFEVTSEL0, GENERAL)) *value = selector[index - IA32_PERFEVTSEL0];
  else if (within(index, IA32_FIXED_CTR0, FIXED)) *value = fixed[index - IA32_FIXED_CTR0];
  else switch (index) {
    case IA32_MISC_ENABLE: *value = misc_enable; break;
    case IA32_DEBUGCTL: *value = debug_control; break;
    case IA32_PERF_CAPABILITIES: *value = CAPABILITIES; break;
    case IA32_FIXED_CTR_CTRL: *value = fixed_control; break;
    case IA32_PERF_GLOBAL_STATUS: *value = status; break;
    case IA32_PERF_GLOBAL_CTRL: *value = global_control; break;
    // Write-only in effect: what is read is 0.
    case IA32_PERF_GLOBAL_STATUS_RESET: *value = 0; break;
    case IA32_PERF_GLOBAL_STATUS_SET: *value = 0; break;
    case IA32_PERF_GLOBAL_INUSE: *value = in_use(); break;
    default: return false;
  }
  return true;
}

bool PmuModel::accepts(uint32_t index, uint64_t value) const {
  if (within(index, IA32_PMC0, GENERAL)) return true;
  if (within(index, IA32_A_PMC0, GENERAL) || within(index, IA32_FIXED_CTR0, FIXED)) return !(value & ~COUNTER);
  if (within(index, IA32_PERFEVTSEL0, GENERAL)) return !(value & ~SELECTOR);
  switch (index) {
    case IA32_MISC_ENABLE: return !(value & ~(FAST_STRINGS | MISC_FIXED));
    case IA32_DEBUGCTL: return !(value & ~DEBUG_CONTROL);
    case IA32_FIXED_CTR_CTRL: return !(value & ~FIXED_CONTROL);
    case IA32_PERF_GLOBAL_CTRL: return !(value & ~COUNTERS);
    case IA32_PERF_GLOBAL_STATUS_RESET: return !(value & ~STATUS_RESET);
    case IA32_PERF_GLOBAL_STATUS_SET: return !(value & ~STATUS_SET);
    default: return false;  // read-only, or not here
  }
}

bool PmuModel::wrmsr(uint32_t index, uint64_t value) {
  if (!accepts(index, value)) return false;
  if (within(index, IA32_PMC0, GENERAL)) general[index - IA32_PMC0] = sign_extended(value);
  else if (within(index, IA32_A_PMC0, GENERAL)) general[index - IA32_A_PMC0] = value;
  else if (within(index, IA32_FIXED_CTR0, FIXED)) fixed[index - IA32_FIXED_CTR0] = value;
  else if (within(index, IA32_PERFEVTSEL0, GENERAL)) {
    selector[index - IA32_PERFEVTSEL0] = value;
    asserted[index - IA32_PERFEVTSEL0] = false;
  }
  else switch (index) {
    case IA32_MISC_ENABLE: misc_enable = (value & FAST_STRINGS) | MISC_FIXED; break;
    case IA32_DEBUGCTL: debug_control = value; break;
    case IA32_FIXED_CTR_CTRL: fixed_control = value; break;
    case IA32_PERF_GLOBAL_CTRL: global_control = value; break;
    case IA32_PERF_GLOBAL_STATUS_RESET: status &= ~value; break;
    case IA32_PERF_GLOBAL_STATUS_SET: status |= value; break;
  }
  return true;
}

bool PmuModel::rdpmc(uint32_t ecx, uint64_t *value) const {
  const uint32_t type = ecx >> 16, index = ecx & 0xffff;
  if (type == 0 && index < GENERAL) *value = general[index];
  else if (type == 0x4000 && index < FIXED) *value = fixed[index];
  else return false;
  return true;
}

// IA32_PERF_GLOBAL_INUSE: a selector with an event, a fixed counter that is enabled, an interrupt that is asked for.
uint64_t PmuModel::in_use() const {
  uint64_t value = 0;
  for (unsigned n = 0; n < GENERAL; n++) {
    if (selector[n] & 0xff) value |= ONE << n;
    if (selector[n] & INT) value |= ONE << 63;
  }
  for (unsigned n = 0; n < FIXED; n++) {
    const uint64_t control = fixed_control >> (4 * n);
    if (control & (FIXED_OS | FIXED_USR)) value |= ONE << (32 + n);
    if (control & FIXED_PMI) value |= ONE << 63;
  }
  return value;
}

// The events that happen here, by event select and unit mask. Any other counts nothing.
PmuModel::Event PmuModel::event(uint64_t selector) {
  switch (selector & 0xffff) {
    case 0x003c: return CYCLES;
    case 0x013c: return REFERENCE_CYCLES;
    case 0x00c0: return INSTRUCTIONS;
    case 0x00c4: return BRANCHES;
    case 0x11c4: return CONDITIONAL;
    case 0x00c5: return MISPREDICTED;
    case 0x4f2e: return LLC_REFERENCES;
    case 0x412e: return LLC_MISSES;
    default: return NOTHING;
  }
}

uint64_t PmuModel::count(Event event, const Step &step) {
  switch (event) {
    case CYCLES: return step.cycles;
    case REFERENCE_CYCLES: return step.reference_cycles;
    case INSTRUCTIONS: return step.instructions;
    case BRANCHES: return step.branches;
    case CONDITIONAL: return step.conditional;
    case MISPREDICTED: return step.mispredicted;
    case LLC_REFERENCES: return step.llc_references;
    case LLC_MISSES: return step.llc_misses;
    default: return 0;
  }
}

// A frozen unit counts nothing until software clears the bit (SDM Vol. 3B "Streamlined Freeze PMI").
bool PmuModel::frozen() const { return status & CTR_FRZ; }

bool PmuModel::general_runs(unsigned n) const {
  return !frozen() && (selector[n] & EN) && (global_control & (ONE << n));
}

bool PmuModel::fixed_runs(unsigned n) const {
  return !frozen() && (global_control & (ONE << (32 + n)));
}

// What counter `n` adds for the step. With CMASK it counts periods with at least that many events, or fewer with INV, which has
// no effect without CMASK. With edge detection it counts the periods in which that condition begins; CMASK 0 means one event.
// The condition is one "that can be expressed by the other fields", which the level and the enable are: it does not hold in a
// step in which the counter does not count, nor after a write to the selector.
uint64_t PmuModel::increment(unsigned n, const Step &step) {
  const uint64_t selector = this->selector[n];
  const Event event = PmuModel::event(selector);
  const uint64_t events = count(event, step), mask = cmask(selector);
  if (mask == 0 && !(selector & EDGE)) return events;
  const bool each_period = event == CYCLES || event == REFERENCE_CYCLES;
  // Two runs of equal periods: their length, and the events in each period.
  const uint64_t head = each_period ? std::min(events, step.cycles) : std::min<uint64_t>(1, step.cycles);
  const uint64_t runs[2][2] = {{head, each_period ? 1 : events}, {step.cycles - head, 0}};
  uint64_t delta = 0;
  for (const auto &run : runs) {
    if (run[0] == 0) continue;
    const bool now = mask == 0 ? run[1] > 0 : (selector & INV) ? run[1] < mask : run[1] >= mask;
    if (now) delta += (selector & EDGE) ? !asserted[n] : run[0];
    asserted[n] = now;
  }
  return delta;
}

bool PmuModel::add(uint64_t *counter, uint64_t delta, unsigned status_bit) {
  const bool overflows = delta > COUNTER - *counter;
  *counter = (*counter + delta) & COUNTER;
  if (overflows) status |= ONE << status_bit;
  return overflows;
}

bool PmuModel::step(const Step &step) {
  const bool user = step.cpl != 0;
  bool interrupt = false, raised = false;
  if (frozen()) std::fill(asserted, asserted + GENERAL, false);
  else {
    for (unsigned n = 0; n < GENERAL; n++) {
      if (!general_runs(n) || !(selector[n] & (user ? USR : OS))) {
        asserted[n] = false;
        continue;
      }
      if (add(&general[n], increment(n, step), n) && (selector[n] & INT)) interrupt = true;
    }
    const uint64_t fixed_events[FIXED] = {step.instructions, step.cycles, step.reference_cycles, step.cycles * SLOTS_PER_CYCLE};
    for (unsigned n = 0; n < FIXED; n++) {
      const uint64_t control = fixed_control >> (4 * n);
      if (!fixed_runs(n) || !(control & (user ? FIXED_USR : FIXED_OS))) continue;
      if (add(&fixed[n], fixed_events[n], 32 + n) && (control & FIXED_PMI)) interrupt = true;
    }
  }
  if (raise_in > 0) {
    raised = step.instructions >= raise_in;
    raise_in = raised ? 0 : raise_in - step.instructions;
  }
  else if (interrupt) {
    raised = skid == 0;
    raise_in = skid;
  }
  // What overflows freezes, not what is delivered later (SDM Vol. 4, IA32_PERF_GLOBAL_STATUS.CTR_Frz: "one or more core PMU
  // counters overflowed").
  if (interrupt && (debug_control & FREEZE_PERFMON_ON_PMI)) status |= CTR_FRZ;
  if (interrupt && (debug_control & FREEZE_LBRS_ON_PMI)) status |= LBR_FRZ;
  return raised;
}

bool PmuModel::rest() {
  const bool raised = raise_in > 0;
  raise_in = 0;
  return raised;
}

PmuModel::Horizon PmuModel::horizon(unsigned cpl) const {
  Horizon horizon = {NEVER, NEVER, NEVER, false, false, false, false};
  for (unsigned n = 0; n < GENERAL; n++) {
    if (!general_runs(n) || !(selector[n] & (USR | OS))) continue;
    horizon.armed = true;
    if (!(selector[n] & (cpl != 0 ? USR : OS))) continue;
    const Event event = PmuModel::event(selector[n]);
    const uint64_t left = COUNTER - general[n] + 1;
    horizon.counting = true;
    if (cmask(selector[n]) != 0 || (selector[n] & EDGE)) horizon.periods = 0;
    horizon.predicts |= event == MISPREDICTED;
    switch (event) {
      case NOTHING: break;
      case CYCLES: case REFERENCE_CYCLES: case INSTRUCTIONS:
        horizon.periods = std::min(horizon.periods, left);
        break;
      case BRANCHES: case CONDITIONAL: case MISPREDICTED:
        horizon.branches = std::min(horizon.branches, left);
        break;
      case LLC_REFERENCES: case LLC_MISSES:
        horizon.caches = true;
        horizon.references = std::min(horizon.references, left);
        break;
    }
  }
  for (unsigned n = 0; n < FIXED; n++) {
    const uint64_t control = fixed_control >> (4 * n);
    if (!fixed_runs(n) || !(control & (FIXED_OS | FIXED_USR))) continue;
    horizon.armed = true;
    if (!(control & (cpl != 0 ? FIXED_USR : FIXED_OS))) continue;
    const uint64_t left = COUNTER - fixed[n] + 1;
    horizon.counting = true;
    horizon.periods = std::min(horizon.periods, n == 3 ? (left + SLOTS_PER_CYCLE - 1) / SLOTS_PER_CYCLE : left);
  }
  if (raise_in > 0) {
    horizon.armed = horizon.counting = true;
    horizon.periods = std::min(horizon.periods, raise_in);
  }
  return horizon;
}

void BranchPredictor::reset() {
  direction.assign(4096, 1);
  target.assign(1024, 0);
}

bool BranchPredictor::conditional(uint64_t address, bool taken) {
  uint8_t &counter = direction[address & 4095];
  const bool mispredicted = (counter >= 2) != taken;
  if (taken && counter < 3) counter++;
  if (!taken && counter > 0) counter--;
  return mispredicted;
}

bool BranchPredictor::indirect(uint64_t address, uint64_t target) {
  uint64_t &last = this->target[address & 1023];
  const bool mispredicted = last != target;
  last = target;
  return mispredicted;
}

void DataCache::reset() {
  first.assign(512, ~UINT64_C(0));
  last.assign(32768, ~UINT64_C(0));
}

DataCache::Outcome DataCache::access(uint64_t physical) {
  const uint64_t line = physical >> 6;
  uint64_t &near = first[line & 511], &far = last[line & 32767];
  if (near == line) return HIT;
  near = line;
  if (far == line) return REFERENCE;
  far = line;
  return MISS;
}
