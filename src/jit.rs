//! From Cranelift functions to callable machine code.
//!
//! In: a lowered kernel and the tiles it names. Out: [`Linked`], which owns its pages, executable but not writable, and
//! frees them when it is dropped.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::UserExternalName;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module};
use rayon::prelude::*;

use crate::codegen::portable;
use crate::codegen::{self, KernelArgs, Lowered, LoweredKernel, Tables, TileFn, emit};
use crate::error::{Error, Result};
use crate::limits::Allowance;
use crate::plan::{ModsBy, Outline, RowOp, VerifiedPlan, Walk};
use crate::target::Isa;
use crate::tiles::stored::{dots_serve, stored_family};
use crate::tiles::{self, Family, diagonal, exact, gradient, half_panel, join, rows, solve, transposed};

/// The settings with which kernels are compiled: this CPU's own features, and the cheapest register allocation,
/// since the tiles do the work.
///
/// # Errors
/// [`Error::Unsupported`] on a CPU that Cranelift does not know.
pub fn target_isa() -> Result<OwnedTargetIsa> {
    let mut flags = settings::builder();
    let verify = if cfg!(debug_assertions) { "true" } else { "false" };
    for (name, value) in [
        ("opt_level", "none"),
        ("regalloc_algorithm", "single_pass"),
        ("is_pic", "false"),
        ("use_colocated_libcalls", "false"),
        ("unwind_info", "false"),
        ("enable_verifier", verify),
    ] {
        flags.set(name, value).map_err(|error| internal(format!("setting {name}: {error}")))?;
    }
    let builder = cranelift_native::builder()
        .map_err(|message| Error::unsupported("this CPU", format!("Cranelift says: {message}")))?;
    builder.finish(settings::Flags::new(flags)).map_err(|error| internal(error.to_string()))
}

/// A kernel's machine code.
struct Code {
    /// Freed in [`Drop`]; nothing else takes it out.
    module: ManuallyDrop<JITModule>,
    entries: Vec<(String, EntryFn)>,
    bytes: usize,
}

type EntryFn = unsafe extern "C" fn(*const KernelArgs);

/// A plan with the code and tables that were made from it, as one whole: nothing else can be called, and a kernel is made by
/// [`compile`](crate::compiler::compile) alone.
///
/// ```
/// fn read(linked: &hopweave::jit::Linked) -> usize { linked.plan().parts }
/// ```
/// ```compile_fail
/// fn enter(linked: &hopweave::jit::Linked, args: &hopweave::codegen::KernelArgs) { linked.call(0, args) }
/// ```
/// ```compile_fail
/// fn kernel(linked: hopweave::jit::Linked) { hopweave::runtime::Kernel::new(linked, 1, None).unwrap(); }
/// ```
#[derive(Debug)]
pub struct Linked {
    plan: VerifiedPlan,
    code: Arc<Code>,
    /// For every walk of the plan, for every mask.
    tables: Vec<Vec<Tables>>,
}

impl Linked {
    /// The plan.
    pub fn plan(&self) -> &VerifiedPlan {
        &self.plan
    }

    /// Bytes of machine code of the kernel's own functions.
    pub fn code_bytes(&self) -> usize {
        self.code.bytes
    }

    /// Bytes of tables.
    pub fn table_bytes(&self) -> usize {
        self.tables.iter().flatten().map(Tables::bytes).sum()
    }

    /// What [`KernelArgs::tables`] of a call of function `function` on mask `mask` points to.
    pub fn tables(&self, function: usize, mask: usize) -> *const u64 {
        let walk = self.plan.functions().functions[function].walk;
        self.tables[walk][mask].as_ptr()
    }

    /// Runs a function of the kernel, by its number in [`Functions::functions`](crate::plan::Functions::functions).
    ///
    /// # Safety
    /// The pointers and strides of `args` must describe what the plan says of the function's operands: tensors of the plan's
    /// shape, tables of [`Self::tables`], workspace of the plan's [`Layout`](crate::plan::Layout) that nothing else uses
    /// during the call; no other call may write the same rows.
    pub unsafe fn call(&self, function: usize, args: &KernelArgs) {
        // SAFETY: the function reads and writes only what `args` describes, which the caller vouches for.
        unsafe { (self.code.entries[function].1)(args) }
    }
}

