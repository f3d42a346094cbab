//! The schedule: what a kernel computes, as a short list of operations over neighbor blocks and hops.
//!
//! In: a [`BlockMask`](crate::mask::BlockMask), the score's scale and the diffusion. Out: a [`Schedule`],
//! first as the definition has it (one operation a step), later as [`crate::passes`] have fused it.
//! [`verify`] turns it into a [`VerifiedSchedule`], the only thing that later steps accept.
