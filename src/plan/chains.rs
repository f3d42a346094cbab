//! What planning knows of the values of a body: where each is made, whose buffer it is written into, and what becomes of
//! scores on their way to weights.

use crate::program::{Base, Body, Op, Operation, ValueId};

/// What is known of all values at once.
pub struct Chains {
    /// The value whose buffer each is in.
    pub roots: Vec<ValueId>,
    /// For every value, the loop, stage and number of the operation that defines it.
    pub defined: Vec<Option<(usize, usize, usize)>>,
    /// Of the chain of scores that begins at a value: the product of its scale operations, and whether it ends in e^x.
    pub scales: Vec<f64>,
    pub natural: Vec<bool>,
    pub has_mods: Vec<bool>,
}

impl Chains {
    pub fn new(body: &Body) -> Self {
        let count = body.values.len();
        let mut this = Self {
            roots: (0..count as u32).map(ValueId).collect(),
            defined: vec![None; count],
            scales: vec![1.0; count],
            natural: vec![false; count],
            has_mods: vec![false; count],
        };
        for (i, of_loop) in body.loops.iter().enumerate() {
            for (j, stage) in of_loop.stages.iter().enumerate() {
                for (k, operation) in stage.ops.iter().enumerate() {
                    let sources = operation.op.in_place();
                    for (at, &result) in operation.results.iter().enumerate() {
                        this.defined[result.0 as usize] = Some((i, j, k));
                        if let Some(source) = sources.get(at).copied().flatten() {
                            this.roots[result.0 as usize] = this.roots[source.0 as usize];
                        }
                    }
                    let root = operation.results.first().map_or(0, |&result| this.roots[result.0 as usize].0 as usize);
                    match &operation.op {
                        Op::Scale { factor, .. } => this.scales[root] *= factor,
                        Op::Mods { .. } => this.has_mods[root] = true,
                        Op::Exp { base: Base::E, .. } => this.natural[root] = true,
                        _ => {}
                    }
                }
            }
        }
        this
    }

    pub fn root(&self, id: ValueId) -> ValueId {
        self.roots[id.0 as usize]
    }

    /// The rows that scores of scattered edges are made of: those that were packed, which edges read in place.
    pub fn read_in_place(&self, body: &Body, op: &Op) -> Vec<ValueId> {
        let Op::Sddmm { x, .. } = op else { return Vec::new() };
        match self.operation(body, *x).map(|pack| &pack.op) {
            Some(Op::Pack { x, .. }) => x.clone(),
            _ => Vec::new(),
        }
    }

    pub fn operation<'b>(&self, body: &'b Body, id: ValueId) -> Option<&'b Operation> {
        let (i, j, k) = self.defined[id.0 as usize]?;
        Some(&body.loops[i].stages[j].ops[k])
    }

    /// Whether the gradient of scores that begins at `root` goes back through mods.
    pub fn has_mods_gradient(&self, body: &Body, root: ValueId) -> bool {
        body.loops
            .iter()
            .flat_map(|l| &l.stages)
            .flat_map(|stage| &stage.ops)
            .any(|operation| matches!(operation.op, Op::ModsGradient { ds, .. } if self.root(ds) == root))
    }
}
