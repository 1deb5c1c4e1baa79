// The performance monitoring unit of one of Bochs' processors: counting with `icount`, and the world switch.

#define NEED_CPU_REG_SHORTCUTS 1
#include "bochs.h"
#include "cpu.h"
#include "cpuid.h"
#include "pc_system.h"
#define LOG_THIS cpu->

#include <cstdlib>
#include <cstring>

#include "apic.h"

namespace {

// A number in the environment, 0 when it is not there.
Bit64u setting(const char *name) {
  const char *text = getenv(name);
  return text ? strtoull(text, NULL, 0) : 0;
}

// Counters, selectors and PEBS registers that other processors have next to these: #GP here, whatever `ignore_bad_msrs` says.
bool is_absent(Bit32u index) {
  return (index >= 0xc9 && index <= 0xd0) || (index >= 0x18e && index <= 0x195) || (index >= 0x30d && index <= 0x318) ||
         index == 0x329 || index == 0x3f1 || index == 0x3f2 || index == 0x3f6 || index == 0x3f7 ||
         (index >= 0x4c9 && index <= 0x4d0);
}

}  // namespace

BxPmu::BxPmu() : limit(PmuModel::NEVER), armed(false), predicts(false), caches(false), base(0), not_retired(0), passed(0),
  level(0), branches(0), conditional(0), mispredicted(0), references(0), misses(0), branch_limit(PmuModel::NEVER),
  reference_limit(PmuModel::NEVER), present(false), entry_cost(0), exit_cost(0), cpu(NULL) {}

// The unit belongs to the model sapphire_rapids. LIBHV_PMU=0 takes it away there, LIBHV_PMU=1 gives it to any other.
void BxPmu::reset(BX_CPU_C *cpu, unsigned source) {
  this->cpu = cpu;
  base = cpu->icount;
  not_retired = passed = branches = conditional = mispredicted = references = misses = 0;
  if (source == BX_RESET_HARDWARE) {
    const char *wanted = getenv("LIBHV_PMU");
    present = wanted ? strcmp(wanted, "0") != 0 : strcmp(cpu->cpuid->get_name(), "sapphire_rapids") == 0;
    entry_cost = Bit32u(setting("LIBHV_VMENTRY_COST"));
    exit_cost = Bit32u(setting("LIBHV_VMEXIT_COST"));
    model.reset();
    model.set_skid(setting("LIBHV_PMU_SKID"));
    predictor.reset();
    cache.reset();
    // A processor without the register has no controls that switch it; before Sapphire Rapids none had "save".
    if (! present) {
      cpu->vmx_cap.vmx_vmentry_ctrl_supported_bits &= ~VMX_VMENTRY_CTRL1_LOAD_PERF_GLOBAL_CTRL_MSR;
      cpu->vmx_cap.vmx_vmexit_ctrl1_supported_bits &= ~VMX_VMEXIT_CTRL1_LOAD_PERF_GLOBAL_CTRL_MSR;
    }
    if (! present || setting("LIBHV_PMU_NO_GLOBAL_CTRL_SAVE"))
      cpu->vmx_cap.vmx_vmexit_ctrl1_supported_bits &= ~VMX_VMEXIT_CTRL1_SAVE_PERF_GLOBAL_CTRL;
  }
  latch_level();
}

void BxPmu::cpuid(Bit32u leaf, cpuid_function_t *answer) const {
  if (! present) return;
  if (leaf == 1) answer->ecx |= 1 << 15;  // PDCM: IA32_PERF_CAPABILITIES is there
  if (leaf == 0xa) PmuModel::cpuid_0a(&answer->eax, &answer->ebx, &answer->ecx, &answer->edx);
}

BxPmu::Answer BxPmu::rdmsr(Bit32u index, Bit64u *value) {
  if (! present) return NOT_MINE;
  if (! PmuModel::has(index)) return is_absent(index) ? REFUSED : NOT_MINE;
  sync();
  return model.rdmsr(index, value) ? DONE : REFUSED;
}

BxPmu::Answer BxPmu::wrmsr(Bit32u index, Bit64u value) {
  if (! present) return NOT_MINE;
  if (! PmuModel::has(index)) return is_absent(index) ? REFUSED : NOT_MINE;
  sync();
  if (! model.accepts(index, value)) return REFUSED;
  // The instruction that writes belongs to the time before.
  if (base <= cpu->icount) credit();
  model.wrmsr(index, value);
  look_ahead();
  return DONE;
}

