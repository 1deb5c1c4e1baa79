//! The guest's vector registers, in the processor: the host is soft-float and never touches them otherwise.
#![expect(unsafe_code, reason = "moves vector registers by their names")]
