//! Where everything stands in a call's workspace.
//!
//! *Local* workspace belongs to one worker and one block row at a time; a *head's* workspace to one (batch, head) in
//! flight (in a loop with a halo, to one stretch of its rows), and holds the values that outlive their block row. All
//! offsets are in bytes and multiples of 64. This is the only place that knows them: code, runtime and limits ask here.

use std::collections::HashMap;
use std::ops::Range;

use super::chains::Chains;
use super::{MaskPlan, Walk};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::mask::QUERY_BLOCK;
use crate::program::{Body, Extent, Op, Shape, Space, ValueId};
use crate::tiles::stored::buffer_floats;
use crate::tiles::{BLOCK, LANES};

/// Rows of sums are padded to so many floats.
const ACC_LANES: usize = LANES;

/// Arrays over the queries of a block row that its scattered edges leave to its other keys: maximum, maximum at the last
/// update, what was subtracted, sum.
pub const EDGE_STATISTICS: usize = 4;

/// Bytes of an array over the queries of a block row.
const LANE_BYTES: usize = BLOCK * size_of::<f32>();

/// The layout of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The worker's own.
    pub local: Local,
    /// Floats from one group's panel to the next in the worker's own panels.
    pub panel_stride: usize,
    /// The same in a ring of kept panels.
    pub ring_stride: usize,
    /// Scattered edges of the fullest block row: floats from one slot of a ring to the next.
    pub edge_slot: usize,
    /// For every value that is the root of a buffer of the head's workspace, where it is.
    buffers: Vec<Option<Buffer>>,
    /// For every value in the worker's own workspace, which of its kind.
    places: Vec<Option<usize>>,
    /// Bytes of a head's workspace.
    pub head: usize,
}

/// A buffer in the head's workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it begins.
    pub offset: usize,
    /// Rows: floats from one to the next. Else 0.
    pub stride: usize,
    /// Rows that it holds (of rows), or bytes of panels in front of the edges (of pairs).
    pub size: usize,
    /// Bytes in all.
    pub bytes: usize,
}

/// The worker's own workspace: offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Row maxima so far, `[64]`.
    pub max: usize,
    /// Row maxima at the last update, `[64]`.
    pub old: usize,
    /// What the exponential subtracts, `[64]`.
    pub reference: usize,
    /// Row sums, `[64]`.
    pub sum: usize,
    /// Factors by which sums shrink at an update, `[64]`; otherwise what nobody reads.
    pub correction: usize,
    /// Factors of the output rows, `[64]`.
    pub factor: usize,
    /// 1 / row sums for operations row by row, `[64]`.
    pub inverse: usize,
    /// Sums of the value tile, `[edge rows][64][acc_stride]`.
    pub acc: usize,
    /// Floats from one row of `acc` to the next.
    pub acc_stride: usize,
    /// Weights between a row's queries and their own keys, `[4][64][16]`; nothing where nothing is solved.
    pub diagonal: usize,
    /// A row's solved rows, `[64][acc_stride]`.
    pub solved: usize,
    /// What the edges of a batch's rows leave to their other keys, `[edge rows][EDGE_STATISTICS][64]`.
    pub edge_statistics: usize,
    /// Rows of 16-bit tensors in f32 ([`crate::tiles::stored`]).
    pub widened: usize,
    /// Packed queries.
    pub packed: Vec<usize>,
    /// Panels, `[4][panel_stride]` each.
    pub panels: Vec<usize>,
    /// Pairs of scattered edges beside each panel.
    pub edges: Vec<usize>,
    /// Rows, with floats from one to the next.
    pub rows: Vec<(usize, usize)>,
    /// Arrays over the queries.
    pub lanes: Vec<usize>,
    /// Bytes in all.
    pub bytes: usize,
}

/// Keys from one group's panel to the next: odd, so that the four groups of a key do not fall into the same
/// sets of a cache.
pub const fn padded_keys(keys: u64) -> u64 {
    keys | 1
}

/// Floats of a kept panel of so many keys.
const fn stored_floats(keys: u64) -> u64 {
    padded_keys(keys) * BLOCK as u64
}

