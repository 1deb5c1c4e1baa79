//! From the boot loader to `main`.
