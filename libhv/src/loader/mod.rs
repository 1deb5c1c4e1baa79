//! Loaders: an image and a memory map in, entry state out.
