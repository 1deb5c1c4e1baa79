//! The VMX backend (SDM Vol. 3C chapters 24 to 33).
