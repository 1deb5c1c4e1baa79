/* Paravirtual events of libhv: generated from abi.rs, see abi.md. */
#ifndef LIBHV_PARAVIRT_H
#define LIBHV_PARAVIRT_H

#include <stddef.h>
#include <stdint.h>

#define LIBHV_PV_VERSION 0x1
#define LIBHV_PV_MAX_EVENTS 0x10
#define LIBHV_PV_CPUID_LEAF 0x40000011u
#define LIBHV_PV_CALL 0x4c480000u
#define LIBHV_PV_EXITS_BY_REASON 0x100

#define LIBHV_PV_FEATURE_SOFTWARE 0x1
#define LIBHV_PV_FEATURE_HARDWARE 0x2
#define LIBHV_PV_FEATURE_PAGE 0x4

#define LIBHV_PV_OP_OPEN 0x1
#define LIBHV_PV_OP_CLOSE 0x2
#define LIBHV_PV_OP_ENABLE 0x3
#define LIBHV_PV_OP_DISABLE 0x4
#define LIBHV_PV_OP_READ 0x5
#define LIBHV_PV_OP_PAGE 0x6
#define LIBHV_PV_OP_PAGE_OFF 0x7
#define LIBHV_PV_OP_RESET 0x8

#define LIBHV_PV_E_ID_OUT_OF_RANGE 0x1
#define LIBHV_PV_E_UNKNOWN_ID 0x2
#define LIBHV_PV_E_ID_IN_USE 0x3
#define LIBHV_PV_E_BAD_ADDRESS 0x4
#define LIBHV_PV_E_UNALIGNED 0x5
#define LIBHV_PV_E_WRONG_VERSION 0x6
#define LIBHV_PV_E_WRONG_LENGTH 0x7
#define LIBHV_PV_E_RESERVED_BITS 0x8
#define LIBHV_PV_E_UNSUPPORTED_TYPE 0x9
#define LIBHV_PV_E_UNSUPPORTED_EVENT 0xa
#define LIBHV_PV_E_TOO_MANY_EVENTS 0xb
#define LIBHV_PV_E_NO_PERIOD 0xc
#define LIBHV_PV_E_OVERLAP 0xd
#define LIBHV_PV_E_OWN_COUNTERS 0xe
#define LIBHV_PV_E_NOT_PROTECTED 0xf

#define LIBHV_PV_OPEN_NOTIFY 0x1

#define LIBHV_PV_TYPE_SOFTWARE 0x1
#define LIBHV_PV_TYPE_HARDWARE 0x2

#define LIBHV_PV_EVENT_EXITS 0x0
#define LIBHV_PV_EVENT_STOLEN_TICKS 0x1
#define LIBHV_PV_EVENT_NESTED_FAULTS 0x2
#define LIBHV_PV_EVENT_INJECTED_PMIS 0x3
#define LIBHV_PV_EVENT_INJECTED_INTERRUPTS 0x4
#define LIBHV_PV_EVENT_EMULATED_INSTRUCTIONS 0x5

#define LIBHV_PV_EVENT_CYCLES 0x3c
#define LIBHV_PV_EVENT_INSTRUCTIONS 0xc0
#define LIBHV_PV_EVENT_LLC_REFERENCES 0x4f2e
#define LIBHV_PV_EVENT_LLC_MISSES 0x412e
#define LIBHV_PV_EVENT_BRANCHES 0xc4
#define LIBHV_PV_EVENT_BRANCH_MISSES 0xc5

#define LIBHV_PV_COUNT_USER 0x10000u
#define LIBHV_PV_COUNT_KERNEL 0x20000u
#define LIBHV_PV_COUNT_EDGES 0x40000u
#define LIBHV_PV_INVERT 0x800000u

