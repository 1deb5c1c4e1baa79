//! The last exits of each virtual processor, a counter and a cost for each kind.
