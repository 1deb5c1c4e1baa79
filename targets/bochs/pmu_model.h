// The performance monitoring unit of one logical processor, as a pure model: no header of Bochs, no clock, no input or output.
//
// Architectural performance monitoring version 5 (SDM Vol. 3B ch. "Performance Monitoring"): 8 general-purpose and 4
// fixed-function counters of 48 bits. Time is a row of clock periods; the owner of the model tells what happened in them.

#ifndef LIBHV_PMU_MODEL_H
#define LIBHV_PMU_MODEL_H

#include <cstdint>
#include <vector>

// Branch outcomes as a stated predictor sees them. Direct jumps and calls, and far branches, are never mispredicted.
class BranchPredictor {
public:
  BranchPredictor() { reset(); }
  void reset();

  // A conditional branch at `address`: 4096 two-bit saturating counters by the low 12 address bits, 1 (weakly not taken) at
  // first, predict taken from 2 on. Returns whether it was mispredicted.
  bool conditional(uint64_t address, bool taken);

  // An indirect jump or call, or a near return: the last target of 1024 slots by the low 10 address bits, 0 at first.
  bool indirect(uint64_t address, uint64_t target);

private:
  std::vector<uint8_t> direction;
  std::vector<uint64_t> target;
};

// Data accesses as a stated cache sees them: 64-byte lines, a direct-mapped first level of 512 lines (32 KiB) in front of a
// direct-mapped last level of 32768 lines (2 MiB). An access counts for the line of its first byte.
class DataCache {
public:
  enum Outcome { HIT, REFERENCE, MISS };

  DataCache() { reset(); }
  void reset();

  // HIT in the first level; otherwise a REFERENCE to the last level, which may be a MISS of it too.
  Outcome access(uint64_t physical);

private:
  std::vector<uint64_t> first;
  std::vector<uint64_t> last;
};

class PmuModel {
public:
  static const unsigned GENERAL = 8;
  static const unsigned FIXED = 4;
  static const unsigned WIDTH = 48;

  // What happened at one privilege level in `cycles` clock periods. All other events belong to the first of them, except the
  // reference cycles, one in each period from the first on. A step without a period adds its events to plain counters only:
  // counters with CMASK or edge detection look at periods.
  struct Step {
    unsigned cpl;
    uint64_t cycles;
    uint64_t reference_cycles;
    uint64_t instructions;
    uint64_t branches;
    uint64_t conditional;
    uint64_t mispredicted;
    uint64_t llc_references;
    uint64_t llc_misses;
  };

  // How far the owner may go before it must tell the model, so that an overflow is seen at its event.
  struct Horizon {
    uint64_t periods;   // 0: each one by itself
    uint64_t branches;  // branches retired, until a counter of branches could overflow
    uint64_t references;
    bool armed;         // some counter counts, at this privilege level or another
    bool counting;      // some counter counts at this one
    bool predicts;      // some counter counts mispredicted branches
    bool caches;        // some counter counts references to the last-level cache, or misses
  };
  static const uint64_t NEVER = ~UINT64_C(0);

  PmuModel() : skid(0) { reset(); }

  // Power-up and RESET. INIT changes nothing here (SDM Vol. 3A ch. 10 "IA-32 and Intel 64 Processor States Following Power-up,
  // Reset, or INIT").
  void reset();

  // Instructions that retire between an overflow and its interrupt.
  void set_skid(uint64_t instructions) { skid = instructions; }

  // Whether the register is one of the model's; the others are none of its business.
  static bool has(uint32_t index);

  // RDMSR; false for #GP.
  bool rdmsr(uint32_t index, uint64_t *value) const;

  // Whether WRMSR of this value would be accepted.
  bool accepts(uint32_t index, uint64_t value) const;

  // WRMSR; false for #GP, and nothing is changed.
  bool wrmsr(uint32_t index, uint64_t value);

  // RDPMC after the checks of CPL and CR4.PCE; false for #GP. ECX[31:16] is the type, 0 general-purpose or 4000H
  // fixed-function, ECX[15:0] the counter (SDM Vol. 2B "RDPMC").
  bool rdpmc(uint32_t ecx, uint64_t *value) const;

  // Counts; true when the performance-monitoring interrupt is raised.
  bool step(const Step &step);

  // The processor rests: an interrupt on its way arrives. Returns whether there is one.
  bool rest();

  Horizon horizon(unsigned cpl) const;

  // IA32_PERF_GLOBAL_CTRL and IA32_DEBUGCTL as VM entry and VM exit load them, which have checked the bits or need no check.
  uint64_t global_ctrl() const { return global_control; }
  void load_global_ctrl(uint64_t value) { global_control = value; }
  uint64_t debugctl() const { return debug_control; }
  void load_debugctl(uint64_t value) { debug_control = value; }

  // CPUID leaf 0AH.
  static void cpuid_0a(uint32_t *eax, uint32_t *ebx, uint32_t *ecx, uint32_t *edx);

private:
  enum Event { NOTHING, CYCLES, REFERENCE_CYCLES, INSTRUCTIONS, BRANCHES, CONDITIONAL, MISPREDICTED, LLC_REFERENCES, LLC_MISSES };

  static Event event(uint64_t selector);
  static uint64_t count(Event event, const Step &step);
  bool general_runs(unsigned n) const;
  bool fixed_runs(unsigned n) const;
  bool frozen() const;
  uint64_t increment(unsigned n, const Step &step);
  bool add(uint64_t *counter, uint64_t delta, unsigned status_bit);
  uint64_t in_use() const;

  uint64_t selector[GENERAL];
  uint64_t general[GENERAL];
  bool asserted[GENERAL];  // the edge detectors
  uint64_t fixed[FIXED];
  uint64_t fixed_control;
  uint64_t global_control;
  uint64_t status;
  uint64_t debug_control;
  uint64_t misc_enable;
  uint64_t skid;
  uint64_t raise_in;       // instructions until the interrupt, 0 when none is under way
};

#endif
