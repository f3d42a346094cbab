//! A thin layer over Cranelift's function builder: loops, branches, record fields, 128-bit vectors.
//!
//! In: a [`FunctionBuilder`] over a function that is being written. Out: instructions in it. Values that a loop
//! or a branch changes are passed in and handed back as block parameters, so that nothing here depends on
//! mutable variables and the code reads in the order in which it runs.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{
    AbiParam, Block, BlockArg, Endianness, Function, InstBuilder, MemFlagsData, Signature, StackSlotData,
    StackSlotKind, Type, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig, TargetIsa};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};

/// `2^f` for `|f| ≤ 1/2` as a polynomial, constant term first: the minimax fit of degree 5 with the constant
/// term fixed at 1, computed with the Remez exchange. Its relative error is at most 1.1e-7.
#[expect(clippy::approx_constant, reason = "a fitted coefficient near ln 2, not ln 2")]
const EXP2: [f32; 6] = [1.0, 0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_7];

/// A signature of the system's calling convention with pointer-sized or other scalar parameters.
pub fn signature(call_conv: CallConv, params: &[Type], returns: &[Type]) -> Signature {
    let mut signature = Signature::new(call_conv);
    signature.params.extend(params.iter().copied().map(AbiParam::new));
    signature.returns.extend(returns.iter().copied().map(AbiParam::new));
    signature
}

/// A loop whose body is being written.
#[derive(Debug)]
pub struct Loop {
    header: Block,
    after: Block,
    /// The loop's index.
    pub index: Value,
    /// The carried values.
    pub params: Vec<Value>,
}

/// Writes one function.
pub struct Emit<'a> {
    /// The builder, for everything that has no shorter form here.
    pub b: FunctionBuilder<'a>,
    /// The type of an address.
    pub ptr: Type,
    fma: bool,
    frontend: TargetFrontendConfig,
}

impl<'a> Emit<'a> {
    /// Starts writing `function`, positioned in its entry block, and returns its parameters.
    pub fn new(
        function: &'a mut Function,
        context: &'a mut FunctionBuilderContext,
        isa: &dyn TargetIsa,
    ) -> (Self, Vec<Value>) {
        let mut b = FunctionBuilder::new(function, context);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        b.seal_block(entry);
        let params = b.block_params(entry).to_vec();
        (Self { b, ptr: isa.pointer_type(), fma: has_fma(isa), frontend: isa.frontend_config() }, params)
    }

    /// Returns from the function and closes it.
    pub fn finish(mut self, returns: &[Value]) {
        self.b.ins().return_(returns);
        self.b.finalize(self.frontend);
    }

    /// Copies bytes between regions that may overlap.
    pub fn move_bytes(&mut self, to: Value, from: Value, bytes: Value) {
        self.b.call_memmove(self.frontend, to, from, bytes);
    }

    /// An address-sized integer constant.
    pub fn int(&mut self, value: i64) -> Value {
        let ptr = self.ptr;
        self.b.ins().iconst(ptr, value)
    }

    /// `base + index * bytes`.
    pub fn offset(&mut self, base: Value, index: Value, bytes: i64) -> Value {
        let scaled = match bytes {
            1 => index,
            _ if bytes.count_ones() == 1 => self.b.ins().ishl_imm_u(index, i64::from(bytes.trailing_zeros())),
            _ => self.b.ins().imul_imm_s(index, bytes),
        };
        self.b.ins().iadd(base, scaled)
    }

    /// `base + index * stride` floats, both at run time.
    pub fn row(&mut self, base: Value, index: Value, stride: Value) -> Value {
        let elements = self.b.ins().imul(index, stride);
        self.offset(base, elements, 4)
    }

    /// Reads a pointer-sized field of a record, given by `offset_of!`.
    pub fn field(&mut self, record: Value, offset: usize) -> Value {
        let ptr = self.ptr;
        self.load(ptr, record, offset as i32)
    }

    /// Reads an address-aligned scalar of type `ty`, or an unaligned vector.
    pub fn load(&mut self, ty: Type, address: Value, offset: i32) -> Value {
        self.b.ins().load(ty, unaligned(), address, offset)
    }

    /// Writes a scalar or an unaligned vector.
    pub fn store(&mut self, value: Value, address: Value, offset: i32) {
        self.b.ins().store(unaligned(), value, address, offset);
    }

    /// Reads a 32-bit row number as an address-sized integer.
    pub fn load_u32(&mut self, address: Value, offset: i32) -> Value {
        let ptr = self.ptr;
        if ptr == types::I64 {
            return self.b.ins().uload32(unaligned(), address, offset);
        }
        self.b.ins().load(ptr, unaligned(), address, offset)
    }