// SAFETY: the module is never touched between `link` and `drop`; what threads share is the code it has finished,
// which is read-only.
unsafe impl Send for Code {}
// SAFETY: as above; `&Code` gives access to calls alone.
unsafe impl Sync for Code {}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.entries.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Code").field("entries", &names).field("bytes", &self.bytes).finish()
    }
}

/// Compiles and links `functions`, with the plan's tiles as the functions they call.
///
/// # Errors
/// [`Error::Unsupported`] when the CPU lacks the plan's tile family, [`Error::Limit`] when there is more code than allowed
/// or compiling it takes too long, [`Error::Internal`] when Cranelift refuses
/// a function, with its text.
pub fn link(lowered: LoweredKernel, isa: &OwnedTargetIsa, allowance: &Allowance) -> Result<Linked> {
    let (plan, functions) = lowered.into_parts();
    let code = Arc::new(link_code(&plan, functions, isa, allowance)?);
    Ok(with_tables(plan, code))
}

fn with_tables(plan: VerifiedPlan, code: Arc<Code>) -> Linked {
    let of_walk = |walk: &Walk| walk.masks.par_iter().map(|mask| Tables::new(&plan, walk, mask)).collect();
    let tables = plan.walks.iter().map(of_walk).collect();
    Linked { plan, code, tables }
}

/// Machine code of earlier kernels, for kernels that differ from them in tables alone. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Codes(Arc<Mutex<KeptCodes>>);

/// Code by what it was made from, the oldest first.
type KeptCodes = Vec<(Outline, Arc<Code>)>;

/// Kernels whose code is kept at most.
const KEPT_CODES: usize = 32;

impl Codes {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A kernel of a plan, in the code of an earlier one of the same [`Outline`] where there is some.
    ///
    /// # Errors
    /// Those of [`link`].
    pub fn link(&self, plan: VerifiedPlan, allowance: &Allowance) -> Result<Linked> {
        let Some(outline) = plan.outline() else {
            let isa = target_isa()?;
            return link(codegen::lower(plan, &*isa), &isa, allowance);
        };
        let known = |codes: &[(Outline, Arc<Code>)]| {
            codes.iter().find(|(known, _)| *known == outline).map(|(_, code)| Arc::clone(code))
        };
        if let Some(code) = known(&self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(with_tables(plan, code));
        }
        // Compiled without the lock: others need not wait.
        let isa = target_isa()?;
        let linked = link(codegen::lower(plan, &*isa), &isa, allowance)?;
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if codes.len() == KEPT_CODES {
            codes.remove(0);
        }
        codes.push((outline, Arc::clone(&linked.code)));
        Ok(linked)
    }
}

/// Kernels that this process has compiled.
static COMPILATIONS: AtomicU64 = AtomicU64::new(0);

/// How many kernels this process has compiled so far, those for training among them.
pub fn compilations() -> u64 {
    COMPILATIONS.load(Ordering::Relaxed)
}