/// Floats from one row of sums to the next.
const fn padded_width(width: usize) -> usize {
    width.next_multiple_of(ACC_LANES)
}

struct Space64(usize);

impl Space64 {
    fn take(&mut self, bytes: usize) -> usize {
        let at = self.0;
        self.0 += bytes.next_multiple_of(64);
        at
    }
}

/// Space that buffers share where no loop needs both.
#[derive(Default)]
struct Shelf {
    /// Loops, and bytes from where to where.
    taken: Vec<(Range<usize>, Range<usize>)>,
    bytes: usize,
}

impl Shelf {
    /// The lowest place that is free in all these loops.
    fn take(&mut self, loops: &Range<usize>, bytes: usize) -> usize {
        let bytes = bytes.next_multiple_of(64);
        let meets = |other: &Range<usize>| other.start < loops.end && loops.start < other.end;
        let mut others: Vec<&Range<usize>> =
            self.taken.iter().filter(|(of, _)| meets(of)).map(|(_, place)| place).collect();
        others.sort_unstable_by_key(|place| place.start);
        let mut at = 0;
        for other in others {
            if other.start >= at + bytes {
                break;
            }
            at = at.max(other.end);
        }
        self.taken.push((loops.clone(), at..at + bytes));
        self.bytes = self.bytes.max(at + bytes);
        at
    }
}

/// For every root, the loops from the first that writes its buffer to the last that reads it. Numbers for every query may be
/// given by the caller of a gradient: they are there from the start.
fn alive(body: &Body, chains: &Chains) -> Vec<Range<usize>> {
    let mut alive: Vec<Option<Range<usize>>> = vec![None; body.values.len()];
    for (i, one) in body.loops.iter().enumerate() {
        for operation in one.ops() {
            let ids = operation.op.reads().into_iter().map(|(id, _)| id).chain(operation.results.iter().copied());
            for id in ids.chain(chains.read_in_place(body, &operation.op)) {
                let known = &mut alive[chains.root(id).0 as usize];
                let first = known.as_ref().map_or(i, |loops| loops.start);
                let first = if body.value(id).space == Space::Query { 0 } else { first };
                *known = Some(first..i + 1);
            }
        }
    }
    alive.into_iter().map(Option::unwrap_or_default).collect()
}

