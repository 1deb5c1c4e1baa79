// The part of an XSAVE area's layout that depends on attributes of components (SDM Vol. 1 13.2, 13.4.3).
#ifndef LIBHV_XFD_LAYOUT_H
#define LIBHV_XFD_LAYOUT_H

// Components that XFD can disable: CPUID.(0DH,i):ECX[2].
const Bit32u XFD_COMPONENTS = BX_XCR0_XTILEDATA_MASK;
// Components that start at a multiple of 64 bytes in the compacted format: CPUID.(0DH,i):ECX[1].
const Bit32u XSAVE_ALIGNED_COMPONENTS = BX_XCR0_XTILE_BITS_MASK;

// Returns where a component starts in the compacted format, when the one before it ends at `end`.
BX_CPP_INLINE Bit32u xsave_compacted_start(unsigned feature, Bit32u end)
{
  return (XSAVE_ALIGNED_COMPONENTS >> feature & 1) ? (end + 63) & ~Bit32u(63) : end;
}

#endif
