//! What of a nest costs time, counted from its operations and extents.

use crate::program::{Access, Body, Extent, Loop, Op, Space};

/// What a nest does with every block row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NestCounts {
    /// Times that the scores of q and k are computed.
    pub scored: usize,
    /// Products of weights with rows.
    pub products: usize,
    /// Loops that work on pairs: behind each, all rows are there before the next begins.
    pub loops: usize,
    /// Rows of K and rows of values that take turns in a loop, at most.
    pub together: (usize, usize),
    /// How weights are kept, where they are kept beyond their row.
    pub weights: Option<KeptWeights>,
    /// The loop that carries rows from one hop to the next, if there is one.
    pub sweep: Option<SweepCounts>,
}

/// Weights that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptWeights {
    /// Bytes of an element.
    pub element: usize,
    /// Block rows of a ring; all rows where there is none.
    pub ring: Option<usize>,
}

/// A loop that does all hops in one sweep over the block rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepCounts {
    /// Block rows that a row reads behind itself.
    pub behind: usize,
    /// Block rows from one hop to the next.
    pub lag: usize,
    /// Its hops.
    pub hops: usize,
}

impl NestCounts {
    /// Counts a body, in time proportional to its operations.
    pub fn of(body: &Body) -> Self {
        let roots = body.roots();
        let mut counts = Self { scored: 0, products: 0, loops: 0, together: (0, 0), weights: None, sweep: None };
        for one in &body.loops {
            let works_on_pairs = one.ops().any(|operation| {
                let mut results = operation.results.iter();
                let reads = operation.op.reads();
                results.any(|id| body.value(*id).space == Space::Pairs)
                    || reads.iter().any(|(id, _)| body.value(*id).space == Space::Pairs)
            });
            let of = |what: fn(&Op) -> bool| one.ops().filter(|operation| what(&operation.op)).count();
            let scored = of(|op| matches!(op, Op::Sddmm { .. }));
            let products =
                of(|op| matches!(op, Op::Spmm { .. } | Op::SpmmT { .. } | Op::Solve { .. } | Op::SolveT { .. }));
            counts.scored += scored;
            counts.products += products;
            counts.loops += usize::from(works_on_pairs);
            if scored > 0 && products > 0 {
                counts.together = counts.together.max((scored, products));
            }
            if one.stages.len() > 1 && products > 0 {
                counts.sweep = Some(SweepCounts::of(body, one));
            }
        }
        for operation in body.ops().filter(|operation| matches!(operation.op, Op::Exp { .. })) {
            let root = body.value(roots[operation.results[0].0 as usize]);
            let kept = |ring| Some(KeptWeights { element: root.store.bytes(), ring });
            counts.weights = match root.extent {
                Extent::All => kept(None),
                Extent::Ring(rows) => kept(Some(rows as usize)),
                Extent::Tensor(_) | Extent::Row | Extent::Keys => counts.weights,
            };
        }
        counts
    }
}

impl SweepCounts {
    fn of(body: &Body, one: &Loop) -> Self {
        let products = one.stages.iter().filter(|stage| stage.ops.iter().any(|o| matches!(o.op, Op::Spmm { .. })));
        let shifts: Vec<usize> = products.map(|stage| stage.shift as usize).collect();
        let lag = shifts.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(0);
        // A ring of rows that others reach for holds those between the two hops, and those behind.
        let reads = one.ops().flat_map(|operation| operation.op.reads());
        let rings = reads.filter(|(_, access)| *access == Access::Neighbors).filter_map(|(id, _)| {
            match body.value(id).extent {
                Extent::Ring(rows) => Some((rows as usize).saturating_sub(lag + 1)),
                _ => None,
            }
        });
        Self { behind: rings.max().unwrap_or(0), lag, hops: shifts.len() }
    }
}