impl Layout {
    /// Lays out the values of a body. `walks` are the ways of walking its block rows, whole rows and by keys; `at_call` asks
    /// for room for other tables.
    ///
    /// # Errors
    /// [`Error::Internal`] where rows would have to lie side by side with two different neighbors.
    pub fn new(shape: &Shape, body: &Body, walks: &[Walk], (parts, at_call): (usize, bool)) -> Result<Self> {
        let chains = Chains::new(body);
        let float = size_of::<f32>();
        let most = |by_keys: bool, size: fn(&MaskPlan) -> usize| {
            let of = walks.iter().filter(|walk| walk.by_keys == by_keys).flat_map(|walk| &walk.masks);
            of.map(size).max().unwrap_or(0)
        };
        let block_edges = most(false, |mask| mask.block_edges).max(most(true, |mask| mask.block_edges));
        let ring_stride = padded_keys(most(false, |mask| mask.panel_keys) as u64) as usize * LANES;
        let places = Places::new(shape, body, &chains);

        let mut panel_keys = 0;
        let (mut acc_width, mut edge_rows, mut batch_edges, mut has_solve) = (0, 1, block_edges, false);
        for of_loop in &body.loops {
            for stage in &of_loop.stages {
                let own = stage.ops.iter().flat_map(|operation| &operation.results);
                let has_local = own.clone().any(|&id| places.of_panels(body, chains.root(id)));
                let reads_local = stage
                    .ops
                    .iter()
                    .flat_map(|operation| operation.op.reads())
                    .any(|(id, _)| places.of_panels(body, chains.root(id)));
                if has_local || reads_local {
                    panel_keys = panel_keys.max(most(stage.by_keys, |mask| mask.panel_keys));
                }
                for operation in &stage.ops {
                    let solves = matches!(operation.op, Op::Solve { .. } | Op::SolveT { .. });
                    has_solve |= solves;
                    if let (true, Some(&out)) =
                        (solves || matches!(operation.op, Op::Spmm { .. }), operation.results.first())
                    {
                        acc_width = acc_width.max(width_of(body, out));
                    }
                }
            }
            let rows = of_loop.edge_rows.max(1) as usize;
            if rows > 1 {
                edge_rows = edge_rows.max(rows);
                let spans = walks.iter().filter(|walk| walk.by_keys).flat_map(|walk| &walk.masks);
                let edges = spans.flat_map(|mask| mask.edge_spans(rows)).max().unwrap_or(0);
                batch_edges = batch_edges.max(if at_call { super::room(edges) } else { edges });
            }
        }
        let panel_stride = padded_keys(panel_keys as u64) as usize * LANES;

        let mut space = Space64(0);
        let [max, old, reference, sum, correction, factor, inverse] = std::array::from_fn(|_| space.take(LANE_BYTES));
        let packed = places.packed.iter().map(|&width| space.take(BLOCK * width * float)).collect();
        let acc_stride = padded_width(acc_width.max(1));
        let acc = space.take(edge_rows * BLOCK * acc_stride * float);
        let diagonal = space.take(if has_solve { BLOCK * BLOCK * float } else { 0 });
        let solved = space.take(if has_solve { BLOCK * acc_stride * float } else { 0 });
        let edge_statistics = space.take(if edge_rows > 1 { edge_rows * EDGE_STATISTICS * LANE_BYTES } else { 0 });
        let edges = (0..places.panels).map(|_| space.take(batch_edges * float)).collect();
        let panels = (0..places.panels).map(|_| space.take(BLOCK / LANES * panel_stride * float)).collect();
        let rows = places.rows.iter().map(|&width| {
            let stride = padded_width(width);
            (space.take(BLOCK * stride * float), stride)
        });
        let rows = rows.collect();
        let lanes = (0..places.lanes).map(|_| space.take(LANE_BYTES)).collect();
        let widened = space.take(match shape.dtype {
            Dtype::F32 => 0,
            Dtype::Bf16 | Dtype::F16 => buffer_floats(shape.head_dim, shape.value_dim) * float,
        });
        let local = Local {
            max,
            old,
            reference,
            sum,
            correction,
            factor,
            inverse,
            acc,
            acc_stride,
            diagonal,
            solved,
            edge_statistics,
            widened,
            packed,
            panels,
            edges,
            rows,
            lanes,
            bytes: space.0,
        };

        let alive = alive(body, &chains);
        let mut head = Shelf::default();
        let mut buffers = vec![None; body.values.len()];
        for (root, buffer) in side_by_side(shape, body, &chains, &alive, &mut head)? {
            buffers[root.0 as usize] = Some(buffer);
        }
        let rows = shape.q_len.div_ceil(QUERY_BLOCK);
        let in_order = walks.iter().flat_map(|walk| &walk.masks).all(|mask| mask.order.is_none());
        for (at, value) in body.values.iter().enumerate() {
            let id = ValueId(at as u32);
            if chains.root(id) != id || buffers[at].is_some() {
                continue;
            }
            let ring = match value.extent {
                Extent::All => 0,
                Extent::Ring(ring) => ring as usize,
                Extent::Tensor(_) | Extent::Row | Extent::Keys => continue,
            };
            let slots = if ring == 0 { rows } else { ring };
            let parted = chains.defined[at].is_some_and(|(of_loop, ..)| body.loops[of_loop].parts);
            let (stride, size, bytes) = match value.space {
                Space::Queries(width) | Space::Keys(width) => {
                    let all = if matches!(value.space, Space::Keys(_)) { shape.kv_len } else { shape.q_len };
                    // A ring holds twice what is alive at once, so that each row is moved once at most.
                    let held = if ring > 0 && in_order { all.min(2 * ring * QUERY_BLOCK) } else { all };
                    let copies = if parted { parts - usize::from(shape.dtype.is_f32()) } else { 1 };
                    let stride = padded_width(width);
                    (stride, held, copies * held * stride * float)
                }
                Space::Packed(width) => (0, 0, slots * BLOCK * width * float),
                Space::Query if parted => (0, 0, parts * shape.q_len * float),
                Space::Query => (0, 0, slots * LANE_BYTES),
                Space::Pairs => {
                    let all = |mask: &MaskPlan| {
                        mask.stored_panels().last().map_or(0, |(start, keys)| start + stored_floats(keys))
                    };
                    let whole = walks.iter().filter(|walk| !walk.by_keys).flat_map(|walk| &walk.masks);
                    let (floats, edges) = if ring == 0 {
                        let floats = whole.clone().map(all).max().unwrap_or(0) as usize;
                        (floats, whole.map(|mask| mask.edges.keys.len()).max().unwrap_or(0))
                    } else {
                        (ring * BLOCK / LANES * ring_stride, ring * block_edges)
                    };
                    let panels = (floats * value.store.bytes()).next_multiple_of(64);
                    (0, panels, panels + edges * float)
                }
            };
            buffers[at] = Some(Buffer { offset: head.take(&alive[at], bytes), stride, size, bytes });
        }
        Ok(Self {
            local,
            panel_stride,
            ring_stride,
            edge_slot: block_edges,
            buffers,
            places: places.of,
            head: head.bytes,
        })
    }