    /// Reads one float into all lanes.
    pub fn load_splat(&mut self, address: Value, offset: i32) -> Value {
        let scalar = self.load(types::F32, address, offset);
        self.splat(scalar)
    }

    /// The low 32 bits of an address-sized integer.
    pub fn low_half(&mut self, x: Value) -> Value {
        if self.ptr == types::I32 { x } else { self.b.ins().ireduce(types::I32, x) }
    }

    /// One float in all lanes.
    pub fn splat(&mut self, scalar: Value) -> Value {
        self.b.ins().splat(types::F32X4, scalar)
    }

    /// A constant in all lanes.
    pub fn constant(&mut self, value: f32) -> Value {
        self.lanes([value.to_bits(); 4], types::F32X4)
    }

    /// Four 32-bit constants as a vector of type `ty`.
    pub fn lanes(&mut self, lanes: [u32; 4], ty: Type) -> Value {
        let bytes: Vec<u8> = lanes.iter().flat_map(|lane| lane.to_le_bytes()).collect();
        let constant = self.b.func.dfg.constants.insert(bytes.into());
        self.b.ins().vconst(ty, constant)
    }

    /// `x * y + z`, fused where the CPU has the instruction. The destination of the machine instruction is `x`'s
    /// register: pass there the factor that is used for the last time.
    pub fn mul_add(&mut self, x: Value, y: Value, z: Value) -> Value {
        if self.fma {
            return self.b.ins().fma(x, y, z);
        }
        let product = self.b.ins().fmul(x, y);
        self.b.ins().fadd(product, z)
    }

    /// Lane by lane the larger of `x` and `y`; `y` where either is NaN.
    pub fn max(&mut self, x: Value, y: Value) -> Value {
        // The comparison must read "less" with `y` first: only this form becomes one instruction on x86-64.
        let greater = self.b.ins().fcmp(FloatCC::LessThan, y, x);
        let greater = self.as_f32(greater);
        self.b.ins().bitselect(greater, x, y)
    }

    /// Reinterprets 128 bits as floats.
    pub fn as_f32(&mut self, value: Value) -> Value {
        self.b.ins().bitcast(types::F32X4, MemFlagsData::new(), value)
    }

    /// Reinterprets 128 bits as integers.
    pub fn as_i32(&mut self, value: Value) -> Value {
        self.b.ins().bitcast(types::I32X4, MemFlagsData::new(), value)
    }

    /// For eight queries of a mask word: what [`Self::lane_masks`] compares with, for queries 0 to 3 and 4 to 7 of
    /// `half`, counted in eights from the start of the block.
    pub fn lane_probes(&mut self, half: Value) -> [Value; 2] {
        let within = self.b.ins().band_imm_u(half, 3);
        let shift = self.b.ins().ishl_imm_u(within, 3);
        let shift = self.b.ins().ireduce(types::I32, shift);
        [1, 1 << 4].map(|low| {
            let lanes = self.lanes([low, low << 1, low << 2, low << 3], types::I32X4);
            self.b.ins().ishl(lanes, shift)
        })
    }

    /// For the eight queries of `half`: lanes all ones where the mask word at `word + offset` has the query's bit
    /// set, else all zeros; integers.
    pub fn lane_masks(&mut self, word: Value, offset: i32, half: Value, probes: [Value; 2]) -> [Value; 2] {
        // The 32 bits that hold the eight, broadcast from memory (the machine is little-endian).
        let upper = self.b.ins().ushr_imm_u(half, 2);
        let at = self.offset(word, upper, 4);
        let bits = self.load(types::I32, at, offset);
        let wide = self.b.ins().splat(types::I32X4, bits);
        probes.map(|probe| {
            let hit = self.b.ins().band(wide, probe);
            self.b.ins().icmp(IntCC::Equal, hit, probe)
        })
    }

    /// Floats `x` where the integer `mask` is all ones, `y` where it is all zeros.
    pub fn select(&mut self, mask: Value, x: Value, y: Value) -> Value {
        // In integers, where the instruction selector sees that the mask comes from a comparison.
        let (x, y) = (self.as_i32(x), self.as_i32(y));
        let selected = self.b.ins().bitselect(mask, x, y);
        self.as_f32(selected)
    }

    /// Floats `x` where the integer `mask` is all ones, 0 where it is all zeros, whatever `x` is there.
    pub fn keep(&mut self, mask: Value, x: Value) -> Value {
        let mask = self.as_f32(mask);
        self.b.ins().band(x, mask)
    }