BxPmu::Answer BxPmu::rdpmc(Bit32u ecx, Bit64u *value) {
  if (! present) return NOT_MINE;
  sync();
  return model.rdpmc(ecx, value) ? DONE : REFUSED;
}

void BxPmu::passes(Bit64u periods) {
  passed += periods;
  if (limit != PmuModel::NEVER) limit = limit > periods ? limit - periods : 0;
}

Bit32u BxPmu::allows(Bit32u iterations) const {
  if (caches) return 0;  // each access is to be seen
  const Bit64u icount = cpu->icount;
  const Bit64u left = icount + MARGIN >= limit ? 0 : limit - icount - MARGIN;
  return iterations < left ? iterations : Bit32u(left);
}

void BxPmu::branch() {
  branches++;
  if (branches >= branch_limit) stop_here();
}

void BxPmu::conditional_branch(Bit64u address, bool taken) {
  if (! armed) return;
  conditional++;
  if (predicts && predictor.conditional(address, taken)) mispredicted++;
  branch();
}

void BxPmu::indirect_branch(Bit64u address, Bit64u target) {
  if (! armed) return;
  if (predicts && predictor.indirect(address, target)) mispredicted++;
  branch();
}

void BxPmu::look_up(bx_phy_address address) {
  const DataCache::Outcome outcome = cache.access(address);
  if (outcome == DataCache::HIT) return;
  references++;
  misses += outcome == DataCache::MISS;
  if (references >= reference_limit) stop_here();
}

bool BxPmu::is_software(unsigned type) {
  return type == BX_SOFTWARE_INTERRUPT || type == BX_SOFTWARE_EXCEPTION || type == BX_PRIVILEGED_SOFTWARE_INTERRUPT;
}

PmuModel::Step BxPmu::nothing() const {
  PmuModel::Step step = {level, 0, 0, 0, 0, 0, 0, 0, 0};
  return step;
}

void BxPmu::count(PmuModel::Step step) {
  step.reference_cycles = step.cycles;
  bool raised = model.step(step);
  if (cpu->activity_state != BX_CPU_C::BX_ACTIVITY_STATE_ACTIVE) raised |= model.rest();
  if (raised) cpu->lapic->raise_performance_interrupt();
}

// Tells the model everything up to the instruction under way.
void BxPmu::account() {
  if (cpu->icount < base) return;
  const Bit64u periods = cpu->icount - base;
  PmuModel::Step step = nothing();
  step.cycles = periods + passed;
  step.instructions = periods > not_retired ? periods - not_retired : 0;
  step.branches = branches;
  step.conditional = conditional;
  step.mispredicted = mispredicted;
  step.llc_references = references;
  step.llc_misses = misses;
  base = cpu->icount;
  not_retired = passed = branches = conditional = mispredicted = references = misses = 0;
  count(step);
}

void BxPmu::sync() {
  account();
  latch_level();
}

// Tells the model of the instruction under way, before it retires.
void BxPmu::credit() {
  PmuModel::Step step = nothing();
  step.cycles = step.instructions = 1;
  base = cpu->icount + 1;
  count(step);
}

void BxPmu::latch_level() {
  level = cpu->sregs[BX_SEG_REG_CS].selector.rpl;
  look_ahead();
}

void BxPmu::look_ahead() {
  const PmuModel::Horizon horizon = model.horizon(level);
  armed = present && horizon.armed;
  predicts = horizon.predicts;
  caches = horizon.caches;
  limit = armed && horizon.periods != PmuModel::NEVER ? base + horizon.periods : PmuModel::NEVER;
  branch_limit = horizon.branches;
  reference_limit = horizon.references;
}

void BxPmu::stop_here() {
  limit = 0;
  stop_trace();
}

void BxPmu::stop_trace() {
  cpu->async_event |= BX_ASYNC_EVENT_STOP_TRACE;
}

// Time that is nobody's instruction: the TSC and all timers move, `icount` does not.
void BxPmu::pass_time(Bit32u cycles) {
  if (BX_SMP_PROCESSORS == 1) {
    const Bit32u unsynced = Bit32u(cpu->icount - cpu->icount_last_sync);
    cpu->sync_icount();
    BX_TICKN(unsynced + cycles);
  }
  else cpu->icount_last_sync -= cycles;
}