    /// The buffer of a value that is kept.
    pub fn buffer(&self, root: ValueId) -> Option<Buffer> {
        self.buffers.get(root.0 as usize).copied().flatten()
    }

    pub(super) fn local_panel(&self, root: ValueId) -> usize {
        self.place(root)
    }

    pub(super) fn local_packed(&self, root: ValueId) -> usize {
        self.place(root)
    }

    pub(super) fn local_rows(&self, root: ValueId) -> usize {
        self.place(root)
    }

    pub(super) fn local_lanes(&self, root: ValueId) -> usize {
        self.place(root)
    }

    fn place(&self, root: ValueId) -> usize {
        self.places.get(root.0 as usize).copied().flatten().unwrap_or(0)
    }
}

fn width_of(body: &Body, id: ValueId) -> usize {
    match body.value(id).space {
        Space::Queries(width) | Space::Keys(width) | Space::Packed(width) => width,
        Space::Pairs | Space::Query => 0,
    }
}

/// Which of the worker's own panels, packed queries, rows and arrays a value has: two values share one unless a stage has
/// both.
struct Places {
    of: Vec<Option<usize>>,
    panels: usize,
    lanes: usize,
    /// Width of each.
    packed: Vec<usize>,
    rows: Vec<usize>,
}

impl Places {
    fn new(shape: &Shape, body: &Body, chains: &Chains) -> Self {
        let mut this =
            Self { of: vec![None; body.values.len()], panels: 0, lanes: 0, packed: Vec::new(), rows: Vec::new() };
        let _ = shape;
        let stages: Vec<_> = body.loops.iter().flat_map(|of_loop| &of_loop.stages).collect();
        // What lives beyond its stage (a wide copy of what is kept in bf16) first: it has one place in all of them.
        for beyond in [true, false] {
            for stage in &stages {
                let mut here: Vec<ValueId> = Vec::new();
                for operation in &stage.ops {
                    let ids =
                        operation.op.reads().into_iter().map(|(id, _)| id).chain(operation.results.iter().copied());
                    for id in ids {
                        let root = chains.root(id);
                        if Self::is_local(body, root) && !here.contains(&root) {
                            here.push(root);
                        }
                    }
                }
                for &root in &here {
                    let kept = matches!(body.value(root).extent, Extent::All | Extent::Ring(_));
                    if kept == beyond && this.of[root.0 as usize].is_none() {
                        this.place(body, root, &here);
                    }
                }
            }
        }
        this
    }

    /// Whether a value, or a wide copy of it, is in the worker's own workspace.
    fn is_local(body: &Body, root: ValueId) -> bool {
        let value = body.value(root);
        match value.extent {
            Extent::Row | Extent::Keys => true,
            Extent::All | Extent::Ring(_) => value.space == Space::Pairs && !value.store.is_f32(),
            Extent::Tensor(_) => false,
        }
    }

    fn of_panels(&self, body: &Body, root: ValueId) -> bool {
        body.value(root).space == Space::Pairs && Self::is_local(body, root)
    }

