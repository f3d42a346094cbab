//! The portable tile family, emitted as Cranelift IR with 128-bit vectors.
