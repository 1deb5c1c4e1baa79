//! Bytes typed on COM1, between the interrupt that brings them and the guest's UART that takes them.

use super::serial::Line;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Bytes that wait at most; further ones wait in the UART.
const BYTES: usize = 256;

/// A queue with one writer and one reader.
struct Queue {
    bytes: [AtomicU8; BYTES],
    /// Bytes ever written, modulo 2^64.
    written: AtomicUsize,
    /// Bytes ever read, modulo 2^64.
    read: AtomicUsize,
}

static TYPED: Queue = Queue::new();

impl Queue {
    const fn new() -> Self {
        Self { bytes: [const { AtomicU8::new(0) }; BYTES], written: AtomicUsize::new(0), read: AtomicUsize::new(0) }
    }

    fn is_full(&self) -> bool {
        self.written.load(Ordering::Relaxed).wrapping_sub(self.read.load(Ordering::Acquire)) >= BYTES
    }

    /// Adds a byte; it is lost when the queue is full.
    fn push(&self, byte: u8) {
        if !self.is_full() {
            let at = self.written.load(Ordering::Relaxed);
            self.bytes[at % BYTES].store(byte, Ordering::Relaxed);
            self.written.store(at.wrapping_add(1), Ordering::Release);
        }
    }

    fn pop(&self) -> Option<u8> {
        let at = self.read.load(Ordering::Relaxed);
        if at == self.written.load(Ordering::Acquire) {
            return None;
        }
        let byte = self.bytes[at % BYTES].load(Ordering::Relaxed);
        self.read.store(at.wrapping_add(1), Ordering::Release);
        Some(byte)
    }
}

/// Takes what the UART has received, as far as there is room.
pub(crate) fn drain() {
    while !TYPED.is_full() {
        match Line::COM1.receive() {
            Some(byte) => TYPED.push(byte),
            None => break,
        }
    }
}

/// Returns the next byte typed. With the queue full the UART may have kept bytes, and its line high, so that no further
/// interrupt tells of them: taking the first byte of a full queue looks there again.
#[inline]
pub(crate) fn next() -> Option<u8> {
    let full = TYPED.is_full();
    let byte = TYPED.pop();
    if full {
        drain();
    }
    byte
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn bytes_come_out_once_and_in_order(steps in proptest::collection::vec(any::<(bool, u8)>(), 0..2000)) {
            let (queue, mut model) = (Queue::new(), VecDeque::new());
            for (write, byte) in steps {
                // Three writes for one read, so that it fills up.
                if write || byte % 2 == 0 {
                    queue.push(byte);
                    if model.len() < BYTES { model.push_back(byte); }
                } else {
                    prop_assert_eq!(queue.pop(), model.pop_front());
                }
                prop_assert_eq!(queue.is_full(), model.len() == BYTES);
            }
        }
    }
}