    fn place(&mut self, body: &Body, root: ValueId, here: &[ValueId]) {
        let kind = |id: ValueId| std::mem::discriminant(&normal(body.value(id).space));
        let taken: Vec<usize> =
            here.iter().filter(|&&id| kind(id) == kind(root)).filter_map(|&id| self.of[id.0 as usize]).collect();
        let at = (0..).find(|at| !taken.contains(at)).unwrap_or(0);
        self.of[root.0 as usize] = Some(at);
        let grow = |widths: &mut Vec<usize>, width: usize| {
            widths.resize(widths.len().max(at + 1), 0);
            widths[at] = widths[at].max(width);
        };
        match body.value(root).space {
            Space::Pairs => self.panels = self.panels.max(at + 1),
            Space::Query => self.lanes = self.lanes.max(at + 1),
            Space::Packed(width) => grow(&mut self.packed, width),
            Space::Queries(width) | Space::Keys(width) => grow(&mut self.rows, width),
        }
    }
}

/// Rows of queries and of keys are one kind.
fn normal(space: Space) -> Space {
    match space {
        Space::Keys(width) => Space::Queries(width),
        space => space,
    }
}

/// Rows that one operation reads as one, in a buffer with a row for all of them.
fn side_by_side(
    shape: &Shape,
    body: &Body,
    chains: &Chains,
    alive: &[Range<usize>],
    head: &mut Shelf,
) -> Result<Vec<(ValueId, Buffer)>> {
    let mut groups: HashMap<Vec<ValueId>, Vec<(ValueId, Buffer)>> = HashMap::new();
    let mut order = Vec::new();
    for operation in body.ops() {
        let (Op::Pack { x: ids, .. } | Op::Sddmm { y: ids, .. }) = &operation.op else { continue };
        if ids.len() < 2 {
            continue;
        }
        let roots: Vec<ValueId> = ids.iter().map(|&id| chains.root(id)).collect();
        if groups.contains_key(&roots) {
            continue;
        }
        let all_kept = roots.iter().all(|&root| body.value(root).extent == Extent::All);
        let elsewhere = groups.keys().any(|group| group.iter().any(|root| roots.contains(root)));
        let twice = (1..roots.len()).any(|i| roots[..i].contains(&roots[i]));
        if !all_kept || elsewhere || twice {
            return Err(Error::internal("plan", "rows cannot lie side by side", body.to_string()));
        }
        let stride: usize = roots.iter().map(|&root| width_of(body, root)).sum();
        let rows = shape.q_len.max(shape.kv_len);
        let bytes = rows * stride * size_of::<f32>();
        let loops = roots.iter().map(|root| alive[root.0 as usize].clone());
        let loops = loops.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or_default();
        let start = head.take(&loops, bytes);
        let mut column = 0;
        let mut members = Vec::new();
        for &root in &roots {
            let offset = start + column * size_of::<f32>();
            members.push((root, Buffer { offset, stride, size: rows, bytes }));
            column += width_of(body, root);
        }
        groups.insert(roots.clone(), members);
        order.push(roots);
    }
    Ok(order.iter().filter_map(|roots| groups.remove(roots)).flatten().collect())
}

impl MaskPlan {
    /// Scattered edges of every `batch` block rows, in order.
    pub(super) fn edge_spans(&self, batch: usize) -> impl Iterator<Item = usize> {
        let offsets = &self.edges.offsets;
        let places = offsets.len().saturating_sub(1);
        (0..places).step_by(batch * BLOCK).map(move |start| {
            let end = (start + batch * BLOCK).min(places);
            (offsets[end] - offsets[start]) as usize
        })
    }

    /// For every block row in order, where its panel starts (in floats) and how many keys it holds.
    pub fn stored_panels(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut start = 0;
        self.rows
            .iter()
            .flat_map(|row| {
                let (keys, growth) = (row.first_row_keys(), row.row_growth());
                (0..u64::from(row.count)).map(move |i| keys + i * growth)
            })
            .map(move |keys| {
                let here = start;
                start += stored_floats(keys);
                (here, keys)
            })
    }
}
