//! A deterministic processor: the third backend, for tests and for users' own tests.
