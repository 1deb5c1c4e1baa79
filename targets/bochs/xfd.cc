// Extended feature disable: IA32_XFD, IA32_XFD_ERR and their #NM (SDM Vol. 1 13.14).

#define NEED_CPU_REG_SHORTCUTS 1
#include "bochs.h"
#include "cpu.h"
#include "cpuid.h"
#define LOG_THIS BX_CPU_THIS_PTR

#include "avx/amx.h"
#include "xfd_layout.h"

extern XSaveRestoreStateHelper xsave_restore[];

void BX_CPU_C::xfd_reset(void)
{
  BX_CPU_THIS_PTR ia32_xfd = 0;
  BX_CPU_THIS_PTR ia32_xfd_err = 0;
  if (BX_CPU_THIS_PTR amx) BX_CPU_THIS_PTR amx->clear();
}

Bit32u BX_CPU_C::xfd_disabled(void)
{
  return BX_CPU_THIS_PTR xcr0.get32() & (Bit32u) BX_CPU_THIS_PTR ia32_xfd;
}

void BX_CPU_C::xfd_require(Bit32u components)
{
  if ((xfd_disabled() & components) == 0) return;

  // Also when the exception then causes a VM exit: the register tells a hypervisor why.
  BX_CPU_THIS_PTR ia32_xfd_err = BX_CPU_THIS_PTR ia32_xfd & components;
  exception(BX_NM_EXCEPTION, 0);
}

bool BX_CPU_C::xfd_write(Bit64u *msr, Bit64u value)
{
  if (value & ~Bit64u(XFD_COMPONENTS & BX_CPU_THIS_PTR xcr0_suppmask)) {
    BX_ERROR(("WRMSR: a component that XFD does not support: 0x" FMT_LL "x", value));
    return false;
  }
  *msr = value;
  return true;
}

void BX_CPU_C::xfd_save_initial(bxInstruction_c *i, unsigned feature, bx_address offset)
{
  BxPackedAvxRegister zero;
  zero.clear();
  for (Bit32u done = 0; done < xsave_restore[feature].len; done += 64)
    write_virtual_zmmword(i->seg(), (offset + done) & i->asize_mask(), &zero);
}

Bit32u BX_CPU_C::xfd_compacted_offset(unsigned feature, Bit64u components)
{
  Bit32u end = XSAVE_YMM_STATE_OFFSET;
  for (unsigned n = xcr0_t::BX_XCR0_YMM_BIT; n < feature; n++)
    if (components >> n & 1)
      end = xsave_compacted_start(n, end) + xsave_restore[n].len;
  return xsave_compacted_start(feature, end);
}

void BX_CPU_C::xfd_restore_tilecfg(bxInstruction_c *i, const BxPackedAvxRegister &tilecfg)
{
  AMX before = *BX_CPU_THIS_PTR amx;
  if (! configure_tiles(i, tilecfg)) xfd_initialize_tilecfg();
  memcpy(BX_CPU_THIS_PTR amx->tile, before.tile, sizeof(before.tile));
  BX_CPU_THIS_PTR amx->tile_use_tracker = before.tile_use_tracker;
}

void BX_CPU_C::xfd_initialize_tilecfg(void)
{
  BX_CPU_THIS_PTR amx->palette_id = 0;
  BX_CPU_THIS_PTR amx->restart();
  BX_CPU_THIS_PTR amx->clear_tilecfg();
}
