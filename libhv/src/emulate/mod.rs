//! One guest instruction in software: decode, operands, execute.