fn link_code(
    plan: &VerifiedPlan,
    functions: Vec<Lowered>,
    isa: &OwnedTargetIsa,
    allowance: &Allowance,
) -> Result<Code> {
    let mut builder = JITBuilder::with_isa(Arc::clone(isa), cranelift_module::default_libcall_names());
    let family = match plan.isa {
        Isa::Portable => None,
        wide => Some(tiles::family(wide).ok_or_else(|| {
            Error::unsupported(format!("tile family `{wide}`"), "this CPU lacks its instructions".to_owned())
        })?),
    };
    builder.symbol(TileFn::ValueExact.name(), exact::value_exact as *const u8);
    let join = family.map_or(join::join as *const u8, |family| family.join as *const u8);
    builder.symbol(TileFn::Join.name(), join);
    let (narrow, widen) = family.map_or((half_panel::narrow as *const u8, half_panel::widen as *const u8), |family| {
        (family.narrow_panel as *const u8, family.widen_panel as *const u8)
    });
    builder.symbol(TileFn::NarrowPanel.name(), narrow);
    builder.symbol(TileFn::WidenPanel.name(), widen);
    for (tile, address) in shared_tiles(family.as_ref()) {
        builder.symbol(tile.name(), address);
    }
    for (tile, address) in [
        (TileFn::DiagonalClear, diagonal::clear as *const u8),
        (TileFn::DiagonalPieces, diagonal::pieces as *const u8),
        (TileFn::DiagonalEdges, diagonal::edges as *const u8),
    ] {
        builder.symbol(tile.name(), address);
    }
    let rows = family.map_or(rows::PLAIN, |family| family.rows);
    let names =
        [TileFn::CopyRows, TileFn::ScaleRows, TileFn::AddRows, TileFn::DotRows, TileFn::DropRows, TileFn::SumRows];
    for (tile, address) in names.into_iter().zip(rows) {
        builder.symbol(tile.name(), address as *const u8);
    }
    if let Some(stored) = stored_family(plan.isa, plan.shape.dtype) {
        if plan.bf16_dots && !dots_serve(plan.isa, plan.shape.dtype, plan.shape.head_dim) {
            return Err(Error::unsupported("dot products of bf16 pairs", "this CPU has no AVX512-BF16"));
        }
        let stored = if plan.bf16_dots { stored.with_dots() } else { stored };
        for (tile, address) in [
            (TileFn::Pack, stored.pack as *const u8),
            (TileFn::Score, stored.score as *const u8),
            (TileFn::Value, stored.value as *const u8),
            (TileFn::EdgeScore, stored.edge_score as *const u8),
            (TileFn::EdgeValue, stored.edge_value as *const u8),
            (TileFn::ValueExact, stored.value_exact as *const u8),
        ] {
            builder.symbol(tile.stored_name(), address);
        }
    }
    if let Some(family) = family {
        for (tile, address) in [
            (TileFn::Pack, family.pack as *const u8),
            (TileFn::Score, family.score as *const u8),
            (TileFn::Exp, family.exp as *const u8),
            (TileFn::Value, family.value as *const u8),
            (TileFn::EdgeScore, family.edge_score as *const u8),
            (TileFn::EdgeExp, family.edge_exp as *const u8),
            (TileFn::EdgeValue, family.edge_value as *const u8),
        ] {
            builder.symbol(tile.name(), address);
        }
        match plan.mods.as_ref().map(|mods| mods.by) {
            Some(ModsBy::Softcap) => _ = builder.symbol(TileFn::Mods.name(), family.softcap as *const u8),
            Some(ModsBy::Alibi) => _ = builder.symbol(TileFn::Mods.name(), family.alibi as *const u8),
            Some(ModsBy::Code) | None => {}
        }
    }
    // From here on the module is freed on every path, also by an early return.
    let mut code = Code { module: ManuallyDrop::new(JITModule::new(builder)), entries: Vec::new(), bytes: 0 };
    let module = &mut *code.module;
    let mut tiles = match family {
        None => portable_tiles(plan, module, allowance)?,
        Some(_) => imported_tiles(module)?,
    };
    mod_passes(plan, module, &mut tiles, allowance)?;
    let mut tiles = tiles.to_vec();
    if !plan.shape.dtype.is_f32() {
        // Tiles that touch no tensor are called as they are; what stands in their wrappers' places is never called.
        for index in 0..tiles.len() {
            let tile = TileFn::ALL[index];
            let wrapper =
                if tile.touches_tensors() { import(module, tile, &tile.stored_name())? } else { tiles[index] };
            tiles.push(wrapper);
        }
    }
    let mut context = Context::new();
    let mut ids = Vec::new();
    for Lowered { name, function } in functions {
        let id = module
            .declare_function(&name, Linkage::Local, &function.signature)
            .map_err(|error| internal(error.to_string()))?;
        let text = cfg!(debug_assertions).then(|| function.display().to_string());
        context.clear();
        context.func = function;
        resolve_tiles(&mut context, &tiles);
        module
            .define_function_with_control_plane(id, &mut context, &mut ControlPlane::default())
            .map_err(|error| Error::internal("codegen", error.to_string(), text.unwrap_or_default()))?;
        code.bytes += context.compiled_code().map_or(0, |compiled| compiled.code_info().total_size as usize);
        allowance.check_code(code.bytes as u64)?;
        ids.push((name, id));
    }
    module.finalize_definitions().map_err(|error| internal(error.to_string()))?;
    for (name, id) in ids {
        let address = module.get_finalized_function(id);
        // SAFETY: `address` is the start of a function that was compiled with this very signature: one pointer in
        // the system's calling convention, no result. It stays mapped as long as `code` lives.
        code.entries.push((name, unsafe { std::mem::transmute::<*const u8, EntryFn>(address) }));
    }
    COMPILATIONS.fetch_add(1, Ordering::Relaxed);
    Ok(code)
}