    /// `2^x` of several independent vectors, interleaved step by step so that their latencies overlap.
    ///
    /// For `x` up to 127 (beyond, the result is unspecified): below -126.5 it is 0, NaN stays NaN, and the
    /// relative error is at most 2e-7 where the result is a normal number.
    pub fn exp2(&mut self, xs: &[Value]) -> Vec<Value> {
        // Adding 1.5 · 2^23 rounds to an integer n and leaves it in the low bits; with the exponent's bias
        // already added there, a shift makes it 2^n. At n = -127 that is the float 0.
        let magic = self.constant(12_582_912.0 + 127.0);
        let lowest = self.constant(-127.0);
        // `max` gives its second operand where one is NaN, so a NaN in x passes.
        let ts: Vec<Value> = xs.iter().map(|&x| self.max(lowest, x)).collect();
        let rounded: Vec<Value> = ts.iter().map(|&t| self.b.ins().fadd(t, magic)).collect();
        let wholes: Vec<Value> = rounded.iter().map(|&r| self.b.ins().fsub(r, magic)).collect();
        let fractions: Vec<Value> = ts.iter().zip(&wholes).map(|(&t, &n)| self.b.ins().fsub(t, n)).collect();
        let top = self.constant(EXP2[5]);
        let mut sums = vec![top; xs.len()];
        for &coefficient in EXP2[..5].iter().rev() {
            let coefficient = self.constant(coefficient);
            for (sum, &f) in sums.iter_mut().zip(&fractions) {
                *sum = self.mul_add(*sum, f, coefficient);
            }
        }
        // A product, not an integer addition to the exponent: NaN times anything is NaN.
        let scales: Vec<Value> = rounded
            .iter()
            .map(|&r| {
                let bits = self.as_i32(r);
                let shifted = self.b.ins().ishl_imm_u(bits, 23);
                self.as_f32(shifted)
            })
            .collect();
        sums.iter().zip(&scales).map(|(&sum, &scale)| self.b.ins().fmul(sum, scale)).collect()
    }

    /// The transpose of a 4 × 4 matrix given by its rows.
    pub fn transpose(&mut self, rows: [Value; 4]) -> [Value; 4] {
        let bytes = MemFlagsData::new().with_endianness(Endianness::Little);
        let rows = rows.map(|row| self.b.ins().bitcast(types::I8X16, bytes, row));
        // Lanes (of 32 bits) of two vectors, those of the second from 4 on.
        let mut pick = |a: Value, b: Value, lanes: [u8; 4]| {
            let mask: Vec<u8> = lanes.iter().flat_map(|lane| (0..4).map(move |byte| 4 * lane + byte)).collect();
            let mask = self.b.func.dfg.immediates.push(mask.into());
            self.b.ins().shuffle(a, b, mask)
        };
        let [low01, high01] = [[0, 4, 1, 5], [2, 6, 3, 7]].map(|lanes| pick(rows[0], rows[1], lanes));
        let [low23, high23] = [[0, 4, 1, 5], [2, 6, 3, 7]].map(|lanes| pick(rows[2], rows[3], lanes));
        let columns = [
            pick(low01, low23, [0, 1, 4, 5]),
            pick(low01, low23, [2, 3, 6, 7]),
            pick(high01, high23, [0, 1, 4, 5]),
            pick(high01, high23, [2, 3, 6, 7]),
        ];
        columns.map(|column| self.b.ins().bitcast(types::F32X4, bytes, column))
    }

    /// The sum of a vector's four lanes, as a scalar.
    pub fn sum_lanes(&mut self, vector: Value) -> Value {
        let lanes: Vec<Value> = (0..4u8).map(|lane| self.b.ins().extractlane(vector, lane)).collect();
        let low = self.b.ins().fadd(lanes[0], lanes[1]);
        let high = self.b.ins().fadd(lanes[2], lanes[3]);
        self.b.ins().fadd(low, high)
    }

    /// `for i in (start..end).step_by(step)` over signed address-sized integers. The body is given `i` and the
    /// carried values and returns the next ones; the values after the last round are returned.
    ///
    /// The loop tests at the top: a bottom-tested one defeats the folding of loads into their users.
    pub fn for_range(
        &mut self,
        start: Value,
        end: Value,
        step: i64,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        self.while_less(start, end, step, 0, carried, body).1
    }

