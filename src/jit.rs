//! From Cranelift functions to callable machine code.
//!
//! In: lowered functions and the tiles they name. Out: [`Code`], which owns its pages, executable but not
//! writable, and frees them when it is dropped.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::sync::Arc;

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::UserExternalName;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module};

use crate::codegen::portable;
use crate::codegen::{KernelArgs, Lowered, TileFn, emit};
use crate::error::{Error, Result};
use crate::limits::Allowance;
use crate::plan::{KernelPlan, ModsBy};
use crate::target::Isa;
use crate::tiles::{dots_serve, stored_family};
use crate::tiles::{self, Family, exact, gradient, half_panel, join, transposed};

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
pub struct Code {
    /// Freed in [`Drop`]; nothing else takes it out.
    module: ManuallyDrop<JITModule>,
    entries: Vec<(&'static str, EntryFn)>,
    bytes: usize,
}

type EntryFn = unsafe extern "C" fn(*const KernelArgs);

/// The functions of a kernel by position, as [`crate::codegen::lower`] returned them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(pub usize);

// SAFETY: the module is never touched between `link` and `drop`; what threads share is the code it has finished,
// which is read-only.
unsafe impl Send for Code {}
// SAFETY: as above; `&Code` gives access to calls alone.
unsafe impl Sync for Code {}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.entries.iter().map(|(name, _)| *name).collect();
        f.debug_struct("Code").field("entries", &names).field("bytes", &self.bytes).finish()
    }
}

/// Compiles and links `functions`, with the plan's tiles as the functions they call.
///
/// # Errors
/// [`Error::Unsupported`] when the CPU lacks the plan's tile family, [`Error::Limit`] when there is more code than allowed
/// or compiling it takes too long, [`Error::Internal`] when Cranelift refuses
/// a function, with its text.
pub fn link(plan: &KernelPlan, functions: Vec<Lowered>, isa: &OwnedTargetIsa, allowance: &Allowance) -> Result<Code> {
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
    for (tile, address) in training_tiles(family.as_ref()) {
        builder.symbol(tile.name(), address);
    }
    if let Some(stored) = stored_family(plan.isa, plan.dtype) {
        if plan.bf16_dots && !dots_serve(plan.isa, plan.dtype, plan.head_dim) {
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
    if !plan.dtype.is_f32() {
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
            .declare_function(name, Linkage::Local, &function.signature)
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

/// The tiles that only kernels for training call, plain ones where there is no family.
fn training_tiles(family: Option<&Family>) -> [(TileFn, *const u8); 5] {
    match family {
        None => [
            (TileFn::Transposed, transposed::transposed as *const u8),
            (TileFn::Scatter, transposed::scatter as *const u8),
            (TileFn::Gradient, gradient::gradient as *const u8),
            (TileFn::EdgeGradient, gradient::edge_gradient as *const u8),
            (TileFn::EdgeValueExact, exact::edge_value_exact as *const u8),
        ],
        Some(family) => [
            (TileFn::Transposed, family.transposed as *const u8),
            (TileFn::Scatter, family.scatter as *const u8),
            (TileFn::Gradient, family.gradient as *const u8),
            (TileFn::EdgeGradient, family.edge_gradient as *const u8),
            (TileFn::EdgeValueExact, exact::edge_value_exact as *const u8),
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
    plan: &KernelPlan,
    module: &mut JITModule,
    tiles: &mut [FuncId; TileFn::ALL.len()],
    allowance: &Allowance,
) -> Result<()> {
    let Some(mods) = &plan.mods else { return Ok(()) };
    let edges = plan.masks.iter().any(|mask| !mask.edges.keys.is_empty());
    let options = portable::Options { edges, allowance: *allowance, ..portable::Options::default() };
    let symbols = portable::define_mods(module, mods, options)?;
    tiles[TileFn::Mods as usize] = match symbols.panel {
        Some(code) => code,
        None => import(module, TileFn::Mods, TileFn::Mods.name())?,
    };
    if let Some(code) = symbols.edges {
        tiles[TileFn::EdgeMods as usize] = code;
    }
    if plan.training.is_some() && !plan.strategy.stores_p() {
        let symbols = portable::define_mod_gradients(module, &mods.mods, options)?;
        for (tile, code) in [(TileFn::ModGradients, symbols.panel), (TileFn::EdgeModGradients, symbols.edges)] {
            tiles[tile as usize] = code.unwrap_or(tiles[tile as usize]);
        }
    }
    Ok(())
}

fn portable_tiles(
    plan: &KernelPlan,
    module: &mut JITModule,
    allowance: &Allowance,
) -> Result<[FuncId; TileFn::ALL.len()]> {
    let edges = plan.masks.iter().any(|mask| !mask.edges.keys.is_empty());
    let mut tiles_of = |d, dv, prefix| {
        let options = portable::Options { edges, prefix, allowance: *allowance, ..portable::Options::default() };
        let symbols = portable::define(module, portable::Shapes { d, dv }, options)?;
        // Without edges nothing calls an edge tile; some function must stand in its place.
        let none = portable::EdgeSymbols { score: symbols.pack, exp: symbols.pack, value: symbols.pack };
        Ok::<_, Error>((symbols, symbols.edges.unwrap_or(none)))
    };
    let (symbols, edges) = tiles_of(plan.head_dim, plan.value_dim, "portable")?;
    let (wide, wide_edges) = match plan.gradient_depth() {
        depth if depth > 0 && !plan.strategy.stores_p() => tiles_of(depth, plan.head_dim, "gradient")?,
        _ => (symbols, edges),
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
            | TileFn::Mods
            | TileFn::EdgeMods
            | TileFn::ModGradients
            | TileFn::EdgeModGradients => import(module, tile, tile.name())?,
        };
    }
    Ok(found)
}

impl Code {
    /// Runs a function of the kernel.
    ///
    /// # Safety
    /// The pointers and strides of `args` must describe tensors of the plan's shape, tables made from the same
    /// plan, and scratch of the plan's sizes that nothing else uses during the call; the block rows must not be
    /// worked on by another call with the same output.
    pub unsafe fn call(&self, entry: Entry, args: &KernelArgs) {
        // SAFETY: the function reads and writes only what `args` describes, which the caller vouches for.
        unsafe { (self.entries[entry.0].1)(args) }
    }

    /// Bytes of machine code of the kernel's own functions.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
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
pub fn disassemble(functions: Vec<Lowered>, isa: &OwnedTargetIsa) -> Result<String> {
    let mut text = String::new();
    let mut context = Context::new();
    for Lowered { name, function } in functions {
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
