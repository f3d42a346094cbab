//! What code generation reads of a plan whose rows are all walked from tables.
//!
//! Two plans of one outline have the same code: their tables, and with them their neighbors, differ. Machine code that was
//! made for one then runs the other, so that neighbors that are known only at the call compile nothing.

use super::function::Functions;
use super::layout::Local;
use super::{KernelPlan, VerifiedPlan};

/// All of a plan but its tables. Equal outlines have equal code.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// The plan without masks, reach, and words for people.
    plan: KernelPlan,
    /// The ways of walking block rows: the set, and whether by keys.
    walks: Vec<(u32, bool)>,
    functions: Functions,
    local: Local,
    /// Floats from group to group in panels of the worker and of rings, and edges in a slot of a ring.
    strides: [usize; 3],
    /// Whether there are scattered edges, an order of rows, and keys of a range that lie apart.
    has: [bool; 3],
}

impl VerifiedPlan {
    /// The outline; none where rows have code of their own.
    pub fn outline(&self) -> Option<Outline> {
        if !self.tables_at_call {
            return None;
        }
        let plan = KernelPlan {
            isa: self.isa,
            strategy: self.strategy,
            reasons: Vec::new(),
            shape: self.shape,
            bf16_dots: self.bf16_dots,
            tables_at_call: self.tables_at_call,
            block_test: self.block_test,
            mods: self.mods.clone(),
            tuning: self.tuning,
            body: self.body.clone(),
            reach: None,
            walks: Vec::new(),
            parts: self.parts,
            stack: self.stack,
            mask_of_head: Vec::new(),
            masks_of_others: Vec::new(),
        };
        let layout = self.layout();
        Some(Outline {
            plan,
            walks: self.walks.iter().map(|walk| (walk.set, walk.by_keys)).collect(),
            functions: self.functions().clone(),
            local: layout.local.clone(),
            strides: [layout.panel_stride, layout.ring_stride, layout.edge_slot],
            has: [self.has_edges(), self.is_ordered(), self.has_key_steps()],
        })
    }
}
