// A program around the model for property tests: commands on stdin, one answer a line on stdout. Built by
// `c++ -std=c++17 -O2 -o pmu-harness pmu_harness.cc pmu_model.cc`; Bochs is not needed and does not link it.
//
//   wrmsr INDEX VALUE             ok | gp            (numbers are hexadecimal, without 0x or with)
//   rdmsr INDEX                   VALUE | gp
//   rdpmc ECX                     VALUE | gp
//   step CPL CYCLES REFCYCLES INSTRUCTIONS BRANCHES CONDITIONAL MISPREDICTED LLCREF LLCMISS    - | pmi    (decimal)
//   branch ADDR TARGET KIND TAKEN 0 | 1              mispredicted; KIND c, d or i, TAKEN 0 or 1
//   access PHYS                   hit | ref | miss
//   skid INSTRUCTIONS             ok                 (decimal; reset leaves it)
//   reset                         ok

#include <cinttypes>
#include <iostream>
#include <sstream>
#include <string>

#include "pmu_model.h"

namespace {

std::string hexadecimal(bool ok, uint64_t value) {
  if (!ok) return "gp";
  std::ostringstream text;
  text << std::hex << value;
  return text.str();
}

std::string answer(std::istringstream &words, PmuModel &pmu, BranchPredictor &predictor, DataCache &cache) {
  std::string command;
  words >> command;
  uint64_t value = 0;
  if (command == "step") {
    PmuModel::Step step;
    words >> std::dec >> step.cpl >> step.cycles >> step.reference_cycles >> step.instructions >> step.branches >>
      step.conditional >> step.mispredicted >> step.llc_references >> step.llc_misses;
    return words ? (pmu.step(step) ? "pmi" : "-") : "bad";
  }
  if (command == "skid") {
    words >> std::dec >> value;
    if (words) pmu.set_skid(value);
    return words ? "ok" : "bad";
  }
  if (command == "reset") {
    pmu.reset();
    predictor.reset();
    cache.reset();
    return "ok";
  }
  uint64_t first = 0;
  words >> std::hex >> first;
  if (command == "wrmsr") {
    words >> value;
    return words ? (pmu.wrmsr(uint32_t(first), value) ? "ok" : "gp") : "bad";
  }
  if (command == "branch") {
    char kind = 'd';
    int taken = 1;
    words >> value >> kind >> taken;
    if (!words) return "bad";
    if (kind == 'c') return predictor.conditional(first, taken) ? "1" : "0";
    if (kind == 'i') return predictor.indirect(first, value) ? "1" : "0";
    return "0";
  }
  if (!words) return "bad";
  if (command == "rdmsr") {
    const bool ok = pmu.rdmsr(uint32_t(first), &value);
    return hexadecimal(ok, value);
  }
  if (command == "rdpmc") {
    const bool ok = pmu.rdpmc(uint32_t(first), &value);
    return hexadecimal(ok, value);
  }
  if (command == "access") {
    switch (cache.access(first)) {
      case DataCache::HIT: return "hit";
      case DataCache::REFERENCE: return "ref";
      default: return "miss";
    }
  }
  return "bad";
}

}  // namespace

int main() {
  PmuModel pmu;
  BranchPredictor predictor;
  DataCache cache;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    // A line at a time, so that a test can hold a conversation.
    std::cout << answer(words, pmu, predictor, cache) << std::endl;
  }
}