// SDM Vol. 3C "Checks on Host Control Registers, MSRs, and SSP".
bool BxPmu::host_fields_are_legal() const {
  if (! present || ! cpu->vmcs.vmexit_ctrls1.LOAD_PERF_GLOBAL_CTRL_MSR()) return true;
  return model.accepts(0x38f, cpu->VMread64(VMCS_64BIT_HOST_IA32_PERF_GLOBAL_CTRL));
}

// SDM Vol. 3C "Checks on Guest Control Registers, Debug Registers, and MSRs".
bool BxPmu::guest_fields_are_legal() const {
  if (! present) return true;
  const auto &controls = cpu->vmcs.vmentry_ctrls;
  if (controls.LOAD_DBG_CTRLS() && ! model.accepts(0x1d9, cpu->VMread64(VMCS_64BIT_GUEST_IA32_DEBUGCTL))) return false;
  return ! controls.LOAD_PERF_GLOBAL_CTRL_MSR() ||
         model.accepts(0x38f, cpu->VMread64(VMCS_64BIT_GUEST_IA32_PERF_GLOBAL_CTRL));
}

// The guest's CS is loaded already, but VMLAUNCH or VMRESUME and the cost of the entry are the host's.
void BxPmu::enters_guest() {
  if (present) {
    account();
    credit();
  }
  if (entry_cost) {
    if (present) {
      PmuModel::Step step = nothing();
      step.cycles = entry_cost;
      count(step);
    }
    pass_time(entry_cost);
  }
  if (! present) return;
  const auto &controls = cpu->vmcs.vmentry_ctrls;
  if (controls.LOAD_DBG_CTRLS()) model.load_debugctl(cpu->VMread64(VMCS_64BIT_GUEST_IA32_DEBUGCTL));
  if (controls.LOAD_PERF_GLOBAL_CTRL_MSR())
    model.load_global_ctrl(cpu->VMread64(VMCS_64BIT_GUEST_IA32_PERF_GLOBAL_CTRL));
  latch_level();
}

// The instruction that exits does not retire. Bochs counts a period for the exit afterwards: it is the host's, and told here.
void BxPmu::exit_begins() {
  if (! present) return;
  account();
  base = cpu->icount + 1;
}

void BxPmu::saves_guest() {
  if (! present) return;
  if (cpu->vmcs.vmexit_ctrls1.SAVE_DBG_CTRLS()) cpu->VMwrite64(VMCS_64BIT_GUEST_IA32_DEBUGCTL, model.debugctl());
  if (cpu->vmcs.vmexit_ctrls1.SAVE_PERF_GLOBAL_CTRL())
    cpu->VMwrite64(VMCS_64BIT_GUEST_IA32_PERF_GLOBAL_CTRL, model.global_ctrl());
}

// SDM Vol. 3C "Loading Host Control Registers, Debug Registers, MSRs": IA32_DEBUGCTL is cleared by every exit.
void BxPmu::loads_host() {
  if (! present) return;
  model.load_debugctl(0);
  if (cpu->vmcs.vmexit_ctrls1.LOAD_PERF_GLOBAL_CTRL_MSR())
    model.load_global_ctrl(cpu->VMread64(VMCS_64BIT_HOST_IA32_PERF_GLOBAL_CTRL));
}

void BxPmu::exit_ends() {
  if (exit_cost) pass_time(exit_cost);
  if (! present) return;
  latch_level();
  PmuModel::Step step = nothing();
  step.cycles = 1 + exit_cost;
  count(step);
  look_ahead();
}

// An overflow raises the interrupt of LVTPC's delivery mode, once: the entry masks itself (SDM Vol. 3A ch. "Advanced Programmable
// Interrupt Controller", "Local Vector Table"). While it is masked the overflow stays in IA32_PERF_GLOBAL_STATUS alone. INIT and
// ExtINT cannot be delivered here.
void bx_local_apic_c::raise_performance_interrupt(void) {
  const Bit32u entry = lvt[APIC_LVT_PERFMON];
  if (entry & 0x10000) return;
  lvt[APIC_LVT_PERFMON] |= 0x10000;
  const Bit8u mode = (entry >> 8) & 7;
  if (mode == APIC_DM_FIXED || mode == APIC_DM_SMI || mode == APIC_DM_NMI)
    deliver(entry & 0xff, mode, APIC_EDGE_TRIGGERED);
}
