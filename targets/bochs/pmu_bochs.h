// The performance monitoring unit of one of Bochs' processors: what the edits of pmu.toml call.
//
// Bochs counts instructions and clock periods together: its `icount` goes up by one for each retired instruction, each further
// iteration of a repeated one, and each instruction that ends in a fault or a VM exit; each is one clock period. So nothing is
// done for an instruction while it is far from every overflow: the periods since `base` are told to the model when somebody
// looks, when the privilege level or the world changes, and when `limit` is reached. Close to `limit` the processor is made to
// run one instruction at a time, which makes every overflow exact.
//
// An instruction counts under the privilege level and the controls that it begins with. A repeated string instruction retires
// once. Interrupts and faults are not branches; far branches are, INT n and SYSCALL too, and are never mispredicted.

#ifndef LIBHV_PMU_BOCHS_H
#define LIBHV_PMU_BOCHS_H

#include "pmu_model.h"

class BX_CPU_C;
struct cpuid_function_t;

class BxPmu {
public:
  enum Answer { NOT_MINE, REFUSED, DONE };

  BxPmu();

  // Power-up, RESET and INIT: `source` is Bochs' own.
  void reset(BX_CPU_C *cpu, unsigned source);

  void cpuid(Bit32u leaf, cpuid_function_t *answer) const;
  Answer rdmsr(Bit32u index, Bit64u *value);
  Answer wrmsr(Bit32u index, Bit64u value);
  Answer rdpmc(Bit32u ecx, Bit64u *value);

  // Whether the processor must go one instruction at a time.
  bool is_near(Bit64u icount) const { return icount + MARGIN >= limit; }
  // After instructions have run.
  void ran(Bit64u icount) { if (icount >= limit) sync(); }

  // An instruction that ends in a fault or a VM exit, about to be counted in `icount`.
  void abandons(Bit64u icount) { if (icount >= base) not_retired++; }
  // A further iteration of a repeated instruction, or its end before it is complete: a period in which nothing retires.
  void iterates(Bit64u icount) { not_retired++; if (icount >= limit) stop_trace(); }
  // Periods that are not in `icount`, of a repeated instruction that Bochs makes in one go.
  void passes(Bit64u periods);
  // How many iterations it may make in one go.
  Bit32u allows(Bit32u iterations) const;

  void conditional_branch(Bit64u address, bool taken);
  void indirect_branch(Bit64u address, Bit64u target);
  void other_branch() { if (armed) branch(); }
  void access(bx_phy_address address) { if (caches) look_up(address); }

  // The processor halts, by the instruction under way: what is on its way by then arrives.
  void halts() { if (armed) sync(); }

  // CS is loaded: the privilege level may change.
  void level_changes() { if (armed) stop_here(); }
  // Around the delivery of an event. A software interrupt belongs to its instruction, any other belongs to none.
  void event_begins(unsigned type) { if (armed && ! is_software(type)) account(); }
  void event_ends(unsigned type) { if (armed && ! is_software(type)) latch_level(); }

  // VM entry: the checks of the host-state and guest-state areas, then the loading before the MSR-load list.
  bool host_fields_are_legal() const;
  bool guest_fields_are_legal() const;
  void enters_guest();
  // The guest's first state is complete, an injected event delivered.
  void guest_begins() { if (present) latch_level(); }
  // VM exit: at its begin, after the guest's state is saved, after the host's is loaded, at its end.
  void exit_begins();
  void saves_guest();
  void loads_host();
  void exit_ends();

private:
  // More instructions than Bochs runs without coming back to its loop (BX_MAX_TRACE_LENGTH).
  static const Bit64u MARGIN = 64;

  static bool is_software(unsigned type);
  void sync();
  void account();
  void credit();
  void latch_level();
  void look_ahead();
  void stop_here();
  void stop_trace();
  void branch();
  void look_up(bx_phy_address address);
  void count(PmuModel::Step step);
  void pass_time(Bit32u cycles);
  PmuModel::Step nothing() const;

  // What the hooks on Bochs' hot paths read.
  Bit64u limit;              // the `icount` at which the model must be told; NEVER when nothing counts
  bool armed;                // some counter counts, at this privilege level or another
  bool predicts, caches;

  Bit64u base;               // the `icount` up to which all periods are told; one ahead after credit()
  Bit64u not_retired;        // periods since then in which no instruction retired
  Bit64u passed;             // periods since then that are not in `icount`
  unsigned level;            // the privilege level that the instruction under way began with
  Bit64u branches, conditional, mispredicted, references, misses;
  Bit64u branch_limit, reference_limit;

  bool present;
  Bit32u entry_cost, exit_cost;
  BX_CPU_C *cpu;
  PmuModel model;
  BranchPredictor predictor;
  DataCache cache;
};

// The places where Bochs lets an instrumentation look, used here without one.
#undef BX_INSTR_RESET
#define BX_INSTR_RESET(cpu_id, type) BX_CPU_THIS_PTR pmu.reset(BX_CPU_THIS, (type))

#undef BX_INSTR_CNEAR_BRANCH_TAKEN
#define BX_INSTR_CNEAR_BRANCH_TAKEN(cpu_id, branch_eip, new_eip) BX_CPU_THIS_PTR pmu.conditional_branch((branch_eip), true)

#undef BX_INSTR_CNEAR_BRANCH_NOT_TAKEN
#define BX_INSTR_CNEAR_BRANCH_NOT_TAKEN(cpu_id, branch_eip) BX_CPU_THIS_PTR pmu.conditional_branch((branch_eip), false)

#undef BX_INSTR_UCNEAR_BRANCH
#define BX_INSTR_UCNEAR_BRANCH(cpu_id, what, branch_eip, new_eip) { \
  if ((what) == BX_INSTR_IS_JMP || (what) == BX_INSTR_IS_CALL) \
    BX_CPU_THIS_PTR pmu.other_branch(); \
  else \
    BX_CPU_THIS_PTR pmu.indirect_branch((branch_eip), (new_eip)); \
}

#undef BX_INSTR_FAR_BRANCH
#define BX_INSTR_FAR_BRANCH(cpu_id, what, prev_cs, prev_eip, new_cs, new_eip) BX_CPU_THIS_PTR pmu.other_branch()

#undef BX_INSTR_LIN_ACCESS
#define BX_INSTR_LIN_ACCESS(cpu_id, lin, phy, len, memtype, rw) BX_CPU_THIS_PTR pmu.access(phy)

#endif
