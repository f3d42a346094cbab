//! Run-length encoding of block rows: `row, row shifted by 64, … -> one RowRun`.
//!
//! In: the segments of one block row after the other, or whole runs. Out: the shortest list of [`RowRun`]s
//! that a greedy reader finds: a row joins the run before it whenever the affine form of [`Keys`] can say so.

use super::{Keys, QUERY_BLOCK, RowRun, Segment};

/// Rows encoded so far.
#[derive(Debug, Default)]
pub(super) struct RowRuns {
    runs: Vec<RowRun>,
    segments: usize,
}

impl RowRuns {
    /// Appends `count` rows that continue the rows so far: `segments` are those of the first of them, with
    /// steps where `count` is above 1 (otherwise steps are ignored).
    pub(super) fn push(&mut self, count: u32, segments: &[Segment]) {
        let first = self.runs.last().map_or(0, |run| run.first + run.count);
        if let Some(last) = self.runs.last_mut()
            && extends(last, count, segments)
        {
            if last.count == 1 {
                for (have, more) in last.segments.iter_mut().zip(segments) {
                    set_steps(have, more);
                }
            }
            last.count += count;
            return;
        }
        let mut segments = segments.to_vec();
        if count == 1 {
            segments.iter_mut().for_each(clear_steps);
        }
        self.segments += segments.len();
        self.runs.push(RowRun { first, count, segments });
    }

    /// Bytes taken by the runs.
    pub(super) fn bytes(&self) -> u64 {
        (self.runs.len() * size_of::<RowRun>() + self.segments * size_of::<Segment>()) as u64
    }

    pub(super) fn finish(self) -> Vec<RowRun> {
        self.runs
    }
}

/// Whether `count` rows from `segments` continue `run` in the affine form.
fn extends(run: &RowRun, count: u32, segments: &[Segment]) -> bool {
    run.segments.len() == segments.len()
        && run.segments.iter().zip(segments).all(|(have, more)| {
            if have.mask != more.mask {
                return false;
            }
            match (have.keys, more.keys) {
                (Keys::List { list: a }, Keys::List { list: b }) => a == b,
                (
                    Keys::Range { start, len, start_step, len_step },
                    Keys::Range { start: next_start, len: next_len, start_step: next_ss, len_step: next_ls },
                ) => {
                    // Differences from the run's last row to the new first row.
                    let rows = run.count - 1;
                    let by =
                        |from: u32, step: u32, to: u32| (from + rows * step <= to).then(|| to - from - rows * step);
                    let (Some(ss), Some(ls)) = (by(start, start_step, next_start), by(len, len_step, next_len)) else {
                        return false;
                    };
                    let legal = |step: u32| step == 0 || step == QUERY_BLOCK as u32;
                    legal(ss)
                        && legal(ls)
                        && (have.mask.is_none() || ls == 0)
                        && (run.count == 1 || (ss, ls) == (start_step, len_step))
                        && (count == 1 || (ss, ls) == (next_ss, next_ls))
                }
                _ => false,
            }
        })
}

/// Gives a single row's segment the steps that lead to `next`.
fn set_steps(have: &mut Segment, next: &Segment) {
    if let (Keys::Range { start, len, start_step, len_step }, Keys::Range { start: to, len: grown, .. }) =
        (&mut have.keys, next.keys)
    {
        *start_step = to - *start;
        *len_step = grown - *len;
    }
}

fn clear_steps(segment: &mut Segment) {
    if let Keys::Range { start_step, len_step, .. } = &mut segment.keys {
        (*start_step, *len_step) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(start: u32, len: u32) -> Segment {
        Segment { keys: Keys::Range { start, len, start_step: 0, len_step: 0 }, mask: None }
    }

    #[test]
    fn shifted_rows_become_one_run_and_a_jump_starts_another() {
        let mut rows = RowRuns::default();
        for start in [0, 64, 128, 200, 264] {
            rows.push(1, &[full(start, 10)]);
        }
        let runs = rows.finish();
        assert_eq!(runs.iter().map(|run| (run.first, run.count)).collect::<Vec<_>>(), [(0, 3), (3, 2)]);
        assert_eq!(runs[0].segments[0].keys, Keys::Range { start: 0, len: 10, start_step: 64, len_step: 0 });
    }

    #[test]
    fn a_run_of_many_rows_joins_only_with_its_own_steps() {
        let moving = |start| Segment { keys: Keys::Range { start, len: 5, start_step: 64, len_step: 0 }, mask: None };
        let mut rows = RowRuns::default();
        rows.push(1, &[full(0, 5)]);
        rows.push(4, &[moving(64)]);
        rows.push(3, &[moving(320)]);
        rows.push(2, &[moving(448)]);
        assert_eq!(rows.finish().iter().map(|run| run.count).collect::<Vec<_>>(), [8, 2]);
    }
}