/// Names in lowered functions are positions in [`TileFn::ALL`], wrappers behind; the module has its own numbers.
fn resolve_tiles(context: &mut Context, tiles: &[FuncId]) {
    let names: Vec<_> = context.func.params.user_named_funcs().iter().map(|(r, name)| (r, name.index)).collect();
    for (reference, index) in names {
        let id = tiles[index as usize];
        context.func.params.reset_user_func_name(reference, UserExternalName { namespace: 0, index: id.as_u32() });
    }
}

fn import(module: &mut JITModule, tile: TileFn, name: &str) -> Result<FuncId> {
    let isa = module.isa();
    let flag: &[_] = if tile.returns_flag() { &[cranelift_codegen::ir::types::I64] } else { &[] };
    let signature = emit::signature(isa.default_call_conv(), &[isa.pointer_type()], flag);
    module.declare_function(name, Linkage::Import, &signature).map_err(|error| internal(error.to_string()))
}

/// Tiles that are written once for all families, plain ones where there is none.
fn shared_tiles(family: Option<&Family>) -> [(TileFn, *const u8); 7] {
    match family {
        None => [
            (TileFn::Transposed, transposed::transposed as *const u8),
            (TileFn::Scatter, transposed::scatter as *const u8),
            (TileFn::Gradient, gradient::gradient as *const u8),
            (TileFn::EdgeGradient, gradient::edge_gradient as *const u8),
            (TileFn::EdgeValueExact, exact::edge_value_exact as *const u8),
            (TileFn::Solve, solve::solve as *const u8),
            (TileFn::SolveTransposed, solve::solve_transposed as *const u8),
        ],
        Some(family) => [
            (TileFn::Transposed, family.transposed as *const u8),
            (TileFn::Scatter, family.scatter as *const u8),
            (TileFn::Gradient, family.gradient as *const u8),
            (TileFn::EdgeGradient, family.edge_gradient as *const u8),
            (TileFn::EdgeValueExact, exact::edge_value_exact as *const u8),
            (TileFn::Solve, family.solve as *const u8),
            (TileFn::SolveTransposed, family.solve_transposed as *const u8),
        ],
    }
}

fn imported_tiles(module: &mut JITModule) -> Result<[FuncId; TileFn::ALL.len()]> {
    // Some function must stand in place of the passes of score mods, until there are some.
    let mut ids = [import(module, TileFn::Pack, TileFn::Pack.name())?; TileFn::ALL.len()];
    for (id, tile) in ids.iter_mut().zip(TileFn::ALL) {
        if !tile.is_made_here() {
            *id = import(module, tile, tile.name())?;
        }
    }
    Ok(ids)
}

/// Puts the passes that apply score mods in their places, where the plan has mods.
fn mod_passes(
    plan: &VerifiedPlan,
    module: &mut JITModule,
    tiles: &mut [FuncId; TileFn::ALL.len()],
    allowance: &Allowance,
) -> Result<()> {
    let Some(mods) = &plan.mods else { return Ok(()) };
    let edges = plan.has_edges();
    let options = portable::Options { edges, allowance: *allowance, ..portable::Options::default() };
    let symbols = portable::define_mods(module, mods, options)?;
    tiles[TileFn::Mods as usize] = match symbols.panel {
        Some(code) => code,
        None => import(module, TileFn::Mods, TileFn::Mods.name())?,
    };
    if let Some(code) = symbols.edges {
        tiles[TileFn::EdgeMods as usize] = code;
    }
    let backward = |op: &RowOp| matches!(op, RowOp::ModsGradient { .. });
    if plan.functions().functions.iter().any(|function| function.ops.iter().any(backward)) {
        let symbols = portable::define_mod_gradients(module, &mods.mods, options)?;
        for (tile, code) in [(TileFn::ModGradients, symbols.panel), (TileFn::EdgeModGradients, symbols.edges)] {
            tiles[tile as usize] = code.unwrap_or(tiles[tile as usize]);
        }
    }
    Ok(())
}

