// Members of BX_CPU_C: extended feature disable (SDM Vol. 1 13.14). Included inside the class.

  Bit64u ia32_xfd, ia32_xfd_err;

  // Both registers as after RESET.
  BX_SMF void xfd_reset(void);
  // Returns the state components that XFD disables: those of XCR0 and IA32_XFD.
  BX_SMF Bit32u xfd_disabled(void);
  // #NM, with IA32_XFD_ERR loaded, if XFD disables one of the components that the instruction needs.
  BX_SMF void xfd_require(Bit32u components);
  // WRMSR to IA32_XFD or IA32_XFD_ERR: false (#GP) for a component that XFD does not support.
  BX_SMF bool xfd_write(Bit64u *msr, Bit64u value);
  // Stores what the registers of a component of the XSAVE area held if they were in their initial configuration.
  BX_SMF void xfd_save_initial(bxInstruction_c *i, unsigned feature, bx_address offset);
  // Returns the offset of a component in a compacted XSAVE area that holds `components`.
  BX_SMF Bit32u xfd_compacted_offset(unsigned feature, Bit64u components);
  // XRSTOR of TILECFG: an illegal one leaves no tiles configured. TILEDATA stays.
  BX_SMF void xfd_restore_tilecfg(bxInstruction_c *i, const BxPackedAvxRegister &tilecfg);
  // TILECFG in its initial configuration. TILEDATA stays.
  BX_SMF void xfd_initialize_tilecfg(void);