#define LIBHV_PV_REASON_CPUID 0x0
#define LIBHV_PV_REASON_RDMSR 0x1
#define LIBHV_PV_REASON_WRMSR 0x2
#define LIBHV_PV_REASON_RDPMC 0x3
#define LIBHV_PV_REASON_XSETBV 0x4
#define LIBHV_PV_REASON_PORT_IO 0x5
#define LIBHV_PV_REASON_NESTED_PAGE_FAULT 0x6
#define LIBHV_PV_REASON_CONTROL_REGISTER 0x7
#define LIBHV_PV_REASON_DEBUG_REGISTER 0x8
#define LIBHV_PV_REASON_EXCEPTION 0x9
#define LIBHV_PV_REASON_EXTERNAL_INTERRUPT 0xa
#define LIBHV_PV_REASON_NMI 0xb
#define LIBHV_PV_REASON_INTERRUPT_WINDOW 0xc
#define LIBHV_PV_REASON_NMI_WINDOW 0xd
#define LIBHV_PV_REASON_TIMER_EXPIRED 0xe
#define LIBHV_PV_REASON_HYPERCALL 0xf
#define LIBHV_PV_REASON_HALT 0x10
#define LIBHV_PV_REASON_RELAX 0x11
#define LIBHV_PV_REASON_CACHE_FLUSH 0x12
#define LIBHV_PV_REASON_UNDEFINED 0x13
#define LIBHV_PV_REASON_SHUTDOWN 0x14
#define LIBHV_PV_REASON_INIT 0x15
#define LIBHV_PV_REASON_UNHANDLED 0x16
#define LIBHV_PV_REASON_APIC_ACCESS 0x17
#define LIBHV_PV_REASON_APIC_WRITE 0x18
#define LIBHV_PV_REASON_TPR_BELOW_THRESHOLD 0x19

#define LIBHV_PV_RESULT_ENABLED 0x1

struct libhv_pv_open {
	uint32_t version;
	uint32_t length;
	uint64_t flags;
	uint32_t event_type;
	uint32_t reserved0;
	uint64_t config;
	uint64_t period;
	uint64_t result;
	uint32_t id;
	uint32_t reserved1;
	uint64_t reserved2;
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct libhv_pv_open) == 64, "");
_Static_assert(offsetof(struct libhv_pv_open, version) == 0x0, "");
_Static_assert(offsetof(struct libhv_pv_open, length) == 0x4, "");
_Static_assert(offsetof(struct libhv_pv_open, flags) == 0x8, "");
_Static_assert(offsetof(struct libhv_pv_open, event_type) == 0x10, "");
_Static_assert(offsetof(struct libhv_pv_open, reserved0) == 0x14, "");
_Static_assert(offsetof(struct libhv_pv_open, config) == 0x18, "");
_Static_assert(offsetof(struct libhv_pv_open, period) == 0x20, "");
_Static_assert(offsetof(struct libhv_pv_open, result) == 0x28, "");
_Static_assert(offsetof(struct libhv_pv_open, id) == 0x30, "");
_Static_assert(offsetof(struct libhv_pv_open, reserved1) == 0x34, "");
_Static_assert(offsetof(struct libhv_pv_open, reserved2) == 0x38, "");

struct libhv_pv_result {
	uint32_t version;
	uint32_t length;
	uint64_t flags;
	uint64_t count;
	uint64_t overflows;
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct libhv_pv_result) == 32, "");
_Static_assert(offsetof(struct libhv_pv_result, version) == 0x0, "");
_Static_assert(offsetof(struct libhv_pv_result, length) == 0x4, "");
_Static_assert(offsetof(struct libhv_pv_result, flags) == 0x8, "");
_Static_assert(offsetof(struct libhv_pv_result, count) == 0x10, "");
_Static_assert(offsetof(struct libhv_pv_result, overflows) == 0x18, "");

struct libhv_pv_page {
	uint32_t version;
	uint32_t length;
	uint64_t flags;
	uint64_t sequence;
	uint64_t overflowed;
	uint64_t stolen_ticks;
	uint64_t injected_pmis;
	uint64_t injected_interrupts;
	uint64_t emulated_instructions;
	uint64_t reserved[24];
	uint64_t exits[64];
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct libhv_pv_page) == 768, "");
_Static_assert(offsetof(struct libhv_pv_page, version) == 0x0, "");
_Static_assert(offsetof(struct libhv_pv_page, length) == 0x4, "");
_Static_assert(offsetof(struct libhv_pv_page, flags) == 0x8, "");
_Static_assert(offsetof(struct libhv_pv_page, sequence) == 0x10, "");
_Static_assert(offsetof(struct libhv_pv_page, overflowed) == 0x18, "");
_Static_assert(offsetof(struct libhv_pv_page, stolen_ticks) == 0x20, "");
_Static_assert(offsetof(struct libhv_pv_page, injected_pmis) == 0x28, "");
_Static_assert(offsetof(struct libhv_pv_page, injected_interrupts) == 0x30, "");
_Static_assert(offsetof(struct libhv_pv_page, emulated_instructions) == 0x38, "");
_Static_assert(offsetof(struct libhv_pv_page, reserved) == 0x40, "");
_Static_assert(offsetof(struct libhv_pv_page, exits) == 0x100, "");

#endif