fn portable_tiles(
    plan: &VerifiedPlan,
    module: &mut JITModule,
    allowance: &Allowance,
) -> Result<[FuncId; TileFn::ALL.len()]> {
    let edges = plan.has_edges();
    let mut tiles_of = |d, dv, prefix| {
        let options = portable::Options { edges, prefix, allowance: *allowance, ..portable::Options::default() };
        let symbols = portable::define(module, portable::Shapes { d, dv }, options)?;
        // Without edges nothing calls an edge tile; some function must stand in its place.
        let none = portable::EdgeSymbols { score: symbols.pack, exp: symbols.pack, value: symbols.pack };
        Ok::<_, Error>((symbols, symbols.edges.unwrap_or(none)))
    };
    let (symbols, edges) = tiles_of(plan.shape.head_dim, plan.shape.value_dim, "portable")?;
    // Products of other rows than queries and keys, and of weights with keys: those of gradients.
    let ops = || plan.functions().functions.iter().flat_map(|function| &function.ops);
    let depths = ops().filter_map(|op| match op {
        RowOp::Sddmm { y, .. } if y.width != plan.shape.head_dim => Some(y.width),
        _ => None,
    });
    let widths = ops().filter_map(|op| match op {
        RowOp::Spmm { z, .. } if z.width != plan.shape.value_dim => Some(z.width),
        _ => None,
    });
    // They are made for one width.
    let only = |widths: Vec<usize>| match widths.iter().find(|&&width| width != widths[0]) {
        None => Ok(widths.first().copied()),
        Some(other) => Err(Error::unsupported(
            format!("portable tiles for rows of {} and of {other}", widths[0]),
            "another tile family, or products of rows of one width",
        )),
    };
    let (depth, width) = (only(depths.collect())?, only(widths.collect())?);
    let (wide, wide_edges) = match (depth, width) {
        (None, None) => (symbols, edges),
        (depth, width) => {
            tiles_of(depth.unwrap_or(plan.shape.head_dim), width.unwrap_or(plan.shape.value_dim), "gradient")?
        }
    };
    let mut found = [symbols.pack; TileFn::ALL.len()];
    for (found, tile) in found.iter_mut().zip(TileFn::ALL) {
        *found = match tile {
            // Mods are replaced where the plan has some.
            TileFn::Pack => symbols.pack,
            tile if tile.is_made_here() => symbols.pack,
            TileFn::Score => symbols.score,
            TileFn::Exp => symbols.exp,
            TileFn::Value => symbols.value,
            TileFn::EdgeScore => edges.score,
            TileFn::EdgeExp => edges.exp,
            TileFn::EdgeValue => edges.value,
            TileFn::GradientPack => wide.pack,
            TileFn::GradientScore => wide.score,
            TileFn::GradientValue => wide.value,
            TileFn::GradientEdgeScore => wide_edges.score,
            TileFn::GradientEdgeValue => wide_edges.value,
            TileFn::ValueExact
            | TileFn::Join
            | TileFn::NarrowPanel
            | TileFn::WidenPanel
            | TileFn::Transposed
            | TileFn::Scatter
            | TileFn::Gradient
            | TileFn::EdgeGradient
            | TileFn::EdgeValueExact
            | TileFn::CopyRows
            | TileFn::ScaleRows
            | TileFn::AddRows
            | TileFn::DotRows
            | TileFn::DropRows
            | TileFn::SumRows
            | TileFn::Solve
            | TileFn::SolveTransposed
            | TileFn::DiagonalClear
            | TileFn::DiagonalPieces
            | TileFn::DiagonalEdges
            | TileFn::Mods
            | TileFn::EdgeMods
            | TileFn::ModGradients
            | TileFn::EdgeModGradients => import(module, tile, tile.name())?,
        };
    }
    Ok(found)
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: the module is taken once, here. Nobody runs its code any more: `call` borrows `self`, and the
        // function pointers never leave it.
        unsafe { ManuallyDrop::take(&mut self.module).free_memory() }
    }
}

/// The machine code of lowered functions as the assembler would show it, after register allocation.
///
/// # Errors
/// [`Error::Internal`] when Cranelift refuses a function.
pub fn disassemble(lowered: LoweredKernel, isa: &OwnedTargetIsa) -> Result<String> {
    let mut text = String::new();
    let mut context = Context::new();
    for Lowered { name, function } in lowered.into_parts().1 {
        context.clear();
        context.func = function;
        context.set_disasm(true);
        let compiled = context
            .compile(&**isa, &mut ControlPlane::default())
            .map_err(|error| internal(format!("{:?}", error.inner)))?;
        text.push_str(&format!("{name}: {} bytes\n", compiled.code_info().total_size));
        text.push_str(compiled.vcode.as_deref().unwrap_or(""));
        text.push('\n');
    }
    Ok(text)
}

fn internal(message: String) -> Error {
    Error::internal("jit", message, "")
}
