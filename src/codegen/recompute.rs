//! `recompute`: hops after the first compute P again, from the statistics that the first has kept.

use super::hops::Hop;
use super::kernel::{Kernel, Row};
use super::steps::StepKind;

/// Writes the function of a hop.
pub(super) fn write_hop(mut kernel: Kernel<'_, '_>) {
    kernel.fill_records();
    let hop = Hop::begin(&mut kernel);
    kernel.for_rows(|kernel, row, steps| {
        kernel.begin_row(row, steps);
        let references = kernel.lanes_of(row, kernel.scratch.references);
        let reference = kernel.local(kernel.scratch.reference);
        kernel.copy_lanes(row, references, reference);
        kernel.hop_row(row, steps, hop, |kernel, step, redo, output| {
            let panel = kernel.local_panel();
            let (v, v_stride) = hop.source;
            match step {
                StepKind::Edges => {
                    let s = kernel.local(kernel.scratch.edges);
                    kernel.edge_scores(s);
                    kernel.edge_exp(s);
                    kernel.edge_values(s, v, v_stride);
                }
                StepKind::Joint(source) => {
                    kernel.for_pieces(row, source, |kernel, piece| kernel.score_piece(row, panel, piece));
                    kernel.for_pieces(row, source, |kernel, piece| kernel.exp_piece(panel, piece));
                    kernel.values(row, panel, source, (v, v_stride), redo, output);
                }
                StepKind::Stream(stretch) => kernel.for_chunks(row, stretch, |kernel, chunk| {
                    kernel.score_piece(row, panel, chunk);
                    kernel.exp_piece(panel, chunk);
                    kernel.value_run(row, panel, chunk, v, v_stride);
                }),
            }
        });
    });
    kernel.finish();
}

impl Kernel<'_, '_> {
    /// Keeps, behind a row's last step of the first hop, what later hops need to compute its probabilities again.
    pub fn keep_statistics(&mut self, row: Row) {
        let (sum, reference) = (self.local(self.scratch.sum), self.local(self.scratch.reference));
        let inverse = self.lanes_of(row, self.scratch.inverse);
        let references = self.lanes_of(row, self.scratch.references);
        self.invert(row, sum, inverse, None);
        self.copy_lanes(row, reference, references);
    }
}
