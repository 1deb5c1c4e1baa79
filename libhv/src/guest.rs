//! What a guest is made of: memory, image, devices, processors.