    /// Like [`Self::for_range`], but a round runs only while `i + margin < end`: with `margin = step - 1` only
    /// whole steps are taken. Also returns the first `i` that was not visited.
    pub fn while_less(
        &mut self,
        start: Value,
        end: Value,
        step: i64,
        margin: i64,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> (Value, Vec<Value>) {
        let limit = if margin == 0 { end } else { self.b.ins().iadd_imm_s(end, -margin) };
        let open = self.open_loop(start, limit, carried);
        let next = body(self, open.index, &open.params);
        let (index, params) = (open.index, open.params.clone());
        self.close_loop(open, step, &next);
        (index, params)
    }

    /// The head of a loop, for callers whose body needs more than an emitter: what is written next is its body, up to
    /// [`Self::close_loop`].
    pub fn open_loop(&mut self, start: Value, limit: Value, carried: &[Value]) -> Loop {
        let (header, inside, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let index = self.b.append_block_param(header, self.ptr);
        let params: Vec<Value> = carried
            .iter()
            .map(|&value| {
                let ty = self.b.func.dfg.value_type(value);
                self.b.append_block_param(header, ty)
            })
            .collect();
        self.b.ins().jump(header, &args(&[&[start], carried].concat()));
        self.b.switch_to_block(header);
        let more = self.b.ins().icmp(IntCC::SignedLessThan, index, limit);
        self.b.ins().brif(more, inside, &[], after, &[]);
        self.b.seal_block(inside);
        self.b.switch_to_block(inside);
        Loop { header, after, index, params }
    }

    /// The end of a loop's body: goes round with the index `step` further and the carried values `next`.
    pub fn close_loop(&mut self, Loop { header, after, index, .. }: Loop, step: i64, next: &[Value]) {
        let index_next = self.b.ins().iadd_imm_s(index, step);
        self.b.ins().jump(header, &args(&[&[index_next], next].concat()));
        self.b.seal_block(header);
        self.b.seal_block(after);
        self.b.switch_to_block(after);
    }

    /// Runs one of two branches by `condition` (any integer, 0 is false); each returns the same number of values
    /// of the same types, and those of the branch taken are returned.
    pub fn if_else(
        &mut self,
        condition: Value,
        then: impl FnOnce(&mut Self) -> Vec<Value>,
        otherwise: impl FnOnce(&mut Self) -> Vec<Value>,
    ) -> Vec<Value> {
        let (yes, no, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.ins().brif(condition, yes, &[], no, &[]);
        self.b.seal_block(yes);
        self.b.seal_block(no);
        self.b.switch_to_block(yes);
        let values = then(self);
        let params: Vec<Value> = values
            .iter()
            .map(|&value| {
                let ty = self.b.func.dfg.value_type(value);
                self.b.append_block_param(after, ty)
            })
            .collect();
        self.b.ins().jump(after, &args(&values));
        self.b.switch_to_block(no);
        let values = otherwise(self);
        self.b.ins().jump(after, &args(&values));
        self.b.seal_block(after);
        self.b.switch_to_block(after);
        params
    }

    /// Runs `then` where `condition` is not 0.
    pub fn if_true(&mut self, condition: Value, then: impl FnOnce(&mut Self)) {
        self.if_else(
            condition,
            |e| {
                then(e);
                Vec::new()
            },
            |_| Vec::new(),
        );
    }

    /// The row number at place `index`: `rows[index]`, or `index` itself where `rows` is null.
    pub fn row_number(&mut self, rows: Value, index: Value) -> Value {
        let found = self.if_else(
            rows,
            |e| {
                let at = e.offset(rows, index, 4);
                vec![e.load_u32(at, 0)]
            },
            |_| vec![index],
        );
        found[0]
    }

    /// Bytes in the function's frame, 16-byte aligned; returns their address.
    pub fn stack(&mut self, bytes: u32) -> Value {
        let slot = self.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4));
        let ptr = self.ptr;
        self.b.ins().stack_addr(ptr, slot, 0)
    }
}

/// Whether `fma` is an instruction here; on x86-64 without it Cranelift would call a library function per lane.
pub fn has_fma(isa: &dyn TargetIsa) -> bool {
    if isa.name() != "x64" {
        return true;
    }
    let on = |name: &str| isa.isa_flags().iter().any(|flag| flag.name == name && flag.as_bool() == Some(true));
    on("has_avx") && on("has_fma")
}

fn args(values: &[Value]) -> Vec<BlockArg> {
    values.iter().copied().map(BlockArg::Value).collect()
}

/// No trap on these addresses: the caller of the kernel checked every shape.
fn unaligned() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}
