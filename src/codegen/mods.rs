//! Score mods in a kernel: the records of their passes, and where the row's queries stand.

use std::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::kernel::{Kernel, Row};
use super::steps::Operands;
use super::tables::Section;
use super::{KernelArgs, TileFn, is_ordered};
use crate::mask::QUERY_BLOCK;
use crate::plan::ModsBy;
use crate::spec::score::ScoreMod;
use crate::tiles::{EdgeModCall, ModCall, softcap_scale};

impl Kernel<'_, '_> {
    /// Writes the fields of the records that are the same in every call.
    pub fn fill_mod_records(&mut self) {
        let (Some(plan), Some([mods, edge_mods, positions])) = (&self.plan.mods, self.records.mods) else { return };
        let head = self.arg(offset_of!(KernelArgs, head));
        let inputs = self.arg(offset_of!(KernelArgs, inputs));
        let max = self.local(self.scratch.max);
        let max_in_pass = if plan.fused { max } else { self.e.int(0) };
        self.set(mods, offset_of!(ModCall, max), max_in_pass);
        self.set(mods, offset_of!(ModCall, positions), positions);
        let step = if self.has_key_steps() { self.section(Section::KeyStep) } else { self.e.int(1) };
        self.set(mods, offset_of!(ModCall, key_step), step);
        self.set(mods, offset_of!(ModCall, head), head);
        self.set(mods, offset_of!(ModCall, inputs), inputs);
        let constant = match (plan.by, plan.mods.mods.first()) {
            (ModsBy::Softcap, Some(ScoreMod::Softcap(cap))) => self.e.b.ins().f32const(*cap as f32),
            (ModsBy::Alibi, _) => {
                // The only table of constants: the slopes.
                let slopes = self.e.field(inputs, plan.mods.inputs.len() * size_of::<usize>());
                let slope = self.e.offset(slopes, head, 4);
                self.e.load(types::F32, slope, 0)
            }
            _ => self.e.b.ins().f32const(0.0),
        };
        let factor = self.e.b.ins().f32const(plan.factor);
        self.set(mods, offset_of!(ModCall, constant), constant);
        self.set(mods, offset_of!(ModCall, factor), factor);
        if self.has_edges() {
            let keys = self.section(Section::EdgeKeys);
            self.set(edge_mods, offset_of!(EdgeModCall, edge_keys), keys);
            self.set(edge_mods, offset_of!(EdgeModCall, max), max);
            self.set(edge_mods, offset_of!(EdgeModCall, positions), positions);
            self.set(edge_mods, offset_of!(EdgeModCall, head), head);
            self.set(edge_mods, offset_of!(EdgeModCall, inputs), inputs);
        }
    }

    /// What packed queries are multiplied with for the tile that applies the mods.
    pub fn mods_scale(&self) -> f32 {
        match self.plan.mods.as_ref().map(|plan| (plan.by, plan.mods.mods.as_slice())) {
            Some((ModsBy::Softcap, [ScoreMod::Softcap(cap)])) => softcap_scale(*cap) as f32,
            _ => 1.0,
        }
    }

    /// Sets the fields that change with the row, and the positions of its queries.
    pub fn begin_mods(&mut self, row: Row) {
        let (Some(plan), Some([mods, edge_mods, positions])) = (&self.plan.mods, self.records.mods) else { return };
        self.set(mods, offset_of!(ModCall, groups), row.groups);
        if self.has_edges() {
            self.set(edge_mods, offset_of!(EdgeModCall, rows), row.count);
            let offsets = self.section(Section::EdgeOffsets);
            let offsets = self.e.offset(offsets, row.place, size_of::<u32>() as i64);
            self.set(edge_mods, offset_of!(EdgeModCall, offsets), offsets);
        }
        if plan.mods.uses_query() {
            self.query_positions(row, positions, plan.mods.positions.q_offset);
        }
    }

    /// Writes the positions of the row's queries; lanes beyond the last one repeat its position, so that an index
    /// that is proved for every query holds for them.
    fn query_positions(&mut self, row: Row, positions: Value, q_offset: i64) {
        let last = self.e.b.ins().iadd_imm_s(row.count, -1);
        if is_ordered(self.plan) {
            let order = self.section(Section::Order);
            let order = self.e.offset(order, row.place, size_of::<u32>() as i64);
            let (zero, end) = (self.e.int(0), self.e.int(QUERY_BLOCK as i64));
            self.for_range(zero, end, 1, |kernel, lane| {
                let e = &mut kernel.e;
                let place = e.b.ins().smin(lane, last);
                let at = e.offset(order, place, 4);
                let query = e.load_u32(at, 0);
                let position = e.b.ins().iadd_imm_s(query, q_offset);
                let position = e.low_half(position);
                let at = e.offset(positions, lane, 4);
                e.store(position, at, 0);
            });
            return;
        }
        let e = &mut self.e;
        let first = e.b.ins().iadd_imm_s(row.place, q_offset);
        let [first, last] = [first, last].map(|x| {
            let x = e.low_half(x);
            e.b.ins().splat(types::I32X4, x)
        });
        for lane in (0..QUERY_BLOCK as u32).step_by(4) {
            let lanes = e.lanes([lane, lane + 1, lane + 2, lane + 3], types::I32X4);
            let place = e.b.ins().smin(lanes, last);
            let position = e.b.ins().iadd(place, first);
            e.store(position, positions, 4 * lane as i32);
        }
    }

    /// Applies the mods to a piece's scores, which start at `s` with `stride` floats from group to group; `words` are
    /// those of the score tile.
    pub fn mods_piece(&mut self, (s, stride): (Value, Value), piece: Operands, words: Value) {
        let Some([record, ..]) = self.records.mods else { return };
        self.set(record, offset_of!(ModCall, s), s);
        self.set(record, offset_of!(ModCall, s_stride), stride);
        self.set(record, offset_of!(ModCall, nkeys), piece.len);
        self.set(record, offset_of!(ModCall, words), words);
        self.set(record, offset_of!(ModCall, keys), piece.list);
        self.set(record, offset_of!(ModCall, first_key), piece.start);
        self.call(TileFn::Mods, record);
    }

    /// Applies the mods to the scores of the row's edges, and takes their maximum.
    pub fn mods_edges(&mut self, s: Value) {
        let Some([_, record, _]) = self.records.mods else { return };
        self.set(record, offset_of!(EdgeModCall, s), s);
        self.call(TileFn::EdgeMods, record);
    }
}
